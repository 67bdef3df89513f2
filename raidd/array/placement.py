"""Which members a new segment goes to, and which of them gets which shard. Pure: the randomness is an argument.

Where the target's width is the whole array there is nothing to choose but the rotation: each segment starts at
another member, so that over many segments every member holds each shard index equally often, and reads (which touch
data shards only) spread evenly.

Where the width is smaller, segments go to at most 64 *member sets* (design, section 3), not to any combination:
with few sets few combinations of failures can hurt (Cidon et al., "Copysets", USENIX ATC 2013). A set is drawn with
a probability that makes each member's expected share proportional to its free space, so that disks of any sizes fill
in step. A set holds at most m members of one enclosure where that is possible: then losing an enclosure loses
nothing.

With members away or full the segment is narrower (geometry.narrow): absence may lower m, fullness only k.

Promises: never two shards on one member; only members up and roomy are named (but for 1+1 with one member up); the
same arguments and the same Random give the same placement.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import combinations, count
from random import Random
from uuid import UUID

from raidd.codec.geometry import Geometry, narrow

SETS_LIMIT = 64

_Sets = tuple[tuple[UUID, ...], ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """A segment's geometry and the member meant for each shard, in shard order. ValueError if they do not fit."""

    geometry: Geometry
    members: tuple[UUID, ...]

    def __post_init__(self) -> None:
        if len(self.members) != self.geometry.n:
            raise ValueError(f"{len(self.members)} members for a geometry of {self.geometry.n} shards")
        if len(set(self.members)) != len(self.members):
            raise ValueError("two shards of one segment on one member")


@dataclass(frozen=True, slots=True)
class Place:
    """A member as placement sees it: the one that fills a slot, whether it is there or not. Sizes in bytes."""

    member: UUID
    free_bytes: int
    size_bytes: int
    enclosure: str
    up: bool  # its effective state is WRITABLE
    roomy: bool  # it has room for a shard above the reserve


def place(
    target: Geometry, places: Sequence[Place], random: Random, sets: Sequence[tuple[UUID, ...]] | None = None
) -> Placement | None:
    """Where the next segment goes. ``places``: one a slot, failed and missing ones too. None: nothing can be written.

    ``sets``: the roster's member sets, if the caller keeps them; else they are computed (and cached).
    With one member up the geometry is 1+1, ``members`` names that one and one that is not up: stored, not protected,
    and the repair that makes shard 1 protects it. RequestRefused never; ValueError for a member listed twice.
    """
    if len({each.member for each in places}) != len(places):
        raise ValueError("a member is listed twice")
    up = [each for each in places if each.up]
    roomy = [each for each in up if each.roomy]
    geometry = narrow(target, len(up), len(roomy))
    if geometry is None:
        return None
    if len(roomy) < geometry.n:
        return _unprotected(geometry, roomy, places, random)
    if len(roomy) == geometry.n:
        chosen = tuple(each.member for each in roomy)
    else:
        chosen = _draw(_usable_sets(geometry, places, roomy, sets), roomy, random)
    turn = random.randrange(len(chosen))
    return Placement(geometry, chosen[turn:] + chosen[:turn])


def _unprotected(
    geometry: Geometry, roomy: Sequence[Place], places: Sequence[Place], random: Random
) -> Placement | None:
    """1+1 with one member up; the other half is promised to one that is away (never to one that is up but full)."""
    away = [each.member for each in places if not each.up]
    if not away:
        return None
    return Placement(geometry, (roomy[0].member, random.choice(away)))


# Member sets ----------------------------------------------------------------------------------------------------


def member_sets(
    members: Sequence[tuple[UUID, str]],
    width: int,
    parity: int,
    limit: int = SETS_LIMIT,
    sizes_bytes: Sequence[int] | None = None,
) -> tuple[tuple[UUID, ...], ...]:
    """At most ``limit`` sets of ``width`` members, drawn from (member, enclosure); the same for the same roster.

    At most ``parity`` of a set share an enclosure if there are enclosures enough, else as few as possible. A member
    without an enclosure tag is one of its own. With ``sizes_bytes`` (one a member) larger members are in more sets.
    All members appear in some set if the enclosures allow it. ValueError if there are too few members.
    """
    if not 1 <= width <= len(members):
        raise ValueError(f"sets of {width} of {len(members)} members")
    steps = (0,) * len(members) if sizes_bytes is None else tuple(map(_size_step, sizes_bytes))
    return _member_sets(tuple(members), steps, width, parity, limit)


def _size_step(size_bytes: int) -> int:
    """Sizes in steps of √2: a file system whose size wavers a little (zfs) must not have the sets drawn again."""
    return round(2 * math.log2(max(1, size_bytes)))


@lru_cache(maxsize=64)
def _member_sets(
    members: tuple[tuple[UUID, str], ...], steps: tuple[int, ...], width: int, parity: int, limit: int
) -> _Sets:
    enclosures = {member: enclosure or str(member) for member, enclosure in members}
    most = _most_of_one(enclosures, width, parity)
    if math.comb(len(members), width) <= limit:
        every = combinations((member for member, _ in members), width)
        return tuple(each for each in every if _spread(each, enclosures) <= most)
    sizes = {member: 2.0 ** ((step - max(steps)) / 2) for (member, _), step in zip(members, steps, strict=True)}
    return _balanced_sets(enclosures, _wanted_shares(sizes, width), most, limit)


