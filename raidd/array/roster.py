"""The roster: who belongs to the array, in which slot, and what was decided about each. Pure values.

A roster is never edited: every change is an event looked up in ``TRANSITIONS`` (states.py) and gives a
*successor* with the next epoch, which carries the hashes of its last 256 ancestors. So any two rosters found on
disks can be compared without a clock: one is the other's ancestor, or they forked (label.py decides).

The hash covers exactly the fields of format 1 and the parent's hash. It is fixed for ever: keys that a later minor
version adds are carried along but not hashed, or an older program would see a fork where there is none.

Promises: a slot has at most one member that is written to; while a slot is being rebuilt the old member stays in it
beside the new one; a member once known stays in the roster as ``retired`` (a purge must know who ever held a shard);
slot numbers are the smallest free ones, 0…31.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from raidd.array.states import (
    LAST_RESORT,
    READABLE,
    TRANSITIONS,
    WRITABLE,
    ArrayState,
    MemberState,
    Presence,
    RosterEvent,
    array_state,
    effective,
    next_state,
)
from raidd.codec.geometry import ALIASES, WIDTH_LIMIT, Geometry, Level
from raidd.errors import RequestRefused, RequestUnknown

__all__ = [
    "HISTORY_LIMIT",
    "LAST_RESORT",
    "READABLE",
    "TRANSITIONS",
    "WRITABLE",
    "ArrayState",
    "MemberState",
    "Presence",
    "Roster",
    "RosterEntry",
    "RosterEvent",
    "add",
    "apply",
    "array_state",
    "canonical_json",
    "effective_state",
    "new_roster",
    "replace_member",
    "slot_states",
]

HISTORY_LIMIT = 256
TEXT_LIMIT = 256

_SLOTLESS = frozenset({MemberState.SPARE, MemberState.RETIRED})
_EITHER = frozenset({MemberState.FAILED, MemberState.OFFLINE})  # a spare may fail, too
_HOLDERS = WRITABLE | {MemberState.MISSING}


def canonical_json(value: Any) -> bytes:
    """Sorted keys, no spaces, UTF-8. ValueError for NaN and for lone surrogates."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def clean_text(text: str) -> str:
    """What may stand on a label: valid Unicode (anything else is U+FFFD), bounded; serials come from firmware."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")[:TEXT_LIMIT]


@dataclass(frozen=True, slots=True)
class RosterEntry:
    """One member. ``size`` is in bytes; ``slot`` is None for spares and retired members. ``extra``: unknown keys."""

    member: UUID
    slot: int | None
    state: MemberState
    enclosure: str = ""
    bay: str = ""
    model: str = ""
    serial: str = ""
    size: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("enclosure", "bay", "model", "serial"):
            object.__setattr__(self, name, clean_text(getattr(self, name)))
        if self.size < 0:
            raise ValueError(f"member {self.member}: size {self.size} is negative")
        if self.slot is not None and not 0 <= self.slot < WIDTH_LIMIT:
            raise ValueError(f"member {self.member}: slot {self.slot} is not in 0…{WIDTH_LIMIT - 1}")
        if self.state not in _EITHER and (self.slot is None) != (self.state in _SLOTLESS):
            raise ValueError(f"member {self.member}: {self.state} {'needs a' if self.slot is None else 'has no'} slot")

    def document(self) -> dict[str, Any]:
        """The keys of format 1, without ``extra``."""
        return {
            "member": str(self.member),
            "slot": self.slot,
            "state": str(self.state),
            "enclosure": self.enclosure,
            "bay": self.bay,
            "model": self.model,
            "serial": self.serial,
            "size": self.size,
        }


@dataclass(frozen=True, slots=True)
class Roster:
    """All that the members agree on. ``history``: hashes of the last 256 rosters, newest first; epochs start at 1.

    ``extra``: keys that a later minor version has on its labels. They are array-wide by rule (what is one member's
    goes into its entry), so that each label written here carries them along.
    """

    array: UUID
    array_name: str
    level: Level
    geometry: Geometry
    epoch: int
    history: tuple[str, ...]
    entries: tuple[RosterEntry, ...]
    contact: str = ""
    trial: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "array_name", clean_text(self.array_name))
        object.__setattr__(self, "contact", clean_text(self.contact))
        object.__setattr__(self, "level", level_of(self.level.name, self.geometry))
        _check(self)

    def hash(self) -> str:
        """SHA-256 of the canonical JSON of format 1's shared keys and of ``previous``, the parent's hash; hex."""
        document = self.document()
        document["previous"] = self.history[0] if self.history else ""
        return hashlib.sha256(canonical_json(document)).hexdigest()

    def document(self) -> dict[str, Any]:
        """What every label of this roster says alike, without the history."""
        return {
            "array": str(self.array),
            "array_name": self.array_name,
            "level": self.level.name,
            "k": self.geometry.k,
            "m": self.geometry.m,
            "epoch": self.epoch,
            "roster": [entry.document() for entry in self.entries],
            "contact": self.contact,
            "trial": self.trial,
        }

    def successor(self, **changes: Any) -> Roster:
        """The next roster: epoch + 1, this one's hash at the head of the history. ``changes``: fields to replace."""
        history = (self.hash(), *self.history)[:HISTORY_LIMIT]
        return replace(self, epoch=self.epoch + 1, history=history, **changes)

    @property
    def size(self) -> int:
        """N: the number of slots, failed ones included (design, section 3)."""
        return len(self.slots())

    def slots(self) -> tuple[int, ...]:
        """Slot numbers in use, ascending."""
        return tuple(sorted({entry.slot for entry in self.entries if entry.slot is not None}))

    def find(self, member: UUID) -> RosterEntry | None:
        """The member's entry, None if it is not of this array."""
        return next((entry for entry in self.entries if entry.member == member), None)

    def entry(self, member: UUID) -> RosterEntry:
        """The member's entry; RequestUnknown if it is not of this array."""
        entry = self.find(member)
        if entry is None:
            raise RequestUnknown(f"{member} is not a member of array {self.array_name}")
        return entry

    def slot_entries(self, slot: int) -> tuple[RosterEntry, ...]:
        """All members in a slot, the old ones first, the one that is written to last."""
        held = [entry for entry in self.entries if entry.slot == slot]
        return tuple(sorted(held, key=lambda entry: entry.state in _HOLDERS))

    def slot_entry(self, slot: int) -> RosterEntry:
        """The member that fills the slot: the new one while it is being rebuilt. RequestUnknown if there is none."""
        held = self.slot_entries(slot)
        if not held:
            raise RequestUnknown(f"there is no slot {slot}; slots are {', '.join(map(str, self.slots()))}")
        return held[-1]

    def free_slot(self) -> int:
        """The smallest number that no member holds; may be the limit itself, which no entry accepts."""
        return next(slot for slot in range(WIDTH_LIMIT + 1) if slot not in self.slots())

    def spares(self) -> tuple[RosterEntry, ...]:
        """Members ready to take over a slot."""
        return tuple(entry for entry in self.entries if entry.state is MemberState.SPARE)

    def taken(self, entry: RosterEntry) -> bool:
        """Whether the entry's slot is filled by another member (or it has none)."""
        if entry.slot is None:
            return True
        return any(other.state in _HOLDERS and other.member != entry.member for other in self.slot_entries(entry.slot))


