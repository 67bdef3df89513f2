"""The repair queue and the walks: what comes next, what is lost by nothing, how far it is, and who is online after."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from uuid import UUID

import pytest
from crc32c import crc32c

from raidd.array import commit
from raidd.array.members import Member
from raidd.array.roster import ArrayState, MemberState, RosterEvent, apply
from raidd.codec.geometry import Level
from raidd.codec.shard import shard_path
from raidd.errors import MemberFaulty
from raidd.repair import walks
from raidd.repair.jobs import RETRY_S, Repairs
from raidd.repair.pace import Pace
from raidd.repair.rebuild import Outcome
from tests.support.arrays import SmallArray

SEGMENTS = 5
A_WHILE_S = 60.0
Make = Callable[..., SmallArray]


class Clock:
    """Time passes when a test says so, and while the repairs rest."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.rests: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.now += seconds


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


@pytest.fixture
def array(make: Make) -> SmallArray:
    return filled(make())


def filled(array: SmallArray) -> SmallArray:
    for number in range(SEGMENTS):
        array.put({f"1.{number}": Random(number).randbytes(9000)})
    return array


def all_read_back(array: SmallArray) -> bool:
    return all(array.read(f"1.{number}") == Random(number).randbytes(9000) for number in range(SEGMENTS))


def repaired(array: SmallArray, monkeypatch: pytest.MonkeyPatch) -> list[UUID]:
    """The segments in the order in which they are repaired from now on."""
    order: list[UUID] = []
    repair = array.parts.rebuilder.repair

    def note(segment: UUID) -> Outcome:
        order.append(segment)
        return repair(segment)

    monkeypatch.setattr(array.parts.rebuilder, "repair", note)
    return order


def event(array: SmallArray, member: UUID, what: RosterEvent) -> None:
    array.membership.set_roster(apply(array.membership.roster, member, what, array.membership.presence(member)))


def state(array: SmallArray, member: UUID) -> MemberState:
    return array.membership.state(member)


def member_of(array: SmallArray, uuid: UUID) -> Member:
    found = array.membership.member(uuid)
    assert found is not None
    return found


def shards_on(array: SmallArray, uuid: UUID) -> set[str]:
    disk = next(disk for disk in array.memory if disk.uuid == uuid)
    return {name for name in disk.files() if name.startswith("segments/")}


def replace_lost(array: SmallArray, slot: int) -> UUID:
    array.lose(slot)
    return array.replace(slot)


def pass_by(array: SmallArray) -> None:
    array.skipped_s += RETRY_S + 1


# -- the queue --------------------------------------------------------------------------------------------------


