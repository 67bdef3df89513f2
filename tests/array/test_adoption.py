"""Leftovers, each kind of rule C5: what exists is taken in, what nobody needs goes, what is not understood stays."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from uuid import UUID

import pytest
from crc32c import crc32c

from raidd.array import commit
from raidd.array.adoption import Settled
from raidd.array.catalog import SegmentRow
from raidd.codec.erasure import erasure
from raidd.codec.geometry import Level
from raidd.codec.segment import SealedShard, data_bodies, seal
from raidd.codec.shard import parse_prefix, shard_path
from raidd.daemon.graph import stale_ids
from raidd.errors import MemberFaulty
from tests.support.arrays import SmallArray
from tests.support.memory_disk import MemoryDisk

DATA = Random(11).randbytes(20_000)
ALL = range(6)
A_WHILE_S = 60.0
Make = Callable[..., SmallArray]


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not look like a slow disk."""
    monkeypatch.setattr(commit, "LAGGARD_S", A_WHILE_S)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[SmallArray] = []

    def make(**options: object) -> SmallArray:
        made.append(SmallArray(tmp_path / str(len(made)), **{"deadline_s": A_WHILE_S, **options}))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for array in made:
        array.stop()


@pytest.fixture
def array(make: Make) -> SmallArray:
    return make()


def leftover(array: SmallArray, uid: str = "1.2", data: bytes = DATA) -> SegmentRow:
    """A batch whose writer died after its shards were durable and before the catalog knew."""
    row = array.catalog.segment(array.put({uid: data}).segment)
    assert row is not None
    array.catalog.forget([row.segment], "2026-11-24T08:00:00.000Z", "as if the transaction had not been")
    array.catalog.keep_reserved([row.segment])
    assert array.catalog.image(uid) is None
    return row


def disk_of(array: SmallArray, row: SegmentRow, index: int) -> MemoryDisk:
    return next(disk for disk in array.memory if disk.uuid == row.placement.members[index])


def slot_of(array: SmallArray, row: SegmentRow, index: int) -> int:
    return next(slot for slot in range(len(array.memory)) if array.uuid(slot) == row.placement.members[index])


def keep_only(array: SmallArray, row: SegmentRow, indexes: Sequence[int]) -> None:
    for index in set(range(row.placement.geometry.n)) - set(indexes):
        disk_of(array, row, index).unlink(shard_path(row.segment, index))


def settle(array: SmallArray) -> Settled:
    return array.parts.adoption.settle(stale_ids(array.parts))


def left(array: SmallArray, row: SegmentRow) -> set[int]:
    return {i for i in ALL if shard_path(row.segment, i) in disk_of(array, row, i).files()}


def quarantined(array: SmallArray) -> int:
    names = [name for disk in array.memory for name in disk.files() if name.startswith("quarantine/")]
    return len([name for name in names if name.endswith(".shard")])


def is_reserved(array: SmallArray, segment: UUID) -> bool:
    return segment in array.catalog.reserved()


def in_no_inbox(array: SmallArray) -> None:
    array.offers.clear()


# -- what exists -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [ALL, range(5), range(1, 5), range(2, 6)])
def test_k_or_more_shards_are_a_segment_and_it_is_taken_in(array: SmallArray, there: Sequence[int]) -> None:
    row = leftover(array)
    keep_only(array, row, there)
    assert settle(array).adopted == 1
    assert array.read("1.2") == DATA
    assert array.catalog.absent(row.segment) == set(ALL) - set(there)
    assert not is_reserved(array, row.segment)
    array.repair_all()
    assert array.catalog.absent(row.segment) == frozenset()


def test_what_is_taken_in_is_durable_first(array: SmallArray) -> None:
    """Its writer died amid C1: what was read well from the page cache must outlive the next power cut."""
    row = leftover(array)
    for index in ALL:
        disk = disk_of(array, row, index)
        data = disk.read(shard_path(row.segment, index))
        disk.unlink(shard_path(row.segment, index))
        disk.sync_all()
        file = disk.create("tmp/again", len(data))
        file.write([data])
        disk.rename_new("tmp/again", shard_path(row.segment, index))
    assert settle(array).adopted == 1
    array.crash()
    assert array.read("1.2") == DATA


def test_a_torn_shard_is_taken_in_as_damaged_and_mended(array: SmallArray) -> None:
    row = leftover(array)
    disk_of(array, row, 3).flip(shard_path(row.segment, 3), row.body_offset)
    assert settle(array).adopted == 1
    assert array.catalog.excepted(row.segment) == {3: "damaged"}
    array.repair_all()
    assert array.catalog.excepted(row.segment) == {}


def test_a_member_that_fails_while_it_is_looked_at_does_not_hide_a_segment_that_exists(array: SmallArray) -> None:
    row = leftover(array)
    array.disks[row.placement.members[0]].fail("read", "segments/*", error=MemberFaulty("EIO"))
    assert settle(array).adopted == 1
    assert array.read("1.2") == DATA


