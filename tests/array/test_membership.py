"""Who is there, who counts, who is written to and waited for; how a new roster comes into force."""

from __future__ import annotations

import threading
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from raidd.array.label import Label
from raidd.array.member_disk import Space
from raidd.array.members import Member
from raidd.array.membership import Membership
from raidd.array.roster import MemberState, Roster, RosterEntry, RosterEvent, apply, replace_member
from raidd.array.state_file import Remembered, StateFile
from raidd.errors import MemberFaulty, MemberFull, RaiddError, RequestRefused
from tests.support.arrays import SmallArray


@pytest.fixture
def array(tmp_path: Path) -> SmallArray:
    return SmallArray(tmp_path, deadline_s=60.0)


def began_with_all_up(array: SmallArray) -> Membership:
    """A membership as a start makes it when everyone was up at the last stop."""
    everyone = frozenset(array.uuid(slot) for slot in range(6))
    file = StateFile(array.state_dir)
    file.save(Remembered(array.roster, {}, everyone))
    return Membership(
        array.catalog, file, array.roster, array.membership.members(), reserve_percent=1, up_at_stop=everyone
    )


def awaited_after_a_crash(array: SmallArray) -> frozenset[UUID]:
    remembered = StateFile(array.state_dir).load()
    assert remembered is not None
    return remembered.up_at_stop


def slots(array: SmallArray, *numbers: int) -> frozenset[UUID]:
    return frozenset(array.uuid(slot) for slot in numbers)


def test_a_start_after_a_crash_does_not_wait_for_members_that_were_away_before_it(array: SmallArray) -> None:
    membership = began_with_all_up(array)
    array.membership.member(array.uuid(1)).leave("pulled")  # type: ignore[union-attr]
    array.membership.member(array.uuid(4)).leave("pulled")  # type: ignore[union-attr]
    membership.remember_up()
    assert awaited_after_a_crash(array) == slots(array, 0, 2, 3, 5)


def test_a_member_that_came_back_is_waited_for_again(array: SmallArray) -> None:
    membership = began_with_all_up(array)
    member = array.membership.member(array.uuid(1))
    assert member is not None
    member.leave("pulled")
    membership.remember_up()
    member.arrive()
    membership.remember_up()
    assert awaited_after_a_crash(array) == slots(array, 0, 1, 2, 3, 4, 5)


def test_a_member_that_has_not_come_yet_since_the_start_is_still_waited_for_after_a_crash(tmp_path: Path) -> None:
    array = SmallArray(tmp_path)
    member = array.membership.member(array.uuid(3))
    assert member is not None
    member.leave("not found at the start")
    membership = began_with_all_up(array)
    array.membership.member(array.uuid(0)).leave("pulled")  # type: ignore[union-attr]
    membership.remember_up()
    assert awaited_after_a_crash(array) == slots(array, 1, 2, 3, 4, 5)


def test_nothing_is_written_while_nobody_comes_or_goes(array: SmallArray) -> None:
    membership = began_with_all_up(array)
    path = array.state_dir / "array.json"
    before = path.stat().st_ino
    membership.remember_up()
    assert path.stat().st_ino == before


# -- who counts --------------------------------------------------------------------------------------------------


def member(array: SmallArray, slot: int) -> Member:
    found = array.membership.member(array.uuid(slot))
    assert found is not None
    return found


def decide(array: SmallArray, slot: int, what: RosterEvent) -> None:
    uuid = array.uuid(slot)
    array.membership.set_roster(apply(array.membership.roster, uuid, what, array.membership.presence(uuid)))


@pytest.mark.parametrize(
    ("events", "reads", "writes", "last_resort"),
    [
        ([], True, True, True),
        ([RosterEvent.SUSPECT], True, True, True),
        ([RosterEvent.DRAIN], True, False, True),
        ([RosterEvent.FAIL], False, False, True),
        ([RosterEvent.FAIL, RosterEvent.ONLINE], True, True, True),
        ([RosterEvent.OFFLINE], False, False, False),
    ],
)
def test_the_verdict_says_what_a_member_is_good_for(
    array: SmallArray, events: list[RosterEvent], reads: bool, writes: bool, last_resort: bool
) -> None:
    for what in events:
        decide(array, 1, what)
    uuid, membership = array.uuid(1), array.membership
    assert (membership.readable(uuid) is not None) is reads
    assert (membership.writable(uuid) is not None) is writes
    assert (membership.readable(uuid, last_resort=True) is not None) is last_resort
    assert (uuid in membership.away()) is not reads
    member(array, 1).leave("pulled")
    assert membership.readable(uuid, last_resort=True) is None
    assert membership.writable(uuid) is None
    assert uuid in membership.away()


def test_a_member_that_nobody_knows_is_retired_and_away(array: SmallArray) -> None:
    stranger = uuid4()
    assert array.membership.state(stranger) == MemberState.RETIRED
    assert not array.membership.presence(stranger).present
    assert array.membership.readable(stranger, last_resort=True) is None


def test_of_a_slot_that_is_rebuilt_the_new_member_is_written_to(array: SmallArray) -> None:
    array.lose(2)
    old = array.uuid(2)
    new = array.replace(2)
    places = [place.member for place in array.membership.places()]
    assert new in places
    assert old not in places
    assert len(places) == 6


