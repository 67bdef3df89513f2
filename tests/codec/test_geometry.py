"""Lengths, levels and narrow widths."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raidd.codec.geometry import (
    ALIASES,
    ALIGNMENT,
    PAYLOAD_LIMIT,
    WIDTH_LIMIT,
    Geometry,
    Level,
    block_count,
    default_level,
    extents,
    level_geometry,
    level_table,
    narrow,
    padded_length,
    shard_length,
    usable_bytes,
)
from raidd.errors import RequestRefused

TIB = 1 << 40
geometries = st.integers(1, WIDTH_LIMIT - 1).flatmap(
    lambda k: st.builds(Geometry, st.just(k), st.integers(1, WIDTH_LIMIT - k))
)


@pytest.mark.parametrize(("k", "m"), [(0, 1), (1, 0), (4, 0), (-1, 2), (31, 2), (1, 32)])
def test_geometry_outside_the_limits_is_refused(k: int, m: int) -> None:
    with pytest.raises(ValueError, match="geometry"):
        Geometry(k, m)


@settings(deadline=None)
@given(st.integers(1, PAYLOAD_LIMIT), st.integers(1, 31))
def test_shards_hold_the_payload_with_less_than_a_page_each_to_spare(payload_length: int, k: int) -> None:
    length = shard_length(payload_length, k)
    assert length % ALIGNMENT == 0
    assert k * length >= payload_length
    assert length - ALIGNMENT < -(-payload_length // k)
    assert padded_length(payload_length, k) == k * length


@pytest.mark.parametrize("payload_length", [0, -1, PAYLOAD_LIMIT + 1])
def test_payload_outside_the_limits_is_refused(payload_length: int) -> None:
    with pytest.raises(ValueError, match="payload"):
        shard_length(payload_length, 4)


@pytest.mark.parametrize(("length", "blocks"), [(4096, 1), (65536, 1), (65536 + 4096, 2), (131072, 2)])
def test_last_block_may_be_short(length: int, blocks: int) -> None:
    assert block_count(length) == blocks


@settings(deadline=None)
@given(st.integers(0, 5000), st.integers(0, 5000), st.integers(1, 700))
def test_extents_tile_the_range_in_order(offset: int, length: int, shard: int) -> None:
    position = offset
    for extent in extents(offset, length, shard):
        assert extent.shard * shard + extent.offset == position
        assert 0 < extent.length <= shard - extent.offset
        position += extent.length
    assert position == offset + length


def test_a_range_inside_one_shard_is_one_extent() -> None:
    assert len(extents(4096, 4096, 4096)) == 1
    assert len(extents(4095, 2, 4096)) == 2


@pytest.mark.parametrize(("offset", "length"), [(-1, 5), (5, -1)])
def test_negative_ranges_are_refused(offset: int, length: int) -> None:
    with pytest.raises(ValueError, match="negative"):
        extents(offset, length, 4096)


# Levels


@pytest.mark.parametrize(
    ("level", "members", "expected"),
    [
        (Level("mirror"), 2, (1, 1)),
        (Level("mirror"), 6, (1, 1)),
        (Level("mirror", copies=3), 3, (1, 2)),
        (Level("raid1"), 2, (1, 1)),
        (Level("RAID10"), 4, (1, 1)),
        (Level("raid5"), 3, (2, 1)),
        (Level("raid6"), 4, (2, 2)),
        (Level("raid6"), 6, (4, 2)),
        (Level("raid6"), 32, (30, 2)),
        (Level("raid7"), 8, (5, 3)),
        (Level("raidz3"), 8, (5, 3)),
        (Level("raid50", width=3), 6, (2, 1)),
        (Level("raid60", width=6), 12, (4, 2)),
        (Level("custom", data=3, parity=3), 6, (3, 3)),
        (Level("custom", data=1, parity=1), 2, (1, 1)),
    ],
)
def test_level_gives_its_geometry(level: Level, members: int, expected: tuple[int, int]) -> None:
    assert level_geometry(level, members) == Geometry(*expected)


@pytest.mark.parametrize(
    ("level", "members", "said", "accepted"),
    [
        (Level("raid0"), 4, "raid0", "mirror, raid5, raid6"),
        (Level("raid6"), 1, "1 members", "2 to 32"),
        (Level("raid6"), 33, "33 members", "2 to 32"),
        (Level("raid5"), 2, "at least 3", "mirror"),
        (Level("raid6"), 3, "at least 4", "raid5"),
        (Level("raid7"), 4, "at least 5", "raid6"),
        (Level("mirror", copies=1), 4, "1 copies", "from 2 to 4"),
        (Level("mirror", copies=5), 4, "5 copies", "from 2 to 4"),
        (Level("raid60"), 12, "no width", "from 4 to 11"),
        (Level("raid60", width=12), 12, "width 12", "from 4 to 11"),
        (Level("raid50", width=2), 6, "width 2", "from 3 to 5"),
        (Level("raid60", width=4), 4, "at least 5", "raid6"),
        (Level("custom"), 4, "without data", "at most the 4"),
        (Level("custom", data=4), 6, "without data and parity", "data and parity"),
        (Level("custom", data=4, parity=0), 6, "4+0", "at least 1"),
        (Level("custom", data=5, parity=2), 6, "5+2", "at most the 6"),
        (Level("raid6", copies=3), 6, "takes no copies", "mirror"),
        (Level("raid6", width=4), 6, "takes no width", "raid60"),
        (Level("mirror", data=1), 6, "takes no data", "custom"),
        (Level("raid5", parity=1), 6, "takes no parity", "custom"),
    ],
)
def test_impossible_wish_is_refused_with_what_is_accepted(level: Level, members: int, said: str, accepted: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        level_geometry(level, members)
    assert said in refused.value.message
    assert accepted in refused.value.next_step


@pytest.mark.parametrize(("members", "name"), [(2, "mirror"), (3, "raid5"), (4, "raid6"), (6, "raid6"), (32, "raid6")])
def test_default_level_is_possible(members: int, name: str) -> None:
    assert default_level(members) == name
    assert level_geometry(Level(name), members).n <= members


def test_aliases_mean_levels() -> None:
    assert ALIASES == {"raid1": "mirror", "raid10": "mirror", "raidz3": "raid7"}


@pytest.mark.parametrize("members", range(2, 33))
def test_level_table_offers_only_what_can_be_taken_and_the_default_first(members: int) -> None:
    offers = level_table(members, [TIB] * members)
    assert offers[0].name == default_level(members)
    for offer in offers:
        assert offer.survives == offer.m
        assert offer.k + offer.m <= members
        assert offer.usable_bytes == pytest.approx(members * TIB * offer.k / (offer.k + offer.m), rel=1e-9)


def test_level_table_wants_a_size_for_each_member() -> None:
    with pytest.raises(ValueError, match="sizes"):
        level_table(3, [TIB])


@pytest.mark.parametrize(
    ("geometry", "sizes", "usable"),
    [
        (Geometry(4, 2), [8, 8, 8, 8, 8, 8], 32),
        (Geometry(2, 2), [8, 8, 8, 4], 2 * 4 + 1 * 4),  # the smallest full: 1+2 on the three others
        (Geometry(1, 1), [8, 8], 8),
        (Geometry(1, 1), [8, 4], 4),  # a mirror of one is none
        (Geometry(1, 1), [8, 4, 4], 8),  # the large one mirrors against both small ones
        (Geometry(1, 1), [20, 4, 4], 8),
        (Geometry(4, 2), [9, 9, 3, 3, 3, 3], 12),
    ],
)
def test_mixed_sizes_are_used_as_far_as_narrow_segments_reach(
    geometry: Geometry, sizes: list[int], usable: int
) -> None:
    assert usable_bytes(geometry, sizes) == usable


@settings(deadline=None)
@given(geometries, st.data())
def test_usable_space_never_exceeds_what_the_disks_hold(geometry: Geometry, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 1000), min_size=geometry.n, max_size=WIDTH_LIMIT))
    usable = usable_bytes(geometry, sizes)
    assert geometry.k * min(sizes) <= usable <= sum(sizes) * geometry.k / geometry.n


# Narrow writes


@settings(deadline=None)
@given(geometries, st.integers(0, 32), st.integers(0, 32))
def test_narrow_follows_the_rule_of_the_design(target: Geometry, up: int, roomy: int) -> None:
    roomy = min(up, roomy)
    parity = min(target.m, up - 1)
    found = narrow(target, up, roomy)
    if up == 0 or roomy < parity + 1:
        assert found is None
    elif up == 1:
        assert found == Geometry(1, 1)
    else:
        assert found == Geometry(min(target.k, roomy - parity), parity)


@settings(deadline=None)
@given(geometries, st.integers(0, 32), st.integers(0, 32))
def test_narrow_fits_on_the_members_with_room_and_survives_what_the_target_does(
    target: Geometry, up: int, roomy: int
) -> None:
    found = narrow(target, up, min(up, roomy))
    if found is not None and up > 1:
        assert found.n <= roomy
        assert found.m == min(target.m, up - 1)


@settings(deadline=None)
@given(geometries, st.integers(0, 32))
def test_nothing_is_narrowed_while_a_full_width_is_up_and_roomy(target: Geometry, more: int) -> None:
    up = min(target.n + more, WIDTH_LIMIT)
    assert narrow(target, up, target.n) == target


@settings(deadline=None)
@given(geometries, st.integers(2, 32), st.integers(1, 31))
def test_fullness_never_lowers_parity(target: Geometry, up: int, roomy: int) -> None:
    found = narrow(target, up, min(up, roomy))
    assert found is None or found.m == min(target.m, up - 1)


def test_more_members_with_room_than_up_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="members"):
        narrow(Geometry(4, 2), 3, 4)
