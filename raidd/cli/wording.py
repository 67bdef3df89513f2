"""Numbers, sizes, times and foreign text as an operator reads them. Pure: the present and the time zone are given.

Whatever comes out of an image (a patient's name can hold anything) passes `clean` before it reaches a terminal.
"""

from __future__ import annotations

import unicodedata
from datetime import datetime, tzinfo

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Controls move the cursor or worse; bidi overrides make a line read as what it is not (Unicode TR 36, 2.3.2).
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")


def clean(text: str) -> str:
    """`text` on one line, with what could steer a terminal replaced by U+FFFD."""
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _BIDI else c for c in text)


def count(number: int, singular: str, plural: str = "") -> str:
    """1 -> "1 image", 148203 -> "148,203 images"."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def in_words(number: int) -> str:
    return _NUMBERS[number] if 0 <= number < len(_NUMBERS) else str(number)


def size(size_bytes: int) -> str:
    """2089072092774 -> "1.9 TiB"."""
    value, unit = _scaled(size_bytes)
    return f"{value} {unit}iB" if unit else f"{size_bytes} B"


def short_size(size_bytes: int | None) -> str:
    """As in a narrow column: "7.3T"; unknown is "–"."""
    if size_bytes is None:
        return "–"
    value, unit = _scaled(size_bytes)
    return f"{value}{unit or 'B'}"


def _scaled(size_bytes: int) -> tuple[str, str]:
    value, unit = float(size_bytes), ""
    for larger in "KMGTPE":
        if value < 1000:  # four digits are harder to read than "1.0" of the next unit
            break
        value, unit = value / 1024, larger
    return (f"{value:.1f}" if unit and value < 99.95 else f"{value:.0f}"), unit


def percent(part: float, whole: float = 1.0) -> str:
    """Rounded down: nothing is "100 %" before it is."""
    return f"{int(100 * part / whole)} %" if whole else "–"


def about(number: int) -> str:
    """Two digits are all that a forecast is good for: 61234 -> "61,000"."""
    digits = len(str(number))
    return f"{round(number, 2 - digits):,}" if digits > 2 else str(number)


def duration(seconds: float) -> str:
    """The largest unit that says enough: "12 s", "18 min", "5 h", "3 days"."""
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    if seconds < 48 * 3600:
        return f"{round(seconds / 3600)} h"
    return f"{round(seconds / 86400)} days"


def since(at: str, now: datetime, zone: tzinfo | None) -> str:
    """A past moment, as short as it is clear: "14:02" today, "22 Nov 14:02" this year, else with the year."""
    moment = moment_of(at)
    if moment is None:
        return clean(at)
    local, today = moment.astimezone(zone), now.astimezone(zone)
    if local.date() == today.date():
        return f"{local:%H:%M}"
    return f"{local.day} {local:%b %H:%M}" if local.year == today.year else f"{local.day} {local:%b %Y %H:%M}"


def ago(at: str, now: datetime) -> str:
    """How long since: "12 s ago"; a clock that was set back gives "just now"."""
    moment = moment_of(at)
    if moment is None:
        return clean(at)
    seconds = (now - moment).total_seconds()
    return f"{duration(seconds)} ago" if seconds >= 1 else "just now"


def month(date: str) -> str:
    """ "2027-03-14" -> "March 2027"."""
    moment = moment_of(date)
    return f"{moment:%B %Y}" if moment else clean(date)


def moment_of(at: str) -> datetime | None:
    """An RFC 3339 time, or None where it is not one."""
    try:
        return datetime.fromisoformat(at)
    except ValueError:
        return None