def newer(array: SmallArray, row: SegmentRow, index: int) -> bytes:
    """A newer raidd wrote this shard."""
    disk = disk_of(array, row, index)
    data = bytearray(disk.read(shard_path(row.segment, index)))
    struct.pack_into("<H", data, 8, 2)
    struct.pack_into("<I", data, 124, crc32c(bytes(data[:124])))
    disk.put(shard_path(row.segment, index), bytes(data))
    return bytes(data)


def test_a_shard_of_a_newer_format_beside_k_good_ones_is_left_alone_and_the_segment_taken_in(
    array: SmallArray,
) -> None:
    row = leftover(array)
    data = newer(array, row, 4)
    assert settle(array).adopted == 1
    assert array.read("1.2") == DATA
    array.repair_all()
    assert disk_of(array, row, 4).read(shard_path(row.segment, 4)) == data


@pytest.mark.parametrize("known", [True, False])
def test_with_a_shard_of_a_newer_format_among_too_few_nothing_is_taken_away(array: SmallArray, known: bool) -> None:
    row = leftover(array)
    if not known:
        in_no_inbox(array)
    keep_only(array, row, [0, 1, 2])
    newer(array, row, 2)
    assert settle(array).unreadable == 1
    assert left(array, row) == {0, 1, 2}
    assert is_reserved(array, row.segment)
    assert quarantined(array) == 0


def test_a_segment_whose_images_are_known_and_protected_elsewhere_is_taken_away(array: SmallArray) -> None:
    row = leftover(array)
    assert array.put({"1.2": DATA}).protected
    assert settle(array).cleared == 1
    assert left(array, row) == set()
    assert not is_reserved(array, row.segment)
    array.crash()
    assert left(array, row) == set(), "and a power cut brings nothing back"
    assert len(array.catalog.copies("1.2", 1)) == 1


def test_a_second_copy_is_kept_while_the_first_is_not_protected(make: Make) -> None:
    array = make(members=2)
    row = leftover(array)
    array.lose(1)
    assert not array.put({"1.2": DATA}).protected
    array.lost.clear()
    array.bring_back(1)
    assert array.catalog.segment(row.segment) is not None, "both copies together are safe"


# -- what does not -----------------------------------------------------------------------------------------------


def test_too_few_shards_of_what_the_inbox_still_has_are_cleared(array: SmallArray) -> None:
    row = leftover(array)
    keep_only(array, row, [0, 4, 5])
    assert settle(array).cleared == 1
    assert left(array, row) == set()
    assert quarantined(array) == 0
    assert not is_reserved(array, row.segment)


def test_too_few_shards_of_what_is_nowhere_else_go_to_quarantine_with_a_word(array: SmallArray) -> None:
    row = leftover(array)
    in_no_inbox(array)
    keep_only(array, row, [0, 4, 5])
    assert settle(array).quarantined == 1
    assert (left(array, row), quarantined(array)) == (set(), 3)
    assert "shard-quarantined" in {code for code, _severity, _message in array.events}


def test_other_bytes_under_the_same_name_in_the_inbox_are_not_these(array: SmallArray) -> None:
    row = leftover(array)
    array.offers = dict.fromkeys(array.offers, "0" * 64)
    keep_only(array, row, [0, 4, 5])
    assert settle(array).quarantined == 1


def test_too_few_shards_are_kept_while_a_member_that_they_name_is_away_and_taken_in_when_it_is_back(
    array: SmallArray,
) -> None:
    row = leftover(array)
    in_no_inbox(array)
    keep_only(array, row, [0, 1, 4, 5])
    away = slot_of(array, row, 5)
    array.lose(away)
    assert settle(array).kept == 1
    assert left(array, row) == {0, 1, 4, 5}
    assert is_reserved(array, row.segment)
    array.bring_back(away)
    assert array.read("1.2") == DATA


def test_a_member_that_holds_none_of_it_is_not_waited_for(make: Make) -> None:
    array = make(members=6, level=Level("custom", data=2, parity=1))
    row = leftover(array)
    in_no_inbox(array)
    disk_of(array, row, 0).unlink(shard_path(row.segment, 0))
    disk_of(array, row, 1).unlink(shard_path(row.segment, 1))
    other = next(slot for slot in range(6) if array.uuid(slot) not in row.placement.members)
    array.lose(other)
    assert settle(array).quarantined == 1


def test_too_few_shards_and_one_that_did_not_answer_are_kept(array: SmallArray) -> None:
    row = leftover(array)
    in_no_inbox(array)
    keep_only(array, row, [0, 1, 4, 5])
    array.disks[row.placement.members[5]].fail("read", "segments/*", error=MemberFaulty("EIO"))
    assert settle(array).kept == 1
    assert left(array, row) == {0, 1, 4, 5}
    assert quarantined(array) == 0


def test_what_only_unreadable_heads_are_left_of_is_cleared_when_everyone_was_looked_at(array: SmallArray) -> None:
    row = leftover(array)
    in_no_inbox(array)
    keep_only(array, row, [0, 1])
    for index in (0, 1):
        disk_of(array, row, index).flip(shard_path(row.segment, index), 0)
    array.lose(slot_of(array, row, 5))
    assert settle(array).kept == 1
    array.bring_back(slot_of(array, row, 5))
    assert left(array, row) == set()
    assert not is_reserved(array, row.segment)


