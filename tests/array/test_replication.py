"""The journal and the papers on every member, behind the commits."""

from __future__ import annotations

from pathlib import Path

import pytest

from raidd.array.journal import read_replica
from raidd.array.roster import RosterEvent, apply
from raidd.errors import MemberFaulty, MemberFull
from tests.support.arrays import SmallArray
from tests.support.memory_disk import MemoryDisk


def test_a_full_member_is_not_tried_again_at_once(tmp_path: Path) -> None:
    array = SmallArray(tmp_path, deadline_s=60.0)
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


# -- the journal --------------------------------------------------------------------------------------------------


def replicate(array: SmallArray) -> None:
    while array.parts.replicator.replicate_once():
        pass


def replicas_are_whole(array: SmallArray) -> bool:
    wanted = array.catalog.journal_after(0, 10_000)
    return all(read_replica(disk) == wanted for disk in array.memory)


def newest_journal(disk: MemoryDisk) -> str:
    return max(name for name in disk.files() if name.startswith("journal/"))


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "a torn line more"])
def test_a_replica_whose_tail_is_damaged_while_raidd_runs_is_healed_and_stops_nothing(
    tmp_path: Path, damage: str
) -> None:
    array = SmallArray(tmp_path, deadline_s=60.0)
    for number in range(4):
        array.put({f"1.{number}": b"image"})
    replicate(array)
    disk, path = array.memory[2], newest_journal(array.memory[2])
    data = disk.read(path)
    if damage == "flipped":
        disk.flip(path, len(data) - 30)
    elif damage == "cut":
        disk.put(path, data[: len(data) * 2 // 3])
    elif damage == "gone":
        disk.unlink(path)
    else:
        disk.put(path, data + b'{"sequence":')
    array.put({"2.1": b"another"})
    for _ in range(3):
        replicate(array)
    assert replicas_are_whole(array)
    member = array.membership.member(array.uuid(2))
    assert member is not None
    assert member.present


def test_a_member_that_fails_leaves_and_the_others_get_theirs(tmp_path: Path) -> None:
    array = SmallArray(tmp_path, deadline_s=60.0)
    array.put({"1.1": b"image"})
    array.disk(1).fail("append", error=MemberFaulty("EIO"))
    replicate(array)
    assert not array.membership.member(array.uuid(1)).present  # type: ignore[union-attr]
    head = array.catalog.journal_head()
    assert [read_replica(disk)[-1].head == head for number, disk in enumerate(array.memory) if number != 1] == [
        True
    ] * 5
    array.disk(1).heal()
    array.bring_back(1)
    replicate(array)
    assert replicas_are_whole(array)


def test_a_member_that_was_away_is_asked_again_where_its_replica_ends(tmp_path: Path) -> None:
    """Its disk was put back from an older image meanwhile."""
    array = SmallArray(tmp_path, deadline_s=60.0)
    array.put({"1.1": b"image"})
    replicate(array)
    old = array.memory[3].files()
    array.put({"1.2": b"image"})
    replicate(array)
    array.lose(3)
    path = newest_journal(array.memory[3])
    array.memory[3].put(path, old[path])
    array.bring_back(3)
    replicate(array)
    assert replicas_are_whole(array)


def test_when_nothing_is_new_nothing_is_written_and_nobody_is_asked(tmp_path: Path) -> None:
    array = SmallArray(tmp_path, deadline_s=60.0)
    array.put({"1.1": b"image"})
    replicate(array)
    for disk in array.disks.values():
        disk.log.clear()
    assert not array.parts.replicator.replicate_once()
    assert [disk.log for disk in array.disks.values()] == [[]] * 6


def test_an_offline_member_is_not_touched(tmp_path: Path) -> None:
    array = SmallArray(tmp_path, deadline_s=60.0)
    array.membership.set_roster(apply(array.membership.roster, array.uuid(4), RosterEvent.OFFLINE))
    array.disk(4).log.clear()
    array.put({"1.1": b"image"})
    replicate(array)
    assert array.disk(4).log == []


# -- the papers ---------------------------------------------------------------------------------------------------


def test_papers_are_written_where_they_are_missing_or_old_and_only_there(tmp_path: Path) -> None:
    array = SmallArray(tmp_path, deadline_s=60.0)
    replicator = array.parts.replicator
    replicator.use({"README.txt": b"who finds this disk", "config/raidd.toml": b"[raidd]"})
    replicate(array)
    assert all(disk.read("README.txt") == b"who finds this disk" for disk in array.memory)
    for disk in array.disks.values():
        disk.log.clear()
    replicator.use({"README.txt": b"who finds this disk", "config/raidd.toml": b"[raidd]\n# changed"})
    replicate(array)
    for disk in array.disks.values():
        assert [call.path for call in disk.log if call.operation == "replace"] == ["config/raidd.toml"]
    assert all(disk.read("config/raidd.toml") == b"[raidd]\n# changed" for disk in array.memory)


def test_a_member_without_room_for_papers_goes_on_serving(tmp_path: Path) -> None:
    array = SmallArray(tmp_path, deadline_s=60.0)
    array.put({"1.1": b"image"})
    array.disk(0).fail("replace", error=MemberFull("ENOSPC"))
    array.parts.replicator.use({"README.txt": b"new"})
    replicate(array)
    assert array.membership.member(array.uuid(0)).present  # type: ignore[union-attr]
    array.disk(0).heal()
    replicate(array)
    assert array.memory[0].read("README.txt") == b"new"
