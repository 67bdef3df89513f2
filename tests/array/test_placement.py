"""Placement: who gets a segment, who gets which shard of it, and how disks of any sizes fill."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raidd.array.placement import SETS_LIMIT, Place, Placement, member_sets, place, set_weights
from raidd.codec.geometry import Geometry, narrow
from tests.support.rosters import member_id

RAID6 = Geometry(4, 2)


def places_of(sizes: Sequence[int], enclosures: Sequence[str] | None = None) -> list[Place]:
    names = enclosures or [""] * len(sizes)
    return [Place(member_id(i), size, size, names[i], True, True) for i, size in enumerate(sizes)]


def away(places: Sequence[Place], *numbers: int) -> list[Place]:
    return [replace(each, up=False, roomy=False) if i in numbers else each for i, each in enumerate(places)]


def full(places: Sequence[Place], *numbers: int) -> list[Place]:
    return [replace(each, roomy=False) if i in numbers else each for i, each in enumerate(places)]


def placed(target: Geometry, places: Sequence[Place], seed: int = 1) -> Placement:
    chosen = place(target, places, Random(seed))
    assert chosen is not None
    return chosen


# What a placement is


def test_a_placement_names_each_member_once() -> None:
    with pytest.raises(ValueError, match="two shards"):
        Placement(Geometry(1, 1), (member_id(0), member_id(0)))
    with pytest.raises(ValueError, match="1 members"):
        Placement(Geometry(1, 1), (member_id(0),))


def test_a_member_listed_twice_is_refused() -> None:
    places = places_of([100] * 6)
    with pytest.raises(ValueError, match="listed twice"):
        place(RAID6, [*places, places[0]], Random(1))


@st.composite
def situations(draw: st.DrawFn) -> tuple[Geometry, list[Place], int]:
    members = draw(st.integers(2, 32))
    parity = draw(st.integers(1, min(4, members - 1)))
    target = Geometry(draw(st.integers(1, members - parity)), parity)
    rows = [
        Place(
            member_id(i), draw(st.integers(0, 10**13)), 10**13, draw(st.sampled_from(["", "a", "b"])), up, up and room
        )
        for i, (up, room) in enumerate(
            draw(st.lists(st.tuples(*[st.booleans()] * 2), min_size=members, max_size=members))
        )
    ]
    return target, rows, draw(st.integers(0, 1 << 32))


@given(situations())
@settings(deadline=None)
def test_every_placement_keeps_the_rules(situation: tuple[Geometry, list[Place], int]) -> None:
    target, places, seed = situation
    up = {each.member for each in places if each.up}
    roomy = {each.member for each in places if each.roomy}
    chosen = place(target, places, Random(seed))
    expected = narrow(target, len(up), len(roomy))
    if chosen is None:
        assert expected is None
        return
    assert chosen.geometry == expected
    assert len(set(chosen.members)) == chosen.geometry.n
    if len(up) == 1:
        assert chosen.geometry == Geometry(1, 1)
        assert chosen.members[0] in up
        assert chosen.members[1] not in up
    else:
        assert set(chosen.members) <= roomy
    assert place(target, places, Random(seed)) == chosen


# Narrow writes (design, section 5)


@pytest.mark.parametrize(
    ("gone", "stuffed", "expected"),
    [
        ((), (), Geometry(4, 2)),
        ((0,), (), Geometry(3, 2)),
        ((0, 1), (), Geometry(2, 2)),
        ((0, 1, 2), (), Geometry(1, 2)),
        ((0, 1, 2, 3), (), Geometry(1, 1)),
        ((), (5,), Geometry(3, 2)),
        ((), (3, 4, 5), Geometry(1, 2)),
        ((0,), (5,), Geometry(2, 2)),
        ((0, 1), (4, 5), None),
        ((), (2, 3, 4, 5), None),
        ((0, 1, 2, 3, 4, 5), (), None),
    ],
)
def test_absence_may_lower_m_and_fullness_only_k(
    gone: tuple[int, ...], stuffed: tuple[int, ...], expected: Geometry | None
) -> None:
    chosen = place(RAID6, full(away(places_of([100] * 6), *gone), *stuffed), Random(1))
    assert (chosen and chosen.geometry) == expected


def test_nothing_is_narrowed_while_a_full_width_is_up_and_roomy() -> None:
    places = full(away(places_of([100] * 8), 0), 1)
    chosen = placed(RAID6, places)
    assert chosen.geometry == RAID6
    assert set(chosen.members) == {member_id(number) for number in range(2, 8)}


def test_one_member_up_gets_shard_0_and_one_that_is_away_is_promised_shard_1() -> None:
    places = away(places_of([100] * 2), 0)
    assert placed(Geometry(1, 1), places) == Placement(Geometry(1, 1), (member_id(1), member_id(0)))


def test_one_member_up_and_full_or_without_any_other_takes_nothing() -> None:
    assert place(Geometry(1, 1), full(away(places_of([100] * 2), 0), 1), Random(1)) is None
    assert place(Geometry(1, 1), places_of([100]), Random(1)) is None


# Rotation


@pytest.mark.parametrize("members", [6, 9, 32])
def test_every_member_gets_every_shard_index_equally_often(members: int) -> None:
    places, random = places_of([100] * members), Random(7)
    target = Geometry(members - 2, 2) if members != 9 else RAID6
    rounds = 150 * members
    held = Counter((i, m) for _ in range(rounds) for i, m in enumerate(placed_by(target, places, random)))
    expected = rounds / members
    assert len(held) == members * target.n
    assert all(abs(count - expected) < 0.45 * expected for count in held.values())


def placed_by(target: Geometry, places: Sequence[Place], random: Random) -> tuple[UUID, ...]:
    chosen = place(target, places, random)
    assert chosen is not None
    return chosen.members


def test_distinct_placements_stay_few() -> None:
    places, random = places_of([100] * 32), Random(3)
    seen = {placed_by(Geometry(6, 2), places, random) for _ in range(800)}
    assert len(seen) <= SETS_LIMIT * 8
    assert len({frozenset(each) for each in seen}) <= SETS_LIMIT


# Member sets


def listed(sizes: dict[str, int]) -> list[tuple[UUID, str]]:
    names = [name for name, size in sizes.items() for _ in range(size)]
    return [(member_id(number), name) for number, name in enumerate(names)]


@given(st.integers(2, 32), st.data())
@settings(deadline=None)
def test_sets_are_few_distinct_and_leave_nobody_out(members: int, data: st.DataObject) -> None:
    width = data.draw(st.integers(1, members))
    parity = data.draw(st.integers(1, 3))
    names = data.draw(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=members, max_size=members))
    rows = [(member_id(number), name) for number, name in enumerate(names)]
    sets = member_sets(rows, width, parity)
    assert 1 <= len(sets) <= SETS_LIMIT
    assert len({frozenset(each) for each in sets}) == len(sets)
    assert all(len(set(each)) == width for each in sets)
    assert {member for each in sets for member in each} == {member for member, _ in rows}
    tags = {member: name or str(member) for member, name in rows}
    sizes = Counter(tags.values()).values()
    most = max(max(Counter(tags[member] for member in each).values()) for each in sets)
    assert most <= next(cap for cap in range(parity, 33) if sum(min(cap, size) for size in sizes) >= width)
    assert member_sets(rows, width, parity) == sets


@pytest.mark.parametrize(
    ("enclosures", "width", "parity", "most"),
    [
        ({"a": 4, "b": 4, "c": 4}, 6, 2, 2),
        ({"a": 6, "b": 2, "c": 2}, 6, 2, 2),
        ({"a": 16, "b": 16}, 8, 2, 4),
        ({"a": 3, "b": 9}, 6, 2, 3),
        ({"a": 2, "b": 2}, 2, 1, 1),
        ({"": 12}, 6, 1, 1),
    ],
)
def test_an_enclosure_holds_at_most_m_shards_or_as_few_as_can_be(
    enclosures: dict[str, int], width: int, parity: int, most: int
) -> None:
    rows = listed(enclosures)
    tags = {member: name or str(member) for member, name in rows}
    for each in member_sets(rows, width, parity):
        assert max(Counter(tags[member] for member in each).values()) <= most


def test_all_combinations_are_used_where_they_are_few() -> None:
    assert len(member_sets(listed({"": 7}), 6, 2)) == 7
    assert len(member_sets(listed({"": 8}), 4, 2)) == SETS_LIMIT < math.comb(8, 4)


def test_sets_in_a_large_array_use_every_member_about_equally() -> None:
    uses = Counter(member for each in member_sets(listed({"": 32}), 8, 2) for member in each)
    assert max(uses.values()) - min(uses.values()) <= 1


def test_a_wavering_size_does_not_draw_the_sets_again() -> None:
    rows = listed({"": 12})
    nearly = [1_000_000 - 3 * number for number in range(12)]
    assert member_sets(rows, 6, 2, sizes_bytes=nearly) == member_sets(rows, 6, 2, sizes_bytes=[1_000_000] * 12)


def test_sets_wider_than_the_array_are_refused() -> None:
    with pytest.raises(ValueError, match="sets of 7 of 6"):
        member_sets(listed({"": 6}), 7, 2)


def test_sets_kept_by_the_caller_are_used_while_they_serve_everyone() -> None:
    places = places_of([100] * 4)
    mine = ((member_id(0), member_id(1)), (member_id(2), member_id(3)))
    drawn = {frozenset(place(Geometry(1, 1), places, Random(seed), mine).members) for seed in range(40)}  # type: ignore[union-attr]
    assert drawn == {frozenset(each) for each in mine}


def test_kept_sets_of_another_width_or_that_leave_a_member_out_are_not_used() -> None:
    places = places_of([100] * 4)
    stale = ((member_id(0), member_id(1), member_id(2), member_id(3)),)
    partial = ((member_id(0), member_id(1)),)
    for mine in (stale, partial, ()):
        drawn = {m for seed in range(60) for m in place(Geometry(1, 1), places, Random(seed), mine).members}  # type: ignore[union-attr]
        assert len(drawn) == 4


def test_with_members_away_everybody_left_is_still_used() -> None:
    places = away(places_of([100] * 12), 0, 3, 7)
    drawn = {m for seed in range(300) for m in placed(RAID6, places, seed).members}
    assert drawn == {each.member for each in places if each.up}


# Even filling


def fill(target: Geometry, sizes: Sequence[int], enclosures: Sequence[str] | None = None) -> tuple[int, list[float]]:
    """Segments of one unit a shard until the target's width no longer fits: how many, and the filled fractions."""
    random, free, count = Random(11), list(sizes), 0
    while True:
        rows = places_of(sizes, enclosures)
        rows = [replace(each, free_bytes=left, roomy=left > 0) for each, left in zip(rows, free, strict=True)]
        chosen = place(target, rows, random)
        if chosen is None or chosen.geometry != target:
            return count, [1 - left / size for left, size in zip(free, sizes, strict=True)]
        count += 1
        for member in chosen.members:
            free[member.int & 0xFF] -= 1


