"""Date ranges as people type them."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raidd.cli.dates import date_range


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("2026-11-24", "20261124", "20261124"),
        ("20261124", "20261124", "20261124"),
        ("2026-02", "20260201", "20260228"),
        ("2024-02", "20240201", "20240229"),
        ("2026", "20260101", "20261231"),
        ("2026-11..", "20261101", None),
        ("..2026-11", None, "20261130"),
        ("2025..2026-03", "20250101", "20260331"),
    ],
)
def test_range_covers_what_was_named(text: str, first: str | None, last: str | None) -> None:
    assert date_range(text) == (first, last)


@pytest.mark.parametrize("text", ["", "..", "yesterday", "2026-13", "2026-02-30", "2026-1", "0000", "2026..2025"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a date or range|before it begins"):
        date_range(text)


@given(st.dates(), st.dates())
def test_any_two_days_in_order_are_a_range(a: date, b: date) -> None:
    first, last = min(a, b), max(a, b)
    assert date_range(f"{first}..{last}") == (str(first).replace("-", ""), str(last).replace("-", ""))
