"""Shards of members that left for good, of more exceptions than fit a page, and of a newer raidd."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from raidd.array.roster import RosterEvent, apply
from raidd.codec.geometry import Level
from raidd.repair import walks
from tests.support.arrays import SmallArray


def put_many(array: SmallArray, count: int) -> dict[str, bytes]:
    images = {f"1.{n}": Random(n).randbytes(500 + n) for n in range(count)}
    for uid, data in images.items():
        array.put({uid: data})
    return images


def check(array: SmallArray, images: dict[str, bytes]) -> None:
    assert array.catalog.counts(array.membership.away()).absent_shards == 0
    for uid, data in images.items():
        assert array.read(uid) == data
    assert array.catalog.check() == []


def test_what_a_removed_member_held_moves_to_those_that_have_none_of_the_segment(tmp_path: Path) -> None:
    array = SmallArray(tmp_path, members=7, level=Level("custom", data=4, parity=2))
    images = put_many(array, 20)
    gone = array.uuid(3)
    array.membership.set_roster(apply(array.membership.roster, gone, RosterEvent.OFFLINE))
    array.lose(3)
    array.membership.set_roster(apply(array.membership.roster, gone, RosterEvent.RETIRE))
    array.membership.dismiss(gone)
    array.parts.repairs.look_again()
    array.repair_all()
    assert array.catalog.load(gone)[0] == 0
    check(array, images)


def test_a_member_that_returns_gets_every_shard_it_missed_however_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walks, "PAGE", 4)
    array = SmallArray(tmp_path)
    images = put_many(array, 30)
    array.lose(2)
    array.lose_catalog()  # every segment has an exception now
    assert len(array.catalog.exceptions(array.uuid(2))) == 30
    array.restart()
    array.bring_back(2)
    array.repair_all()
    check(array, images)


def test_a_shard_of_a_newer_format_is_never_repaired_over(tmp_path: Path) -> None:
    array = SmallArray(tmp_path)
    receipt = array.put({"1.1": b"x" * 10_000})
    row = array.catalog.segment(receipt.segment)
    assert row is not None
    holder = next(disk for disk in array.memory if disk.uuid == row.placement.members[1])
    path = next(name for name in holder.files() if str(receipt.segment) in name)
    newer = bytearray(holder.files()[path])
    newer[8] = 2
    from crc32c import crc32c

    newer[124:128] = crc32c(bytes(newer[:124])).to_bytes(4, "little")
    holder.put(path, bytes(newer))
    array.lose_catalog()
    array.repair_all()
    assert holder.files()[path] == bytes(newer)
    assert not [name for name in holder.files() if name.startswith("quarantine/")]
    assert array.read("1.1") == b"x" * 10_000
    array.catalog.mark(receipt.segment, 1, "missing")
    array.parts.repairs.note(receipt.segment)
    array.repair_all()
    assert holder.files()[path] == bytes(newer)
    assert array.catalog.excepted(receipt.segment) == {1: "unsupported"}


def test_a_lost_segment_whose_images_are_protected_elsewhere_does_not_keep_the_array_failed(tmp_path: Path) -> None:
    array = SmallArray(tmp_path)
    first = array.put({"1.1": b"y" * 5000})
    row = array.catalog.segment(first.segment)
    assert row is not None
    for uuid in row.placement.members[:3]:
        disk = next(d for d in array.memory if d.uuid == uuid)
        disk.unlink(next(name for name in disk.files() if str(first.segment) in name))
    for index in range(3):
        array.catalog.mark(first.segment, index, "missing")
    assert array.store.standing().state == "failed"
    array.put({"1.1": b"y" * 5000})
    array.parts.repairs.note(first.segment)
    array.repair_all()
    assert array.store.standing().state == "healthy"
    assert array.read("1.1") == b"y" * 5000
