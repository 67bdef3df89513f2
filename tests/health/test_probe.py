"""The probe over members in memory: who leaves, who is welcomed back, who is let alone, and that nobody waits."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from crc32c import crc32c

from raidd.array.label import Label, label_for
from raidd.array.member_disk import MemberDisk
from raidd.array.members import NOT_FOUND, Member
from raidd.array.roster import MemberState, RosterEntry, RosterEvent, apply, canonical_json, new_roster
from raidd.array.worker import Cancel
from raidd.codec.geometry import Geometry, Level
from raidd.errors import ArrayLocked, MemberFull, MemberReadOnly, RaiddError
from raidd.health import probe
from raidd.health.probe import Probe
from tests.support.arrays import SmallArray
from tests.support.memory_disk import MemoryDisk

LABEL = "label.json"
LOOKS = {"check", "space", "read", "read_into", "length", "list"}
"""Calls that change nothing on a disk."""
A_WHILE_S = 60.0


class Keys:
    """The members' locks. ``foreign``: held by another process."""

    def __init__(self) -> None:
        self.held: set[UUID] = set()
        self.foreign: set[UUID] = set()

    def lock(self, disk: MemberDisk, _cancel: Cancel) -> None:
        if disk.uuid in self.foreign:
            raise ArrayLocked(f"{disk.path}: another raidd has it")
        self.held.add(disk.uuid)

    def unlock(self, member: UUID) -> None:
        self.held.discard(member)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "QUICK_S", 0.3)


@pytest.fixture
def array(tmp_path: Path) -> Iterator[SmallArray]:
    array = SmallArray(tmp_path, deadline_s=A_WHILE_S)
    array.put({"1.2": b"an image, so that each disk has a shard"})
    yield array
    end(array)


def end(array: SmallArray) -> None:
    for disk in array.disks.values():
        disk.release_all()
    array.stop()


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def prober(array: SmallArray, keys: Keys) -> Probe:
    return prober_of(array, keys)


def prober_of(array: SmallArray, keys: Keys, recent_write_s: float = 0.0) -> Probe:
    return Probe(
        array.membership,
        open_disk=array._find_again,
        lock=keys.lock,
        unlock=keys.unlock,
        filesystem_of=lambda _disk: "ext4",
        recent_write_s=recent_write_s,
    )


def member(array: SmallArray, slot: int) -> Member:
    found = array.membership.member(array.uuid(slot))
    assert found is not None
    return found


def until(prober: Probe, true: Callable[[], bool]) -> None:
    """Rounds, as the daemon makes them, until it is so."""
    deadline = time.monotonic() + A_WHILE_S
    while not true():
        assert time.monotonic() < deadline
        prober.probe_once()


def touched(array: SmallArray, slot: int) -> list[str]:
    """Calls that could have changed something on the disk, since the log was cleared."""
    return [name for name in array.disk(slot).operations() if name not in LOOKS]


def stranger_label(disk: UUID) -> bytes:
    """A good label of another array, on a disk with this member's folder."""
    entries = [RosterEntry(uuid, None, MemberState.SPARE) for uuid in (disk, uuid4())]
    other = new_roster(uuid4(), "other", Level("mirror"), Geometry(1, 1), entries)
    return label_for(disk, other).pack()


def asking_for_more(label: bytes) -> bytes:
    """The same label with a word in `requires` that this program does not know."""
    document = json.loads(label) | {"requires": ["time-travel"]}
    del document["crc32c"]
    return canonical_json(document | {"crc32c": f"{crc32c(canonical_json(document)):08x}"})


# -- looking ----------------------------------------------------------------------------------------------------


def test_a_member_that_is_well_is_known_by_its_room_and_file_system_and_stays(array: SmallArray, prober: Probe) -> None:
    prober.probe_once()
    for slot in range(6):
        assert member(array, slot).present
        assert member(array, slot).space == array.memory[slot].space()
        assert member(array, slot).filesystem == "ext4"