def most_segments(width: int, sizes: Sequence[int]) -> int:
    """The largest d with Σ min(size, d) ≥ width·d: no placement whatever stores more."""
    return max(d for d in range(sum(sizes) // width + 1) if sum(min(size, d) for size in sizes) >= width * d)


@pytest.mark.parametrize(
    ("target", "sizes"),
    [
        (RAID6, [300] * 7),
        (RAID6, [100] * 12 + [300] * 4),
        (RAID6, [100, 200, 150, 300, 250, 100, 200, 300, 150, 250]),
        (Geometry(1, 1), [400, 200, 200]),
        (Geometry(1, 2), [100, 200, 300, 200, 100]),
        (Geometry(6, 2), [60] * 32),
    ],
)
def test_mixed_sizes_fill_to_the_last_few_percent(target: Geometry, sizes: list[int]) -> None:
    count, filled = fill(target, sizes)
    assert count >= 0.96 * most_segments(target.n, sizes)
    assert min(filled) > 0.9


def test_mixed_sizes_are_filled_in_step() -> None:
    """Half-way the fractions are close: no disk is full while others are empty."""
    sizes = [200] * 8 + [600] * 4
    random, free = Random(5), list(sizes)
    for _ in range(sum(sizes) // 2 // RAID6.n):
        rows = [replace(each, free_bytes=free[i]) for i, each in enumerate(places_of(sizes))]
        for member in placed_by(RAID6, rows, random):
            free[member.int & 0xFF] -= 1
    assert all(0.35 < left / size < 0.65 for left, size in zip(free, sizes, strict=True))


def test_a_disk_too_large_to_be_filled_is_in_every_segment() -> None:
    _, filled = fill(Geometry(1, 1), [1000, 100, 100, 100])
    assert filled[1:] == [1.0] * 3
    assert filled[0] == pytest.approx(0.3, abs=0.02)


def test_enclosures_cost_no_room_where_the_spread_is_possible() -> None:
    sizes, names = [200] * 12, ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    count, _ = fill(RAID6, sizes, names)
    assert count >= 0.96 * most_segments(6, sizes)


def test_weights_give_each_member_its_share_of_the_free_space() -> None:
    rows = listed({"": 12})
    free = {member: 100 * (1 + number % 3) for number, (member, _) in enumerate(rows)}
    sets = member_sets(rows, 6, 2, sizes_bytes=list(free.values()))
    share: Counter[UUID] = Counter()
    for each, weight in zip(sets, set_weights(sets, free), strict=True):
        for member in each:
            share[member] += weight  # type: ignore[assignment]
    wanted = {member: min(1.0, 6 * each / sum(free.values())) for member, each in free.items()}
    assert all(share[member] == pytest.approx(wanted[member], abs=0.06) for member in wanted)


def test_a_disk_without_free_bytes_breaks_no_weights() -> None:
    sets = member_sets(listed({"": 5}), 3, 1)
    weights = set_weights(sets, {member_id(number): 0 for number in range(5)})
    assert sum(weights) == pytest.approx(1)
    assert all(weight > 0 for weight in weights)