def effective_state(entry: RosterEntry, presence: Presence) -> MemberState:
    """The verdict as the facts leave it (states.effective)."""
    return effective(entry.state, presence.present)


def level_of(name: str, geometry: Geometry) -> Level:
    """The Level that a label's ``level``, ``k`` and ``m`` stand for. A name of a later version is kept as it is."""
    name = ALIASES.get(name, name)
    if name == "mirror":
        return Level(name, copies=geometry.n)
    if name in ("raid50", "raid60"):
        return Level(name, width=geometry.n)
    if name == "custom":
        return Level(name, data=geometry.k, parity=geometry.m)
    return Level(name)


def new_roster(
    array: UUID,
    array_name: str,
    level: Level,
    geometry: Geometry,
    members: Iterable[RosterEntry],
    contact: str = "",
    trial: bool = False,
) -> Roster:
    """The first roster of a new array (``init``): the members online, slots in the order given."""
    entries = tuple(replace(entry, slot=slot, state=MemberState.ONLINE) for slot, entry in enumerate(members))
    return Roster(array, array_name, level, geometry, 1, (), entries, contact, trial)


def _check(roster: Roster) -> None:
    if roster.epoch < 1:
        raise ValueError(f"epoch {roster.epoch} is below 1")
    if len(roster.history) > HISTORY_LIMIT:
        raise ValueError(f"history of {len(roster.history)} rosters is longer than {HISTORY_LIMIT}")
    if not all(len(text) == 64 and set(text) <= set("0123456789abcdef") for text in roster.history):
        raise ValueError("history holds what is not a SHA-256")
    members = Counter(entry.member for entry in roster.entries)
    if len(members) != len(roster.entries):
        raise ValueError(f"member {members.most_common(1)[0][0]} is listed twice")
    filled = Counter(entry.slot for entry in roster.entries if entry.state in _HOLDERS)
    if any(count > 1 for count in filled.values()):
        raise ValueError(f"slot {filled.most_common(1)[0][0]} is filled by two members")