def _most_of_one(enclosures: dict[UUID, str], width: int, parity: int) -> int:
    """The least number ≥ parity that lets a set be filled with no more than so many of one enclosure."""
    sizes = Counter(enclosures.values()).values()
    return next(most for most in count(max(1, parity)) if sum(min(most, size) for size in sizes) >= width)


def _spread(members: Sequence[UUID], enclosures: dict[UUID, str]) -> int:
    return max(Counter(enclosures[member] for member in members).values())


def _balanced_sets(enclosures: dict[UUID, str], shares: dict[UUID, float], most: int, limit: int) -> _Sets:
    """Sets made one after the other from the members furthest behind their share, ties in another order each time."""
    width = round(sum(shares.values()))
    uses = dict.fromkeys(enclosures, 0)
    found: dict[frozenset[UUID], tuple[UUID, ...]] = {}
    for turn in range(4 * limit):
        order = sorted(uses, key=lambda member: ((uses[member] + 1) / shares[member], _rank(turn, member)))
        chosen = _fill(order, enclosures, width, most)
        found.setdefault(frozenset(chosen), tuple(member for member in enclosures if member in chosen))
        for member in chosen:
            uses[member] += 1
        if len(found) == limit:
            break
    return tuple(found.values())


def _fill(order: Sequence[UUID], enclosures: dict[UUID, str], width: int, most: int) -> list[UUID]:
    chosen: list[UUID] = []
    held: Counter[str] = Counter()
    for member in order:
        if len(chosen) < width and held[enclosures[member]] < most:
            held[enclosures[member]] += 1
            chosen.append(member)
    return chosen


def _rank(turn: int, member: UUID) -> bytes:
    """An order that is another each turn, and the same in every process and version of Python."""
    return blake2b(member.bytes, digest_size=8, salt=turn.to_bytes(4, "little")).digest()


# Drawing --------------------------------------------------------------------------------------------------------


def _usable_sets(
    geometry: Geometry, places: Sequence[Place], roomy: Sequence[Place], sets: Sequence[tuple[UUID, ...]] | None
) -> Sequence[tuple[UUID, ...]]:
    """The roster's sets that are wholly up and roomy; new ones if these leave a usable member out."""
    if sets is None:
        sets = _sets_of(places, geometry)
    members = {each.member for each in roomy}
    usable = [each for each in sets if len(each) == geometry.n and members.issuperset(each)]
    if members == {member for each in usable for member in each}:
        return usable
    return _sets_of(roomy, geometry)


def _sets_of(places: Sequence[Place], geometry: Geometry) -> _Sets:
    members = [(each.member, each.enclosure) for each in places]
    return member_sets(members, geometry.n, geometry.m, sizes_bytes=[each.size_bytes for each in places])


def _draw(sets: Sequence[tuple[UUID, ...]], roomy: Sequence[Place], random: Random) -> tuple[UUID, ...]:
    weights = set_weights(sets, {each.member: each.free_bytes for each in roomy})
    return random.choices(sets, weights)[0]


_ROUNDS = 6
_LEAST_SHARE = 1e-6


def set_weights(sets: Sequence[tuple[UUID, ...]], free_bytes: Mapping[UUID, int]) -> list[float]:
    """Weights of the sets under which each member's share of the shards comes near its share of the free space.

    Each weight starts as the product of its members' odds (conditional Poisson sampling, Hájek 1964) and is then
    scaled a few times by wanted over expected shares (iterative proportional fitting).
    """
    wanted = _wanted_shares({member: max(1, free) for member, free in free_bytes.items()}, len(sets[0]))
    logs = {member: math.log(share / (1 - share)) for member, share in wanted.items()}
    weights = _normalised([sum(logs[member] for member in each) for each in sets])
    for _ in range(_ROUNDS):
        expected = dict.fromkeys(wanted, 0.0)
        for each, weight in zip(sets, weights, strict=True):
            for member in each:
                expected[member] += weight
        scale = {member: math.log(share / max(expected[member], _LEAST_SHARE)) for member, share in wanted.items()}
        pairs = zip(sets, weights, strict=True)
        weights = _normalised([math.log(max(weight, 1e-300)) + sum(scale[m] for m in each) for each, weight in pairs])
    return weights


def _wanted_shares(room: Mapping[UUID, float], width: int) -> dict[UUID, float]:
    """The probability with which each member should be in a set of ``width``: proportional to its room, at most 1."""
    shares: dict[UUID, float] = {}
    left, total = float(width), float(sum(room.values()))
    for member, each in sorted(room.items(), key=lambda item: -item[1]):
        share = min(1.0, left * each / total)
        left, total = left - share, total - each
        shares[member] = min(max(share, _LEAST_SHARE), 1 - _LEAST_SHARE)
    return shares


def _normalised(logs: Sequence[float]) -> list[float]:
    top = max(logs)
    weights = [math.exp(log - top) for log in logs]
    total = sum(weights)
    return [weight / total for weight in weights]
