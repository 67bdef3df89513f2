"""What the demo shows: headings, commands as one would type them, what to look at. Colours on a terminal only."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Final

WIDTH: Final = 100
_COLOURS: Final = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
_STYLES: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "cyan": "36"}


class Failed(Exception):
    """The demo did not come out as it must. Ends it with exit code 1."""


def paint(text: str, style: str) -> str:
    """The text in a style, or as it is where there are no colours."""
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if _COLOURS else text


def say(text: str = "") -> None:
    """One line. Flushed, since commands write to the same place."""
    print(text, flush=True)


def heading(number: int, text: str) -> None:
    rule = "─" * max(3, WIDTH - len(text) - 6)
    say(f"\n{paint(f'── {number}  {text} {rule}', 'bold')}")


def command(words: Sequence[str]) -> None:
    """What is run next, as one would type it."""
    say(f"\n{paint('$', 'dim')} {paint(' '.join(words), 'cyan')}")


def told(text: str) -> None:
    """What happens, and why."""
    for line in textwrap.wrap(text, WIDTH - 2):
        say(f"  {line}")


def look_at(text: str) -> None:
    """Where in the screenful above the point is."""
    lines = textwrap.wrap(text, WIDTH - 10)
    for number, line in enumerate(lines):
        say(paint(f"  {'look at:' if number == 0 else '        '} {line}", "green"))


def good(text: str) -> None:
    say(f"  {paint('✓', 'green')} {paint(text, 'bold')}")


def bad(text: str) -> None:
    for line in text.splitlines():
        print(paint(f"demo: {line}", "red"), file=sys.stderr, flush=True)
