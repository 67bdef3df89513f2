"""Journals of disks that come back: a branch is learned from, kept aside, and written anew; nothing ends for it."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from raidd.array.journal import JournalEntry, day_files, make_entry, read_replica, replicate
from raidd.array.member_disk import MemberDisk
from raidd.array.replicas import restore
from raidd.daemon.opening import now_text
from tests.support.arrays import SmallArray
from tests.support.faulty_disk import Call, FaultyDisk


@pytest.fixture
def array(tmp_path: Path) -> SmallArray:
    """Three images, and a journal of three days on every member."""
    array = SmallArray(tmp_path)
    for number, day in enumerate(("2030-01-01", "2030-01-02", "2030-01-03")):
        array.put({f"1.{number}": bytes([number]) * 1000})
        array.catalog.append_journal(f"{day}T10:00:00.000Z", "test", "note")
    replicate_all(array)
    return array


def replicate_all(array: SmallArray) -> None:
    while array.parts.replicator.replicate_once():
        pass


def branch_off(disk: MemberDisk, count: int = 2) -> list[JournalEntry]:
    """What a machine that is no more wrote to this disk after all that is known here: ``count`` notes."""
    head = read_replica(disk)[-1].head
    entries: list[JournalEntry] = []
    for _ in range(count):
        entries.append(make_entry(head, "2030-01-04T10:00:00.000Z", "another machine", "note"))
        head = entries[-1].head
    replicate(disk, entries)
    return entries


def purge_on(disk: MemberDisk, array: SmallArray, uid: str) -> JournalEntry:
    row = array.row(uid)
    detail = {"segments": [str(part.segment) for part in row.parts], "images": [[uid, row.sha256]]}
    head = read_replica(disk)[-1].head
    entry = make_entry(head, "2030-01-04T10:00:00.000Z", "another machine", "purge", [str(row.image)], detail=detail)
    replicate(disk, [entry])
    return entry


def all_alike(array: SmallArray) -> bool:
    whole = array.catalog.journal_after(0, 10_000)
    return all(read_replica(disk) == whole for disk in array.memory)


def kept_aside(disk: MemberDisk) -> bytes:
    names = [name for name in disk.list("quarantine") if ".jsonl" in name and not name.endswith("reason.txt")]
    return b"".join(disk.read(f"quarantine/{name}") for name in sorted(names))


def test_a_branch_that_returns_is_kept_aside_and_written_anew(array: SmallArray) -> None:
    array.lose(2)
    strays = branch_off(array.memory[2])
    array.put({"2.1": b"meanwhile"})
    replicate_all(array)
    array.bring_back(2)
    replicate_all(array)
    assert all_alike(array)
    assert all(entry.to_line() in kept_aside(array.memory[2]) for entry in strays)


def test_a_branch_that_was_merged_at_a_start_is_written_anew_and_the_next_start_is_quiet(array: SmallArray) -> None:
    array.stop()
    branch_off(array.memory[2], count=1)
    branch_off(array.memory[4], count=3)
    array.start()  # the journals are ahead of the catalog's: it is made again, and both branches are tied in
    replicate_all(array)
    assert all_alike(array)
    array.restart()
    replicate_all(array)
    assert len(list(array.state_dir.glob("*.aside"))) == 1, "the catalog was made again once"
    assert array.read("1.1") == bytes([1]) * 1000


def test_what_only_a_late_disk_says_was_purged_is_purged(array: SmallArray) -> None:
    array.lose(3)
    purge_on(array.memory[3], array, "1.0")
    array.put({"2.1": b"meanwhile"})
    array.bring_back(3)
    replicate_all(array)
    assert array.catalog.versions("1.0") == []
    assert array.read("1.1") == bytes([1]) * 1000
    array.lose_catalog()
    assert array.catalog.versions("1.0") == []
    assert array.read("2.1") == b"meanwhile"


def test_a_replica_that_changes_under_us_is_written_anew(array: SmallArray) -> None:
    branch_off(array.memory[1], count=1)
    array.put({"2.1": b"image"})
    replicate_all(array)
    replicate_all(array)
    assert all_alike(array)
    assert array.membership.member(array.uuid(1)).present  # type: ignore[union-attr]


def test_what_a_crash_leaves_of_a_rewrite_is_gone_on_with(array: SmallArray) -> None:
    """Every step of it, one after the other; the machine dies there."""
    for step in range(1, 200, 2):
        array.lose(2)
        branch_off(array.memory[2])
        array.put({f"3.{step}": b"image"})
        array.bring_back(2)
        array.disk(2).crash(step)
        try:
            replicate_all(array)
            ended = True
        except BaseException:
            ended = False
        array.crash(step)
        replicate_all(array)
        assert all_alike(array)
        if ended:
            return
    raise AssertionError("it never ends")


def test_the_journal_is_read_a_day_at_a_time_and_goes_on_where_one_replica_is_damaged(array: SmallArray) -> None:
    whole = array.catalog.journal_after(0, 1000)
    array.stop()
    ends = [["2030-01-01"], ["2030-01-02"], ["2030-01-03"]]
    for disk, (day,) in zip(array.memory, [*ends, *ends], strict=True):
        path = next(path for path in day_files(disk) if day in path)
        disk.put(path, disk.read(path).replace(b"note", b"nota"))
    for file in array.state_dir.glob("catalog.sqlite*"):
        file.unlink()
    array.start()
    restored = array.catalog.journal_after(0, 1000)
    assert restored[: len(whole)] == whole
    assert [entry.action for entry in restored[len(whole) :]] == ["adopt", "reindex"], "nothing had to be merged"
    assert array.read("1.2") == bytes([2]) * 1000


def test_no_operation_reads_more_than_a_day(array: SmallArray) -> None:
    """A journal of years must not take a healthy disk for a hung one."""
    array.stop()
    for file in array.state_dir.glob("catalog.sqlite*"):
        file.unlink()
    array.start()
    catalog = array.catalog
    reads: dict[UUID, list[int]] = {disk.uuid: [] for disk in array.memory}
    for slot in range(6):
        member = array.membership.member(array.uuid(slot))
        assert member is not None
        submit = member.submit

        def counted(lane, work, member=member, submit=submit):  # type: ignore[no-untyped-def]
            def whole(disk: FaultyDisk, cancel: object) -> object:
                before = [c for c in disk.log if _reads_a_day(c)]
                result = work(disk, cancel)
                after = [c for c in disk.log if _reads_a_day(c)]
                reads[member.uuid].append(len({c.path for c in after[len(before) :]}))
                return result

            return submit(lane, whole)

        member.submit = counted  # type: ignore[method-assign]
    restore(catalog, array.membership.members(), now_text)
    assert max(map(max, reads.values())) == 1


def _reads_a_day(call: Call) -> bool:
    return call.operation == "read" and call.path.startswith("journal/")
