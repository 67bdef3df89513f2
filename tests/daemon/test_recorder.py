"""What happens before the journal is back is written after it, with its own time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from raidd.array.catalog import Catalog
from raidd.array.journal import GENESIS, make_entry, verify_chain
from raidd.daemon.recorder import Recorder

TIMES = [f"2026-11-24T10:00:0{number}.000Z" for number in range(9)]


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = Catalog.open(tmp_path / "catalog.sqlite", array=uuid4())
    yield catalog
    catalog.close()


def test_nothing_comes_before_what_the_members_tell(catalog: Catalog) -> None:
    clock = iter(TIMES)
    recorder = Recorder(catalog, lambda: next(clock), wait=True)
    recorder.write("raidd", "member-away", ("a",), {"message": "not found"})
    recorder.write("anna", "offline", ("b",), {"slot": 2})
    assert catalog.journal_head() == GENESIS
    old = make_entry(GENESIS, "2025-01-01T00:00:00.000Z", "raidd", "init")
    catalog.restore_journal([old])
    recorder.begin()
    recorder.write("raidd", "member-back", ("a",), {})
    entries = catalog.journal_after(0)
    assert [entry.action for entry in entries] == ["init", "member-away", "offline", "member-back"]
    assert [entry.at for entry in entries[1:]] == TIMES[:3]
    assert verify_chain(entries) == catalog.journal_head()


def test_with_a_journal_at_hand_it_is_written_at_once(catalog: Catalog) -> None:
    recorder = Recorder(catalog, lambda: TIMES[0], wait=False)
    recorder.write("raidd", "member-away", ("a",), {})
    recorder.begin()
    assert [entry.action for entry in catalog.journal_after(0)] == ["member-away"]
