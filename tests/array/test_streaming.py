"""Large parts as streams of small pieces: the same bytes, the same doubts, little memory.

The limits are made small, so that small images are large ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from raidd.array import streaming
from raidd.array.catalog import SegmentRow
from raidd.codec.erasure import erasure
from raidd.codec.geometry import BLOCK_SIZE
from raidd.codec.manifest import Manifest
from raidd.codec.segment import data_bodies, seal
from raidd.codec.shard import parse_prefix, shard_path
from raidd.errors import ImageUnreadable
from tests.support.arrays import SmallArray
from tests.support.memory_disk import MemoryDisk

PIECE = 2 * BLOCK_SIZE
WHOLE = Random(5).randbytes(4 * 5 * BLOCK_SIZE - 777)
"""Five blocks a data shard: a shard's end is no piece's end."""


@pytest.fixture
def array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallArray]:
    monkeypatch.setattr(streaming, "WHOLE_BYTES", PIECE)
    monkeypatch.setattr(streaming, "PIECE_BYTES", PIECE)
    array = SmallArray(tmp_path)
    yield array
    for disk in array.disks.values():
        disk.release_all()
    array.stop()


def stored(array: SmallArray, images: dict[str, bytes]) -> SegmentRow:
    row = array.catalog.segment(array.put(images).segment)
    assert row is not None
    return row


def disk_with(array: SmallArray, row: SegmentRow, index: int) -> MemoryDisk:
    return next(disk for disk in array.memory if disk.uuid == row.placement.members[index])


def slot_with(array: SmallArray, row: SegmentRow, index: int) -> int:
    return next(slot for slot in range(6) if array.uuid(slot) == row.placement.members[index])


def path(row: SegmentRow, index: int) -> str:
    return shard_path(row.segment, index)


def pieces(array: SmallArray, uid: str) -> list[bytes]:
    return list(array.store.read(array.row(uid)))


def test_no_piece_is_larger_than_the_limit_and_together_they_are_the_image(array: SmallArray) -> None:
    stored(array, {"1.1": b"small", "1.2": WHOLE, "1.3": b"tail" * 99})  # so that it begins and ends amid blocks
    found = pieces(array, "1.2")
    assert max(map(len, found)) <= PIECE
    assert b"".join(found) == WHOLE


@pytest.mark.parametrize("length", [PIECE + 1, 4 * BLOCK_SIZE, 4 * BLOCK_SIZE + 1, 8 * BLOCK_SIZE - 1, 8 * BLOCK_SIZE])
def test_every_length_comes_back_with_any_two_members_gone(array: SmallArray, length: int) -> None:
    row = stored(array, {"1.1": b"x" * 4097, "1.2": WHOLE[:length]})
    for first, second in ((0, 1), (1, 3), (2, 5), (4, 5)):
        for index in (first, second):
            array.lose(slot_with(array, row, index))
        assert b"".join(pieces(array, "1.2")) == WHOLE[:length]
        for index in (first, second):
            array.bring_back(slot_with(array, row, index))


def test_a_member_that_leaves_in_the_middle_of_a_stream_is_done_without(array: SmallArray) -> None:
    row = stored(array, {"1.2": WHOLE})
    stream = array.store.read(array.row("1.2"))
    first = next(stream)
    for index in (0, 1):
        array.lose(slot_with(array, row, index))
    assert first + b"".join(stream) == WHOLE


def test_damaged_blocks_are_decoded_and_reported(array: SmallArray) -> None:
    row = stored(array, {"1.2": WHOLE})
    for index in (0, 2):
        disk_with(array, row, index).flip(path(row, index), row.body_offset + 3 * BLOCK_SIZE + 9)
    assert b"".join(pieces(array, "1.2")) == WHOLE
    assert array.catalog.excepted(row.segment) == {0: "damaged", 2: "damaged"}


def test_too_much_damage_ends_the_stream_before_the_damage(array: SmallArray) -> None:
    row = stored(array, {"1.2": WHOLE})
    for index in range(3):
        disk_with(array, row, index).flip(path(row, index), row.body_offset + 4 * BLOCK_SIZE)
    given: list[bytes] = []
    with pytest.raises(ImageUnreadable):
        given.extend(array.store.read(array.row("1.2")))
    assert b"".join(given) == WHOLE[: 4 * BLOCK_SIZE]


@pytest.mark.parametrize("indexes", [[0], [0, 1], [1, 4]])
def test_shards_that_agree_with_nobody_are_never_believed(array: SmallArray, indexes: list[int]) -> None:
    """Good in themselves, of the same id and shape, and they list the very same part: but of other bytes."""
    row = stored(array, {"1.2": WHOLE})
    true: Manifest = parse_prefix(disk_with(array, row, 0).read(path(row, 0))).manifest()
    data = data_bodies(memoryview(bytearray(row.payload_length + 32 * 4096)), row.payload_length, 4)
    bodies = [*data, *erasure(row.placement.geometry).encode(data)]
    for shard in seal(replace(true, written_at="2020-01-01T00:00:00.000Z", tables=()), bodies):
        if shard.index in indexes:
            disk_with(array, row, shard.index).put(path(row, shard.index), bytes(shard.prefix) + bytes(shard.body))
    assert b"".join(pieces(array, "1.2")) == WHOLE


def test_a_part_whose_digest_is_wrong_ends_before_its_last_piece(array: SmallArray) -> None:
    draft = array.store.draft(5.0)
    assert draft is not None
    draft.buffer[: len(WHOLE)] = WHOLE
    entry = replace(array.entry("1.2", WHOLE, 0), part_sha256=hashlib.sha256(b"another").hexdigest())
    array.store.commit(draft, len(WHOLE), [entry])
    draft.discard()
    given: list[bytes] = []
    with pytest.raises(ImageUnreadable, match="digest of a part"):
        given.extend(array.store.read(array.row("1.2")))
    assert sum(map(len, given)) < len(WHOLE)


def test_a_segment_replaced_in_the_middle_of_a_stream_is_followed_at_the_same_place(array: SmallArray) -> None:
    old = stored(array, {"1.2": WHOLE})
    stream = array.store.read(array.row("1.2"))
    first = next(stream)
    array.put({"0.1": b"in front" * 999, "1.2": WHOLE}, replaces=[old.segment])
    assert array.catalog.segment(old.segment) is None
    assert first + b"".join(stream) == WHOLE


def test_another_copy_helps_out_in_the_middle_of_a_stream(array: SmallArray) -> None:
    one, two = stored(array, {"1.2": WHOLE}), stored(array, {"1.2": WHOLE})
    stream = array.store.read(array.row("1.2"))
    first = next(stream)
    for index in range(3):
        disk_with(array, one, index).unlink(path(one, index))
    for index in range(3, 6):
        disk_with(array, two, index).flip(path(two, index), two.body_offset)  # of this copy the first blocks are bad
    assert first + b"".join(stream) == WHOLE
