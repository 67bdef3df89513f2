"""Date ranges as people type them: `2026`, `2026-11`, `2026-11-24`, `20261124`, `A..B`, `A..`, `..B`. Pure."""

from __future__ import annotations

import calendar
import re
from datetime import date

_DATE = re.compile(r"(\d{4})(?:-?(\d{2})(?:-?(\d{2}))?)?")


def date_range(text: str) -> tuple[str | None, str | None]:
    """First and last day, inclusive, as YYYYMMDD (DICOM's DA); None = open. ValueError says what is accepted."""
    begin, dots, end = text.partition("..")
    if not dots:
        end = begin
    if not (begin or end):
        raise ValueError(_accepted(text))
    first = _days(begin, text)[0] if begin else None
    last = _days(end, text)[1] if end else None
    if first and last and first > last:
        raise ValueError(f"'{text}' ends before it begins")
    return first, last


def _days(part: str, text: str) -> tuple[str, str]:
    """First and last day of a year, month or day."""
    match = _DATE.fullmatch(part)
    if match is None:
        raise ValueError(_accepted(text))
    year, month, day = (int(group) if group else None for group in match.groups())
    assert year is not None
    try:
        first = date(year, month or 1, day or 1)
        last_month = month or 12
        last = date(year, last_month, day or calendar.monthrange(year, last_month)[1])
    except ValueError:
        raise ValueError(_accepted(text)) from None
    return f"{first:%Y%m%d}".rjust(8, "0"), f"{last:%Y%m%d}".rjust(8, "0")


def _accepted(text: str) -> str:
    return f"'{text}' is not a date or range: write 2026-11-24, 2026-11, 2026, or A..B with either end left out"
