"""Repair plans: what is re-created where, from what, in which order; never two shards on one member."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raidd.array.placement import Placement
from raidd.array.roster import RosterEvent, apply, replace_member
from raidd.codec.geometry import Geometry
from raidd.repair.plan import MembersView, SegmentView, members_view, plan_repairs, spare_shards
from tests.support.rosters import AWAY, HERE, member_id, newcomer, roster_of

NEW = member_id(9)


def segment(number: int, *absent: int, geometry: Geometry | None = None, first: int = 0) -> SegmentView:
    """A segment on members 0…5 (4+2), starting at member ``first``."""
    shape = geometry or Geometry(4, 2)
    holders = tuple(member_id((first + i) % 6) for i in range(shape.n))
    return SegmentView(UUID(int=number), Placement(shape, holders), frozenset(absent), 8192)


def members(*gone: int, **fields: object) -> MembersView:
    """Members 0…5 and the new one, but for those gone."""
    here = frozenset(member_id(number) for number in (0, 1, 2, 3, 4, 5, 9) if number not in gone)
    return replace(MembersView(here, here), **fields)  # type: ignore[arg-type]


def test_a_whole_segment_gives_no_task() -> None:
    plan = plan_repairs([segment(1)], members())
    assert (plan.tasks, plan.stuck, plan.length) == ((), (), 0)


def test_a_missing_shard_is_made_on_its_own_member_from_the_others() -> None:
    (task,) = plan_repairs([segment(1, 2)], members()).tasks
    assert (task.segment, task.index, task.target, task.length) == (UUID(int=1), 2, member_id(2), 8192)
    assert task.sources == tuple((i, member_id(i)) for i in (0, 1, 3, 4, 5))


def test_a_member_that_is_away_and_not_replaced_is_waited_for() -> None:
    assert plan_repairs([segment(1)], members(2)).tasks == ()
    plan = plan_repairs([segment(1, 2)], members(2))
    assert (plan.tasks, plan.stuck) == ((), (UUID(int=1),))


def test_what_a_replaced_member_held_goes_to_the_new_one() -> None:
    (task,) = plan_repairs([segment(1)], members(2, replacements={member_id(2): NEW})).tasks
    assert (task.index, task.target) == (2, NEW)
    assert (2, member_id(2)) not in task.sources


def test_a_replaced_member_that_can_be_read_is_copied_from_first() -> None:
    draining = members(replacements={member_id(2): NEW}, writable=members(2).writable)
    (task,) = plan_repairs([segment(1)], draining).tasks
    assert task.sources[0] == (2, member_id(2))
    assert len(task.sources) == 6
    judged = members(2, replacements={member_id(2): NEW}, last_resort=frozenset({member_id(2)}))
    assert plan_repairs([segment(1)], judged).tasks[0].sources[0] == (2, member_id(2))


def test_a_damaged_shard_is_no_source_of_itself() -> None:
    (task,) = plan_repairs([segment(1, 2)], members(replacements={member_id(2): NEW})).tasks
    assert task.target == NEW
    assert all(index != 2 for index, _ in task.sources)


def test_members_judged_failed_are_read_only_after_all_others() -> None:
    view = members(4, 5, last_resort=frozenset({member_id(4), member_id(5)}))
    (task,) = plan_repairs([segment(1, 0)], view).tasks
    assert [index for index, _ in task.sources] == [1, 2, 3, 4, 5]


def test_fewest_spare_shards_come_first_then_ids() -> None:
    found = [segment(4, 0), segment(3, 0, 1), segment(2, 0), segment(1, 5)]
    plan = plan_repairs(found, members())
    assert [(task.segment.int, task.index) for task in plan.tasks] == [(3, 0), (3, 1), (1, 5), (2, 0), (4, 0)]


def test_absence_counts_as_much_as_damage_for_the_order() -> None:
    """Member 0 is away: the second segment has no shard there and can stand one loss more."""
    there = replace(segment(1, 3), placement=Placement(Geometry(2, 2), tuple(map(member_id, (1, 2, 3, 4)))))
    plan = plan_repairs([there, replace(segment(2, 3), placement=segment(2).placement)], members(0))
    assert [task.segment.int for task in plan.tasks] == [2, 1]


def test_shards_that_nobody_can_read_come_before_those_that_only_move() -> None:
    view = members(writable=members(0).writable, replacements={member_id(0): NEW})
    assert [task.index for task in plan_repairs([segment(1, 3)], view).tasks] == [3, 0]


def test_a_segment_with_too_few_shards_is_reported_and_stops_nothing() -> None:
    plan = plan_repairs([segment(1, 0, 1, 2), segment(2, 1)], members())
    assert plan.stuck == (UUID(int=1),)
    assert [task.segment.int for task in plan.tasks] == [2]


def test_a_shard_can_be_copied_even_when_too_few_are_left_to_decode() -> None:
    """k = 4, three gone for good, but the wanted one is still on the disk that is being replaced."""
    view = members(3, 4, 5, replacements={member_id(0): NEW}, writable=members(0, 3, 4, 5).writable)
    plan = plan_repairs([segment(1)], view)
    assert [(task.index, task.target, task.sources[0]) for task in plan.tasks] == [(0, NEW, (0, member_id(0)))]
    assert spare_shards(segment(1), view) == -1


def test_the_unprotected_half_of_a_mirror_is_made_when_its_member_is_back() -> None:
    view = segment(1, 1, geometry=Geometry(1, 1))
    assert plan_repairs([view], members(1)).tasks == ()
    (task,) = plan_repairs([view], members()).tasks
    assert (task.index, task.target, task.sources) == (1, member_id(1), ((0, member_id(0)),))


def test_what_was_given_up_is_adopted_by_members_without_a_shard_of_it() -> None:
    view = members(2, given_up=frozenset({member_id(2)}), adopters=(member_id(0), NEW, member_id(5)))
    (task,) = plan_repairs([segment(1)], view).tasks
    assert (task.index, task.target) == (2, NEW)
    narrow = segment(2, geometry=Geometry(2, 1))
    (task,) = plan_repairs([narrow], replace(view, adopters=(member_id(1), member_id(5)))).tasks
    assert task.target == member_id(5)


def test_two_lost_shards_are_not_adopted_by_one_member() -> None:
    view = members(2, 3, given_up=frozenset({member_id(2), member_id(3)}), adopters=(NEW,))
    plan = plan_repairs([segment(1)], view)
    assert [(task.index, task.target) for task in plan.tasks] == [(2, NEW)]
    assert plan.stuck == (UUID(int=1),)


def test_a_target_that_already_holds_a_shard_of_the_segment_is_refused() -> None:
    plan = plan_repairs([segment(1)], members(2, replacements={member_id(2): member_id(5)}))
    assert (plan.tasks, plan.stuck) == ((), (UUID(int=1),))


def test_the_view_of_a_roster_has_the_pair_of_a_slot_that_is_rebuilt() -> None:
    roster = replace_member(apply(roster_of(6), member_id(2), RosterEvent.FAIL), 2, newcomer(9))
    roster = apply(roster, member_id(4), RosterEvent.FAIL)
    here = {entry.member: HERE for entry in roster.entries} | {member_id(5): AWAY}
    view = members_view(roster, here, (member_id(0),), self_heal=True)
    assert view.replacements == {member_id(2): NEW}
    assert view.counted == view.writable == frozenset(map(member_id, (0, 1, 3, 9)))
    assert view.last_resort == frozenset(map(member_id, (2, 4)))
    assert view.given_up == {member_id(4)}
    assert members_view(roster, {}).counted == frozenset()
    assert members_view(roster, here).given_up == frozenset()


@pytest.mark.parametrize("event", [RosterEvent.SUSPECT, RosterEvent.DRAIN])
def test_a_member_that_still_serves_is_counted(event: RosterEvent) -> None:
    roster = apply(roster_of(6), member_id(2), event)
    view = members_view(roster, {entry.member: HERE for entry in roster.entries})
    assert member_id(2) in view.counted
    assert (member_id(2) in view.writable) is (event is RosterEvent.SUSPECT)


ids = st.integers(0, 9).map(member_id)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.frozensets(st.integers(0, 5))), max_size=6),
    st.frozensets(ids),
    st.frozensets(ids),
    st.frozensets(ids),
    st.dictionaries(ids, ids, max_size=2),
    st.frozensets(ids, max_size=2),
    st.lists(ids, unique=True, max_size=4),
)
@settings(deadline=None)
def test_every_plan_keeps_the_rules(
    shapes: list[tuple[int, frozenset[int]]],
    counted: frozenset[UUID],
    writable: frozenset[UUID],
    resort: frozenset[UUID],
    replacements: dict[UUID, UUID],
    given_up: frozenset[UUID],
    adopters: list[UUID],
) -> None:
    found = [segment(number, *absent, first=first) for number, (first, absent) in enumerate(shapes)]
    view = MembersView(counted, writable, resort - counted, replacements, given_up, tuple(adopters))
    plan = plan_repairs(found, view)
    by_id = {each.segment: each for each in found}
    spares = [spare_shards(by_id[task.segment], view) for task in plan.tasks]
    assert spares == sorted(spares)
    for each in found:
        holders = list(each.placement.members)
        for task in (task for task in plan.tasks if task.segment == each.segment):
            assert task.target in writable
            assert all(i not in each.absent and each.placement.members[i] == m for i, m in task.sources)
            assert len(task.sources) >= 4 or task.sources[0][0] == task.index
            assert len({i for i, _ in task.sources}) == len(task.sources)
            holders[task.index] = task.target
        assert len(set(holders)) == len(holders)
    assert plan_repairs(found[::-1], view) == plan
