"""Rosters: every command that changes members, and what no sequence of them may ever give."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from raidd.array.roster import (
    HISTORY_LIMIT,
    WRITABLE,
    ArrayState,
    MemberState,
    Presence,
    Roster,
    RosterEntry,
    RosterEvent,
    add,
    apply,
    array_state,
    effective_state,
    replace_member,
    slot_states,
)
from raidd.codec.geometry import Geometry, Level
from raidd.errors import RaiddError, RequestRefused, RequestUnknown
from tests.support.rosters import AWAY, HERE, member_id, newcomer, roster_of


def states(roster: Roster, slot: int) -> list[str]:
    return [str(entry.state) for entry in roster.slot_entries(slot)]


# Values


def test_a_new_array_has_its_members_online_in_the_order_given() -> None:
    roster = roster_of(6)
    assert [(entry.member, entry.slot, entry.state) for entry in roster.entries] == [
        (member_id(number), number, "online") for number in range(6)
    ]
    assert (roster.epoch, roster.history, roster.size) == (1, (), 6)


def test_a_successor_names_its_parent_first_and_forgets_after_256() -> None:
    roster = roster_of(3)
    seen = []
    for _ in range(HISTORY_LIMIT + 10):
        seen.insert(0, roster.hash())
        roster = roster.successor()
    assert roster.history == tuple(seen[:HISTORY_LIMIT])
    assert roster.epoch == HISTORY_LIMIT + 11


def test_the_hash_is_fixed_for_ever() -> None:
    assert roster_of(3, 1, 2).hash() == "ba61ebd5707f4042c1277759795b4e08bb86047a0396201d0de3db00fb976e6b"


@pytest.mark.parametrize(
    "change",
    [
        {"array_name": "other"},
        {"epoch": 2},
        {"contact": "Dr Vet"},
        {"trial": True},
        {"geometry": Geometry(3, 2)},
        {"level": Level("custom")},
        {"history": ("0" * 64,)},
    ],
)
def test_the_hash_tells_every_field_apart(change: dict[str, object]) -> None:
    roster = roster_of(6)
    assert replace(roster, **change).hash() != roster.hash()  # type: ignore[arg-type]


def test_keys_of_a_later_version_do_not_change_the_hash() -> None:
    roster = roster_of(3)
    first, *rest = roster.entries
    newer = replace(roster, entries=(replace(first, extra={"wwn": "5000"}), *rest), extra={"colour": "red"})
    assert newer.hash() == roster.hash()
    assert newer.successor().extra == {"colour": "red"}


def test_text_from_firmware_and_shells_becomes_valid_and_bounded() -> None:
    entry = newcomer(0, serial="A\udcff\x00B", bay="x" * 5000)
    assert entry.serial == "A\ufffd\x00B"
    assert len(entry.bay) == 256


@pytest.mark.parametrize(("name", "stored"), [("raid10", "mirror"), ("raidz3", "raid7"), ("raid99", "raid99")])
def test_levels_are_kept_under_their_own_name(name: str, stored: str) -> None:
    assert roster_of(4, 1, 1, level=name).level.name == stored


def test_a_level_is_told_from_name_and_geometry_alone() -> None:
    assert roster_of(4, 1, 2, level="mirror").level == Level("mirror", copies=3)
    assert roster_of(9, 3, 1, level="raid50").level == Level("raid50", width=4)
    assert roster_of(9, 3, 3, level="custom").level == Level("custom", data=3, parity=3)


@pytest.mark.parametrize(
    ("slot", "state"),
    [(None, "online"), (None, "rebuilding"), (2, "spare"), (2, "retired"), (32, "online"), (-1, "online")],
)
def test_an_entry_whose_slot_and_state_do_not_fit_is_refused(slot: int | None, state: str) -> None:
    with pytest.raises(ValueError, match="slot"):
        RosterEntry(member_id(1), slot, MemberState(state))


def test_an_entry_of_negative_size_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        newcomer(1, size=-1)


def test_two_writable_members_in_one_slot_are_refused() -> None:
    roster = roster_of(3)
    with pytest.raises(ValueError, match="slot 0 is filled by two"):
        replace(roster, entries=(*roster.entries, RosterEntry(member_id(9), 0, MemberState.REBUILDING)))


def test_one_member_listed_twice_is_refused() -> None:
    roster = roster_of(3)
    with pytest.raises(ValueError, match="listed twice"):
        replace(roster, entries=(*roster.entries, RosterEntry(member_id(0), 7, MemberState.ONLINE)))


def test_unknown_slots_and_members_are_named() -> None:
    with pytest.raises(RequestUnknown, match="no slot 7"):
        roster_of(3).slot_entry(7)
    with pytest.raises(RequestUnknown, match="not a member"):
        roster_of(3).entry(member_id(7))


# Commands


def test_add_takes_the_smallest_free_slot_and_leaves_the_geometry() -> None:
    roster = apply(apply(roster_of(6), member_id(1), RosterEvent.OFFLINE), member_id(1), RosterEvent.RETIRE)
    grown = add(add(roster, newcomer(10)), newcomer(11))
    assert [grown.entry(member_id(number)).slot for number in (10, 11)] == [1, 6]
    assert grown.geometry == roster.geometry
    assert grown.size == 7


def test_add_refuses_a_thirty_third_slot_and_a_known_member() -> None:
    with pytest.raises(RequestRefused, match="32 slots"):
        add(roster_of(32), newcomer(32))
    with pytest.raises(RequestRefused, match="already"):
        add(roster_of(3), newcomer(1))


def test_a_spare_has_no_slot_and_counts_for_nothing() -> None:
    roster = add(roster_of(3), newcomer(9), spare=True)
    assert roster.entry(member_id(9)).slot is None
    assert roster.size == 3
    assert [entry.member for entry in roster.spares()] == [member_id(9)]


def test_replacing_a_failed_member_keeps_it_beside_the_new_one_until_rebuilt() -> None:
    failed = apply(roster_of(6), member_id(2), RosterEvent.FAIL)
    both = replace_member(failed, 2, newcomer(9))
    assert states(both, 2) == ["failed", "rebuilding"]
    assert both.slot_entry(2).member == member_id(9)
    assert both.epoch == failed.epoch + 1
    done = apply(both, member_id(9), RosterEvent.REBUILT)
    assert states(done, 2) == ["online"]
    assert done.entry(member_id(2)) == replace(failed.entry(member_id(2)), slot=None, state=MemberState.RETIRED)


def test_a_spare_takes_over_a_failed_slot() -> None:
    roster = apply(add(roster_of(6), newcomer(9), spare=True), member_id(2), RosterEvent.FAIL)
    both = replace_member(roster, 2, roster.spares()[0])
    assert states(both, 2) == ["failed", "rebuilding"]
    assert both.spares() == ()


def test_a_suspect_being_replaced_gives_and_takes_nothing() -> None:
    roster = apply(roster_of(6), member_id(2), RosterEvent.SUSPECT)
    both = replace_member(roster, 2, newcomer(9))
    assert states(both, 2) == ["draining", "rebuilding"]
    assert states(apply(both, member_id(9), RosterEvent.REBUILT), 2) == ["online"]


def test_a_suspect_serves_again_when_its_replacement_fails() -> None:
    roster = replace_member(apply(roster_of(6), member_id(2), RosterEvent.SUSPECT), 2, newcomer(9))
    back = apply(roster, member_id(9), RosterEvent.FAIL)
    assert back.slot_entry(2) == replace(roster.entry(member_id(2)), state=MemberState.SUSPECT)
    third = replace_member(back, 2, newcomer(10))
    assert [str(state) for state in sorted(states(third, 2))] == ["draining", "failed", "rebuilding"]
    done = apply(third, member_id(10), RosterEvent.REBUILT)
    assert states(done, 2) == ["online"]


def test_a_missing_member_is_judged_by_being_replaced_and_a_working_one_is_not_replaced() -> None:
    both = replace_member(roster_of(6), 2, newcomer(9), AWAY)
    assert states(both, 2) == ["failed", "rebuilding"]
    with pytest.raises(RequestRefused, match=r"slot 2 .* is online") as caught:
        replace_member(roster_of(6), 2, newcomer(9), HERE)
    assert "offline" in caught.value.next_step


def test_a_new_member_that_dies_amid_its_rebuild_is_replaced_in_turn() -> None:
    first = replace_member(apply(roster_of(6), member_id(2), RosterEvent.FAIL), 2, newcomer(9))
    second = replace_member(first, 2, newcomer(10), AWAY)
    assert states(second, 2) == ["failed", "failed", "rebuilding"]
    done = apply(second, member_id(10), RosterEvent.REBUILT)
    assert [str(done.entry(member_id(number)).state) for number in (2, 9, 10)] == ["retired", "retired", "online"]


def test_replacing_with_a_member_in_use_is_refused() -> None:
    roster = apply(roster_of(6), member_id(2), RosterEvent.FAIL)
    with pytest.raises(RequestRefused, match="slot 3"):
        replace_member(roster, 2, roster.entry(member_id(3)))


def test_an_offline_member_is_online_at_once_a_failed_one_is_looked_through_first() -> None:
    off = apply(roster_of(6), member_id(2), RosterEvent.OFFLINE)
    assert states(apply(off, member_id(2), RosterEvent.ONLINE), 2) == ["online"]
    failed = apply(roster_of(6), member_id(2), RosterEvent.FAIL)
    assert states(apply(failed, member_id(2), RosterEvent.ONLINE), 2) == ["rebuilding"]


def test_a_member_whose_slot_was_taken_comes_back_as_a_spare() -> None:
    both = replace_member(roster_of(6), 2, newcomer(9), AWAY)
    early = apply(both, member_id(2), RosterEvent.ONLINE)
    assert early.entry(member_id(2)) == replace(both.entry(member_id(2)), slot=None, state=MemberState.SPARE)
    late = apply(apply(both, member_id(9), RosterEvent.REBUILT), member_id(2), RosterEvent.ONLINE)
    assert late.spares()[0].member == member_id(2)


def test_a_failed_member_that_returns_to_its_own_slot_is_no_spare() -> None:
    failed = apply(roster_of(6), member_id(2), RosterEvent.FAIL)
    assert states(apply(failed, member_id(2), RosterEvent.RETURN), 2) == ["rebuilding"]


def test_a_spare_taken_offline_is_a_spare_again() -> None:
    roster = add(roster_of(3), newcomer(9), spare=True)
    off = apply(roster, member_id(9), RosterEvent.OFFLINE)
    assert off.spares() == ()
    assert apply(off, member_id(9), RosterEvent.ONLINE).spares() == roster.spares()


def test_a_drain_ends_in_retirement_or_is_called_off() -> None:
    draining = apply(roster_of(6), member_id(2), RosterEvent.DRAIN)
    assert MemberState.DRAINING not in WRITABLE
    assert states(apply(draining, member_id(2), RosterEvent.ONLINE), 2) == ["online"]
    gone = apply(draining, member_id(2), RosterEvent.RETIRE)
    assert gone.slots() == (0, 1, 3, 4, 5)
    assert gone.entry(member_id(2)).state == "retired"


def test_a_slot_is_not_removed_when_new_images_could_not_keep_their_parity() -> None:
    roster = roster_of(4)
    for number in (0, 1):
        roster = apply(roster, member_id(number), RosterEvent.OFFLINE)
    roster = apply(roster, member_id(0), RosterEvent.RETIRE)
    with pytest.raises(RequestRefused, match="2 would be left") as caught:
        apply(roster, member_id(1), RosterEvent.RETIRE)
    assert "raidctl replace 1" in caught.value.next_step


def test_a_removed_member_stays_known() -> None:
    roster = apply(apply(roster_of(6), member_id(2), RosterEvent.OFFLINE), member_id(2), RosterEvent.RETIRE)
    assert roster.entry(member_id(2)).state == "retired"
    assert roster.size == 5


@pytest.mark.parametrize(
    ("number", "event"),
    [(0, "rebuilt"), (0, "retire"), (0, "online"), (1, "fail"), (1, "drain"), (9, "suspect"), (9, "drain"), (0, "add")],
)
def test_what_is_not_in_the_table_is_refused_and_says_the_state(number: int, event: str) -> None:
    roster = add(apply(roster_of(6), member_id(1), RosterEvent.FAIL), newcomer(9), spare=True)
    with pytest.raises(RequestRefused, match=str(roster.entry(member_id(number)).state)):
        apply(roster, member_id(number), RosterEvent(event))


def test_presence_turns_verdicts_into_what_is_shown() -> None:
    entry = roster_of(3).entries[0]
    assert effective_state(entry, HERE) == "online"
    assert effective_state(entry, Presence(False, "I/O error", 5.0)) == "missing"


def test_slot_states_ask_the_member_that_fills_the_slot() -> None:
    roster = replace_member(apply(roster_of(4), member_id(1), RosterEvent.FAIL), 1, newcomer(9))
    presences = {entry.member: HERE for entry in roster.entries} | {member_id(3): AWAY}
    assert slot_states(roster, presences) == {0: "online", 1: "rebuilding", 2: "online", 3: "missing"}
    assert slot_states(roster, {})[0] == "missing"
    assert array_state(list(slot_states(roster, presences).values()), 1, False, False, False) is ArrayState.DEGRADED


# Any sequence of commands


class RosterMachine(RuleBasedStateMachine):
    """Commands in any order, on disks that come and go; refusals are fine, broken rosters are not."""

    def __init__(self) -> None:
        super().__init__()
        self.roster = roster_of(4)
        self.known = {entry.member for entry in self.roster.entries}
        self.away: set[int] = set()
        self.next_number = 10

    def change(self, make: object) -> None:
        before = self.roster
        try:
            self.roster = make()  # type: ignore[operator]
        except RaiddError:
            assert self.roster == before
            return
        assert self.roster.epoch == before.epoch + 1
        assert self.roster.history[0] == before.hash()
        self.known |= {entry.member for entry in self.roster.entries}

    def new(self) -> RosterEntry:
        self.next_number += 1
        return newcomer(self.next_number)

    @rule(number=st.integers(0, 14))
    def toggle(self, number: int) -> None:
        self.away ^= {number}

    @rule(spare=st.booleans())
    def add(self, spare: bool) -> None:
        self.change(lambda: add(self.roster, self.new(), spare=spare))

    @rule(index=st.integers(0, 40), event=st.sampled_from(list(RosterEvent)))
    def event(self, index: int, event: RosterEvent) -> None:
        entry = self.roster.entries[index % len(self.roster.entries)]
        presence = AWAY if entry.member.int & 0xFF in self.away else HERE
        before = effective_state(entry, presence)
        if event in (RosterEvent.REPLACED, RosterEvent.RESTORE, RosterEvent.REPLACE_OLD, RosterEvent.REPLACE_NEW):
            return  # halves of one change: only apply and replace_member themselves make them
        self.change(lambda: apply(self.roster, entry.member, event, presence))
        if before in ("online", "suspect", "rebuilding"):
            assert self.roster.entry(entry.member).state != "retired"

    @rule(slot=st.integers(0, 6), use_spare=st.booleans())
    def replace(self, slot: int, use_spare: bool) -> None:
        spares = self.roster.spares()
        new = spares[0] if use_spare and spares else self.new()
        held = self.roster.slot_entries(slot)
        away = bool(held) and held[-1].member.int & 0xFF in self.away
        self.change(lambda: replace_member(self.roster, slot, new, AWAY if away else HERE))

    @invariant()
    def no_slot_is_written_to_twice(self) -> None:
        for slot in self.roster.slots():
            held = self.roster.slot_entries(slot)
            live = [entry for entry in held if entry.state in WRITABLE]
            assert len(live) <= 1
            if len(held) > 1 and live:
                assert held[-1] == live[0]
            if any(entry.state == "draining" for entry in held[:-1]):
                assert held[-1].state in ("rebuilding", "failed", "draining")

    @invariant()
    def no_member_is_forgotten(self) -> None:
        assert {entry.member for entry in self.roster.entries} == self.known

    @invariant()
    def parity_can_always_be_kept(self) -> None:
        assert self.roster.geometry.m + 1 <= self.roster.size <= 32


RosterMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestRosterMachine = RosterMachine.TestCase
