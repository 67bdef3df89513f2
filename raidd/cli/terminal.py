"""What depends on standing before a terminal: colours, progress bars, questions. None of it in a pipe or a script.

Results go to standard output, everything else to standard error, so that a pipe carries only what was asked for.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from raidd.api import Reply
from raidd.cli.wording import clean

BAR_AFTER_S: Final = 1.0  # what is over sooner needs no bar


class Misuse(typer.BadParameter):
    """The command line contradicts itself in a way that its grammar does not show."""

    def format_message(self) -> str:
        return self.message


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would end the process with 1, which is a refusal; main.py knows better."""
        raise BrokenPipeError


def console(stream: TextIO) -> Console:
    """Colours on a terminal only, and none with NO_COLOR (no-color.org), where Rich alone would keep bold and dim."""
    return _Console(
        file=stream,
        force_terminal=stream.isatty(),
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        highlight=False,
        markup=False,
        emoji=False,
    )


def show(text: Text | str) -> None:
    """A result. Lines are never folded here: the terminal does that, a pipe gets them whole."""
    console(sys.stdout).print(text, soft_wrap=True)


def remark(text: Text | str) -> None:
    """Something for the person, not for the pipe."""
    console(sys.stderr).print(text, soft_wrap=True)


def show_json(value: Reply | Sequence[Reply] | Any, *, lines: bool = False) -> None:
    """Indented, or a line an answer where one answer follows another."""
    if isinstance(value, Reply):
        value = value.model_dump(mode="json")
    elif isinstance(value, (list, tuple)):
        value = [item.model_dump(mode="json") if isinstance(item, Reply) else item for item in value]
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=None if lines else 2) + "\n")
    sys.stdout.flush()


def show_error(message: str, next_step: str) -> None:
    """What every command ends with when it fails: what happened, and what to do about it."""
    out = console(sys.stderr)
    for line in message.splitlines() or [""]:
        out.print(Text.assemble(("raidctl: ", "red"), clean(line)), soft_wrap=True)
    out.print(Text.assemble(("next: ", "bold"), clean(next_step)), soft_wrap=True)


def confirmed(question: str) -> bool:
    """Asks on a terminal; a script has decided already."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    return typer.confirm(question, default=False, err=True)


class Bar:
    """A progress bar on standard error that appears when the work takes longer than `BAR_AFTER_S`.

    ``total`` may stay None while it is not known. Only one at a time.
    """

    def __init__(self, label: str, total: float | None = None) -> None:
        self._label, self._total = label, total
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Bar:
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def at(self, done: float, total: float | None = None, label: str = "") -> None:
        """Show how far it has come."""
        self._label = clean(label) or self._label
        self._total = self._total if total is None else total
        if self._progress is None:
            if not sys.stderr.isatty() or time.monotonic() - self._began < BAR_AFTER_S:
                return
            self._start()
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=self._total, description=self._label)

    def _start(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console(sys.stderr),
            transient=True,
        )
        self._task = self._progress.add_task(self._label, total=self._total)
        self._progress.start()
