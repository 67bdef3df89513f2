"""Which lost shards to re-create, onto which member, from what, in which order. Pure.

A shard wants re-creating when it is excepted (missing or damaged), or when its member's slot was given to another
(it moves, also while the old member still serves it), or when its member was given up and others may adopt it. Its
target is the member that replaces its own, else its own, else the roomiest adopter; a target must be writable and
must hold no other shard of the segment, so that what counts as protected stays on different members (format, C3).

Order: fewest spare shards first (present − k, so what can stand no further loss comes before everything else), then
by id, which is the order on the disks. A replaced member that can still be read is copied from first: one read
instead of k. A segment of which neither k shards nor the wanted one can be read is reported, and stops nothing.

The plan is a snapshot: who carries it out looks again under the segment's lock. Nothing of it is kept, so that a
crash costs a new plan and no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from raidd.array.placement import Placement
from raidd.array.roster import LAST_RESORT, READABLE, WRITABLE, MemberState, Presence, Roster, effective_state


@dataclass(frozen=True, slots=True)
class SegmentView:
    """A segment as the catalog has it. ``absent``: excepted indexes; ``shard_length``: bytes of body a shard.

    ``damaged``: those of the absent that are there, and whose good blocks may be needed when too few are whole.
    ``untouchable``: those of the absent that a newer raidd wrote: not to be read, and never repaired over."""

    segment: UUID
    placement: Placement
    absent: frozenset[int]
    shard_length: int
    damaged: frozenset[int] = frozenset()
    untouchable: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class MembersView:
    """The members as they are now; all ids are of members that answer, but for those replaced or given up.

    ``counted``: their shards count as present. ``last_resort``: readable, but not counted (judged failed, retired).
    ``writable``: take shards. ``replacements``: old member → the one that is getting its slot. ``given_up``: away for
    good, without a replacement; what they held is adopted by ``adopters``, the roomiest first.
    """

    counted: frozenset[UUID]
    writable: frozenset[UUID]
    last_resort: frozenset[UUID] = frozenset()
    replacements: Mapping[UUID, UUID] = field(default_factory=dict)
    given_up: frozenset[UUID] = frozenset()
    adopters: tuple[UUID, ...] = ()


@dataclass(frozen=True, slots=True)
class RepairTask:
    """Make shard ``index`` of ``segment`` on ``target``; ``length`` bytes of body.

    ``sources``: (index, member), best first. If the first is the wanted shard itself, copying it is enough; any k of
    the others give it, too. There may be more than k, for when one of them fails.
    """

    segment: UUID
    index: int
    target: UUID
    sources: tuple[tuple[int, UUID], ...]
    length: int


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """``tasks`` in the order to do them; ``stuck``: segments that want a repair and cannot have it now."""

    tasks: tuple[RepairTask, ...]
    stuck: tuple[UUID, ...]

    @property
    def length(self) -> int:
        """Bytes of shard bodies to write: what an honest time left is reckoned from."""
        return sum(task.length for task in self.tasks)


def plan_repairs(segments: Iterable[SegmentView], members: MembersView) -> RepairPlan:
    """The plan for these segments (a page of the catalog, or one segment that a reader found damaged)."""
    ordered = sorted(segments, key=lambda view: (spare_shards(view, members), view.segment))
    tasks: list[RepairTask] = []
    stuck: list[UUID] = []
    for view in ordered:
        made = list(_tasks(view, members))
        tasks += made
        if len(made) < len(_wanted(view, members)):
            stuck.append(view.segment)
    return RepairPlan(tuple(tasks), tuple(stuck))


def spare_shards(view: SegmentView, members: MembersView) -> int:
    """Present shards − k: how many more may be lost. Below 0 the segment cannot be read now."""
    return len(_present(view, members)) - view.placement.geometry.k


def members_view(
    roster: Roster, presences: Mapping[UUID, Presence], adopters: Sequence[UUID] = (), *, self_heal: bool = False
) -> MembersView:
    """The members as roster and presences have them. A member not in ``presences`` is away.

    ``self_heal``: what failed members without a replacement held is adopted by ``adopters`` (design, section 7).
    """
    away = Presence(False, "never seen", 0.0)
    here = {entry.member for entry in roster.entries if presences.get(entry.member, away).present}
    states = {entry.member: effective_state(entry, presences.get(entry.member, away)) for entry in roster.entries}
    replacements = _replacements(roster)
    failed = {member for member, state in states.items() if state is MemberState.FAILED} - replacements.keys()
    return MembersView(
        counted=frozenset(member for member, state in states.items() if state in READABLE),
        writable=frozenset(member for member, state in states.items() if state in WRITABLE),
        last_resort=frozenset(member for member, state in states.items() if state in LAST_RESORT and member in here),
        replacements=replacements,
        given_up=frozenset(failed) if self_heal else frozenset(),
        adopters=tuple(adopters) if self_heal else (),
    )


def _replacements(roster: Roster) -> dict[UUID, UUID]:
    """Old member → the member being rebuilt in its slot."""
    fillers = [roster.slot_entry(slot) for slot in roster.slots()]
    return {
        old.member: new.member
        for new in fillers
        if new.slot is not None and new.state is MemberState.REBUILDING
        for old in roster.slot_entries(new.slot)
        if old.member != new.member
    }


def _present(view: SegmentView, members: MembersView) -> list[tuple[int, UUID]]:
    """Shards that count, data shards first: from these alone parity is coded without inverting a matrix."""
    holders = enumerate(view.placement.members)
    return [(i, member) for i, member in holders if i not in view.absent and member in members.counted]


def _wanted(view: SegmentView, members: MembersView) -> list[int]:
    """Indexes to re-create, those that nobody can read now before those that only move."""
    moving = members.replacements.keys() | members.given_up
    wanted = [
        i
        for i, member in enumerate(view.placement.members)
        if i not in view.untouchable and (i in view.absent or member in moving)
    ]
    present = {index for index, _ in _present(view, members)}
    return sorted(wanted, key=lambda index: (index in present, index))


def _tasks(view: SegmentView, members: MembersView) -> Iterator[RepairTask]:
    wanted = _wanted(view, members)
    taken = set(view.placement.members)  # those that are leaving, too: a move may fail, and the placement names them
    for index in wanted:
        target = _target(view.placement.members[index], taken, members)
        sources = _sources(view, index, members)
        if target is not None and sources:
            taken.add(target)
            yield RepairTask(view.segment, index, target, sources, view.shard_length)


def _target(holder: UUID, taken: set[UUID], members: MembersView) -> UUID | None:
    """The first of: who replaces the holder, the holder, an adopter for one given up."""
    if holder in members.replacements or holder not in members.given_up:
        candidates: Sequence[UUID] = (members.replacements.get(holder, holder),)
    else:
        candidates = members.adopters
    free = (each for each in candidates if each in members.writable and (each == holder or each not in taken))
    return next(free, None)


def _sources(view: SegmentView, index: int, members: MembersView) -> tuple[tuple[int, UUID], ...]:
    """What to read, best first; empty when it is not enough."""
    holder = view.placement.members[index]
    itself = index not in view.absent and holder in members.counted | members.last_resort
    others = [(i, member) for i, member in _present(view, members) if i != index]
    others += [
        (i, member)
        for i, member in enumerate(view.placement.members)
        if i not in view.absent and i != index and member in members.last_resort
    ]
    readable = members.counted | members.last_resort
    torn = [(i, view.placement.members[i]) for i in sorted(view.damaged) if view.placement.members[i] in readable]
    if not itself and len(others) < view.placement.geometry.k:
        others += torn  # block by block they may be enough
    if not itself and len(others) < view.placement.geometry.k:
        return ()
    return ((index, holder), *others) if itself else tuple(others)
