"""What shards say of themselves: heads, tables and manifests, parsed once, and which of them are believed.

A head is believed when its checksums hold, it lies where it says, its table is its manifest's, it describes the
segment as the catalog does, and k others say the same (format.md, Agreement). What contradicts that is reported for
the repair queue (`on_damage`); a head of a newer format is neither believed nor called damaged.

Bad blocks are remembered too, so that each is counted against its member once, however often a reader meets it.

Thread-safe, no I/O. Only a saving and a count: what is forgotten is read again.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Literal
from uuid import UUID

from raidd.array.catalog import SegmentRow
from raidd.array.membership import Membership
from raidd.codec.erasure import Buffer
from raidd.codec.shard import Prefix, parse_prefix
from raidd.errors import ShardDamaged, ShardError

HEADS_KEPT = 256
"""Some 10 KiB each for a full segment."""
BAD_KEPT = 4096
"""Shards whose bad blocks are remembered."""
HEAD = -1
"""The number of the "block" before the first one: head, table and manifest."""

Damage = Literal["missing", "damaged"]


class Heads:
    """Heads by (segment, index): a shard that was moved or written again is the same, byte for byte."""

    def __init__(self, membership: Membership, on_damage: Callable[[UUID, int, Damage], None]) -> None:
        self._membership, self._on_damage = membership, on_damage
        self._kept: OrderedDict[tuple[UUID, int], Prefix] = OrderedDict()
        self._bad: OrderedDict[tuple[UUID, int], set[int]] = OrderedDict()
        self._lock = threading.Lock()

    def kept(self, segment: UUID, index: int) -> Prefix | None:
        """What `learn` was told."""
        with self._lock:
            return self._kept.get((segment, index))

    def learn(self, row: SegmentRow, index: int, data: Buffer) -> Prefix | None:
        """Parse what was read of a shard file's beginning. None: damaged (reported), or of a newer format (not)."""
        try:
            prefix = parse_prefix(data)
            if prefix.head.segment != row.segment or prefix.head.index != index:
                raise ShardDamaged(f"segment {row.segment}: the head of shard {index} names another shard")
            if not prefix.table_matches_manifest():
                raise ShardDamaged(f"segment {row.segment}: the checksum table of shard {index} is not the manifest's")
        except ShardDamaged:
            self.note_bad(row, index, {HEAD})
            return None
        except ShardError:
            return None
        with self._lock:
            self._kept[(row.segment, index)] = prefix
            while len(self._kept) > HEADS_KEPT:
                self._kept.popitem(last=False)
        return prefix

    def agreeing(self, row: SegmentRow, prefixes: dict[int, Prefix], like: Prefix | None = None) -> dict[int, Prefix]:
        """Only shards that describe themselves as the catalog does, and of those the ones that agree with ``like``;
        with nothing to agree with, the largest agreeing group."""
        fitting = {
            index: prefix
            for index, prefix in prefixes.items()
            if prefix.head.geometry == row.placement.geometry
            and prefix.head.payload_length == row.payload_length
            and prefix.head.body_offset == row.body_offset
        }
        for index in set(prefixes) - set(fitting):
            self._on_damage(row.segment, index, "damaged")
        if not fitting:
            return {}
        groups = Counter(prefix.agreement() for prefix in ([like] if like is not None else fitting.values()))
        best, count = groups.most_common(1)[0]
        agreeing = {index: prefix for index, prefix in fitting.items() if prefix.agreement() == best}
        if like is None and count >= row.placement.geometry.k:
            for index in fitting.keys() - agreeing.keys():  # the segment is what the group says; these are another's
                self._on_damage(row.segment, index, "damaged")
        return agreeing

    def note_bad(self, row: SegmentRow, index: int, blocks: set[int]) -> None:
        """Blocks that contradict their checksums, or `HEAD`: reported, and counted once."""
        with self._lock:
            known = self._bad.setdefault((row.segment, index), set())
            fresh = len(blocks - known)
            known |= blocks
            while len(self._bad) > BAD_KEPT:
                self._bad.popitem(last=False)
        member = self._membership.member(row.placement.members[index])
        if member is not None and fresh:
            member.count_error(f"{fresh} damaged blocks in segment {row.segment} shard {index}", fresh)
        self._on_damage(row.segment, index, "damaged")

    def forget(self, segment: UUID, index: int) -> None:
        """Of a shard that was written again nothing is known."""
        with self._lock:
            self._kept.pop((segment, index), None)
            self._bad.pop((segment, index), None)