@pytest.mark.parametrize(
    ("space", "roomy"),
    [
        (Space(1000 << 30, 500 << 30, 1 << 20, False), True),
        (Space(1000 << 30, 9 << 30, 1 << 20, False), False),  # below the reserve of one percent
        (Space(1000 << 30, 11 << 30, 1 << 20, False), True),
        (Space(1000 << 30, 500 << 30, 64, False), False),  # hardly an inode left
        (Space(100 << 20, 30 << 20, 1 << 20, False), True),  # a small disk is not all reserve
        (Space(100 << 20, 25 << 20, 1 << 20, False), False),
    ],
)
def test_room_is_what_is_left_above_the_reserve(array: SmallArray, space: Space, roomy: bool) -> None:
    member(array, 0).space = space
    place = array.membership.places()[0]
    assert (place.up, place.roomy, place.free_bytes) == (True, roomy, space.free_bytes)


def test_a_member_that_was_full_is_tried_again_when_it_is_back(array: SmallArray) -> None:
    one = member(array, 0)
    one.full = True
    assert not array.membership.places()[0].roomy
    one.leave("pulled")
    one.arrive()
    assert array.membership.places()[0].roomy


# -- a new roster ------------------------------------------------------------------------------------------------


def labels(array: SmallArray) -> list[Roster]:
    return [Label.parse(disk.read("label.json")).roster for disk in array.memory]


def test_a_new_roster_is_in_state_dir_and_on_every_label(array: SmallArray) -> None:
    after = array.membership.roster.successor(contact="Dr. Miller")
    array.membership.set_roster(after)
    assert labels(array) == [after] * 6
    remembered = StateFile(array.state_dir).load()
    assert remembered is not None
    assert remembered.roster == after == array.membership.roster == array.membership.decided


def test_a_label_that_is_right_is_not_written_again(array: SmallArray) -> None:
    for disk in array.disks.values():
        disk.log.clear()
    array.membership.set_roster(array.membership.roster)
    assert {call.operation for disk in array.disks.values() for call in disk.log} == {"read"}


def test_who_cannot_take_its_label_leaves_and_a_full_one_stays(array: SmallArray) -> None:
    array.disk(1).fail("replace", "label.json", error=MemberFaulty("EIO"))
    array.disk(2).fail("replace", "label.json", error=MemberFull("ENOSPC"))
    array.disk(3).fail("replace", "label.json", error=RaiddError("EMFILE"))
    array.membership.set_roster(array.membership.roster.successor(contact="new"))
    assert [member(array, slot).present for slot in range(6)] == [True, False, True, False, True, True]


def test_what_a_roster_allows_begins_only_when_the_labels_tell_it(tmp_path: Path) -> None:
    """A disk hangs while labels are written: nothing is written to the new member of slot 0 meanwhile."""
    array = SmallArray(tmp_path, deadline_s=60.0)
    old, newcomer = array.membership.roster, uuid4()
    entry = RosterEntry(newcomer, None, MemberState.SPARE)
    member(array, 0).leave("pulled")
    after = replace_member(old, 0, entry, array.membership.presence(array.uuid(0)))
    hang = array.disk(3).hang("replace", "label.json")
    thread = threading.Thread(target=lambda: array.membership.set_roster(after), daemon=True)
    thread.start()
    assert hang.entered.wait(60)
    assert array.membership.roster == old
    assert newcomer not in [place.member for place in array.membership.places()]
    assert array.membership.decided == after
    remembered = StateFile(array.state_dir).load()
    assert remembered is not None
    assert remembered.roster == after, "a crash now must not forget it"
    array.prober.probe_once()
    assert [member(array, slot).present for slot in (1, 2, 4, 5)] == [True] * 4, "their labels are newer, not foreign"
    hang.release()
    thread.join(60)
    assert array.membership.roster == after
    assert newcomer in [place.member for place in array.membership.places()]
    array.stop()


def test_a_roster_that_was_made_of_an_older_one_is_refused(array: SmallArray) -> None:
    """On the labels it would be a fork, and the next start would stop there."""
    base = array.membership.roster
    array.membership.set_roster(base.successor(contact="one"))
    before = labels(array)
    with pytest.raises(RequestRefused):
        array.membership.set_roster(base.successor(contact="other"))
    assert labels(array) == before
    assert array.membership.roster.contact == "one"


def test_changes_that_hold_the_lock_follow_each_other(array: SmallArray) -> None:
    def change(number: int) -> None:
        with array.membership.changing:
            array.membership.set_roster(array.membership.roster.successor(contact=str(number)))

    epoch = array.membership.roster.epoch
    threads = [threading.Thread(target=change, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert array.membership.roster.epoch == epoch + 8
    assert set(labels(array)) == {array.membership.roster}


def test_nothing_stays_open_of_who_is_given_up(array: SmallArray) -> None:
    released: list[UUID] = []
    array.membership.let_go = released.append
    away, failed, offline = (array.uuid(slot) for slot in (0, 1, 2))
    member(array, 0).leave("pulled")
    decide(array, 1, RosterEvent.FAIL)
    decide(array, 2, RosterEvent.OFFLINE)
    assert {away, failed, offline} <= set(released)
    assert array.uuid(3) not in released
    decide(array, 2, RosterEvent.RETIRE)
    assert array.membership.member(offline) is None


def test_where_members_are_outlives_the_process(array: SmallArray) -> None:
    array.membership.remember(stopping=True)
    remembered = StateFile(array.state_dir).load()
    assert remembered is not None
    assert remembered.paths == {array.uuid(slot): f"/m/{slot}" for slot in range(6)}
    assert remembered.up_at_stop == slots(array, *range(6))