# Changes. Each gives one successor: however many entries an event touches, the members see it whole or not at all.


def apply(roster: Roster, member: UUID, event: RosterEvent, presence: Presence | None = None) -> Roster:
    """The roster after ``event`` about a member that is in it, with all that follows for the others of its slot.

    ``presence``: what is known of the member now (None: it answers). RequestRefused if the table has no such
    transition, RequestUnknown if there is no such member.
    """
    entry = roster.entry(member)
    if event in (RosterEvent.ONLINE, RosterEvent.RETURN):  # which of the two is not for the caller to choose
        event = RosterEvent.RETURN if roster.taken(entry) else RosterEvent.ONLINE
    changed = {member: _moved(entry, event, presence)}
    if event is RosterEvent.RETIRE:
        _check_removal(roster, entry)
    if event is RosterEvent.REBUILT:
        changed |= _consequence(roster, entry, RosterEvent.REPLACED)
    if event is RosterEvent.FAIL and entry.state is MemberState.REBUILDING:
        changed |= _consequence(roster, entry, RosterEvent.RESTORE)
    return roster.successor(entries=tuple(changed.get(each.member, each) for each in roster.entries))


def add(roster: Roster, newcomer: RosterEntry, *, spare: bool = False) -> Roster:
    """The roster with a new member in a slot of its own, or as a spare. The newcomer's slot and state are set here."""
    _check_new(roster, newcomer)
    event = RosterEvent.ADD_SPARE if spare else RosterEvent.ADD
    if not spare and roster.free_slot() >= WIDTH_LIMIT:
        raise RequestRefused(f"the array has {WIDTH_LIMIT} slots, the most there can be")
    slot = None if spare else roster.free_slot()
    entry = replace(newcomer, slot=slot, state=TRANSITIONS[None, event])
    return roster.successor(entries=(*roster.entries, entry))


def replace_member(roster: Roster, slot: int, new: RosterEntry, presence: Presence | None = None) -> Roster:
    """The roster with ``new`` (a stranger, or one of the spares) being rebuilt in ``slot``.

    ``presence``: of the member that fills the slot now. It must be failed, missing, suspect or offline; it stays in
    the slot beside the new one, a suspect as ``draining`` (read from, not written to).
    """
    old = roster.slot_entry(slot)
    retired = _moved(old, RosterEvent.REPLACE_OLD, presence)
    known = roster.find(new.member)
    if known is None:
        entry = replace(new, slot=slot, state=TRANSITIONS[None, RosterEvent.REPLACE_NEW])
    else:
        entry = replace(known, slot=slot, state=_after(known, RosterEvent.REPLACE_NEW, None))
    rest = tuple(retired if each == old else each for each in roster.entries if each.member != new.member)
    return roster.successor(entries=(*rest, entry))


