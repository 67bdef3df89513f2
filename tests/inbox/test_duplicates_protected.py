"""A duplicate is acknowledged only on what is true after the stored copy was read back."""

from __future__ import annotations

import hashlib
from pathlib import Path

from raidd.inbox.duplicates import Acknowledge, Newcomer, StoreIt, meet
from tests.support.arrays import SmallArray

DATA = b"z" * 40_000


def newcomer() -> Newcomer:
    return Newcomer("1.1", len(DATA), hashlib.sha256(DATA).hexdigest(), "", 0, "inbox:again", lambda at: (DATA[at:],))


def damaged_array(folder: Path) -> SmallArray:
    """One member is away and one shard has rotted, which nobody has noticed: k are left."""
    array = SmallArray(folder)
    receipt = array.put({"1.1": DATA})
    row = array.catalog.segment(receipt.segment)
    assert row is not None
    array.lose(next(e.slot for e in array.roster.entries if e.member == row.placement.members[5]) or 0)
    rotten = next(disk for disk in array.memory if disk.uuid == row.placement.members[0])
    rotten.flip(next(name for name in rotten.files() if str(receipt.segment) in name), row.body_offset + 3)
    return array


def test_damage_found_while_reading_back_is_mended_before_the_duplicate_is_acknowledged(tmp_path: Path) -> None:
    array = damaged_array(tmp_path)
    assert isinstance(meet(array.store, newcomer(), array.store.versions("1.1")), Acknowledge)
    assert array.catalog.counts(array.membership.away()).least_spare == 1


def test_damage_that_cannot_be_mended_means_the_newcomer_is_stored(tmp_path: Path) -> None:
    array = damaged_array(tmp_path)
    for disk in array.disks.values():
        disk.fail("create", "tmp/*.repair")
    assert meet(array.store, newcomer(), array.store.versions("1.1")) == StoreIt(1)
