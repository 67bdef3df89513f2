"""What operations cost in calls to the disks and in rows, counted; never in seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from uuid import UUID

import pytest

from raidd.array.catalog import SegmentRow
from raidd.array.roster import ArrayState
from raidd.codec.geometry import PAYLOAD_TARGET, extents, shard_length
from tests.support.arrays import SmallArray
from tests.support.faulty_disk import Call

IMAGE_BYTES = 128 << 10
FLUSHES = {"file.sync", "sync_folder", "sync_all", "replace", "append", "overwrite"}


@pytest.fixture
def array(tmp_path: Path) -> SmallArray:
    return SmallArray(tmp_path)  # 4+2


def calls(array: SmallArray) -> Iterator[tuple[UUID, Call]]:
    """Every call to any disk since `forget_calls`."""
    for uuid, disk in array.disks.items():
        yield from ((uuid, call) for call in disk.log)


def forget_calls(array: SmallArray) -> None:
    for disk in array.disks.values():
        disk.log.clear()


def shard_reads(array: SmallArray) -> list[tuple[UUID, str, int, int]]:
    """(member, path, offset, length) of each read of a shard file."""
    found = []
    for uuid, call in calls(array):
        if call.operation in ("read", "read_into") and call.path.startswith("segments/"):
            offset, _, length = call.detail.partition("+")
            found.append((uuid, call.path, int(offset), int(length)))
    return found


def only_segment(array: SmallArray) -> SegmentRow:
    (row,) = array.all_segments()
    return row


def fill_a_segment(array: SmallArray) -> dict[str, bytes]:
    random = Random(1)
    images = {f"1.{n}": random.randbytes(IMAGE_BYTES) for n in range(PAYLOAD_TARGET // IMAGE_BYTES)}
    assert array.put(images).protected
    return images


# -- reading ------------------------------------------------------------------------------------------------------


def test_reading_a_small_image_of_a_full_segment_is_one_read_of_one_data_shard(array: SmallArray) -> None:
    images = fill_a_segment(array)
    row = only_segment(array)
    size = shard_length(row.payload_length, row.placement.geometry.k)
    for uid in ("1.0", "1.17", "1.100", "1.255"):
        (part,) = array.row(uid).parts
        (extent,) = extents(part.offset, part.length, size)
        forget_calls(array)
        assert array.read(uid) == images[uid]
        ((member, _path, offset, length),) = shard_reads(array)
        assert member == row.placement.members[extent.shard]
        assert (offset, length) == (row.body_offset + extent.offset, IMAGE_BYTES)


def test_with_its_data_shard_away_it_is_the_same_range_of_k_others(array: SmallArray) -> None:
    images = fill_a_segment(array)
    row = only_segment(array)
    (part,) = array.row("1.17").parts
    (extent,) = extents(part.offset, part.length, shard_length(row.payload_length, row.placement.geometry.k))
    array.lose(array.membership.roster.entry(row.placement.members[extent.shard]).slot or 0)
    forget_calls(array)
    assert array.read("1.17") == images["1.17"]
    reads = shard_reads(array)
    assert len({member for member, *_rest in reads}) == len(reads) == row.placement.geometry.k
    assert {(offset, length) for *_rest, offset, length in reads} == {(row.body_offset + extent.offset, IMAGE_BYTES)}


# -- rebuilding ---------------------------------------------------------------------------------------------------


def test_rebuilding_a_member_reads_k_shards_and_writes_one_for_each_segment(array: SmallArray) -> None:
    for number in range(5):
        array.put({f"1.{number}": Random(number).randbytes(600_000)})
    array.lose(2)
    new = array.replace(2)
    forget_calls(array)
    array.repair_all()
    assert array.store.standing().state is ArrayState.HEALTHY
    reads, k = shard_reads(array), array.roster.geometry.k
    for row in array.all_segments():
        size, name = shard_length(row.payload_length, k), str(row.segment)
        bodies = [r for r in reads if name in r[1] and r[2] >= row.body_offset and r[0] != new]
        assert len({member for member, *_rest in bodies}) == k
        assert sum(length for *_rest, length in bodies) == k * size, "each body once"
        written = [(m, c) for m, c in calls(array) if c.operation == "file.write" and name in c.path]
        assert [(m, int(c.detail)) for m, c in written] == [(new, row.body_offset + size)]
    assert not [c for m, c in calls(array) if m != new and c.operation in ("create", "file.write", "rename_new")]


# -- writing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [1, 2, 127])
def test_a_batch_costs_two_flushes_a_member_whatever_it_holds(array: SmallArray, images: int) -> None:
    array.put({"1.1": b"the folder of the day is there"})
    forget_calls(array)
    array.put({f"2.{number}": Random(number).randbytes(3000) for number in range(images)})
    for uuid in array.disks:
        flushes = Counter(call.operation for member, call in calls(array) if member == uuid)
        assert {name: n for name, n in flushes.items() if name in FLUSHES} == {"file.sync": 1, "sync_folder": 1}


# -- the catalog --------------------------------------------------------------------------------------------------


def rows_changed(array: SmallArray) -> int:
    """Rows inserted, updated or deleted by the catalog's one writer since it was opened."""
    return int(array.catalog._database._writer.connection.driver_connection.total_changes)  # type: ignore[union-attr]


@pytest.mark.parametrize("segments", [3, 60])
def test_a_member_that_goes_away_changes_no_row_for_any_of_its_segments(array: SmallArray, segments: int) -> None:
    for number in range(segments):
        array.put({f"1.{number}": b"image %d" % number})
    assert array.store.standing().counts.absent_shards == 0
    before = rows_changed(array)
    array.lose(1)
    standing = array.store.standing()
    assert standing.counts.absent_shards == segments
    assert standing.state is ArrayState.DEGRADED
    assert standing.failures_tolerated == 1
    assert rows_changed(array) - before <= 1, "one row at most, however many segments it holds"


def test_storing_costs_the_same_rows_however_many_shards_there_are(tmp_path: Path) -> None:
    changed = []
    for members in (2, 6):
        array = SmallArray(tmp_path / str(members), members)
        array.put({"1.1": b"the placement"})
        for other in range(20):  # until all rotations are known
            array.put({f"1.2.{other}": b"image"})
        before = rows_changed(array)
        array.put({"2.1": b"image", "2.2": b"image"})
        changed.append(rows_changed(array) - before)
    assert changed[0] == changed[1]