def test_what_is_noted_while_its_segment_is_repaired_stays_noted(
    array: SmallArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader meets the next damage after the repair has looked and before it ends."""
    segment = array.all_segments()[0].segment
    repair, repairs = array.parts.rebuilder.repair, array.parts.repairs

    def repair_and_hear(segment: UUID) -> Outcome:
        outcome = repair(segment)
        array.catalog.mark(segment, 0, "damaged")
        repairs.note(segment)
        return outcome

    repairs.note(segment)
    with monkeypatch.context() as patched:
        patched.setattr(array.parts.rebuilder, "repair", repair_and_hear)
        assert repairs.work_once()
    assert repairs.due() == [segment]
    array.repair_all()
    assert array.catalog.counts().absent_shards == 0


def test_what_cannot_be_mended_now_is_tried_again_after_a_while(array: SmallArray) -> None:
    array.repair_all()
    repairs, segment = array.parts.repairs, array.all_segments()[0].segment
    array.catalog.mark(segment, 0, "missing")
    for slot in (1, 2, 3):
        array.lose(slot)
    repairs.note(segment)
    array.repair_all()
    assert (repairs.due(), repairs.queued()) == ([], 1)
    pass_by(array)
    assert repairs.due() == [segment]


def test_noting_wakes_the_loop_and_one_segment_is_queued_once(array: SmallArray) -> None:
    woken: list[bool] = []
    array.parts.repairs.wake = lambda: woken.append(True)
    before = array.parts.repairs.queued()
    for _ in range(3):
        array.parts.repairs.note(array.all_segments()[0].segment)
    assert array.parts.repairs.queued() == before + 1
    assert woken


def test_a_repair_that_no_member_can_take_does_not_end_the_thread(array: SmallArray) -> None:
    for disk in array.disks.values():
        disk.fail("create", "tmp/*", error=MemberFaulty("EIO"))
    row = array.all_segments()[0]
    disk_of(array, row.placement.members[0]).unlink(shard_path(row.segment, 0))
    array.catalog.mark(row.segment, 0, "missing")
    array.parts.repairs.note(row.segment)
    array.repair_all()
    assert array.parts.repairs.queued() == 1
    assert array.catalog.excepted(row.segment) == {0: "missing"}


# -- resync -----------------------------------------------------------------------------------------------------


def test_a_member_that_returns_gets_all_it_missed_however_many_pages_that_is(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walks, "PAGE", 2)
    array = make(members=2)
    array.lose(1)
    filled(array)
    assert array.store.standing().state == ArrayState.CRITICAL
    array.bring_back(1)
    array.repair_all()
    assert array.catalog.exceptions() == []
    assert len(shards_on(array, array.uuid(1))) == SEGMENTS
    array.lose(0)
    assert all_read_back(array)


def test_what_a_member_misses_while_its_resync_runs_is_found_too(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walks, "PAGE", 1)
    array = make(members=2)
    array.lose(1)
    filled(array)
    array.bring_back(1)
    array.repair(2)
    first = array.all_segments()[0]
    array.catalog.mark(first.segment, first.placement.members.index(array.uuid(1)), "missing")
    array.parts.repairs.note_member(array.uuid(1))
    array.repair_all()
    assert array.catalog.exceptions() == []


def test_a_member_that_goes_again_amid_its_resync_does_not_keep_the_loop_busy(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = make(members=2)
    array.lose(1)
    filled(array)
    array.bring_back(1)
    array.repair(1)
    array.lose(1)
    order = repaired(array, monkeypatch)
    array.repair_all()
    assert len(order) <= SEGMENTS, "what the commits queued, once each"
    array.bring_back(1)
    array.repair_all()
    assert array.catalog.exceptions() == []


# -- rebuild ----------------------------------------------------------------------------------------------------


def test_a_replaced_member_is_rebuilt_and_only_then_online_and_the_old_one_retired(array: SmallArray) -> None:
    old = array.uuid(2)
    new = replace_lost(array, 2)
    assert state(array, new) == MemberState.REBUILDING
    array.repair_all()
    assert state(array, new) == MemberState.ONLINE
    assert state(array, old) == MemberState.RETIRED
    assert len(shards_on(array, new)) == SEGMENTS
    assert array.store.standing().state == ArrayState.HEALTHY
    for slot in (0, 1):
        array.lose(slot)
    assert all_read_back(array)


def test_each_segment_is_rebuilt_from_k_bodies_and_one_shard_is_written(array: SmallArray) -> None:
    row = array.all_segments()[0]
    new = replace_lost(array, 2)
    for disk in array.disks.values():
        disk.log.clear()
    array.repair_all()
    bodies = [
        call
        for disk in array.disks.values()
        for call in disk.log
        if call.operation == "read" and str(row.segment) in call.path and call.detail.startswith(f"{row.body_offset}+")
    ]
    assert len(bodies) == row.placement.geometry.k
    written = [call for disk in array.disks.values() for call in disk.log if call.operation == "file.write"]
    assert len(written) == SEGMENTS
    assert len([call for call in array.disks[new].log if call.operation == "file.write"]) == SEGMENTS


def test_a_readable_old_member_is_copied_from(array: SmallArray) -> None:
    """A suspect is replaced while it can be read: one body is read a segment, its own."""
    array.repair_all()
    old = array.uuid(2)
    event(array, old, RosterEvent.SUSPECT)
    array.replace(2)
    for disk in array.disks.values():
        disk.log.clear()
    array.repair_all()
    read = {
        uuid: [c for c in disk.log if c.operation == "read" and c.path.endswith(".shard") and not is_head(c.detail)]
        for uuid, disk in array.disks.items()
        if uuid != array.uuid(2)
    }
    assert {uuid for uuid, calls in read.items() if calls} == {old}
    assert len(read[old]) == SEGMENTS
    assert state(array, old) == MemberState.RETIRED


def is_head(detail: str) -> bool:
    return detail.startswith("0+")


def test_what_can_stand_no_further_loss_is_rebuilt_first(array: SmallArray, monkeypatch: pytest.MonkeyPatch) -> None:
    array.repair_all()
    last = array.all_segments()[-1]
    index = last.placement.members.index(array.uuid(0))
    new = replace_lost(array, 2)
    array.lose(0)
    array.catalog.mark(last.segment, last.placement.members.index(array.uuid(1)), "missing")
    assert index is not None
    order = repaired(array, monkeypatch)
    array.parts.repairs._wanted.clear()  # no resync: only the rebuild
    array.repair(SEGMENTS)
    assert state(array, new) == MemberState.REBUILDING
    assert order[0] == last.segment
    assert order[1:] == sorted(order[1:])


def test_a_queued_repair_goes_first_and_costs_the_rebuild_no_segment(
    array: SmallArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = replace_lost(array, 2)
    order = repaired(array, monkeypatch)
    array.repair(2)
    queued = array.all_segments()[-1].segment
    array.parts.repairs.note(queued)
    array.repair(1)
    assert order[-1] == queued
    array.repair_all()
    assert state(array, new) == MemberState.ONLINE, "in one pass, without waiting for another"


def test_a_pause_stops_everything_and_a_resume_goes_on_where_it_was(
    array: SmallArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = replace_lost(array, 2)
    repairs, order = array.parts.repairs, repaired(array, monkeypatch)
    array.repair(2)
    before = list(order)
    repairs.control("pause", None)
    repairs.note(array.all_segments()[-1].segment)
    assert not repairs.work_once()
    assert order == before
    assert repairs.progress()[0].paused
    assert repairs.progress()[0].eta_s is None
    repairs.control("resume", None)
    array.repair_all()
    assert state(array, new) == MemberState.ONLINE
    assert len(order) <= SEGMENTS + 1, "nothing is done twice but what was queued"


def test_a_rebuild_killed_amid_resumes_and_writes_only_what_is_left(array: SmallArray) -> None:
    new = replace_lost(array, 2)
    while len(shards_on(array, new)) < 2:
        assert array.parts.repairs.work_once()
    array.crash(seed=3)
    written = len(shards_on(array, new))
    assert written >= 2
    assert state(array, new) == MemberState.REBUILDING
    array.disks[new].log.clear()
    array.repair_all()
    assert state(array, new) == MemberState.ONLINE
    assert len([c for c in array.disks[new].log if c.operation == "file.write"]) == SEGMENTS - written
    assert all_read_back(array)


def test_a_second_member_that_dies_in_a_rebuild_holds_nothing_up(array: SmallArray) -> None:
    new = replace_lost(array, 2)
    array.repair(2)
    array.lose(4)
    array.repair_all()
    assert state(array, new) == MemberState.ONLINE
    assert all_read_back(array)


def test_segments_that_cannot_be_read_now_are_skipped_told_and_rebuilt_when_disks_are_back(array: SmallArray) -> None:
    new = replace_lost(array, 2)
    for slot in (3, 4):
        array.lose(slot)
    array.repair_all()
    repairs = array.parts.repairs
    assert state(array, new) == MemberState.REBUILDING
    assert repairs.skipped() == [row.segment for row in array.all_segments()]
    assert [p.skipped for p in repairs.progress() if p.kind == "rebuild"] == [SEGMENTS]
    assert [p.bytes_done for p in repairs.progress() if p.kind == "rebuild"] == [0]
    array.bring_back(3)
    pass_by(array)
    array.repair_all()
    assert state(array, new) == MemberState.ONLINE
    assert repairs.skipped() == []


def test_a_rebuild_whose_disk_goes_away_waits_for_it_and_goes_on(array: SmallArray) -> None:
    new = replace_lost(array, 2)
    array.repair(2)
    array.lose(2)
    array.repair(20)
    assert not array.parts.repairs.work_once()
    array.bring_back(2)
    pass_by(array)
    array.repair_all()
    assert state(array, new) == MemberState.ONLINE


def test_when_the_new_disk_fails_the_old_one_serves_again_and_the_rebuild_is_forgotten(array: SmallArray) -> None:
    array.repair_all()
    old = array.uuid(2)
    event(array, old, RosterEvent.SUSPECT)
    first = array.replace(2)
    array.repair(2)
    event(array, first, RosterEvent.FAIL)
    member_of(array, first).leave("judged failed")
    array.lost.add(first)
    array.repair_all()
    assert state(array, old) == MemberState.SUSPECT
    assert array.parts.repairs.progress() == []
    assert all_read_back(array)
    second = array.replace(2)
    array.repair_all()
    assert (state(array, second), state(array, old), state(array, first)) == (
        MemberState.ONLINE,
        MemberState.RETIRED,
        MemberState.RETIRED,
    )
    assert len(shards_on(array, second)) == SEGMENTS


def test_two_slots_are_rebuilt_at_once(array: SmallArray) -> None:
    array.lose(1)
    array.lose(2)
    new = [array.replace(1), array.replace(2)]
    array.repair_all()
    assert [state(array, one) for one in new] == [MemberState.ONLINE] * 2
    for slot in (0, 3):
        array.lose(slot)
    assert all_read_back(array)


def test_an_array_without_segments_is_rebuilt_at_once(make: Make) -> None:
    array = make()
    new = replace_lost(array, 0)
    array.repair_all()
    assert state(array, new) == MemberState.ONLINE


# -- a member that was judged failed ----------------------------------------------------------------------------


def judged_and_believed_again(array: SmallArray, slot: int) -> UUID:
    array.repair_all()
    uuid = array.uuid(slot)
    event(array, uuid, RosterEvent.FAIL)
    event(array, uuid, RosterEvent.ONLINE)
    assert state(array, uuid) == MemberState.REBUILDING
    return uuid


def own_shard(array: SmallArray, uuid: UUID, number: int) -> tuple[UUID, int, str]:
    row = array.all_segments()[number]
    index = row.placement.members.index(uuid)
    return row.segment, index, shard_path(row.segment, index)


def disk_of(array: SmallArray, uuid: UUID):  # type: ignore[no-untyped-def]
    return next(disk for disk in array.memory if disk.uuid == uuid)


def test_a_judged_member_is_online_only_after_every_block_it_holds_was_read(array: SmallArray) -> None:
    uuid = judged_and_believed_again(array, 1)
    _segment, _index, damaged = own_shard(array, uuid, 1)
    _segment, _index, gone = own_shard(array, uuid, 3)
    disk_of(array, uuid).flip(damaged, 4096 + 5)
    disk_of(array, uuid).unlink(gone)
    array.repair(2)
    array.parts.repairs.note(array.all_segments()[0].segment)  # the queue goes first and costs it no segment
    array.repair_all()
    assert state(array, uuid) == MemberState.ONLINE
    for slot in (3, 4):
        array.lose(slot)
    assert all_read_back(array)


def test_a_shard_that_cannot_be_looked_at_is_not_called_damaged(array: SmallArray) -> None:
    uuid = judged_and_believed_again(array, 1)
    array.repair(1)
    array.disk(1).fail("read", "segments/*", error=MemberFaulty("EIO"))
    array.repair_all()
    assert not member_of(array, uuid).present
    assert array.catalog.exceptions() == []
    assert state(array, uuid) == MemberState.MISSING
    array.disk(1).heal()
    array.bring_back(1)
    array.repair_all()
    assert state(array, uuid) == MemberState.REBUILDING, "one of its shards was passed over"
    pass_by(array)
    array.repair_all()
    assert state(array, uuid) == MemberState.ONLINE


def test_anothers_missing_shard_does_not_keep_a_judged_member_from_coming_online(array: SmallArray) -> None:
    uuid = judged_and_believed_again(array, 1)
    row = array.all_segments()[0]
    array.catalog.mark(row.segment, row.placement.members.index(array.uuid(5)), "missing")
    array.lose(5)
    array.repair_all()
    assert state(array, uuid) == MemberState.ONLINE


def test_a_shard_of_a_newer_format_is_neither_counted_damaged_nor_written_over(array: SmallArray) -> None:
    uuid = judged_and_believed_again(array, 1)
    segment, index, path = own_shard(array, uuid, 2)
    newer = bytearray(disk_of(array, uuid).read(path))
    struct.pack_into("<H", newer, 8, 2)
    struct.pack_into("<I", newer, 124, crc32c(bytes(newer[:124])))
    disk_of(array, uuid).put(path, bytes(newer))
    array.repair_all()
    assert disk_of(array, uuid).read(path) == bytes(newer)
    assert array.catalog.excepted(segment) == {index: "unsupported"}
    assert not [name for name in disk_of(array, uuid).files() if name.startswith("quarantine/")]
    assert all_read_back(array)


# -- former members ---------------------------------------------------------------------------------------------


def test_what_a_removed_member_held_moves_to_members_that_hold_none_of_it(make: Make) -> None:
    array = filled(make(members=6, level=Level("custom", data=2, parity=1)))
    gone = array.uuid(0)
    event(array, gone, RosterEvent.OFFLINE)
    event(array, gone, RosterEvent.RETIRE)
    assert array.membership.member(gone) is None, "nothing of it stays open"
    assert array.catalog.load(gone)[0] > 0
    array.parts.repairs.look_again()
    array.repair_all()
    assert array.catalog.load(gone)[0] == 0
    assert array.store.standing().state == ArrayState.HEALTHY
    for row in array.all_segments():
        assert len(set(row.placement.members)) == 3
    array.lose(1)
    assert all_read_back(array)


def test_with_nobody_to_take_them_in_a_removed_members_shards_stay_absent_and_nothing_spins(
    array: SmallArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = array.uuid(0)
    event(array, gone, RosterEvent.OFFLINE)
    event(array, gone, RosterEvent.RETIRE)
    array.parts.repairs.look_again()
    array.repair_all()
    order = repaired(array, monkeypatch)
    pass_by(array)
    array.repair_all()
    assert order == []
    assert array.store.standing().state == ArrayState.DEGRADED
    assert all_read_back(array)


# -- how far, how fast ------------------------------------------------------------------------------------------


def clocked(array: SmallArray, clock: Clock, pace: Pace, *, busy: bool = False) -> Repairs:
    """Repairs whose every repair takes two seconds."""
    array.repair_all()
    repair = array.parts.rebuilder.repair

    def slow(segment: UUID) -> Outcome:
        clock.now += 2.0
        return repair(segment)

    array.parts.rebuilder.repair = slow  # type: ignore[method-assign]
    return Repairs(
        array.catalog,
        array.membership,
        array.parts.rebuilder,
        pace,
        busy=lambda: busy,
        clock=clock,
        sleep=clock.sleep,
    )


def test_progress_tells_bytes_rate_and_an_honest_time_left(array: SmallArray) -> None:
    clock = Clock()
    repairs = clocked(array, clock, Pace("normal", 8, 0))
    old = array.uuid(2)
    replace_lost(array, 2)
    total, size = array.catalog.load(old)
    repairs.work_once()
    begun = repairs.progress()[0]
    assert (begun.slot, begun.done, begun.total, begun.bytes_total) == (2, 1, total, size)
    assert begun.eta_s is None, "one sample is no rate"
    repairs.work_once()
    repairs.work_once()
    amid = repairs.progress()[0]
    each = size // total
    assert (amid.done, amid.bytes_done, amid.skipped) == (3, 3 * each, 0)
    assert amid.rate_bytes_s == pytest.approx(each / 2)
    assert amid.eta_s == pytest.approx((total - 3) * 2)
    while repairs.work_once():
        pass
    assert repairs.progress() == []


def test_a_busy_array_is_rebuilt_with_rests_and_an_idle_one_without(array: SmallArray) -> None:
    clock = Clock()
    repairs = clocked(array, clock, Pace("low", 0, 0), busy=True)
    replace_lost(array, 2)
    repairs.work_once()
    assert clock.rests == [pytest.approx(6.0)]
    idle = Clock()
    repairs = clocked(array, idle, Pace("low", 0, 0))
    while repairs.work_once():
        pass
    assert idle.rests == []


def test_the_priority_outlives_a_pause_and_follows_new_settings(array: SmallArray) -> None:
    repairs = array.parts.repairs
    repairs.control(None, "high")
    repairs.control("pause", None)
    assert (repairs.priority, repairs.pace.priority) == ("high", "pause")
    repairs.control("resume", None)
    assert repairs.pace.priority == "high"
    repairs.set_pace(Pace("low", 8, 0))
    assert repairs.priority == "low"
    repairs.control(None, "pause")
    repairs.control(None, "normal")
    assert repairs.pace.priority == "normal"


def test_settings_that_say_pause_can_be_resumed(array: SmallArray) -> None:
    repairs = Repairs(array.catalog, array.membership, array.parts.rebuilder, Pace("pause", 8, 0), busy=lambda: False)
    assert not repairs.work_once()
    repairs.control("resume", None)
    assert repairs.pace.priority == "normal"
