"""Lengths, offsets, limits and levels: the arithmetic that every other part agrees on.

A segment's payload of P bytes is cut into k data shards of S = ceil(P / k) bytes, rounded up to 4096 (so that
O_DIRECT takes them); the payload is zero-padded to k·S, and m parity shards of the same length follow. A payload
offset o lies in data shard o // S at o % S: a range touches one shard, or a run of neighbours.

The limits are those of format.md. They are checked before anything is allocated or trusted, and the same numbers
bind the writer: what this program writes it can read.

A *level* is what an operator asks for (`raid6`); a *geometry* is what a segment has (4+2). `level_geometry` goes
from one to the other for the roster's size; `narrow` says what can be written now, with members away or full
(design, section 5): absence may lower m, fullness only k.

Pure: no I/O, no clock. Wrong numbers from a caller are ValueError; an operator's wrong wish is RequestRefused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raidd.errors import RequestRefused

MIB = 1 << 20
BLOCK_SIZE = 65536
ALIGNMENT = 4096
PAYLOAD_LIMIT = 64 * MIB
PAYLOAD_TARGET = 32 * MIB  # a writer closes a segment here; also the part size of a large image
WIDTH_LIMIT = 32
MANIFEST_LIMIT = 4 * MIB  # as stored, compressed
INFLATED_LIMIT = 32 * MIB
IMAGES_LIMIT = 4096
PREFIX_LIMIT = 8 * MIB  # head, table, manifest and padding; bounds the body offset a reader believes


@dataclass(frozen=True, slots=True, order=True)
class Geometry:
    """k data and m parity shards: any k of the k+m give the payload back. ValueError outside the limits."""

    k: int
    m: int

    def __post_init__(self) -> None:
        if self.k < 1 or self.m < 1 or self.k + self.m > WIDTH_LIMIT:
            raise ValueError(f"geometry {self.k}+{self.m}: 1 <= k, 1 <= m and k+m <= {WIDTH_LIMIT} are required")

    @property
    def n(self) -> int:
        """All shards of a segment, k+m."""
        return self.k + self.m

    def __str__(self) -> str:
        return f"{self.k}+{self.m}"


@dataclass(frozen=True, slots=True)
class Extent:
    """``length`` bytes at ``offset`` of the body of data shard ``shard``."""

    shard: int
    offset: int
    length: int


def round_up(length: int, multiple: int = ALIGNMENT) -> int:
    """The least multiple of ``multiple`` that is not below ``length``."""
    return -(-length // multiple) * multiple


def shard_length(payload_length: int, k: int) -> int:
    """S, the bytes in the body of each shard of a payload cut in k: ceil(P / k) rounded up to 4096."""
    if not 0 < payload_length <= PAYLOAD_LIMIT:
        raise ValueError(f"a payload of {payload_length} bytes; 1 to {PAYLOAD_LIMIT} are allowed")
    return round_up(-(-payload_length // k))


def padded_length(payload_length: int, k: int) -> int:
    """k·S: what a payload buffer must hold so that its k data shards can be written from it in place."""
    return k * shard_length(payload_length, k)


def block_count(shard_length: int, block_size: int = BLOCK_SIZE) -> int:
    """N, the checksummed blocks of a body; the last may be short."""
    return -(-shard_length // block_size)


def extents(offset: int, length: int, shard_length: int) -> list[Extent]:
    """Where the payload's bytes [offset, offset+length) lie, in payload order. Empty for no bytes."""
    if offset < 0 or length < 0:
        raise ValueError(f"range {offset}+{length}: negative")
    found = []
    end = offset + length
    while offset < end:
        shard, inside = divmod(offset, shard_length)
        taken = min(shard_length - inside, end - offset)
        found.append(Extent(shard, inside, taken))
        offset += taken
    return found


# Levels ---------------------------------------------------------------------------------------------------------

