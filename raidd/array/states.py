"""What a member is, what the array is, and how the one follows from the other.

Two things are kept apart, because confusing them is what loses arrays. A *verdict* (online, suspect, failed,
rebuilding, spare, draining, offline, retired) is a decision: it is on the labels and changes only by an event of
the roster's table. A *presence* is a fact of the moment: the disk answers, or it does not. ``missing`` is the fact
seen through the verdict; it is never decided, and goes when the disk comes back.

Promise: everything here is a function of its arguments; two processes shown the same verdicts and facts name the
same states. The words are those of operator.md; scripts depend on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class MemberState(StrEnum):
    """The nine state words of a member (operator.md, "State words")."""

    ONLINE = "online"
    SUSPECT = "suspect"
    MISSING = "missing"
    FAILED = "failed"
    REBUILDING = "rebuilding"
    SPARE = "spare"
    DRAINING = "draining"
    OFFLINE = "offline"
    RETIRED = "retired"


class ArrayState(StrEnum):
    """The four state words of the array, best first."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    CRITICAL = "critical"
    FAILED = "failed"


WRITABLE = frozenset({MemberState.ONLINE, MemberState.SUSPECT, MemberState.REBUILDING})
"""Takes new shards. A draining member would have to be emptied again, so it takes none."""

READABLE = frozenset({MemberState.ONLINE, MemberState.SUSPECT, MemberState.REBUILDING, MemberState.DRAINING})
"""Its shards are read at any time and count as present: for reads, for redundancy, for the array's state."""

LAST_RESORT = frozenset({MemberState.FAILED, MemberState.SPARE, MemberState.RETIRED})
"""Read only when fewer than k shards are to be had elsewhere, and never counted: every block carries its checksum,
so a disk judged bad, or a former member that came back as a spare, can help but not harm. An ``offline`` member is
not in it: the operator asked for it to be let alone, so that it can be unmounted."""

_FACT_DECIDES = READABLE | {MemberState.SPARE, MemberState.MISSING}


@dataclass(frozen=True, slots=True)
class Presence:
    """Whether a member answers now; ``reason`` is a sentence when it does not, ``since`` is Unix time, seconds."""

    present: bool
    reason: str
    since: float


def effective(verdict: MemberState, present: bool) -> MemberState:
    """The state to show and to act on. ``failed``, ``offline`` and ``retired`` outlast the disk's absence."""
    if verdict in _FACT_DECIDES and not present:
        return MemberState.MISSING
    # `missing` as a verdict is tolerated on a label: it says no more than "was away when this was written".
    return MemberState.ONLINE if verdict is MemberState.MISSING else verdict


class RosterEvent(StrEnum):
    """What can be decided about a member. The comment names who decides."""

    ADD = "add"  # raidctl add: a new slot
    ADD_SPARE = "add-spare"  # raidctl add --spare
    REPLACE_OLD = "replace-old"  # raidctl replace, or a spare takes over: the member that is being replaced …
    REPLACE_NEW = "replace-new"  # … and the one that takes its place
    REBUILT = "rebuilt"  # the rebuild ended with nothing skipped: the new member …
    REPLACED = "replaced"  # … and those whose place it has
    RESTORE = "restore"  # the new member failed before it was rebuilt: the old one, still readable, serves again
    FAIL = "fail"  # diagnosis
    SUSPECT = "suspect"  # diagnosis
    OFFLINE = "offline"  # raidctl offline
    ONLINE = "online"  # raidctl online; also ends a drain and a suspicion
    RETURN = "return"  # ONLINE for a member that has no slot, or whose slot was taken meanwhile
    DRAIN = "drain"  # raidctl drain
    RETIRE = "retire"  # raidctl remove, or a drain that ended


