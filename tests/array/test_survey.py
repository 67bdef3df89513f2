"""What members hold of a segment: verdicts, agreement, and which group is the segment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raidd.array.members import Member
from raidd.array.survey import (
    Found,
    Verdict,
    all_shard_names,
    bad_blocks,
    day_folders,
    groups,
    inspect,
    inspect_all,
    read_prefix,
    shard_names,
    sweep,
    winner,
)
from raidd.codec.geometry import BLOCK_SIZE, Geometry
from raidd.codec.shard import day_folder, parse_prefix, shard_path
from raidd.errors import MemberFaulty, MemberFull, RaiddError
from tests.support.faulty_disk import FaultyDisk
from tests.support.member_folders import rewritten
from tests.support.memory_disk import MemoryDisk
from tests.support.sample_segment import SampleSegment, member_ids, payload_bytes, sample_segment, segment_id

SEGMENT = sample_segment(Geometry(2, 2), [payload_bytes(5 * BLOCK_SIZE)])
"""Two data shards of three blocks, the last of them short."""
ID = SEGMENT.manifest.segment


def holding(*shards: tuple[SampleSegment, int], uuid: UUID | None = None) -> MemoryDisk:
    disk = MemoryDisk(uuid)
    for segment, index in shards:
        disk.put(shard_path(segment.manifest.segment, index), segment.file(index))
    return disk


def verdict(disk: MemoryDisk, index: int = 0, *, whole: bool = True) -> Verdict:
    return inspect(disk, ID, index, whole=whole).verdict


# -- one shard ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(4))
def test_a_whole_shard_is_good(index: int) -> None:
    found = inspect(holding((SEGMENT, index)), ID, index, whole=True)
    assert (found.verdict, found.bad_blocks) == (Verdict.GOOD, frozenset())
    assert found.prefix is not None
    assert found.prefix.manifest() == parse_prefix(SEGMENT.file(0)).manifest()


def test_a_damaged_block_makes_it_torn_only_for_who_reads_the_body() -> None:
    disk = holding((SEGMENT, 0))
    head = parse_prefix(SEGMENT.file(0)).head
    disk.flip(shard_path(ID, 0), head.body_offset + BLOCK_SIZE)
    assert verdict(disk, whole=False) == Verdict.GOOD
    found = inspect(disk, ID, 0, whole=True)
    assert (found.verdict, found.bad_blocks) == (Verdict.TORN, frozenset({1}))


@settings(max_examples=40, deadline=None)
@given(length=st.integers(0, len(SEGMENT.file(0))))
def test_a_shard_cut_anywhere_has_just_the_blocks_before_the_cut(length: int) -> None:
    disk = MemoryDisk()
    disk.put(shard_path(ID, 0), SEGMENT.file(0)[:length])
    head = parse_prefix(SEGMENT.file(0)).head
    found = inspect(disk, ID, 0, whole=False)
    if length == head.file_length:
        assert found.verdict == Verdict.GOOD
    elif length < head.body_offset:
        assert found.verdict == Verdict.DAMAGED
    else:
        whole = (length - head.body_offset) // BLOCK_SIZE
        assert (found.verdict, found.bad_blocks) == (Verdict.TORN, frozenset(range(whole, head.block_count)))


def test_a_shard_with_something_behind_it_is_damaged() -> None:
    disk = MemoryDisk()
    disk.put(shard_path(ID, 0), SEGMENT.file(0) + b"x")
    assert verdict(disk, whole=False) == Verdict.DAMAGED


@pytest.mark.parametrize("offset", [0, 20, 125, 130, 200])
def test_a_damaged_head_table_or_manifest_is_damaged(offset: int) -> None:
    disk = holding((SEGMENT, 0))
    disk.flip(shard_path(ID, 0), offset)
    assert verdict(disk) == Verdict.DAMAGED


def test_a_shard_under_anothers_name_is_damaged() -> None:
    disk = MemoryDisk()
    disk.put(shard_path(ID, 1), SEGMENT.file(0))
    assert verdict(disk, 1) == Verdict.DAMAGED
    other = segment_id(2)
    disk.put(shard_path(other, 0), SEGMENT.file(0))
    assert inspect(disk, other, 0, whole=True).verdict == Verdict.DAMAGED


def test_an_empty_file_is_damaged() -> None:
    disk = MemoryDisk()
    disk.put(shard_path(ID, 0), b"")
    assert verdict(disk) == Verdict.DAMAGED


def test_a_manifest_longer_than_the_first_read_is_read_whole() -> None:
    many = sample_segment(Geometry(1, 1), [payload_bytes(40, str(n)) for n in range(600)])
    disk = holding((many, 0))
    prefix = read_prefix(disk, shard_path(many.manifest.segment, 0))
    assert prefix.head.body_offset > 16384
    assert len(prefix.manifest().images) == 600


def test_bad_blocks_are_found_over_more_than_one_read() -> None:
    """A shard of 66 blocks is read in two steps."""
    large = sample_segment(Geometry(1, 1), [payload_bytes(65 * BLOCK_SIZE + 1)])
    disk = holding((large, 0))
    prefix = parse_prefix(large.file(0))
    for block in (0, 63, 64, 65):
        disk.flip(shard_path(large.manifest.segment, 0), prefix.head.body_offset + block * BLOCK_SIZE)
    assert bad_blocks(disk, shard_path(large.manifest.segment, 0), prefix) == {0, 63, 64, 65}


# -- names -------------------------------------------------------------------------------------------------------


def test_only_well_formed_names_are_shards() -> None:
    disk = holding((SEGMENT, 0), (SEGMENT, 3))
    folder = day_folder(ID)
    for name in (
        "notes.txt",
        f"{ID}-1.shard",
        f"{ID}-99.shard",
        f"{str(ID).upper()}-01.shard",
        f"{segment_id(9, 1)}-00.shard",
    ):
        disk.put(f"{folder}/{name}", b"x")
    assert shard_names(disk, [folder, "segments/1999/01/01"]) == [(ID, 0), (ID, 3)]


def test_day_folders_come_oldest_first_and_files_among_them_are_nothing() -> None:
    disk = MemoryDisk()
    for folder in ("2026/11/24", "2025/01/02", "2026/02/03"):
        disk.make_folders(f"segments/{folder}")
    disk.put("segments/2026/stray", b"x")
    assert day_folders(disk) == ["segments/2025/01/02", "segments/2026/02/03", "segments/2026/11/24"]


def test_a_sweep_leaves_folders_and_everything_outside_tmp() -> None:
    disk = holding((SEGMENT, 0))
    disk.make_folders("tmp/folder")
    disk.put("tmp/x.shard", b"torn")
    before = set(disk.files()) - {"tmp/x.shard"}
    sweep(disk)
    assert set(disk.files()) == before


# -- several members ---------------------------------------------------------------------------------------------


def member(disk: MemoryDisk | FaultyDisk, *, present: bool = True) -> Member:
    return Member(disk, deadline_s=60.0, clock=time.monotonic, present=present, reason="" if present else "away")


def test_all_are_looked_at_and_what_does_not_answer_is_called_so() -> None:
    ids = member_ids(6)
    disks = [FaultyDisk(holding((SEGMENT, index % 4), uuid=ids[index])) for index in range(6)]
    disks[1].fail("read", error=MemberFaulty("EIO"))
    disks[2].fail("read", error=RaiddError("EMFILE"))
    disks[4].inner.unlink(shard_path(ID, 0))
    members = {disk.uuid: member(disk, present=number != 5) for number, disk in enumerate(disks)}
    names = {uuid: [(ID, number % 4)] for number, uuid in enumerate(members)}
    found = {one.member: one.verdict for one in inspect_all(names, members, whole=True)[ID]}
    expected = [Verdict.GOOD, Verdict.UNREACHABLE, Verdict.UNREACHABLE, Verdict.GOOD, None, Verdict.UNREACHABLE]
    assert [found.get(disk.uuid) for disk in disks] == expected
    assert [members[disk.uuid].present for disk in disks] == [True, False, True, True, True, False]
    for one in members.values():
        one.close()


def test_names_are_listed_a_folder_an_operation_so_that_a_full_disk_is_not_taken_for_a_hung_one() -> None:
    old = segment_id(7, 1_700_000_000_000)
    disk = FaultyDisk(holding((SEGMENT, 0)))
    disk.inner.replace(shard_path(old, 1), b"")
    one = member(disk)
    assert list(all_shard_names(one)) == [(old, 1), (ID, 0)]
    one.close()


# -- agreement ---------------------------------------------------------------------------------------------------


def found(segment: SampleSegment, indexes: Sequence[int], *, member_offset: int = 0, **changes: object) -> list[Found]:
    ids = member_ids(8)
    prefixes = {index: parse_prefix(segment.file(index)) for index in indexes}
    return [
        Found(ID, index, ids[index + member_offset], **{"verdict": Verdict.GOOD, "prefix": prefixes[index]} | changes)  # type: ignore[arg-type]
        for index in indexes
    ]


OTHER = rewritten(SEGMENT, written_at="2020-01-01T00:00:00.000Z")


def test_k_that_agree_are_the_segment_and_fewer_are_not() -> None:
    assert winner(groups(found(SEGMENT, [1, 3])), found(SEGMENT, [1, 3])) is not None
    assert winner(groups(found(SEGMENT, [1])), found(SEGMENT, [1])) is None


def test_shards_of_two_manifests_do_not_add_up() -> None:
    both = found(SEGMENT, [0]) + found(OTHER, [1])
    assert [group.exists for group in groups(both)] == [False, False]
    assert winner(groups(both), both) is None


def test_the_group_with_k_wins_over_one_with_fewer() -> None:
    both = found(SEGMENT, [0, 1]) + found(OTHER, [3])
    chosen = winner(groups(both), both)
    assert chosen is not None
    assert set(chosen.holders) == {0, 1}


def test_of_two_with_k_the_one_whose_tables_are_its_manifests_wins() -> None:
    forged = rewritten(SEGMENT, written_at="2020-01-01T00:00:00.000Z")
    prefix = parse_prefix(forged.file(2))
    broken = [
        Found(
            ID,
            index,
            member_ids(8)[index],
            Verdict.GOOD,
            type(prefix)(prefix.head, b"\0" * len(prefix.table), prefix.manifest_packed),
        )
        for index in (2, 3)
    ]
    both = found(SEGMENT, [0, 1]) + broken
    chosen = winner(groups(both), both)
    assert chosen is not None
    assert set(chosen.holders) == {0, 1}


def test_of_two_that_are_equally_good_neither_is_served() -> None:
    both = found(SEGMENT, [0, 1]) + found(OTHER, [2, 3])
    assert [group.exists for group in groups(both)] == [True, True]
    assert winner(groups(both), both) is None


def test_of_two_copies_of_a_shard_the_one_where_the_manifest_meant_it_is_taken() -> None:
    here, elsewhere = found(SEGMENT, [0]), found(SEGMENT, [0], member_offset=5)
    for order in (here + elsewhere, elsewhere + here):
        (group,) = groups([*order, *found(SEGMENT, [1])])
        assert group.holders[0] == SEGMENT.manifest.members[0]


@pytest.mark.parametrize(
    ("bad", "exists"),
    [([{0}, {1}, {2}], True), ([{0}, {0}, {2}], False), ([{0}, {0}], False), ([{0}, {1}], False), ([set()], False)],
)
def test_torn_shards_count_block_by_block(bad: list[set[int]], exists: bool) -> None:
    """Of each block two good ones are needed."""
    torn = [
        one
        for index, blocks in enumerate(bad)
        for one in found(SEGMENT, [index], verdict=Verdict.TORN, bad_blocks=frozenset(blocks))
    ]
    (group,) = groups(torn)
    assert group.exists is exists


def test_a_whole_and_a_torn_one_are_not_enough_where_the_torn_one_is_bad() -> None:
    torn = found(SEGMENT, [1], verdict=Verdict.TORN, bad_blocks=frozenset({2}))
    (group,) = groups(found(SEGMENT, [0]) + torn)
    assert not group.exists


def test_damaged_and_unreachable_ones_count_for_nothing() -> None:
    useless = [
        Found(ID, index, member_ids(8)[index], what)
        for index, what in enumerate((Verdict.DAMAGED, Verdict.UNREACHABLE, Verdict.UNSUPPORTED))
    ]
    assert groups(useless) == []


def test_a_full_disk_can_be_looked_at() -> None:
    disk = FaultyDisk(holding((SEGMENT, 0)))
    for operation in ("create", "replace", "append"):
        disk.fail(operation, error=MemberFull("ENOSPC"))
    assert inspect(disk, ID, 0, whole=True).verdict == Verdict.GOOD