ALIASES = {"raid1": "mirror", "raid10": "mirror", "raidz3": "raid7"}
_FULL_WIDTH_PARITY = {"raid5": 1, "raid6": 2, "raid7": 3}
_SET_PARITY = {"raid50": 1, "raid60": 2}
LEVELS = ("mirror", *_FULL_WIDTH_PARITY, *_SET_PARITY, "custom")
_DATA_LEAST = 2  # one data shard with parity is a mirror, and is called so
_COPIES_DEFAULT = 2


@dataclass(frozen=True, slots=True)
class Level:
    """An operator's wish: ``copies`` for mirror, ``width`` for raid50, raid60, ``data`` and ``parity`` for custom."""

    name: str
    copies: int = _COPIES_DEFAULT
    width: int | None = None
    data: int | None = None
    parity: int | None = None


@dataclass(frozen=True, slots=True)
class LevelOffer:
    """What a level would give on these disks. ``usable_bytes`` is an upper bound (no heads, no reserve)."""

    name: str
    k: int
    m: int
    usable_bytes: int
    survives: int


def canonical_level(name: str) -> str:
    """The level's own name for a name or alias in any case; RequestRefused lists what is accepted."""
    lowered = name.strip().lower()
    canonical = ALIASES.get(lowered, lowered)
    if canonical not in LEVELS:
        raise RequestRefused(f"there is no level {name!r}", next_step=f"Take one of: {', '.join((*LEVELS, *ALIASES))}")
    return canonical


def default_level(members: int) -> str:
    """mirror for 2 members, raid5 for 3, raid6 from 4."""
    _check_members(members)
    return {2: "mirror", 3: "raid5"}.get(members, "raid6")


def level_geometry(level: Level, members: int) -> Geometry:
    """The target geometry of ``level`` on a roster of ``members`` (failed slots included).

    RequestRefused says what is wrong, its next step what is accepted.
    """
    name = canonical_level(level.name)
    _check_members(members)
    _check_options(name, level)
    if name == "mirror":
        return _mirror(level.copies, members)
    if name in _FULL_WIDTH_PARITY:
        return _full_width(name, _FULL_WIDTH_PARITY[name], members)
    if name in _SET_PARITY:
        return _sets(name, _SET_PARITY[name], level.width, members)
    return _custom(level.data, level.parity, members)


def _refuse(message: str, accepted: str) -> RequestRefused:
    return RequestRefused(message, next_step=accepted)


def _check_members(members: int) -> None:
    if not 2 <= members <= WIDTH_LIMIT:
        raise _refuse(f"an array of {members} members", f"Give 2 to {WIDTH_LIMIT} members.")


def _check_options(name: str, level: Level) -> None:
    """An option that the level does not know would be silently without effect: refuse it."""
    given = {
        "copies": level.copies != _COPIES_DEFAULT and name != "mirror",
        "width": level.width is not None and name not in _SET_PARITY,
        "data": level.data is not None and name != "custom",
        "parity": level.parity is not None and name != "custom",
    }
    for option in (option for option, stray in given.items() if stray):
        raise _refuse(
            f"level {name} takes no {option}",
            "copies belongs to mirror, width to raid50 and raid60, data and parity to custom.",
        )


def _mirror(copies: int, members: int) -> Geometry:
    if not 2 <= copies <= members:
        raise _refuse(f"mirror with {copies} copies on {members} members", f"Take copies from 2 to {members}.")
    return Geometry(1, copies - 1)


def _full_width(name: str, parity: int, members: int) -> Geometry:
    least = parity + _DATA_LEAST
    if members < least:
        raise _refuse(
            f"{name} on {members} members: it needs at least {least}",
            f"Give {least} or more members, or take {default_level(members)}.",
        )
    return Geometry(members - parity, parity)