TRANSITIONS: Mapping[tuple[MemberState | None, RosterEvent], MemberState] = MappingProxyType(
    {
        # not in the roster yet
        (None, RosterEvent.ADD): MemberState.ONLINE,
        (None, RosterEvent.ADD_SPARE): MemberState.SPARE,
        (None, RosterEvent.REPLACE_NEW): MemberState.REBUILDING,
        # it is used, and must not be taken out while it is: `offline` or `drain` come first
        (MemberState.ONLINE, RosterEvent.SUSPECT): MemberState.SUSPECT,
        (MemberState.ONLINE, RosterEvent.FAIL): MemberState.FAILED,
        (MemberState.ONLINE, RosterEvent.OFFLINE): MemberState.OFFLINE,
        (MemberState.ONLINE, RosterEvent.DRAIN): MemberState.DRAINING,
        # a suspect is replaced while it can still be read: it gives, and takes nothing new
        (MemberState.SUSPECT, RosterEvent.ONLINE): MemberState.ONLINE,
        (MemberState.SUSPECT, RosterEvent.FAIL): MemberState.FAILED,
        (MemberState.SUSPECT, RosterEvent.OFFLINE): MemberState.OFFLINE,
        (MemberState.SUSPECT, RosterEvent.DRAIN): MemberState.DRAINING,
        (MemberState.SUSPECT, RosterEvent.REPLACE_OLD): MemberState.DRAINING,
        # only looked up for a member that is away, before its verdict is
        (MemberState.MISSING, RosterEvent.REPLACE_OLD): MemberState.FAILED,
        (MemberState.MISSING, RosterEvent.RETIRE): MemberState.RETIRED,
        # a judged disk is believed again only after all it should hold was looked at: `rebuilding`
        (MemberState.FAILED, RosterEvent.ONLINE): MemberState.REBUILDING,
        (MemberState.FAILED, RosterEvent.RETURN): MemberState.SPARE,
        (MemberState.FAILED, RosterEvent.REPLACE_OLD): MemberState.FAILED,
        (MemberState.FAILED, RosterEvent.REPLACED): MemberState.RETIRED,
        (MemberState.FAILED, RosterEvent.RETIRE): MemberState.RETIRED,
        # nothing new was meant for it while it was offline (narrow writes), so it is online at once
        (MemberState.OFFLINE, RosterEvent.ONLINE): MemberState.ONLINE,
        (MemberState.OFFLINE, RosterEvent.RETURN): MemberState.SPARE,
        (MemberState.OFFLINE, RosterEvent.REPLACE_OLD): MemberState.OFFLINE,
        (MemberState.OFFLINE, RosterEvent.REPLACED): MemberState.RETIRED,
        (MemberState.OFFLINE, RosterEvent.RETIRE): MemberState.RETIRED,
        (MemberState.REBUILDING, RosterEvent.REBUILT): MemberState.ONLINE,
        (MemberState.REBUILDING, RosterEvent.FAIL): MemberState.FAILED,
        (MemberState.SPARE, RosterEvent.REPLACE_NEW): MemberState.REBUILDING,
        (MemberState.SPARE, RosterEvent.FAIL): MemberState.FAILED,
        (MemberState.SPARE, RosterEvent.OFFLINE): MemberState.OFFLINE,
        (MemberState.SPARE, RosterEvent.RETIRE): MemberState.RETIRED,
        (MemberState.DRAINING, RosterEvent.ONLINE): MemberState.ONLINE,
        (MemberState.DRAINING, RosterEvent.FAIL): MemberState.FAILED,
        (MemberState.DRAINING, RosterEvent.RESTORE): MemberState.SUSPECT,
        (MemberState.DRAINING, RosterEvent.REPLACED): MemberState.RETIRED,
        (MemberState.DRAINING, RosterEvent.RETIRE): MemberState.RETIRED,
        (MemberState.RETIRED, RosterEvent.RETURN): MemberState.SPARE,
    }
)
"""The one table. What is not in it is refused. It says what may follow, not whether the data allow it: that a member
about to be retired holds nothing that is needed is for the caller to know (catalog)."""


def next_state(state: MemberState | None, present: bool, event: RosterEvent) -> MemberState | None:
    """The verdict after ``event``; None if the table does not allow it."""
    if state is not None and effective(state, present) is MemberState.MISSING:
        after = TRANSITIONS.get((MemberState.MISSING, event))
        if after is not None:
            return after
    verdict = MemberState.ONLINE if state is MemberState.MISSING else state
    return TRANSITIONS.get((verdict, event))


def array_state(
    slots: Sequence[MemberState],
    least_spare_shards: int | None,
    any_unprotected: bool,
    any_unreadable: bool,
    any_missing_shard: bool,
) -> ArrayState:
    """The array's state (design, section 7).

    ``slots``: the effective state of each member that holds a slot (a slot being rebuilt gives two).
    ``least_spare_shards``: the least (present shards − k) over all segments, None when there are none.

    One rule is added to the design's: when fewer than two members can be written, whatever is dropped now cannot be
    protected, so that an empty array is not called degraded ("all protected") with its disks gone.
    """
    least = 1 if least_spare_shards is None else least_spare_shards
    if any_unreadable or least < 0:
        return ArrayState.FAILED
    if any_unprotected or least == 0 or sum(state in WRITABLE for state in slots) < 2:
        return ArrayState.CRITICAL
    if any_missing_shard or any(state is not MemberState.ONLINE for state in slots):
        return ArrayState.DEGRADED
    return ArrayState.HEALTHY