def test_a_hung_member_does_not_hold_up_the_others(array: SmallArray, prober: Probe) -> None:
    hang = array.disk(0).hang("overwrite", "canary")
    prober.probe_once()
    assert hang.entered.is_set()
    assert all(member(array, slot).space is not None for slot in range(1, 6))
    array.disk(1).log.clear()
    prober.probe_once()
    assert "overwrite" in array.disk(1).operations(), "the others are asked again while it hangs"
    assert member(array, 0).present, "its deadline has not passed"
    hang.release()
    until(prober, lambda: member(array, 0).space is not None)
    assert member(array, 0).present


def test_a_canary_that_reads_back_otherwise_takes_the_member_out(array: SmallArray, prober: Probe) -> None:
    array.disk(3).corrupt("read", "canary")
    until(prober, lambda: not member(array, 3).present)
    assert "canary" in member(array, 3).presence.reason


def test_a_disk_gone_read_only_leaves(array: SmallArray, prober: Probe) -> None:
    array.disk(3).fail("overwrite", "canary", error=MemberReadOnly("EROFS"))
    until(prober, lambda: not member(array, 3).present)


def test_a_lost_canary_is_made_again(array: SmallArray, prober: Probe) -> None:
    array.memory[2].unlink("canary")
    prober.probe_once()
    assert member(array, 2).present
    assert len(array.memory[2].files()["canary"]) == 4096


def test_after_a_recent_write_the_canary_is_left_alone(array: SmallArray, keys: Keys) -> None:
    prober_of(array, keys, recent_write_s=1e9).probe_once()
    assert member(array, 0).last_write_at > 0
    assert "overwrite" not in array.disk(0).operations()


def test_a_host_short_of_descriptors_condemns_nobody(array: SmallArray, prober: Probe) -> None:
    for disk in array.disks.values():
        disk.fail("read", LABEL, error=RaiddError("EMFILE"))
    prober.probe_once()
    assert len(array.membership.present_members()) == 6


def test_a_full_member_stays_and_serves(array: SmallArray, prober: Probe) -> None:
    array.disk(1).fail("overwrite", "canary", error=MemberFull("ENOSPC, as btrfs says for an overwrite"))
    prober.probe_once()
    assert member(array, 1).present
    assert member(array, 1).full


# -- hanging ----------------------------------------------------------------------------------------------------


def test_a_probe_that_misses_its_deadline_takes_the_member_out_and_its_end_brings_it_back(
    tmp_path: Path, keys: Keys
) -> None:
    array = SmallArray(tmp_path, deadline_s=2.0)
    prober = prober_of(array, keys)
    hang = array.disk(0).hang("read", LABEL)
    until(prober, lambda: not member(array, 0).present)
    assert [member(array, slot).present for slot in range(1, 6)] == [True] * 5
    prober.probe_once()
    array.disk(0).heal()
    hang.release()
    until(prober, lambda: member(array, 0).present)
    end(array)


def test_an_overdue_write_takes_the_member_out_though_nobody_waits_for_it(tmp_path: Path, keys: Keys) -> None:
    array = SmallArray(tmp_path, deadline_s=2.0)
    prober = prober_of(array, keys)
    array.disk(0).hang("create", "tmp/late")
    member(array, 0).submit("write", lambda disk, _cancel: disk.create("tmp/late", 1))
    until(prober, lambda: not member(array, 0).present)
    assert member(array, 0).errors == 1
    end(array)


def test_a_member_is_not_welcomed_while_an_old_operation_still_runs(tmp_path: Path, keys: Keys) -> None:
    array = SmallArray(tmp_path, deadline_s=2.0)
    prober = prober_of(array, keys)
    hang = array.disk(0).hang("create", "tmp/late")
    member(array, 0).submit("write", lambda disk, _cancel: disk.create("tmp/late", 1))
    until(prober, lambda: not member(array, 0).present)
    for _ in range(3):
        prober.probe_once()
    assert not member(array, 0).present, "its probe would answer, but its write still hangs"
    hang.release()
    until(prober, lambda: member(array, 0).present)
    end(array)


# -- labels -----------------------------------------------------------------------------------------------------