def test_an_id_that_nothing_is_left_of_is_given_up_only_when_everyone_was_looked_at(array: SmallArray) -> None:
    row = leftover(array)
    keep_only(array, row, [])
    array.lose(0)
    settle(array)
    assert is_reserved(array, row.segment)
    array.bring_back(0)
    assert not is_reserved(array, row.segment)


def test_what_is_in_flight_is_not_debris(array: SmallArray, monkeypatch: pytest.MonkeyPatch) -> None:
    row = leftover(array)
    monkeypatch.setattr(array.parts.adoption, "_in_flight", lambda: frozenset({row.segment}))
    assert settle(array) == Settled()
    assert left(array, row) == set(ALL)


def test_settling_twice_is_settling_once(array: SmallArray) -> None:
    row = leftover(array)
    assert settle(array).adopted == 1
    array.catalog.keep_reserved([row.segment])
    assert settle(array) == Settled()
    assert array.read("1.2") == DATA


# -- replaced, disputed -------------------------------------------------------------------------------------------


def test_what_a_known_segment_replaced_is_taken_away_and_not_taken_in(array: SmallArray) -> None:
    row = leftover(array)
    array.put({"1.2": DATA + b"!"}, replaces=[row.segment])
    array.catalog.keep_reserved([row.segment])
    assert settle(array).cleared == 1
    assert left(array, row) == set()


def other_group(array: SmallArray, row: SegmentRow) -> list[SealedShard]:
    """Shards of the same id, good in themselves, of another manifest."""
    manifest = parse_prefix(disk_of(array, row, 0).read(shard_path(row.segment, 0))).manifest()
    buffer = memoryview(bytearray(row.payload_length + 32 * 4096))
    data = data_bodies(buffer, row.payload_length, row.placement.geometry.k)
    bodies = [*data, *erasure(row.placement.geometry).encode(data)]
    return seal(replace(manifest, written_at="2020-01-01T00:00:00.000Z", tables=()), bodies)


def test_two_groups_that_equally_claim_an_id_are_both_left_and_named(make: Make) -> None:
    array = make(members=4, level=Level("custom", data=2, parity=2))
    row = leftover(array)
    for shard in other_group(array, row)[2:]:
        disk_of(array, row, shard.index).put(
            shard_path(row.segment, shard.index), bytes(shard.prefix) + bytes(shard.body)
        )
    assert settle(array).unreadable == 1
    assert array.catalog.segment(row.segment) is None
    told = [message for code, _severity, message in array.events if code == "segment-disputed"]
    assert told
    assert "[0, 1]" in told[0]
    assert "[2, 3]" in told[0]
    assert is_reserved(array, row.segment)


def test_a_shard_that_disagrees_with_k_others_is_outvoted_told_and_replaced(array: SmallArray) -> None:
    row = leftover(array)
    shard = other_group(array, row)[5]
    disk_of(array, row, 5).put(shard_path(row.segment, 5), bytes(shard.prefix) + bytes(shard.body))
    assert settle(array).adopted == 1
    assert "segment-disputed" in {code for code, _severity, _message in array.events}
    array.repair_all()
    assert array.catalog.excepted(row.segment) == {}
    assert quarantined(array) >= 0
    assert array.read("1.2") == DATA
    for slot in (slot_of(array, row, 0), slot_of(array, row, 1)):
        array.lose(slot)
    assert array.read("1.2") == DATA


# -- the whole catalog ---------------------------------------------------------------------------------------------


def test_a_lost_catalog_is_made_again_with_versions_places_and_what_is_missing(array: SmallArray) -> None:
    array.put({"1.2": b"first", "1.3": DATA})
    array.put({"1.2": b"second"}, version=2)
    gone = array.all_segments()[0]
    disk_of(array, gone, 2).unlink(shard_path(gone.segment, 2))
    array.lose_catalog()
    assert array.read("1.2", 1) == b"first"
    assert array.read("1.2", 2) == b"second"
    assert array.read("1.2") == b"second"
    assert array.catalog.check() == []
    array.repair_all()
    assert array.catalog.counts().absent_shards == 0


def test_progress_of_a_reindex_ends_at_its_total(array: SmallArray) -> None:
    for number in range(3):
        array.put({f"1.{number}": DATA})
    steps: list[tuple[int, int]] = []
    array.parts.adoption.reindex(lambda done, total: steps.append((done, total)))
    assert steps[-1] == (3, 3)


def test_a_sweep_empties_tmp_and_nothing_else(array: SmallArray) -> None:
    array.put({"1.2": DATA})
    before = array.memory[0].files()
    array.memory[0].put("tmp/torn-00.shard", b"torn")
    array.parts.adoption.sweep()
    assert array.memory[0].files() == before


def test_a_member_that_cannot_be_swept_stops_nothing(array: SmallArray) -> None:
    array.disk(0).fail("list", "tmp", error=MemberFaulty("EIO"))
    array.memory[1].put("tmp/torn-00.shard", b"torn")
    array.parts.adoption.sweep()
    assert "tmp/torn-00.shard" not in array.memory[1].files()
