"""What a settings key accepts: one small rule a kind of value, each with the words that an error shows.

A rule turns the value that TOML gave into the value that the program uses, or raises `Unaccepted`. Rules are
pure and know nothing of keys, files or each other; `config.py` hangs one on every field.
"""

from __future__ import annotations

import ipaddress
import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import time
from pathlib import Path
from typing import Any

WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_NOT_ON_A_LINE = ("Cc", "Cs", "Zl", "Zp")  # control characters, lone surrogates, line separators


class Unaccepted(ValueError):
    """The value is of the wrong type, out of range, or not one of the words. Never leaves `config.py`."""


@dataclass(frozen=True, slots=True)
class Rule:
    """``accepted`` completes "must be …"; ``read`` gives the value used, or raises `Unaccepted`."""

    accepted: str
    read: Callable[[Any], Any]


def _when(accepted: str, good: Callable[[Any], bool], convert: Callable[[Any], Any] = lambda value: value) -> Rule:
    def read(value: Any) -> Any:
        if not good(value):
            raise Unaccepted(accepted)
        return convert(value)

    return Rule(accepted, read)


def _is_number(value: Any, *kinds: type[int] | type[float]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


def integer(low: int, high: int) -> Rule:
    return _when(f"a whole number from {low} to {high}", lambda v: _is_number(v, int) and low <= v <= high)


def number(low: float, high: float) -> Rule:
    accepted = f"a number from {low:g} to {high:g}"
    return _when(accepted, lambda v: _is_number(v, int, float) and low <= v <= high, float)


def flag() -> Rule:
    return _when("true or false", lambda v: isinstance(v, bool))


def text() -> Rule:
    return _when("a text on one line, in quotes", _is_line)


def word(*words: str) -> Rule:
    return _when("one of " + ", ".join(f'"{w}"' for w in words), lambda v: isinstance(v, str) and v in words)


def folder() -> Rule:
    return _when('an absolute path, such as "/srv/raidd"', _is_path, lambda v: Path(v))


def file_or_none() -> Rule:
    return _when('an absolute path, or "" for none', lambda v: v == "" or _is_path(v), lambda v: Path(v) if v else None)


def texts() -> Rule:
    return _list_of("a list of texts", _is_line)


def urls() -> Rule:
    return _list_of('a list of URLs, such as ["ntfys://topic"]', lambda v: _is_line(v) and "://" in v)


def addresses() -> Rule:
    return _list_of('a list of mail addresses, such as ["owner@clinic.example"]', _is_address)


def addresses_or_urls() -> Rule:
    return _list_of("a list of mail addresses or URLs", lambda v: _is_address(v) or (_is_line(v) and "://" in v))


def address_or_none() -> Rule:
    return _when('a mail address, such as "raidd@clinic.example"', lambda v: v == "" or _is_address(v))


def web_url_or_none() -> Rule:
    pattern = re.compile(r"https?://\S+")
    return _when(
        'a URL that begins with http:// or https://, or ""',
        lambda v: isinstance(v, str) and (v == "" or pattern.fullmatch(v) is not None),
    )


def window_or_none() -> Rule:
    return _when('two times of day, such as "20:00-06:00", or ""', lambda v: v == "" or _window(v) is not None)


def weekly_or_none() -> Rule:
    accepted = f'a weekday ({", ".join(WEEKDAYS)}) and a time of day, such as "Mon 08:00", or ""'
    return _when(accepted, lambda v: v == "" or _is_weekly(v))


def listen() -> Rule:
    return _when('an IP address and a port, such as "127.0.0.1:9850" (port 0: any free one)', _is_listen)


def parse_window(value: str) -> tuple[time, time] | None:
    """Begin and end of an accepted window, local time; it spans midnight when the end is the earlier. "" is None."""
    return _window(value) if value else None


def _list_of(accepted: str, good: Callable[[Any], bool]) -> Rule:
    return _when(accepted, lambda v: isinstance(v, list) and all(good(item) for item in v), tuple)


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and not any(unicodedata.category(c) in _NOT_ON_A_LINE for c in value)


def _is_path(value: Any) -> bool:
    return _is_line(value) and Path(value).is_absolute() and Path(value).name != "" and ".." not in Path(value).parts


def _is_address(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[^\s@,;<>]+@[^\s@,;<>]+", value) is not None


def _time(value: str) -> time | None:
    match = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)", value)
    return time(int(match[1]), int(match[2])) if match else None


def _window(value: Any) -> tuple[time, time] | None:
    begin, dash, end = value.partition("-") if isinstance(value, str) else ("", "", "")
    first, last = _time(begin.strip()), _time(end.strip())
    return (first, last) if dash and first and last and first != last else None


def _is_weekly(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    day, _, clock = value.partition(" ")
    return day in WEEKDAYS and _time(clock) is not None


def _is_listen(value: Any) -> bool:
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not colon or not re.fullmatch(r"\d{1,5}", port) or int(port) > 65535:
        return False
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]") if host != "localhost" else "127.0.0.1")
    except ValueError:
        return False
    return True