def test_a_damaged_label_takes_the_member_out_and_a_good_shard_brings_it_back_with_a_new_one(
    array: SmallArray, prober: Probe, keys: Keys
) -> None:
    array.memory[4].flip(LABEL, 20)
    until(prober, lambda: not member(array, 4).present)
    until(prober, lambda: member(array, 4).present)
    label = Label.parse(array.memory[4].read(LABEL))
    assert (label.member, label.roster) == (array.uuid(4), array.membership.roster)
    assert keys.held == {array.uuid(4)}


@pytest.mark.parametrize("damage", ["gone", "half"])
def test_a_label_lost_or_half_written_is_like_a_damaged_one(array: SmallArray, prober: Probe, damage: str) -> None:
    half = array.memory[4].read(LABEL)[:200]
    array.memory[4].unlink(LABEL)
    if damage == "half":
        array.memory[4].put(LABEL, half)
    until(prober, lambda: not member(array, 4).present)
    until(prober, lambda: member(array, 4).present)
    assert Label.parse(array.memory[4].read(LABEL)).roster == array.membership.roster


def test_a_damaged_label_on_a_disk_without_a_good_shard_is_not_made_again(array: SmallArray, prober: Probe) -> None:
    shard = next(name for name in array.memory[4].files() if name.startswith("segments/"))
    array.memory[4].flip(shard, 0)
    array.memory[4].flip(LABEL, 20)
    until(prober, lambda: not member(array, 4).present)
    before = array.memory[4].files()
    for _ in range(3):
        prober.probe_once()
    assert not member(array, 4).present
    assert array.memory[4].files() == before


def test_a_strangers_disk_takes_the_place_out_and_is_never_written_to(array: SmallArray, prober: Probe) -> None:
    array.memory[2].put(LABEL, stranger_label(array.uuid(2)))
    array.disk(2).log.clear()
    until(prober, lambda: not member(array, 2).present)
    for _ in range(3):
        prober.probe_once()
    assert not member(array, 2).present
    assert touched(array, 2) == []


def test_a_damaged_label_over_the_shards_of_another_array_is_a_strangers(
    array: SmallArray, prober: Probe, tmp_path: Path
) -> None:
    other = SmallArray(tmp_path / "other", seed=2)
    other.put({"9.9": b"not ours"})
    array.lose(2)
    swapped = MemoryDisk(array.uuid(2))
    for name, data in other.memory[0].files().items():
        swapped.put(name, b"damaged" if name == LABEL else data)
    array.disks[array.uuid(2)] = array._faulty(swapped)
    array.lost.clear()
    for _ in range(3):
        prober.probe_once()
    assert not member(array, 2).present
    assert touched(array, 2) == []
    end(other)


def test_a_label_that_is_not_understood_takes_the_member_out_and_is_left_as_it_is(
    array: SmallArray, prober: Probe
) -> None:
    newer = asking_for_more(array.memory[2].read(LABEL))
    array.memory[2].put(LABEL, newer)
    array.disk(2).log.clear()
    until(prober, lambda: not member(array, 2).present)
    for _ in range(3):
        prober.probe_once()
    assert not member(array, 2).present
    assert touched(array, 2) == []
    assert array.memory[2].read(LABEL) == newer


def test_a_member_with_an_older_roster_is_welcomed_and_brought_up_to_date(array: SmallArray, prober: Probe) -> None:
    array.lose(5)
    array.membership.set_roster(array.membership.roster.successor(contact="Dr. Miller, 555-0101"))
    assert Label.parse(array.memory[5].read(LABEL)).roster != array.membership.roster
    array.lost.clear()
    until(prober, lambda: member(array, 5).present)
    assert Label.parse(array.memory[5].read(LABEL)).roster == array.membership.roster


def test_a_member_with_a_roster_that_this_array_never_had_stays_away_untouched(
    array: SmallArray, prober: Probe
) -> None:
    array.lose(5)
    fork = array.membership.roster.successor(contact="somewhere else")
    array.membership.set_roster(array.membership.roster.successor(contact="here"))
    array.memory[5].put(LABEL, label_for(array.uuid(5), fork).pack())
    array.disk(5).log.clear()
    array.lost.clear()
    for _ in range(3):
        prober.probe_once()
    assert not member(array, 5).present
    assert touched(array, 5) == []


