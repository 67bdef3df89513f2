"""Member states from verdict and fact; the array's state from its slots' and its segments'."""

from __future__ import annotations

from itertools import product

import pytest

from raidd.array.states import (
    LAST_RESORT,
    READABLE,
    TRANSITIONS,
    WRITABLE,
    ArrayState,
    MemberState,
    RosterEvent,
    array_state,
    effective,
    next_state,
)

ONLINE = MemberState.ONLINE
PERSISTED = [state for state in MemberState if state is not MemberState.MISSING]


def test_a_present_member_is_what_was_decided() -> None:
    assert all(effective(state, True) is state for state in PERSISTED)


def test_missing_on_a_label_means_online_once_the_disk_is_there() -> None:
    assert effective(MemberState.MISSING, True) is ONLINE


@pytest.mark.parametrize("state", list(MemberState))
def test_an_absent_member_is_missing_unless_it_was_given_up(state: MemberState) -> None:
    given_up = {MemberState.FAILED, MemberState.OFFLINE, MemberState.RETIRED}
    assert effective(state, False) is (state if state in given_up else MemberState.MISSING)


def test_what_is_written_is_also_read_and_what_is_counted_is_no_last_resort() -> None:
    assert WRITABLE < READABLE
    assert not READABLE & LAST_RESORT
    assert MemberState.OFFLINE not in READABLE | LAST_RESORT
    assert MemberState.MISSING not in READABLE | LAST_RESORT | WRITABLE


def expected(
    slots: tuple[MemberState, ...], least: int | None, unprotected: bool, unreadable: bool, absent: bool
) -> str:
    """Design 7, written out a second time, worst first."""
    if unreadable or (least is not None and least < 0):
        return "failed"
    if unprotected or least == 0 or len([s for s in slots if s in ("online", "suspect", "rebuilding")]) < 2:
        return "critical"
    if absent or set(slots) != {ONLINE}:
        return "degraded"
    return "healthy"


def test_array_state_for_every_slot_and_every_finding() -> None:
    for other in MemberState:
        for least, *flags in product((None, -1, 0, 1, 2), *[(False, True)] * 3):
            slots = (ONLINE, ONLINE, other)
            assert array_state(slots, least, *flags) == expected(slots, least, *flags)


@pytest.mark.parametrize("state", [state for state in MemberState if state is not ONLINE])
def test_a_slot_that_is_not_online_degrades_and_no_more(state: MemberState) -> None:
    assert array_state([ONLINE, ONLINE, state], 1, False, False, False) is ArrayState.DEGRADED


def test_an_empty_array_with_one_disk_left_is_critical() -> None:
    assert array_state([ONLINE, MemberState.MISSING], None, False, False, False) is ArrayState.CRITICAL


def test_worse_findings_never_give_a_better_state() -> None:
    rank = list(ArrayState).index
    for least, *flags in product((None, 2, 1, 0, -1), *[(False, True)] * 3):
        for position in range(3):
            worse = [flag or index == position for index, flag in enumerate(flags)]
            assert rank(array_state([ONLINE] * 3, least, *worse)) >= rank(array_state([ONLINE] * 3, least, *flags))


def test_missing_is_never_decided() -> None:
    assert MemberState.MISSING not in TRANSITIONS.values()


def test_every_event_and_every_state_is_used() -> None:
    assert {event for _, event in TRANSITIONS} == set(RosterEvent)
    assert {state for state, _ in TRANSITIONS} == {None, *MemberState}


def test_a_judged_disk_is_online_again_only_through_a_rebuild() -> None:
    assert TRANSITIONS[MemberState.FAILED, RosterEvent.ONLINE] is MemberState.REBUILDING
    back = [event for (state, event), after in TRANSITIONS.items() if state == "failed" and after is ONLINE]
    assert back == []


def test_no_member_in_use_is_retired() -> None:
    for state in (ONLINE, MemberState.SUSPECT, MemberState.REBUILDING):
        assert next_state(state, True, RosterEvent.RETIRE) is None
        assert next_state(state, False, RosterEvent.RETIRE) is MemberState.RETIRED


def test_a_missing_verdict_moves_as_online_does() -> None:
    assert next_state(MemberState.MISSING, True, RosterEvent.FAIL) is MemberState.FAILED
