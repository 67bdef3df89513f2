"""The array end to end in memory: in, back, with members that fail, and what is left behind."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

import pytest

from raidd.array.commit import Receipt
from raidd.array.roster import ArrayState
from raidd.codec.geometry import Geometry
from raidd.errors import ArrayFull, ArrayUnwritable, ImageUnreadable, MemberFull
from tests.support.arrays import SmallArray

DATA = {f"1.2.{n}": Random(n).randbytes(size) for n, size in enumerate([1, 100, 4096, 65536, 65537, 300_000])}


@pytest.fixture
def array(tmp_path: Path) -> SmallArray:
    return SmallArray(tmp_path)


def check_all(array: SmallArray) -> None:
    for uid, data in DATA.items():
        assert array.read(uid) == data


def test_what_goes_in_comes_back(array: SmallArray) -> None:
    receipt = array.put(DATA)
    assert receipt.protected
    check_all(array)
    assert array.store.standing().state == ArrayState.HEALTHY
    assert array.store.standing().failures_tolerated == 2


def test_survives_any_two_members(array: SmallArray) -> None:
    array.put(DATA)
    for first in range(6):
        for second in range(first + 1, 6):
            array.lose(first)
            array.lose(second)
            check_all(array)
            array.bring_back(first)
            array.bring_back(second)


def test_three_lost_members_are_an_error_not_wrong_bytes(array: SmallArray) -> None:
    array.put(DATA)
    for slot in (0, 1, 2):
        array.lose(slot)
    with pytest.raises(ImageUnreadable):
        array.read("1.2.5")
    assert array.store.standing().state == ArrayState.FAILED
    array.bring_back(1)
    check_all(array)


def test_new_images_keep_full_parity_while_degraded(array: SmallArray) -> None:
    array.lose(3)
    receipt = array.put(DATA)
    row = array.catalog.segment(receipt.segment)
    assert row is not None
    assert row.placement.geometry == Geometry(3, 2)
    assert receipt.protected
    check_all(array)


def test_a_member_that_fails_during_the_write_leaves_and_its_shard_is_mended(array: SmallArray) -> None:
    array.disk(2).fail("file.sync", "tmp/*")
    receipt = array.put(DATA)
    assert receipt.protected
    assert array.membership.present_members() != 6
    assert array.membership.member(array.uuid(2)) is not None
    assert not array.membership.member(array.uuid(2)).present  # type: ignore[union-attr]
    assert array.catalog.counts().absent_shards == 1
    array.disk(2).heal()
    array.bring_back(2)
    array.repair_all()
    assert array.catalog.counts().absent_shards == 0
    check_all(array)


def test_two_failing_members_give_a_narrower_second_attempt_and_no_debris(array: SmallArray) -> None:
    for slot in (1, 4):
        array.disk(slot).fail("file.write", "tmp/*")
    receipt = array.put(DATA)
    row = array.catalog.segment(receipt.segment)
    assert row is not None
    assert row.placement.geometry == Geometry(2, 2)
    assert len(row.replaces) == 1
    assert receipt.protected
    check_all(array)
    until = time.monotonic() + 20
    while time.monotonic() < until and _strangers(array, receipt):
        time.sleep(0.01)  # the first attempt's shards are taken away behind the answer
    assert not _strangers(array, receipt)


def _strangers(array: SmallArray, receipt: Receipt) -> list[str]:
    files = [name for disk in array.memory for name in disk.files() if name.startswith(("segments/", "tmp/"))]
    return [name for name in files if str(receipt.segment) not in name]


def test_a_hung_member_costs_its_deadline_once(array: SmallArray) -> None:
    hang = array.disk(0).hang("create", "tmp/*")
    receipt = array.put(DATA)
    assert receipt.protected
    check_all(array)
    again = array.put({"9.9": b"x" * 10})
    assert again.protected
    hang.release()


def test_a_full_member_takes_nothing_more_and_serves_on(tmp_path: Path) -> None:
    array = SmallArray(tmp_path)
    array.put(DATA)
    array.disk(5).fail("create", "tmp/*", error=MemberFull("full"))
    receipt = array.put({"5.5": b"y" * 50_000})
    assert receipt.protected
    third = array.put({"5.6": b"z" * 50_000})
    row = array.catalog.segment(third.segment)
    assert row is not None
    assert row.placement.geometry == Geometry(3, 2)
    assert array.membership.readable(array.uuid(5)) is not None
    check_all(array)


def test_all_full_means_images_wait(array: SmallArray) -> None:
    for slot in range(6):
        array.disk(slot).fail("create", "tmp/*", error=MemberFull("full"))
    with pytest.raises(ArrayFull):
        array.put(DATA)
    assert "full" in array.store.writable()


def test_nobody_up_means_images_wait(array: SmallArray) -> None:
    for slot in range(6):
        array.lose(slot)
    with pytest.raises(ArrayUnwritable):
        array.put(DATA)
    assert array.store.writable()


def test_one_member_left_stores_without_protecting_and_repair_protects(tmp_path: Path) -> None:
    array = SmallArray(tmp_path, members=2)
    array.lose(1)
    receipt = array.put(DATA)
    assert not receipt.protected
    check_all(array)
    assert array.store.standing().state == ArrayState.CRITICAL
    assert array.row("1.2.0").state == "stored"
    array.bring_back(1)
    array.repair_all()
    assert array.row("1.2.0").state == "protected"
    array.lose(0)
    check_all(array)


def test_silent_damage_is_found_decoded_and_mended(array: SmallArray) -> None:
    receipt = array.put(DATA)
    row = array.catalog.segment(receipt.segment)
    assert row is not None
    for index in (0, 1):
        disk = next(d for d in array.memory if d.uuid == row.placement.members[index])
        path = next(name for name in disk.files() if name.startswith("segments/"))
        disk.flip(path, row.body_offset + 10)
    check_all(array)
    array.repair_all()
    assert array.catalog.counts().absent_shards == 0
    assert {code for code, _s, _m in array.events} >= {"shard-damaged"}
    array.lose(2)
    array.lose(3)
    check_all(array)


def test_a_damaged_head_is_found_and_mended(array: SmallArray) -> None:
    receipt = array.put(DATA)
    row = array.catalog.segment(receipt.segment)
    assert row is not None
    disk = next(d for d in array.memory if d.uuid == row.placement.members[0])
    path = next(name for name in disk.files() if name.startswith("segments/"))
    disk.flip(path, 3)
    disk.flip(path, row.body_offset)
    check_all(array)
    array.repair_all()
    assert array.catalog.counts().absent_shards == 0
    assert any(name.startswith("quarantine/") for name in disk.files())


@pytest.mark.parametrize("loss", ["restart", "crash", "lose_catalog"])
def test_everything_survives(array: SmallArray, loss: str) -> None:
    array.put(DATA)
    getattr(array, loss)()
    check_all(array)
    assert array.store.standing().state == ArrayState.HEALTHY
    array.put({"7.7": b"after"})
    assert array.read("7.7") == b"after"


def test_a_catalog_from_a_backup_is_set_aside_and_made_again(array: SmallArray) -> None:
    array.put({"1.1": b"old"})
    backup = array.save_catalog()
    for number in range(3):
        array.put({f"2.{number}": bytes([number]) * 100})
    while array.parts.replicator.replicate_once():
        pass
    array.put_back_catalog(backup)
    assert array.read("1.1") == b"old"
    for number in range(3):
        assert array.read(f"2.{number}") == bytes([number]) * 100
    assert list(array.state_dir.glob("*.aside"))


def test_scattered_damage_in_every_shard_is_still_decoded_after_the_catalog_is_lost(array: SmallArray) -> None:
    """Each shard has one bad block, each in another column: no shard is whole, yet of every block five are good."""
    big = {"6.6.6": Random(6).randbytes(6 * 4 * 65536)}
    receipt = array.put(big)
    row = array.catalog.segment(receipt.segment)
    assert row is not None
    for index, uuid in enumerate(row.placement.members):
        disk = next(d for d in array.memory if d.uuid == uuid)
        path = next(name for name in disk.files() if str(receipt.segment) in name)
        disk.flip(path, row.body_offset + index * 65536 + 7)
    array.lose_catalog()
    assert array.read("6.6.6") == big["6.6.6"]
    array.repair_all()
    assert array.catalog.counts().absent_shards == 0
    assert array.read("6.6.6") == big["6.6.6"]
