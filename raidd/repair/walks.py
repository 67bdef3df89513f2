"""Long repairs as walks over the catalog: which segments come next, a page at a time.

- rebuild: what a replaced member held, fewest surviving shards first; a member that was judged failed and is online
  again walks over itself.
- resync: what a member that came back missed, and nothing else (its exceptions).
- rehome: what former members held (removed, or turned into spares), onto members that have none of the segment.

A walk is a cursor: nothing of it is kept, a crash costs a new walk over what is still to be done. It never blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol
from uuid import UUID

from raidd.array.catalog import Catalog, SegmentRow

PAGE = 64
RATE_WINDOW_S = 30.0
"""Rate and time left are taken over this window: neither jumpy nor out of date."""

Kind = Literal["rebuild", "resync", "rehome"]
Key = tuple[Kind, UUID]


class Walk(Protocol):
    """The order of a walk."""

    def next_page(self) -> list[SegmentRow]:
        """The next segments; [] at the end."""


@dataclass(slots=True)
class ReplacedWalk:
    """Segments that the old members of a slot hold, most endangered first, then in disk order."""

    catalog: Catalog
    away: Callable[[], frozenset[UUID]]
    old: frozenset[UUID]
    cursor: tuple[int, UUID] | None = None

    def next_page(self) -> list[SegmentRow]:
        while page := self.catalog.endangered(self.away() | self.old, after=self.cursor, limit=PAGE):
            self.cursor = page[-1].cursor
            rows = [one.segment for one in page if self.old & set(one.segment.placement.members)]
            if rows:
                return rows
        return []


@dataclass(slots=True)
class HeldWalk:
    """Segments meant for a member, in disk order."""

    catalog: Catalog
    member: UUID
    after: UUID | None = None

    def next_page(self) -> list[SegmentRow]:
        rows = self.catalog.segments_on(self.member, after=self.after, limit=PAGE)
        if rows:
            self.after = rows[-1].segment
        return rows


@dataclass(slots=True)
class MissedWalk:
    """Segments of which the member's own shard is missing or damaged."""

    catalog: Catalog
    member: UUID
    after: tuple[UUID, int] | None = None

    def next_page(self) -> list[SegmentRow]:
        while page := self.catalog.exceptions(self.member, limit=PAGE, after=self.after):
            self.after = page[-1][:2]
            wanted = dict.fromkeys(segment for segment, _index, kind in page if kind != "unsupported")
            rows = [row for segment in wanted if (row := self.catalog.segment(segment)) is not None]
            if rows:
                return rows
        return []


@dataclass(slots=True)
class Job:
    """A walk under way, and how far it is. ``total`` counts segments, bytes are of shard bodies to be written."""

    key: Key
    slot: int | None
    walk: Walk
    total: int = 0
    bytes_total: int = 0
    done: int = 0
    bytes_done: int = 0
    skipped: set[UUID] = field(default_factory=set)
    page: deque[SegmentRow] = field(default_factory=deque)
    samples: deque[tuple[float, int]] = field(default_factory=deque)
    ended: bool = False  # the pass is over, and another is due

    @property
    def looks_at_itself(self) -> bool:
        """A rebuild without a predecessor: of a member that was judged failed, and has to be read before it counts."""
        return self.key[0] == "rebuild" and isinstance(self.walk, HeldWalk)

    def next_segment(self) -> SegmentRow | None:
        """The next segment of the walk; None at its end."""
        if not self.page:
            self.page.extend(self.walk.next_page())
        return self.page.popleft() if self.page else None

    def note(self, now: float, size: int) -> None:
        """One more segment is as it should be, ``size`` bytes of its shard."""
        self.done += 1
        self.bytes_done += size
        self.samples.append((now, self.bytes_done))
        while self.samples[0][0] < now - RATE_WINDOW_S and len(self.samples) > 2:
            self.samples.popleft()

    def rate(self) -> float:
        """Bytes per second over the window."""
        if len(self.samples) < 2:
            return 0.0
        (began, first), (ended, last) = self.samples[0], self.samples[-1]
        return (last - first) / max(ended - began, 1e-6)
