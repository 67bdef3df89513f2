"""A member at run time: lanes that do not wait for each other, and what errors say of a disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from raidd.array.member_disk import FileNotThere
from raidd.array.members import LANES, NOT_FOUND, Member
from raidd.errors import (
    MemberAway,
    MemberConflict,
    MemberError,
    MemberFaulty,
    MemberFull,
    MemberReadOnly,
    MemberTimeout,
    RaiddError,
)
from tests.support.faulty_disk import FaultyDisk
from tests.support.memory_disk import MemoryDisk

A_WHILE_S = 60.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def disk() -> FaultyDisk:
    return FaultyDisk(MemoryDisk(path="/srv/disks/a"))


@pytest.fixture
def member(disk: FaultyDisk, clock: Clock) -> Iterator[Member]:
    member = Member(disk, deadline_s=A_WHILE_S, clock=clock)
    yield member
    disk.release_all()
    member.close()


def changes(member: Member) -> list[bool]:
    seen: list[bool] = []
    member.on_change = lambda changed: seen.append(changed.present)
    return seen


def wait_for(true: Callable[[], bool]) -> None:
    until = time.monotonic() + A_WHILE_S
    while not true():
        assert time.monotonic() < until
        time.sleep(0.002)


# -- what an error says ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [MemberFaulty("EIO"), MemberReadOnly("EROFS"), MemberAway("swapped"), MemberTimeout("late"), MemberError("?")],
)
def test_an_error_of_the_disk_takes_the_member_out_with_its_reason(member: Member, error: MemberError) -> None:
    seen = changes(member)
    with pytest.raises(type(error)):
        member.call("write", _raising(error))
    assert not member.present
    assert member.presence.reason == error.message
    assert (member.errors, seen) == (1, [False])


@pytest.mark.parametrize("error", [FileNotThere("gone"), MemberConflict("taken"), MemberFull("ENOSPC")])
def test_an_error_of_a_file_or_of_room_leaves_it_where_it_is(member: Member, error: MemberError) -> None:
    with pytest.raises(type(error)):
        member.call("write", _raising(error))
    assert member.present
    assert member.errors == 0
    assert member.full is isinstance(error, MemberFull)


def test_a_host_in_need_condemns_no_disk(member: Member) -> None:
    with pytest.raises(RaiddError):
        member.call("write", _raising(RaiddError("EMFILE")))
    assert (member.present, member.errors) == (True, 0)


def test_a_bug_is_not_taken_for_an_error_of_the_disk(member: Member) -> None:
    with pytest.raises(ZeroDivisionError):
        member.call("write", _raising(ZeroDivisionError()))
    assert member.present


def _raising(error: BaseException) -> Callable[..., Any]:
    def work(_disk: object, _cancel: object) -> None:
        raise error

    return work


def test_errors_count_operations_and_blocks_until_it_is_put_online(member: Member) -> None:
    heard: list[str] = []
    member.on_error = lambda _member, message: heard.append(message)
    member.count_error("three bad blocks", 3)
    member.judge(MemberFaulty("EIO"))
    assert (member.errors, heard) == (4, ["three bad blocks", "EIO"])
    member.put_online()
    assert member.errors == 0


# -- coming and going --------------------------------------------------------------------------------------------


def test_the_first_reason_and_its_time_stay_until_it_is_back(member: Member, clock: Clock) -> None:
    member.leave("fsync returned EIO")
    clock.now += 10
    member.leave("its folder is not there")
    member.still_away("nowhere to be found")
    assert (member.presence.reason, member.presence.since) == ("fsync returned EIO", 1000.0)
    clock.now += 10
    member.arrive()
    assert (member.present, member.presence.reason, member.presence.since) == (True, "", 1020.0)


@pytest.mark.parametrize("reason", ["", NOT_FOUND])
def test_what_the_probe_finds_is_a_better_reason_than_a_starts(disk: FaultyDisk, clock: Clock, reason: str) -> None:
    member = Member(disk, deadline_s=1, clock=clock, present=False, reason=reason)
    member.still_away("its label is another array's")
    member.still_away("still")
    assert member.presence.reason == "its label is another array's"
    member.close()


def test_each_change_is_told_once(member: Member) -> None:
    seen = changes(member)
    for _ in range(2):
        member.leave("pulled")
    for _ in range(2):
        member.arrive()
    assert seen == [False, True]


def test_who_is_told_may_look_and_act_at_once(member: Member) -> None:
    """No lock is held meanwhile: what a listener does may lead here again."""
    states: list[bool] = []

    def listen(changed: Member) -> None:
        states.append(changed.present)
        if not changed.present:
            changed.arrive()

    member.on_change = listen
    member.leave("for a moment")
    assert states == [False, True]


def test_threads_that_fail_together_make_it_leave_once(member: Member) -> None:
    seen = changes(member)
    barrier = threading.Barrier(8)

    def fail() -> None:
        barrier.wait()
        member.judge(MemberFaulty("EIO"))

    threads = [threading.Thread(target=fail) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (seen, member.errors) == ([False], 8)


# -- lanes -------------------------------------------------------------------------------------------------------


def test_a_member_that_is_away_is_asked_by_the_probe_alone(member: Member) -> None:
    member.leave("pulled")
    for lane in LANES:
        if lane != "probe":
            with pytest.raises(MemberAway, match="pulled"):
                member.submit(lane, lambda _disk, _cancel: None)
    assert member.call("probe", lambda disk, _cancel: disk.path) == "/srv/disks/a"


@pytest.mark.parametrize("stuck", LANES)
def test_a_lane_that_hangs_holds_up_no_other(member: Member, disk: FaultyDisk, stuck: Any) -> None:
    hang = disk.hang("check")
    member.submit(stuck, lambda disk, _cancel: disk.check())
    assert hang.entered.wait(A_WHILE_S)
    for lane in LANES:
        if lane != stuck:
            assert member.call(lane, lambda disk, _cancel: disk.path)
    assert not member.stuck(), "its deadline has not passed"


def test_a_lane_keeps_the_order(member: Member) -> None:
    done: list[int] = []
    operations = [member.submit("write", lambda _disk, _cancel, n=n: done.append(n)) for n in range(50)]
    for operation in operations:
        member.result(operation)
    assert done == list(range(50))


def test_an_overdue_operation_makes_it_stuck_until_it_ends(disk: FaultyDisk, clock: Clock) -> None:
    member = Member(disk, deadline_s=0.2, clock=clock)
    hang = disk.hang("check", call=1)
    operation = member.submit("write", lambda disk, _cancel: disk.check())
    with pytest.raises(MemberTimeout):
        member.result(operation)
    assert member.stuck()
    assert not member.present
    hang.release()
    wait_for(lambda: not member.stuck())
    member.close()


def test_work_uses_the_disk_that_is_there_when_its_turn_comes(member: Member, disk: FaultyDisk) -> None:
    """It came back elsewhere: what still waits must not go to the old place."""
    hang = disk.hang("check")
    member.submit("write", lambda disk, _cancel: disk.check())
    waiting = member.submit("write", lambda disk, _cancel: disk.path)
    member.disk = MemoryDisk(disk.uuid, path="/srv/disks/b")
    hang.release()
    assert waiting.result() == "/srv/disks/b"


def test_a_failure_that_nobody_waits_for_is_heeded(member: Member) -> None:
    operation = member.submit("write", _raising(MemberFaulty("EIO, late")))
    operation.add_done_callback(member.heed)
    wait_for(lambda: not member.present)
    assert member.presence.reason == "EIO, late"


def test_nothing_runs_on_a_closed_member(member: Member) -> None:
    member.close()
    with pytest.raises(RaiddError):
        member.call("write", lambda _disk, _cancel: None)
    assert member.present, "that says nothing of the disk"
