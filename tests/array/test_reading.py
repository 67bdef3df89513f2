"""The way back: every border, damage at different columns, shards that are late, torn, foreign or of a newer raidd."""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from uuid import UUID

import pytest
from crc32c import crc32c
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raidd.array import commit, reading
from raidd.array.catalog import SegmentRow
from raidd.array.roster import RosterEvent, apply
from raidd.codec.erasure import erasure
from raidd.codec.geometry import BLOCK_SIZE, Level, shard_length
from raidd.codec.manifest import Manifest, ManifestImage
from raidd.codec.segment import data_bodies, seal
from raidd.codec.shard import parse_prefix, shard_path
from raidd.errors import ImageUnreadable, MemberFaulty
from tests.support.arrays import SmallArray
from tests.support.memory_disk import MemoryDisk

A_WHILE_S = 60.0
Make = Callable[..., SmallArray]

LEVELS = {
    "two copies": (2, Level("mirror")),
    "three copies": (3, Level("mirror", copies=3)),
    "two copies on four": (4, Level("mirror")),
    "raid5": (3, Level("raid5")),
    "raid6": (6, Level("raid6")),
    "narrower than the array": (6, Level("custom", data=2, parity=2)),
}
SIZES = [
    1,
    4095,
    4096,
    4097,
    8192,
    16384,
    BLOCK_SIZE - 1,
    BLOCK_SIZE,
    BLOCK_SIZE + 1,
    4 * BLOCK_SIZE,
    4 * BLOCK_SIZE + 1,
]


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
        for disk in array.disks.values():
            disk.release_all()
        array.stop()


def stored(array: SmallArray, images: dict[str, bytes]) -> SegmentRow:
    row = array.catalog.segment(array.put(images).segment)
    assert row is not None
    return row


def disk_with(array: SmallArray, row: SegmentRow, index: int) -> MemoryDisk:
    return next(disk for disk in array.memory if disk.uuid == row.placement.members[index])


def faulty_with(array: SmallArray, row: SegmentRow, index: int):  # type: ignore[no-untyped-def]
    return array.disks[row.placement.members[index]]


def path(row: SegmentRow, index: int) -> str:
    return shard_path(row.segment, index)


def slot_with(array: SmallArray, row: SegmentRow, index: int) -> int:
    return next(slot for slot in range(len(array.memory)) if array.uuid(slot) == row.placement.members[index])


def flip(array: SmallArray, row: SegmentRow, index: int, offset: int) -> None:
    disk_with(array, row, index).flip(path(row, index), row.body_offset + offset)


def errors(array: SmallArray, row: SegmentRow, index: int) -> int:
    member = array.membership.member(row.placement.members[index])
    assert member is not None
    return member.errors


def wait_for(true: Callable[[], bool]) -> None:
    until = time.monotonic() + A_WHILE_S
    while not true():
        assert time.monotonic() < until
        time.sleep(0.002)


# -- every border -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_every_size_comes_back_whole_with_as_many_members_gone_as_the_level_says(make: Make, level: str) -> None:
    members, wanted = LEVELS[level]
    array = make(members=members, level=wanted)
    images = {f"1.{size}": Random(size).randbytes(size) for size in SIZES}
    alone = {f"2.{size}": Random(-size).randbytes(size) for size in SIZES}
    array.put(images)  # one segment, images over the borders of shards
    for uid, data in alone.items():
        array.put({uid: data})
    for gone in range(array.membership.roster.geometry.m + 1):
        if gone:
            array.lose(gone - 1)
        for uid, data in (images | alone).items():
            assert array.read(uid) == data


def test_one_small_image_of_a_full_segment_touches_one_data_shard(make: Make) -> None:
    array = make()
    images = {f"1.{n}": Random(n).randbytes(3000) for n in range(60)}
    array.put(images)
    for disk in array.disks.values():
        disk.log.clear()
    assert array.read("1.0") == images["1.0"]
    assert sum(len(disk.log) for disk in array.disks.values()) == 1


def test_a_degraded_read_reads_the_range_from_k_others_and_nothing_else(make: Make) -> None:
    array = make()
    images = {f"1.{n}": Random(n).randbytes(3000) for n in range(60)}
    row = stored(array, images)
    array.lose(slot_with(array, row, 0))
    for disk in array.disks.values():
        disk.log.clear()
    assert array.read("1.0") == images["1.0"]
    details = [call.detail for disk in array.disks.values() for call in disk.log]
    assert details == [f"{row.body_offset}+3000"] * 4


# -- damage -----------------------------------------------------------------------------------------------------

