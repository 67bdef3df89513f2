"""A member counts only under the roster that its label tells, whatever changes while it is welcomed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from raidd.array.label import Label, label_for
from raidd.array.member_disk import MemberDisk
from raidd.array.members import Member
from raidd.array.roster import MemberState, RosterEvent, apply
from raidd.array.worker import Cancel
from raidd.health import probe
from raidd.health.probe import Probe
from tests.support.arrays import SmallArray

LABEL = "label.json"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "QUICK_S", 0.3)


@pytest.fixture
def array(tmp_path: Path) -> Iterator[SmallArray]:
    array = SmallArray(tmp_path, deadline_s=60.0)
    array.put({"1.2": b"an image"})
    yield array
    for disk in array.disks.values():
        disk.release_all()
    array.stop()


class Keys:
    def __init__(self) -> None:
        self.held: set[UUID] = set()

    def lock(self, disk: MemberDisk, _cancel: Cancel) -> None:
        self.held.add(disk.uuid)

    def unlock(self, member: UUID) -> None:
        self.held.discard(member)


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def prober(array: SmallArray, keys: Keys) -> Probe:
    array.membership.let_go = keys.unlock
    return Probe(
        array.membership,
        open_disk=array._find_again,
        lock=keys.lock,
        unlock=keys.unlock,
        recent_write_s=0.0,
    )


def member(array: SmallArray, slot: int) -> Member:
    found = array.membership.member(array.uuid(slot))
    assert found is not None
    return found


def label(array: SmallArray, slot: int) -> Label:
    return Label.parse(array.memory[slot].read(LABEL))


def until(prober: Probe, true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        prober.probe_once()


def test_a_roster_that_changes_during_a_welcome_is_on_the_label_before_it_counts(
    array: SmallArray, prober: Probe, keys: Keys
) -> None:
    array.lose(5)
    array.lost.clear()
    hang = array.disk(5).hang("space", call=1)  # its label is written
    prober.probe_once()
    assert hang.entered.is_set()
    array.membership.set_roster(array.membership.roster.successor(contact="changed meanwhile"))
    arrived: list[Label] = []
    array.membership.on_change = lambda who: arrived.append(Label.parse(array.disks[who.uuid].inner.read(LABEL)))
    hang.release()
    member(array, 5)._workers["probe"].submit(lambda _cancel: None).wait(30)
    prober.probe_once()
    assert not member(array, 5).present
    assert keys.held == set(), "until then nothing of it is kept open"
    until(prober, lambda: member(array, 5).present)
    assert [one.roster for one in arrived] == [array.membership.roster]
    assert keys.held == {array.uuid(5)}


def test_a_probe_does_not_wait_for_whoever_makes_the_next_roster(array: SmallArray, prober: Probe) -> None:
    array.lose(5)
    array.lost.clear()
    go, held = threading.Event(), threading.Event()

    def administrate() -> None:
        with array.membership.changing:
            held.set()
            go.wait()

    thread = threading.Thread(target=administrate)
    thread.start()
    held.wait()
    for _ in range(3):
        prober.probe_once()
    assert not member(array, 5).present
    go.set()
    thread.join()
    until(prober, lambda: member(array, 5).present)


def test_an_old_label_of_our_own_is_brought_up_to_date(array: SmallArray, prober: Probe) -> None:
    old = array.membership.roster
    array.membership.set_roster(old.successor(contact="new"))
    array.memory[3].put(LABEL, label_for(array.uuid(3), old).pack())
    until(prober, lambda: label(array, 3).roster == array.membership.roster)
    assert member(array, 3).present


def test_a_label_of_a_fork_takes_a_member_out_and_is_left_alone(array: SmallArray, prober: Probe) -> None:
    fork = label_for(array.uuid(3), array.membership.roster.successor(contact="there")).pack()
    array.membership.set_roster(array.membership.roster.successor(contact="here"))
    array.memory[3].put(LABEL, fork)
    until(prober, lambda: not member(array, 3).present)
    prober.probe_once()
    assert array.memory[3].read(LABEL) == fork


@pytest.mark.parametrize("state", [MemberState.FAILED, MemberState.OFFLINE])
def test_nothing_stays_open_of_a_member_that_is_judged_failed_or_taken_offline(
    array: SmallArray, prober: Probe, keys: Keys, state: MemberState
) -> None:
    assert prober is not None
    keys.held.add(array.uuid(2))
    event = {MemberState.FAILED: RosterEvent.FAIL, MemberState.OFFLINE: RosterEvent.OFFLINE}[state]
    array.membership.set_roster(apply(array.membership.roster, array.uuid(2), event))
    assert keys.held == set()


def test_a_draining_disk_is_let_go_when_its_successor_is_rebuilt(array: SmallArray, prober: Probe, keys: Keys) -> None:
    assert prober is not None
    old = array.uuid(1)
    array.membership.set_roster(apply(array.membership.roster, old, RosterEvent.SUSPECT))
    keys.held.add(old)
    array.replace(1)
    assert array.membership.state(old) == MemberState.DRAINING
    assert keys.held == {old}, "it is still read from"
    array.repair_all()
    assert array.membership.state(old) == MemberState.RETIRED
    assert array.membership.member(old) is None
    assert keys.held == set()
    assert Label.parse(array.memory[1].read(LABEL)).roster.entry(old).state == MemberState.RETIRED
    assert array.read("1.2") == b"an image"
