"""The journal and the papers on every member, behind the commits."""

from __future__ import annotations

from pathlib import Path

from raidd.array.journal import read_replica
from raidd.errors import MemberFull
from tests.support.arrays import SmallArray


def test_a_full_member_is_not_tried_again_at_once(tmp_path: Path) -> None:
    array = SmallArray(tmp_path)
    array.put({"1.1": b"image"})
    array.disk(2).fail("append", error=MemberFull("no room"))
    rounds = 0
    while array.parts.replicator.replicate_once():
        rounds += 1
        assert rounds < 10, "it spins"
    array.disk(2).heal()
    array.parts.replicator.replicate_once()
    head = array.catalog.journal_head()
    assert [read_replica(disk)[-1].head for disk in array.memory] == [head] * 6


def test_a_member_that_is_a_page_behind_is_brought_up_to_date_at_once(tmp_path: Path) -> None:
    array = SmallArray(tmp_path, members=2)
    for number in range(1005):
        array.catalog.append_journal("2026-11-24T00:00:00.000Z", "test", "note", (str(number),))
    assert array.parts.replicator.replicate_once()
    while array.parts.replicator.replicate_once():
        pass
    assert all(read_replica(disk)[-1].head == array.catalog.journal_head() for disk in array.memory)
