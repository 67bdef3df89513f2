"""Segments that are lost for good, and of which nobody needs anything any more."""

from __future__ import annotations

from pathlib import Path
from random import Random

from raidd.array.roster import ArrayState
from tests.support.arrays import SmallArray
from tests.support.sender import Sender

LARGE = Random(1).randbytes(40_000)


def test_a_lost_attempt_at_a_large_image_is_forgotten_once_the_image_is_protected_elsewhere(tmp_path: Path) -> None:
    """
    1. One member is left; a large image is stored on it in parts, not protected: the original stays.
    2. That member dies for good; the others are back; a blank disk takes its place.
    3. The original is taken in again, protected. Nothing of the first attempt may keep the array from healing.
    """
    array = SmallArray(tmp_path, members=3)
    sender = Sender(array)
    array.lose(0)
    array.lose(2)
    source = sender.drop("1.9", LARGE, part_size=20_001)
    sender.send([source])
    assert source in sender.inbox
    assert array.row("1.9").state == "stored"
    array.lose(1)
    array.lost -= {array.uuid(0), array.uuid(2)}
    array.probe()
    array.replace(1)
    sender.send([source])
    assert source not in sender.inbox
    assert array.read("1.9") == LARGE
    for _round in range(3):
        array.skipped_s += 31.0
        array.repair_all()
    assert array.store.standing().state is ArrayState.HEALTHY
    assert array.catalog.check() == []
    assert array.read("1.9") == LARGE


def test_what_is_left_of_a_forgotten_segment_is_taken_away(tmp_path: Path) -> None:
    array = SmallArray(tmp_path, members=2)
    sender = Sender(array)
    array.lose(1)
    source = sender.drop("1.1", b"x" * 5000)
    sender.send([source])
    disk = next(disk for disk in array.memory if disk.uuid == array.uuid(0))
    lone = next(path for path in disk.files() if path.startswith("segments/"))
    disk.put(lone, disk.files()[lone][:1000])
    array.lost.clear()
    array.probe()
    sender.send([source])
    assert source not in sender.inbox
    array.skipped_s += 31.0
    array.repair_all()
    array.welcome_all()
    assert lone not in disk.files()
    assert array.store.standing().state is ArrayState.HEALTHY