PAYLOAD = Random(7).randbytes(4 * 3 * BLOCK_SIZE - 5000)
"""Four data shards of three blocks each."""


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_blocks_damaged_at_different_columns_are_decoded_whichever_shards_they_are_in(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """At most two shards a column are hurt, but every shard may be."""
    array = SmallArray(tmp_path_factory.mktemp("array"), deadline_s=A_WHILE_S)
    row = stored(array, {"1.2": PAYLOAD})
    for block in range(3):
        hurt = data.draw(st.sets(st.integers(0, 5), max_size=2))
        for index in hurt:
            flip(array, row, index, block * BLOCK_SIZE + data.draw(st.integers(0, BLOCK_SIZE - 4096)))
    start = data.draw(st.integers(0, len(PAYLOAD) - 1))
    length = data.draw(st.integers(1, len(PAYLOAD) - start))
    assert array.parts.reader.read_range(row, start, length) == PAYLOAD[start : start + length]
    assert array.read("1.2") == PAYLOAD
    array.stop()


def test_too_much_damage_in_one_column_is_an_error_and_no_byte_comes_before_it(make: Make) -> None:
    array = make()
    row = stored(array, {"1.2": PAYLOAD})
    for index in (0, 1, 4):
        flip(array, row, index, BLOCK_SIZE)
    chunks = array.store.read(array.row("1.2"))
    with pytest.raises(ImageUnreadable):
        next(chunks)
    good = array.parts.reader.read_range(row, 0, BLOCK_SIZE)
    assert good == PAYLOAD[:BLOCK_SIZE], "the other columns can be read"


def test_bad_blocks_are_counted_once_however_often_they_are_met(make: Make) -> None:
    array = make()
    row = stored(array, {"1.2": PAYLOAD})
    flip(array, row, 0, 0)
    flip(array, row, 0, 2 * BLOCK_SIZE)
    for _ in range(3):
        assert array.read("1.2") == PAYLOAD
    assert errors(array, row, 0) == 2
    assert [code for code, _severity, _message in array.events].count("shard-damaged") == 1
    array.repair_all()
    flip(array, row, 0, 0)
    assert array.read("1.2") == PAYLOAD
    assert errors(array, row, 0) == 3, "damage after the repair is new damage"


@pytest.mark.parametrize("where", [0, 8, 16, 100, 124, 128, 300])
def test_a_damaged_head_table_or_manifest_is_decoded_around_and_reported(make: Make, where: int) -> None:
    """The body is hurt too, so that somebody looks at the head at all."""
    array = make()
    row = stored(array, {"1.2": PAYLOAD})
    disk_with(array, row, 1).flip(path(row, 1), where)
    flip(array, row, 1, 0)
    assert array.read("1.2") == PAYLOAD
    assert array.catalog.excepted(row.segment) == {1: "damaged"}


def test_a_shard_that_is_gone_is_reported_missing(make: Make) -> None:
    array = make()
    row = stored(array, {"1.2": PAYLOAD})
    disk_with(array, row, 2).unlink(path(row, 2))
    assert array.read("1.2") == PAYLOAD
    assert array.catalog.excepted(row.segment) == {2: "missing"}
    faulty_with(array, row, 2).log.clear()
    assert array.read("1.2") == PAYLOAD
    assert faulty_with(array, row, 2).log == [], "it is not asked for again"


def cut(array: SmallArray, row: SegmentRow, index: int, length: int) -> None:
    disk = disk_with(array, row, index)
    disk.put(path(row, index), disk.read(path(row, index), 0, length))


def test_a_shard_cut_short_is_reported_and_gives_the_blocks_before_the_cut(make: Make) -> None:
    """Two shards are cut amid their last block; two others have lost their first: each column still has four."""
    array = make()
    row = stored(array, {"1.2": PAYLOAD})
    for index in (0, 5):
        cut(array, row, index, row.body_offset + 2 * BLOCK_SIZE + 100)
    for index in (1, 2):
        flip(array, row, index, 0)
    assert array.read("1.2") == PAYLOAD
    assert {0, 1, 2} <= array.catalog.excepted(row.segment).keys()


@pytest.mark.parametrize("left", [0, 60, 128, 4000, 4096])
def test_a_shard_with_hardly_anything_left_is_damaged(make: Make, left: int) -> None:
    array = make()
    row = stored(array, {"1.2": PAYLOAD})
    cut(array, row, 0, left)
    assert array.read("1.2") == PAYLOAD
    assert array.catalog.excepted(row.segment) == {0: "damaged"}


@pytest.mark.parametrize("left", [4096, None])
def test_a_shard_of_a_newer_format_is_read_around_and_never_called_damaged(make: Make, left: int | None) -> None:
    array = make()
    row = stored(array, {"1.2": PAYLOAD})
    disk = disk_with(array, row, 0)
    newer = bytearray(disk.read(path(row, 0)))[:left]
    struct.pack_into("<H", newer, 8, 2)
    struct.pack_into("<I", newer, 124, crc32c(bytes(newer[:124])))
    newer[4096:] = bytes(len(newer[4096:]))
    disk.put(path(row, 0), bytes(newer))
    assert array.read("1.2") == PAYLOAD
    assert array.catalog.excepted(row.segment).get(0) != "damaged"
    array.repair_all()
    assert disk.read(path(row, 0)) == bytes(newer)


def forged(array: SmallArray, row: SegmentRow, indexes: list[int]) -> None:
    """Shards of the same id and shape, good in themselves, of another manifest and other bytes."""
    true: Manifest = parse_prefix(disk_with(array, row, 0).read(path(row, 0))).manifest()
    buffer = memoryview(bytearray(row.payload_length + 32 * 4096))
    data = data_bodies(buffer, row.payload_length, row.placement.geometry.k)
    bodies = [*data, *erasure(row.placement.geometry).encode(data)]
    for shard in seal(replace(true, written_at="2020-01-01T00:00:00.000Z", tables=()), bodies):
        if shard.index in indexes:
            disk_with(array, row, shard.index).put(path(row, shard.index), bytes(shard.prefix) + bytes(shard.body))


@pytest.mark.parametrize("indexes", [[0], [0, 1], [1, 5]])
def test_shards_that_agree_with_nobody_are_outvoted_and_mended(make: Make, indexes: list[int]) -> None:
    array = make()
    row = stored(array, {"1.2": PAYLOAD})
    forged(array, row, indexes)
    assert array.read("1.2") == PAYLOAD
    array.scrub()
    array.repair_all()
    assert array.catalog.excepted(row.segment) == {}
    for index in indexes:
        assert parse_prefix(disk_with(array, row, index).read(path(row, index))).manifest().written_at[:4] != "2020"


# -- late and failing members -----------------------------------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "HEDGE_S", 0.05)


@pytest.mark.usefixtures("hasty")
def test_a_late_shard_is_decoded_from_the_others_and_its_member_is_not_condemned(make: Make) -> None:
    array = make()
    row = stored(array, {"1.2": PAYLOAD})
    hangs = [faulty_with(array, row, index).hang("read", "segments/*") for index in (0, 3)]
    assert array.read("1.2") == PAYLOAD
    assert all(hang.entered.is_set() for hang in hangs)
    assert len(array.membership.present_members()) == 6
    assert array.catalog.excepted(row.segment) == {}


@pytest.mark.usefixtures("hasty")
def test_reads_that_nobody_waits_for_do_not_queue_up_on_a_slow_disk(make: Make) -> None:
    array = make()
    row = stored(array, {"1.2": PAYLOAD})
    hang = faulty_with(array, row, 0).hang("read", "segments/*")
    for _ in range(10):
        assert array.read("1.2") == PAYLOAD
    faulty_with(array, row, 0).heal()
    hang.release()
    member = array.membership.member(row.placement.members[0])
    assert member is not None
    member.call("read", lambda _disk, _cancel: None)
    assert len([call for call in faulty_with(array, row, 0).log if call.operation == "read"]) <= 2


@pytest.mark.usefixtures("hasty")
def test_a_late_answer_that_is_an_error_is_heard(make: Make) -> None:
    array = make()
    row = stored(array, {"1.2": PAYLOAD})
    disk = faulty_with(array, row, 0)
    hang = disk.hang("read", "segments/*")
    disk.fail("read", "segments/*", error=MemberFaulty("EIO at last"))
    assert array.read("1.2") == PAYLOAD
    member = array.membership.member(row.placement.members[0])
    assert member is not None
    assert member.present
    hang.release()
    wait_for(lambda: not member.present)
    assert "EIO at last" in member.presence.reason


def test_a_hung_disk_leaves_when_its_deadline_passes_and_is_waited_for_no_more(make: Make) -> None:
    array = make(deadline_s=2.0)
    row = stored(array, {"1.2": PAYLOAD})
    faulty_with(array, row, 0).hang("read", "segments/*")
    member = array.membership.member(row.placement.members[0])
    assert member is not None
    wait_for(lambda: array.read("1.2") == PAYLOAD and not member.present)


def test_a_failing_read_takes_its_member_out_and_the_bytes_come_from_the_others(make: Make) -> None:
    array = make()
    row = stored(array, {"1.2": PAYLOAD})
    for index in (0, 1):
        faulty_with(array, row, index).fail("read", "segments/*", error=MemberFaulty("EIO"))
    assert array.read("1.2") == PAYLOAD
    assert len(array.membership.present_members()) == 4


def test_a_member_judged_failed_is_read_only_when_too_few_others_are_left(make: Make) -> None:
    array = make()
    row = stored(array, {"1.2": PAYLOAD})
    failed = slot_with(array, row, 0)
    array.membership.set_roster(apply(array.membership.roster, row.placement.members[0], RosterEvent.FAIL))
    faulty_with(array, row, 0).log.clear()
    assert array.read("1.2") == PAYLOAD
    assert "read" not in faulty_with(array, row, 0).operations()
    for slot in [slot for slot in range(6) if slot != failed][:2]:
        array.lose(slot)
    assert array.read("1.2") == PAYLOAD


def test_a_member_taken_offline_is_not_read_even_as_a_last_resort(make: Make) -> None:
    array = make()
    row = stored(array, {"1.2": PAYLOAD})
    array.membership.set_roster(apply(array.membership.roster, row.placement.members[0], RosterEvent.OFFLINE))
    faulty_with(array, row, 0).log.clear()
    lost = [slot for slot in range(6) if slot != slot_with(array, row, 0)][:2]
    for slot in lost:
        array.lose(slot)
    with pytest.raises(ImageUnreadable):
        array.read("1.2")
    assert faulty_with(array, row, 0).log == []


# -- copies, parts, segments that went meanwhile -----------------------------------------------------------------


def test_when_one_copy_cannot_be_read_another_of_the_same_bytes_is(make: Make) -> None:
    array = make()
    first, second = stored(array, {"1.2": b"twice" * 999}), stored(array, {"1.2": b"twice" * 999})
    for row in (first, second):
        assert row.segment in {p.segment for c in array.catalog.copies("1.2", 1) for p in c.parts}
    for index in range(3):
        disk_with(array, first, index).unlink(path(first, index))
    assert array.read("1.2") == b"twice" * 999
    for index in range(3):
        disk_with(array, second, index).unlink(path(second, index))
    with pytest.raises(ImageUnreadable):
        array.read("1.2")


def test_a_reader_whose_segment_was_replaced_meanwhile_goes_on_with_the_new_one(make: Make) -> None:
    array = make()
    old = stored(array, {"1.2": b"moved" * 999})
    before = array.row("1.2")
    array.put({"1.2": b"moved" * 999}, replaces=[old.segment])
    assert array.catalog.segment(old.segment) is None
    assert b"".join(array.store.read(before)) == b"moved" * 999


def put_part(array: SmallArray, image: UUID, whole: bytes, offset: int, length: int, sha256: str | None) -> None:
    data = whole[offset : offset + length]
    draft = array.store.draft(5.0)
    assert draft is not None
    draft.buffer[: len(data)] = data
    entry = array.entry("1.9", data, 0)
    size = None if sha256 is None else len(whole)
    entry = replace(entry, image=image, image_offset=offset, size=size, sha256=sha256)
    array.store.commit(draft, len(data), [entry])
    draft.discard()


def in_parts(array: SmallArray, whole: bytes, sha256: str) -> None:
    image = array.store.new_image_id()
    put_part(array, image, whole, 0, 40_000, None)
    put_part(array, image, whole, 40_000, 40_000, None)
    put_part(array, image, whole, 80_000, len(whole) - 80_000, sha256)


def test_an_image_in_parts_comes_back_part_by_part_with_two_members_gone(make: Make) -> None:
    array = make()
    whole = Random(1).randbytes(100_001)
    in_parts(array, whole, hashlib.sha256(whole).hexdigest())
    array.lose(0)
    array.lose(1)
    chunks = list(array.store.read(array.row("1.9")))
    assert [len(chunk) for chunk in chunks] == [40_000, 40_000, 20_001]
    assert b"".join(chunks) == whole


def test_parts_that_do_not_make_the_whole_are_an_error_before_the_last_byte(make: Make) -> None:
    array = make()
    whole = Random(1).randbytes(100_001)
    in_parts(array, whole, hashlib.sha256(b"something else").hexdigest())
    chunks = array.store.read(array.row("1.9"))
    given = [next(chunks), next(chunks)]
    with pytest.raises(ImageUnreadable):
        next(chunks)
    assert sum(map(len, given)) < len(whole)


def test_a_part_whose_digest_is_wrong_is_an_error_though_every_block_is_good(make: Make) -> None:
    array = make()
    entry: ManifestImage = replace(array.entry("1.2", b"x" * 5000, 0), part_sha256=hashlib.sha256(b"y").hexdigest())
    draft = array.store.draft(5.0)
    assert draft is not None
    draft.buffer[:5000] = b"x" * 5000
    array.store.commit(draft, 5000, [entry])
    draft.discard()
    with pytest.raises(ImageUnreadable, match="digest"):
        array.read("1.2")


def test_a_repair_is_given_any_shard_data_or_parity_by_name(make: Make) -> None:
    array = make()
    row = stored(array, {"1.2": PAYLOAD})
    length = shard_length(row.payload_length, row.placement.geometry.k)
    bodies = array.parts.reader.verified_bodies(row, range(6), reading.Span(0, length), lane="repair")
    for index in range(6):
        assert bytes(bodies[index]) == disk_with(array, row, index).read(path(row, index), row.body_offset)