def slot_states(roster: Roster, presences: Mapping[UUID, Presence]) -> dict[int, MemberState]:
    """The effective state of the member that fills each slot, for array_state. Not in ``presences``: it is away."""
    fillers = {slot: roster.slot_entry(slot) for slot in roster.slots()}
    return {
        slot: effective(entry.state, entry.member in presences and presences[entry.member].present)
        for slot, entry in fillers.items()
    }


def _after(entry: RosterEntry, event: RosterEvent, presence: Presence | None) -> MemberState:
    present = presence is None or presence.present
    after = next_state(entry.state, present, event)
    if after is None:
        raise _refusal(entry, effective(entry.state, present), event)
    return after


def _moved(entry: RosterEntry, event: RosterEvent, presence: Presence | None) -> RosterEntry:
    after = _after(entry, event, presence)
    return replace(entry, state=after, slot=None if after in _SLOTLESS else entry.slot)


def _consequence(roster: Roster, entry: RosterEntry, event: RosterEvent) -> dict[UUID, RosterEntry]:
    """What ``event`` makes of those that share the entry's slot and know such an event."""
    others = [each for each in roster.entries if each.slot == entry.slot and each.member != entry.member]
    return {each.member: _moved(each, event, None) for each in others if (each.state, event) in TRANSITIONS}


def _check_removal(roster: Roster, entry: RosterEntry) -> None:
    """Removing a slot may make new segments narrower, never less protected."""
    left = {each.slot for each in roster.entries if each.member != entry.member and each.slot is not None}
    least = roster.geometry.m + 1
    if entry.slot is not None and len(left) < least:
        raise RequestRefused(
            f"without slot {entry.slot} {len(left)} would be left; {roster.level.name} with "
            f"{roster.geometry.m} parity shards needs {least}",
            next_step=f"Replace it instead: raidctl replace {entry.slot} MOUNT",
        )


def _check_new(roster: Roster, newcomer: RosterEntry) -> None:
    known = roster.find(newcomer.member)
    if known is not None:
        raise RequestRefused(f"{newcomer.member} is a member of {roster.array_name} already ({known.state})")


_DONE_TO_IT = {
    RosterEvent.REPLACE_OLD: "replaced",
    RosterEvent.REPLACE_NEW: "used as a replacement",
    RosterEvent.OFFLINE: "taken offline",
    RosterEvent.ONLINE: "put online",
    RosterEvent.RETURN: "put online",
    RosterEvent.DRAIN: "drained",
    RosterEvent.RETIRE: "removed",
}


def _refusal(entry: RosterEntry, state: MemberState, event: RosterEvent) -> RequestRefused:
    where = f"member {entry.member}" if entry.slot is None else f"slot {entry.slot} ({entry.member})"
    done = _DONE_TO_IT.get(event)
    wish = f"it cannot be {done}" if done else f"{event} is not possible"
    return RequestRefused(f"{where} is {state}: {wish}", next_step=_instead(entry.slot, state, event))


def _instead(slot: int | None, state: MemberState, event: RosterEvent) -> str:
    """What the operator can do now. Slots are named, so that a command works when pasted."""
    if event is RosterEvent.REPLACE_NEW:
        return "Give a blank disk, or one of the spares."
    if state is MemberState.REBUILDING:
        return "It is being rebuilt; when that is done: raidctl wait --healthy"
    if state is MemberState.MISSING and event in (RosterEvent.ONLINE, RosterEvent.RETURN):
        return f"It is used again once its disk answers: check cable, power and mount, or: raidctl replace {slot} MOUNT"
    if state is MemberState.ONLINE and event in (RosterEvent.REPLACE_OLD, RosterEvent.RETIRE):
        return f"It is in use. Take it out of use first: raidctl offline {slot}"
    if event in (RosterEvent.ONLINE, RosterEvent.OFFLINE):
        return "Nothing has to be done; raidctl status shows the array as it is now."
    return RequestRefused.next_step
