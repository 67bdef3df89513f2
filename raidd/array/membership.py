"""The members together: the roster in force, who is there, who may be written to and who counts.

The roster holds verdicts and changes rarely; presence is a fact of the moment. Both meet here: a member's
effective state, the places a segment may go to, the members that do not count (`away`).

A new roster is written to state_dir (array.json) first, then to the label of every member that is
there; one that cannot take it leaves. Only after that does what it allows begin (format.md, label.json).

In between it is `decided` and not yet in force: labels are compared with that one, all else follows `roster`.

Thread-safe; both are immutable values, swapped whole.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from uuid import UUID

from raidd.array.catalog import Catalog
from raidd.array.label import LABEL_NAME, Label, label_for
from raidd.array.member_disk import FileNotThere, MemberDisk
from raidd.array.members import Member
from raidd.array.placement import Place
from raidd.array.roster import (
    LAST_RESORT,
    READABLE,
    WRITABLE,
    MemberState,
    Presence,
    Roster,
    RosterEntry,
    effective_state,
)
from raidd.array.state_file import Remembered, StateFile
from raidd.array.worker import Cancel, wait_all
from raidd.errors import MemberFull, RaiddError, RequestRefused

ROOM_BYTES = 64 << 20
"""Besides the reserve, room for one more shard of any segment, so that full is known before a write fails."""


class Membership:
    """All members of the array, those that are away included (their paths are remembered)."""

    def __init__(
        self,
        catalog: Catalog,
        state_file: StateFile,
        roster: Roster,
        members: Iterable[Member],
        *,
        reserve_percent: float,
        up_at_stop: frozenset[UUID] = frozenset(),
        on_change: Callable[[Member], None] = lambda _member: None,
    ) -> None:
        self._catalog = catalog
        self._state_file = state_file
        self._roster = self._decided = roster
        self._members = {member.uuid: member for member in members}
        self.reserve_percent = reserve_percent
        self._up_at_stop = up_at_stop
        self._up = set(up_at_stop)  # those it began with, less who left since, and who came
        self._remembered_up = up_at_stop
        self._lock = threading.RLock()
        self.changing = threading.RLock()
        """Held by whoever makes the next roster, from looking at the one in force until the next is."""
        self.on_change = on_change
        self.on_retired: Callable[[], None] = lambda: None
        self.let_go: Callable[[UUID], None] = lambda _member: None
        """Nothing of this member's disk stays open from now on. Called wherever it is given up: it must not block."""
        for member in self._members.values():
            member.on_change = self._changed

    @property
    def up_at_stop(self) -> frozenset[UUID]:
        """Members that were up when raidd stopped last: a start waits for them before it writes narrow."""
        return self._up_at_stop

    @property
    def roster(self) -> Roster:
        """The roster in force."""
        return self._roster

    @property
    def decided(self) -> Roster:
        """The one that is to be in force as soon as the labels tell it; mostly the same."""
        return self._decided

    def members(self) -> list[Member]:
        """All members known at run time."""
        with self._lock:
            return list(self._members.values())

    def member(self, uuid: UUID) -> Member | None:
        """The member, also while it is away; None when it was never seen here."""
        return self._members.get(uuid)

    def state(self, uuid: UUID) -> MemberState:
        """Verdict and presence together. A member the roster does not know is retired."""
        entry = self._roster.find(uuid)
        if entry is None:
            return MemberState.RETIRED
        return effective_state(entry, self.presence(uuid))

    def presence(self, uuid: UUID) -> Presence:
        member = self._members.get(uuid)
        return Presence(False, "never seen on this machine", 0.0) if member is None else member.presence

    def readable(self, uuid: UUID, *, last_resort: bool = False) -> Member | None:
        """The member if its shards may be read now; with ``last_resort`` also one that no longer counts."""
        member = self._members.get(uuid)
        states = READABLE | LAST_RESORT if last_resort else READABLE
        return member if member is not None and member.present and self.state(uuid) in states else None

    def writable(self, uuid: UUID) -> Member | None:
        """The member if new shards may be written to it now."""
        member = self._members.get(uuid)
        return member if member is not None and member.present and self.state(uuid) in WRITABLE else None

    def present_members(self) -> list[Member]:
        """Everyone who is there and not retired or taken offline by the operator."""
        shut = (MemberState.RETIRED, MemberState.OFFLINE)
        return [member for member in self.members() if member.present and self.state(member.uuid) not in shut]

    def away(self) -> frozenset[UUID]:
        """Members whose shards do not count now: all that segments or the roster name, less those that do."""
        named = self._catalog.placement_members() | {e.member for e in self._roster.entries}
        return frozenset(member for member in named if not self._counts(member))

    def _counts(self, uuid: UUID) -> bool:
        return self.presence(uuid).present and self.state(uuid) in READABLE

    def places(self) -> list[Place]:
        """Each slot's member as placement sees it: while a slot is rebuilt, the new one."""
        roster = self._roster
        return [self._place(roster.slot_entry(slot)) for slot in roster.slots()]

    def _place(self, entry: RosterEntry) -> Place:
        member = self.writable(entry.member)
        space = member.space if member is not None else None
        size, free = (space.size_bytes, space.free_bytes) if space is not None else (entry.size, entry.size)
        reserve = int(size * self.reserve_percent / 100) + ROOM_BYTES
        inodes_left = space is None or space.free_inodes > 64
        roomy = member is not None and not member.full and inodes_left and free > min(reserve, size // 4)
        return Place(entry.member, free, size, entry.enclosure, member is not None, roomy)

    # -- changes -----------------------------------------------------------------------------------------

    def admit(self, member: Member) -> None:
        """Know a member from now on (before the roster that names it is set)."""
        with self._lock:
            member.on_change = self._changed
            self._members[member.uuid] = member
        self.remember()

    def dismiss(self, uuid: UUID) -> None:
        """Stop using a member's disk: nothing of it stays open."""
        with self._lock:
            member = self._members.pop(uuid, None)
            self._up.discard(uuid)
        self.let_go(uuid)
        if member is not None:
            member.close()
        self.remember()

    def set_roster(self, roster: Roster, *, within_s: float | None = None) -> None:
        """Make it the roster in force: state_dir, then the labels of all that are there (``within_s``, else the
        deadline; who is later leaves). Of members that it calls failed, offline or retired nothing stays open.

        RequestRefused: it does not follow from the one in force; on the labels that would be a fork."""
        with self.changing:
            if roster != self._roster and self._roster.hash() not in roster.history:
                raise RequestRefused("the roster was changed by somebody else meanwhile", next_step="Try it again.")
            self._set_roster(roster, within_s)
            self._give_up_some()

    def _give_up_some(self) -> None:
        for member in self.members():
            entry = self._roster.find(member.uuid)
            if entry is not None and entry.state is MemberState.RETIRED:
                self.dismiss(member.uuid)
            elif entry is not None and entry.state in (MemberState.FAILED, MemberState.OFFLINE):
                self.let_go(member.uuid)

    def _set_roster(self, roster: Roster, within_s: float | None) -> None:
        with self._lock:
            self._decided = roster
            self.remember()
        self.write_labels(self.members(), within_s)
        with self._lock:
            before = {member: self.state(member) for member in self._members}
            retired = _retired(roster) - _retired(self._roster)
            self._roster = roster
            for uuid, state in before.items():
                if self.state(uuid) != state:
                    self._members[uuid].since = datetime.now(UTC)
        if retired:
            self.on_retired()

    def write_labels(self, members: Iterable[Member], within_s: float | None = None) -> None:
        """Bring the labels of these members up to date; who fails leaves (judged by Member.result).

        A full one keeps its old label, an ancestor of this one: it takes no new shards, and goes on serving."""
        roster = self._decided
        running = []
        for member in members:
            if member.present and roster.find(member.uuid) is not None:
                running.append((member, member.submit("probe", partial(_put_label, label_for(member.uuid, roster)))))
        wait_all([operation for _member, operation in running], within_s)
        for member, operation in running:
            if not operation.settled():
                operation.cancel.cancel()
                member.leave("its label could not be written in time")
                continue
            try:
                member.result(operation)
            except MemberFull:
                continue
            except RaiddError as error:
                member.leave(f"its label could not be written: {error.message}")

    def remember(self, *, stopping: bool = False) -> None:
        """Write array.json: the roster, where each member is; at a stop also who is up, whom a start waits for."""
        with self._lock:
            paths = {member.uuid: member.path for member in self._members.values()}
            up = frozenset(place.member for place in self.places() if place.up) if stopping else frozenset(self._up)
            self._state_file.save(Remembered(self._decided, paths, up))
            self._remembered_up = up

    def remember_up(self) -> None:
        """Write down who left or came since the last time: a start after a crash must not wait for the long dead."""
        if frozenset(self._up) != self._remembered_up:
            self.remember()

    def _changed(self, member: Member) -> None:
        if member.present:
            member.full = False
            self._up.add(member.uuid)
        else:
            self._up.discard(member.uuid)
            self.let_go(member.uuid)
        self.on_change(member)


def _retired(roster: Roster) -> set[UUID]:
    return {entry.member for entry in roster.entries if entry.state is MemberState.RETIRED}


def _put_label(label: Label, disk: MemberDisk, cancel: Cancel) -> None:
    cancel.check()
    bring_up_to_date(disk, label)


def bring_up_to_date(disk: MemberDisk, label: Label) -> None:
    """Put the label on the disk if it is not there in this very form: mostly it is, and a start costs reads only."""
    wanted = label.pack()
    try:
        same = disk.read(LABEL_NAME) == wanted
    except FileNotThere:
        same = False
    if not same:
        disk.replace(LABEL_NAME, wanted)