def test_a_disk_whose_label_names_another_member_is_away(array: SmallArray, prober: Probe) -> None:
    array.memory[1].put(LABEL, array.memory[0].read(LABEL))
    array.disk(1).log.clear()
    until(prober, lambda: not member(array, 1).present)
    prober.probe_once()
    assert not member(array, 1).present
    assert touched(array, 1) == []


# -- welcome ----------------------------------------------------------------------------------------------------


def test_a_welcome_locks_the_disk_and_empties_its_tmp(array: SmallArray, prober: Probe, keys: Keys) -> None:
    array.lose(0)
    array.memory[0].put("tmp/0-00.shard", b"torn")
    array.lost.clear()
    until(prober, lambda: member(array, 0).present)
    assert keys.held == {array.uuid(0)}
    assert not [name for name in array.memory[0].files() if name.startswith("tmp/")]


def test_a_member_that_another_process_holds_stays_away_and_the_probe_goes_on(
    array: SmallArray, prober: Probe, keys: Keys
) -> None:
    array.lose(0)
    keys.foreign.add(array.uuid(0))
    array.lost.clear()
    array.disk(0).log.clear()
    for _ in range(2):
        prober.probe_once()
    assert not member(array, 0).present
    assert touched(array, 0) == []
    assert member(array, 1).space is not None
    keys.foreign.clear()
    until(prober, lambda: member(array, 0).present)


def test_a_welcome_that_fails_lets_go_of_the_lock(array: SmallArray, prober: Probe, keys: Keys) -> None:
    array.lose(0)
    array.disk(0).fail("overwrite", "canary", error=MemberReadOnly("EROFS"))
    array.lost.clear()
    prober.probe_once()
    prober.probe_once()
    assert not member(array, 0).present
    assert keys.held == set()


def test_a_full_disk_is_welcomed_with_the_label_it_has(array: SmallArray, prober: Probe) -> None:
    array.lose(5)
    old = array.memory[5].read(LABEL)
    array.membership.set_roster(array.membership.roster.successor(contact="new"))
    array.disk(5).fail("replace", error=MemberFull("ENOSPC"))
    array.lost.clear()
    until(prober, lambda: member(array, 5).present)
    assert array.memory[5].read(LABEL) == old
    array.lose(0)
    array.lose(1)
    assert array.read("1.2")


def test_a_disk_that_is_on_no_mount_stays_away_and_why_is_known(array: SmallArray, keys: Keys) -> None:
    array.lose(3)
    gone = Member(array.disk(3), deadline_s=1, clock=time.monotonic, present=False, reason=NOT_FOUND)
    array.membership.admit(gone)
    prober = prober_of(array, keys)
    until(prober, lambda: "not on any mount" in gone.presence.reason)
    assert not gone.present
    gone.close()


# -- let alone --------------------------------------------------------------------------------------------------


def set_offline(array: SmallArray, slot: int) -> None:
    array.membership.set_roster(apply(array.membership.roster, array.uuid(slot), RosterEvent.OFFLINE))
    member(array, slot).leave("taken offline")


def test_nothing_touches_a_member_that_was_taken_offline(array: SmallArray, prober: Probe) -> None:
    prober.probe_once()
    set_offline(array, 2)
    member(array, 2).call("probe", lambda _disk, _cancel: None)  # what stood in the queue is through
    array.disk(2).log.clear()
    for _ in range(3):
        prober.probe_once()
    assert array.disk(2).operations() == []


def test_an_answer_from_before_a_member_was_taken_offline_does_not_bring_it_back(
    array: SmallArray, prober: Probe
) -> None:
    """The disk is swapped for a stranger's while it is offline."""
    array.lose(2)
    array.lost.clear()
    hang = array.disk(2).hang("overwrite", "canary")
    prober.probe_once()
    assert hang.entered.is_set()
    set_offline(array, 2)
    hang.release()
    prober.probe_once()
    array.memory[2].put(LABEL, stranger_label(array.uuid(2)))
    array.membership.set_roster(apply(array.membership.roster, array.uuid(2), RosterEvent.ONLINE))
    for _ in range(3):
        prober.probe_once()
    assert not member(array, 2).present
