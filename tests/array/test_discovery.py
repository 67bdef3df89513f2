"""Finding members on real folders: what a label says, what a good shard proves, and places that do not answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from crc32c import crc32c

from raidd.array import discovery
from raidd.array.discovery import array_of_newest_shard, discover, each_in_time, look, look_at, newest_segment
from raidd.array.label import label_for
from raidd.array.roster import MemberState, Roster, RosterEntry, canonical_json, new_roster
from raidd.codec.geometry import Geometry, Level
from raidd.codec.shard import shard_path
from raidd.errors import MemberAway, MemberFaulty, RaiddError
from tests.support.faulty_disk import FaultyDisk
from tests.support.memory_disk import MemoryDisk
from tests.support.sample_segment import ARRAY, payload_bytes, sample_segment, segment_id

MEMBERS = [uuid4() for _ in range(3)]
SHARD = sample_segment(Geometry(2, 1), [payload_bytes(9000)], number=3)
A_WHILE_S = 60.0


def roster(array: UUID = ARRAY) -> Roster:
    entries = [RosterEntry(member, None, MemberState.SPARE) for member in MEMBERS]
    return new_roster(array, "clinic", Level("raid5"), Geometry(2, 1), entries)


LABEL = label_for(MEMBERS[0], roster()).pack()
DAMAGED = LABEL.replace(b"clinic", b"clonic")


def member_folder(mount: Path, member: UUID, label: bytes | None, *, shard: bytes | None = None) -> Path:
    folder = mount / f"raidd-{member}"
    (folder / "segments").mkdir(parents=True)
    if label is not None:
        (folder / "label.json").write_bytes(label)
    if shard is not None:
        path = folder / shard_path(SHARD.manifest.segment, 0)
        path.parent.mkdir(parents=True)
        path.write_bytes(shard)
    return folder


def changed(**keys: object) -> bytes:
    """The label with other keys, its checksum right."""
    document = {**json.loads(LABEL), **keys}
    del document["crc32c"]
    return canonical_json({**document, "crc32c": f"{crc32c(canonical_json(document)):08x}"})


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(folder)): (p.lstat().st_mtime_ns, p.lstat().st_size) for p in folder.rglob("*")}


# -- one folder --------------------------------------------------------------------------------------------------


def test_a_good_label_is_read(tmp_path: Path) -> None:
    member_folder(tmp_path, MEMBERS[0], LABEL)
    seen = look(str(tmp_path), MEMBERS[0])
    assert seen.label is not None
    assert (seen.label.member, seen.label.roster, seen.array, seen.fault) == (MEMBERS[0], roster(), ARRAY, "")


@pytest.mark.parametrize("label", [DAMAGED, LABEL[:100], b"", None], ids=["flipped", "half", "empty", "gone"])
def test_a_damaged_label_beside_a_good_shard_proves_the_array(tmp_path: Path, label: bytes | None) -> None:
    member_folder(tmp_path, MEMBERS[0], label, shard=SHARD.file(0))
    seen = look(str(tmp_path), MEMBERS[0])
    assert (seen.label, seen.understood, seen.proved, seen.array) == (None, True, ARRAY, ARRAY)
    assert seen.fault


@pytest.mark.parametrize("shard", [None, b"not a shard", SHARD.file(0)[:300]])
def test_a_damaged_label_beside_nothing_good_proves_nothing(tmp_path: Path, shard: bytes | None) -> None:
    member_folder(tmp_path, MEMBERS[0], DAMAGED, shard=shard)
    seen = look(str(tmp_path), MEMBERS[0])
    assert (seen.label, seen.array) == (None, None)


@pytest.mark.parametrize("label", [changed(requires=["new-code"]), changed(format="2.0")])
def test_a_label_that_is_not_understood_is_no_damaged_one(tmp_path: Path, label: bytes) -> None:
    member_folder(tmp_path, MEMBERS[0], label, shard=SHARD.file(0))
    seen = look(str(tmp_path), MEMBERS[0])
    assert (seen.label, seen.understood, seen.array) == (None, False, None)


def test_a_label_in_anothers_folder_is_not_believed(tmp_path: Path) -> None:
    member_folder(tmp_path, MEMBERS[1], LABEL, shard=SHARD.file(0))
    seen = look(str(tmp_path), MEMBERS[1])
    assert (seen.label, seen.understood) == (None, False)
    assert str(MEMBERS[0]) in seen.fault


def test_a_member_folder_that_is_not_there_is_away(tmp_path: Path) -> None:
    with pytest.raises(MemberAway):
        look(str(tmp_path), MEMBERS[0])


def test_looking_changes_nothing(tmp_path: Path) -> None:
    member_folder(tmp_path, MEMBERS[0], DAMAGED, shard=SHARD.file(0))
    before = everything(tmp_path)
    look(str(tmp_path), MEMBERS[0])
    discover([], A_WHILE_S, [str(tmp_path)])
    assert everything(tmp_path) == before


# -- shards ------------------------------------------------------------------------------------------------------


def test_the_newest_shard_that_can_be_read_says_which_array_it_is() -> None:
    disk = FaultyDisk(MemoryDisk())
    disk.inner.replace(shard_path(SHARD.manifest.segment, 1), SHARD.file(1))
    for number, data in ((7, b"damaged"), (8, SHARD.file(0)[:200])):
        disk.inner.replace(shard_path(segment_id(number, 1_999_999_999_999), 0), data)
    disk.fail("read", f"*{segment_id(8, 1_999_999_999_999)}*", error=MemberFaulty("EIO"))
    assert array_of_newest_shard(disk) == ARRAY


def test_a_disk_without_shards_belongs_to_nobody_and_has_no_newest() -> None:
    disk = MemoryDisk()
    assert array_of_newest_shard(disk) is None
    assert newest_segment(disk) is None


def test_the_newest_segment_is_the_highest_id_in_the_last_folder_that_has_one() -> None:
    disk = MemoryDisk()
    old, new = segment_id(900, 1_700_000_000_000), segment_id(1, 1_800_000_000_000)
    for segment in (old, new, segment_id(0, 1_800_000_000_000)):
        disk.put(shard_path(segment, 0), b"")
    disk.make_folders("segments/2090/01/01")
    disk.put("segments/2089/01/01/notes.txt", b"")
    assert newest_segment(disk) == new


def test_a_label_that_cannot_be_read_for_an_io_error_is_proved_by_a_shard() -> None:
    disk = FaultyDisk(MemoryDisk(MEMBERS[0]))
    disk.inner.replace("label.json", LABEL)
    disk.inner.replace(shard_path(SHARD.manifest.segment, 0), SHARD.file(0))
    disk.fail("read", "label.json", error=MemberFaulty("EIO"))
    assert look_at(disk).proved == ARRAY


# -- everywhere --------------------------------------------------------------------------------------------------


def test_members_are_found_on_mounts_and_where_they_were_each_once(tmp_path: Path) -> None:
    for number, member in enumerate(MEMBERS):
        member_folder(tmp_path / str(number), member, label_for(member, roster()).pack())
    remembered = [(str(tmp_path / "0"), MEMBERS[0]), (str(tmp_path / "gone"), uuid4())]
    mounts = [str(tmp_path / "0"), str(tmp_path / "1"), str(tmp_path / "2"), str(tmp_path / "not-there")]
    seen = discover(remembered, A_WHILE_S, mounts)
    assert sorted(s.uuid for s in seen) == sorted(MEMBERS)
    assert {s.uuid: s.path for s in seen} == {m: str(tmp_path / str(n)) for n, m in enumerate(MEMBERS)}


def test_a_member_that_is_only_remembered_is_found(tmp_path: Path) -> None:
    member_folder(tmp_path, MEMBERS[0], LABEL)
    assert [s.uuid for s in discover([(str(tmp_path), MEMBERS[0])], A_WHILE_S, [])] == [MEMBERS[0]]


def test_the_members_of_all_arrays_are_told_apart_by_who_asks(tmp_path: Path) -> None:
    stranger = uuid4()
    member_folder(tmp_path, MEMBERS[0], LABEL)
    entries = [RosterEntry(uuid, None, MemberState.SPARE) for uuid in (stranger, uuid4())]
    other = new_roster(uuid4(), "other", Level("mirror"), Geometry(1, 1), entries)
    member_folder(tmp_path, stranger, label_for(stranger, other).pack())
    arrays = {s.uuid: s.array for s in discover([], A_WHILE_S, [str(tmp_path)])}
    assert arrays == {MEMBERS[0]: ARRAY, stranger: other.array}


def test_a_mount_that_hangs_costs_the_others_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (0, 1):
        member_folder(tmp_path / str(number), MEMBERS[number], label_for(MEMBERS[number], roster()).pack())
    go = threading.Event()
    find = discovery.find_member_folders

    def hang(folders: list[str]) -> list[tuple[str, UUID]]:
        if folders == [str(tmp_path / "0")]:
            go.wait(A_WHILE_S)
        return find(folders)

    monkeypatch.setattr(discovery, "find_member_folders", hang)
    try:
        seen = discover([], 0.3, [str(tmp_path / "0"), str(tmp_path / "1")])
    finally:
        go.set()
    assert [s.uuid for s in seen] == [MEMBERS[1]]


# -- side by side ------------------------------------------------------------------------------------------------


def _fails(error: Exception) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


def test_answers_come_in_the_order_asked_and_failures_are_none() -> None:
    works: list[Callable[[], int]] = [lambda n=n: n for n in range(20)]  # type: ignore[misc]
    works[3], works[7] = _fails(MemberFaulty("EIO")), _fails(RaiddError("EMFILE"))
    expected = [None if n in (3, 7) else n for n in range(20)]
    assert each_in_time(works, A_WHILE_S) == expected


def test_who_is_late_is_left_behind() -> None:
    go = threading.Event()
    try:
        assert each_in_time([lambda: go.wait(A_WHILE_S), lambda: True], 0.2) == [None, True]
    finally:
        go.set()


def test_nobody_to_ask_is_no_wait() -> None:
    assert each_in_time([], A_WHILE_S) == []


def test_a_bug_is_not_taken_for_a_disk_that_fails() -> None:
    with pytest.raises(ZeroDivisionError):
        each_in_time([_fails(ZeroDivisionError())], A_WHILE_S)
