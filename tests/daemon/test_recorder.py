"""The journal's writer: nothing is written in front of a journal that is still to come back, and nothing is dropped."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from raidd.array.catalog import Catalog
from raidd.daemon.recorder import Recorder


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    made = Catalog.open(tmp_path / "catalog.sqlite")
    yield made
    made.close()


def written(catalog: Catalog) -> list[tuple[str, str, str]]:
    return [(entry.at, entry.actor, entry.action) for entry in catalog.journal_after(0)]


def clock() -> Iterator[str]:
    return (f"2026-11-24T08:00:0{second}.000Z" for second in count())


def test_entries_are_written_at_once_when_nothing_has_to_come_back(catalog: Catalog) -> None:
    Recorder(catalog, clock().__next__, wait=False).write("anna", "offline", ("x",), {"slot": 1})
    assert written(catalog) == [("2026-11-24T08:00:00.000Z", "anna", "offline")]


def test_what_happens_before_the_journal_is_back_follows_it_in_order_and_with_its_own_time(catalog: Catalog) -> None:
    recorder = Recorder(catalog, clock().__next__, wait=True)
    recorder.write("raidd", "member-away", (), {})
    recorder.write("anna", "offline", (), {})
    assert written(catalog) == []
    recorder.begin()
    recorder.write("bert", "online", (), {})
    assert [one[1:] for one in written(catalog)] == [("raidd", "member-away"), ("anna", "offline"), ("bert", "online")]
    assert [one[0][17:19] for one in written(catalog)] == ["00", "01", "02"]


def test_beginning_twice_writes_nothing_twice(catalog: Catalog) -> None:
    recorder = Recorder(catalog, clock().__next__, wait=True)
    recorder.write("raidd", "member-away", (), {})
    recorder.begin()
    recorder.begin()
    assert len(written(catalog)) == 1
