"""Which heads are believed, what is reported of the others, and that each bad block is counted once."""

from __future__ import annotations

import struct
from typing import cast
from uuid import UUID

import pytest
from crc32c import crc32c

from raidd.array import heads as module
from raidd.array.catalog import SegmentRow
from raidd.array.heads import HEAD, Heads
from raidd.array.membership import Membership
from raidd.array.placement import Placement
from raidd.codec.geometry import Geometry
from raidd.codec.shard import Prefix, parse_prefix
from tests.support.member_folders import rewritten
from tests.support.sample_segment import WRITTEN_AT, SampleSegment, payload_bytes, sample_segment

SEGMENT = sample_segment(Geometry(2, 2), [payload_bytes(9000)])
OTHER = rewritten(SEGMENT, written_at="2020-01-01T00:00:00.000Z")


class FakeMember:
    def __init__(self) -> None:
        self.errors = 0

    def count_error(self, _message: str, count: int) -> None:
        self.errors += count


class Fleet:
    """As much of a membership as is asked."""

    def __init__(self) -> None:
        self.members = {uuid: FakeMember() for uuid in SEGMENT.manifest.members}

    def member(self, uuid: UUID) -> FakeMember | None:
        return self.members.get(uuid)


def row_of(segment: SampleSegment = SEGMENT, **changes: object) -> SegmentRow:
    manifest = segment.manifest
    fields = {
        "segment": manifest.segment,
        "placement": Placement(manifest.geometry, manifest.members),
        "payload_length": manifest.payload_length,
        "body_offset": len(segment.shards[0].prefix),
        "block_size": 65536,
        "written_at": WRITTEN_AT,
        "journal_sequence": 1,
        "replaces": (),
    }
    return SegmentRow(**fields | changes)  # type: ignore[arg-type]


ROW = row_of()


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
def reported() -> list[tuple[int, str]]:
    return []


@pytest.fixture
def heads(fleet: Fleet, reported: list[tuple[int, str]]) -> Heads:
    return Heads(cast(Membership, fleet), lambda _segment, index, kind: reported.append((index, kind)))


def prefixes(*shards: tuple[SampleSegment, int]) -> dict[int, Prefix]:
    return {index: parse_prefix(segment.file(index)) for segment, index in shards}


def beginning(index: int, segment: SampleSegment = SEGMENT) -> bytes:
    return bytes(segment.shards[index].prefix)


# -- learning ----------------------------------------------------------------------------------------------------


def test_a_good_head_is_kept_until_its_shard_is_written_again(heads: Heads, reported: list[tuple[int, str]]) -> None:
    learned = heads.learn(ROW, 1, beginning(1))
    assert learned is not None
    assert heads.kept(ROW.segment, 1) == learned
    assert heads.kept(ROW.segment, 0) is None
    heads.forget(ROW.segment, 1)
    assert heads.kept(ROW.segment, 1) is None
    assert reported == []


@pytest.mark.parametrize("offset", [0, 13, 100, 130, 300])
def test_a_damaged_head_is_reported_and_not_kept(
    heads: Heads, fleet: Fleet, reported: list[tuple[int, str]], offset: int
) -> None:
    data = bytearray(beginning(1))
    data[offset] ^= 1
    assert heads.learn(ROW, 1, bytes(data)) is None
    assert heads.kept(ROW.segment, 1) is None
    assert reported == [(1, "damaged")]
    assert fleet.members[ROW.placement.members[1]].errors == 1


@pytest.mark.parametrize("length", [0, 127, 128, 200])
def test_a_head_cut_short_is_damaged(heads: Heads, reported: list[tuple[int, str]], length: int) -> None:
    assert heads.learn(ROW, 0, beginning(0)[:length]) is None
    assert reported == [(0, "damaged")]


def test_a_head_at_anothers_place_is_damaged(heads: Heads, reported: list[tuple[int, str]]) -> None:
    assert heads.learn(ROW, 2, beginning(1)) is None
    elsewhere = sample_segment(Geometry(2, 2), [payload_bytes(9000)], number=9)
    assert heads.learn(ROW, 1, beginning(1, elsewhere)) is None
    assert reported == [(2, "damaged"), (1, "damaged")]