def _sets(name: str, parity: int, width: int | None, members: int) -> Geometry:
    least, most = parity + _DATA_LEAST, members - 1
    if most < least:
        raise _refuse(
            f"{name} on {members} members: it needs at least {least + 1}", f"Take {default_level(members)} instead."
        )
    if width is None or not least <= width <= most:
        said = "no width" if width is None else f"width {width}"
        raise _refuse(f"{name} with {said} on {members} members", f"Give a width from {least} to {most}.")
    return Geometry(width - parity, parity)


def _custom(data: int | None, parity: int | None, members: int) -> Geometry:
    accepted = f"Give data and parity, each at least 1, together at most the {members} members."
    if data is None or parity is None:
        raise _refuse("level custom without data and parity", accepted)
    if data < 1 or parity < 1 or data + parity > members:
        raise _refuse(f"custom {data}+{parity} on {members} members", accepted)
    return Geometry(data, parity)


def level_table(members: int, sizes_bytes: Sequence[int]) -> list[LevelOffer]:
    """What each level would give on disks of these sizes, the default first; levels that need more are left out.

    raid50 and raid60 are offered with half the members as their width, the usual layout.
    """
    if len(sizes_bytes) != members:
        raise ValueError(f"{members} members but {len(sizes_bytes)} sizes")
    wishes = [Level("mirror"), Level("mirror", copies=3), *(Level(name) for name in _FULL_WIDTH_PARITY)]
    wishes += [Level(name, width=max(members // 2, parity + _DATA_LEAST)) for name, parity in _SET_PARITY.items()]
    offers = [_offer(wish, sizes_bytes) for wish in wishes if _possible(wish, members)]
    first = default_level(members)
    return sorted(offers, key=lambda offer: offer.name != first)


def _possible(level: Level, members: int) -> bool:
    try:
        level_geometry(level, members)
    except RequestRefused:
        return False
    return True


def _offer(level: Level, sizes_bytes: Sequence[int]) -> LevelOffer:
    geometry = level_geometry(level, len(sizes_bytes))
    return LevelOffer(level.name, geometry.k, geometry.m, usable_bytes(geometry, sizes_bytes), geometry.m)


def usable_bytes(geometry: Geometry, sizes_bytes: Sequence[int]) -> int:
    """Payload that fits on disks of these sizes: full width first, then narrower on what the larger ones have left."""
    shard_bytes = _full_width_bytes(geometry.n, sizes_bytes)
    usable = geometry.k * shard_bytes
    left = sorted(size - shard_bytes for size in sizes_bytes if size > shard_bytes)  # fewer than a full width
    floor = 0
    for index, size in enumerate(left):
        k = min(geometry.k, len(left) - index - geometry.m)
        usable += max(0, k) * (size - floor)
        floor = size
    return usable


def _full_width_bytes(width: int, sizes_bytes: Sequence[int]) -> int:
    """The most to write a shard, always on ``width`` distinct disks: the largest d with Σ min(size, d) ≥ width·d.

    No disk takes more than one shard of a segment, so none can give more than d; that bound is reached.
    """
    low, high = 0, sum(sizes_bytes) // width
    while low < high:
        middle = (low + high + 1) // 2
        fits = sum(min(size, middle) for size in sizes_bytes) >= width * middle
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def narrow(target: Geometry, up: int, roomy: int) -> Geometry | None:
    """What can be written with ``up`` members up, ``roomy`` of them with room (design, section 5, "Narrow writes").

    None: nothing is up, or the array is full. One member up gives 1+1 whose shard 1 will be absent: stored, not
    protected. While a full width is up and roomy the target comes back unchanged.
    """
    if not 0 <= roomy <= up:
        raise ValueError(f"{roomy} members with room among {up} that are up")
    parity = min(target.m, up - 1)  # absence may lower m'
    if up == 0 or roomy < parity + 1:
        return None
    if parity == 0:
        return Geometry(1, 1)
    return Geometry(min(target.k, roomy - parity), parity)  # fullness lowers only k'