def test_a_table_that_is_not_its_manifests_is_damaged(heads: Heads, reported: list[tuple[int, str]]) -> None:
    """Every checksum in the head holds: somebody wrote another body and sealed it."""
    data = bytearray(beginning(0))
    struct.pack_into("<I", data, 128, 0xDEAD)
    table = bytes(data[128 : 128 + 4 * parse_prefix(beginning(0)).head.block_count])
    struct.pack_into("<I", data, 80, crc32c(table))
    struct.pack_into("<I", data, 124, crc32c(bytes(data[:124])))
    assert parse_prefix(bytes(data)).table == table
    assert heads.learn(ROW, 0, bytes(data)) is None
    assert reported == [(0, "damaged")]


def test_a_head_of_a_newer_format_is_neither_believed_nor_reported(
    heads: Heads, reported: list[tuple[int, str]]
) -> None:
    data = bytearray(beginning(1))
    struct.pack_into("<H", data, 8, 2)
    struct.pack_into("<I", data, 124, crc32c(bytes(data[:124])))
    assert heads.learn(ROW, 1, bytes(data)) is None
    assert reported == []


def test_no_more_heads_are_kept_than_memory_allows(heads: Heads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEADS_KEPT", 2)
    for index in range(4):
        heads.learn(ROW, index, beginning(index))
    assert [heads.kept(ROW.segment, index) is not None for index in range(4)] == [False, False, True, True]


# -- agreement ---------------------------------------------------------------------------------------------------


def test_all_that_agree_are_believed(heads: Heads, reported: list[tuple[int, str]]) -> None:
    everyone = prefixes(*((SEGMENT, index) for index in range(4)))
    assert heads.agreeing(ROW, everyone) == everyone
    assert reported == []


def test_the_largest_group_is_believed_and_the_rest_reported(heads: Heads, reported: list[tuple[int, str]]) -> None:
    found = prefixes((SEGMENT, 0), (SEGMENT, 2), (SEGMENT, 3), (OTHER, 1))
    assert set(heads.agreeing(ROW, found)) == {0, 2, 3}
    assert reported == [(1, "damaged")]


def test_a_group_of_fewer_than_k_accuses_nobody(heads: Heads, reported: list[tuple[int, str]]) -> None:
    assert len(heads.agreeing(ROW, prefixes((SEGMENT, 0), (OTHER, 1)))) == 1
    assert reported == []


def test_with_somebody_to_agree_with_the_larger_group_does_not_matter(
    heads: Heads, reported: list[tuple[int, str]]
) -> None:
    found = prefixes((SEGMENT, 0), (SEGMENT, 2), (OTHER, 1))
    like = parse_prefix(OTHER.file(3))
    assert set(heads.agreeing(ROW, found, like)) == {1}
    assert reported == []
    assert heads.agreeing(ROW, prefixes((SEGMENT, 0)), like) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"placement": Placement(Geometry(1, 3), SEGMENT.manifest.members)},
        {"payload_length": 8999},
        {"body_offset": 8192},
    ],
)
def test_who_describes_another_segment_than_the_catalog_is_reported(
    heads: Heads, reported: list[tuple[int, str]], changes: dict[str, object]
) -> None:
    assert heads.agreeing(row_of(**changes), prefixes((SEGMENT, 0), (SEGMENT, 1))) == {}
    assert sorted(reported) == [(0, "damaged"), (1, "damaged")]


def test_nobody_agrees_with_nobody(heads: Heads) -> None:
    assert heads.agreeing(ROW, {}) == {}


# -- counting ----------------------------------------------------------------------------------------------------


def test_each_bad_block_is_counted_once_and_reported_each_time(
    heads: Heads, fleet: Fleet, reported: list[tuple[int, str]]
) -> None:
    member = fleet.members[ROW.placement.members[0]]
    for blocks in ({1, 2}, {2}, {2, 3}, {HEAD}, {HEAD}):
        heads.note_bad(ROW, 0, blocks)
    assert member.errors == 4
    assert reported == [(0, "damaged")] * 5
    heads.forget(ROW.segment, 0)
    heads.note_bad(ROW, 0, {1})
    assert member.errors == 5, "it was written again: this is new damage"


def test_damage_on_a_member_that_is_not_known_here_is_reported_all_the_same(
    heads: Heads, fleet: Fleet, reported: list[tuple[int, str]]
) -> None:
    fleet.members.clear()
    heads.note_bad(ROW, 0, {1})
    assert reported == [(0, "damaged")]
