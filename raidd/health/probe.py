"""The first detector: every member, every few seconds, on its own worker: is it there, is it itself, does it work?

A disk can be dead while stat, statvfs and cached reads still succeed (faults.md), so a probe overwrites a small
preallocated file in place, makes it durable and reads it back past the cache; after a recent successful write that
is skipped. It also reads the label (a swapped disk has another) and the room that is left.

Observes and reports, judges nothing: a member that fails leaves with the reason, one that is well again is
*welcomed*: its label is proved to be of this array and brought up to date first, then it counts.
A hung disk costs its own thread: `probe_once` waits a moment for the quick ones and looks again next time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

from raidd.array.discovery import Sighting, look_at
from raidd.array.label import LABEL_NAME, Label, label_for, remake_label
from raidd.array.member_disk import CANARY_SIZE, FileNotThere, MemberDisk, Space
from raidd.array.members import Member
from raidd.array.membership import Membership, bring_up_to_date
from raidd.array.roster import MemberState, Roster
from raidd.array.survey import sweep
from raidd.array.worker import Cancel, Cancelled, Gathering, Operation
from raidd.errors import (
    LabelInvalid,
    MemberAway,
    MemberError,
    MemberFaulty,
    MemberFull,
    MemberTimeout,
    RaiddError,
)

CANARY = "canary"
QUICK_S = 2.0
"""How long one round waits for answers; slower ones are read in a later round."""
LET_ALONE = frozenset({MemberState.OFFLINE, MemberState.RETIRED})
"""Nothing of these is kept open or touched: the operator may want to unmount them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a probe brought: the room, the file system's type; for a welcome, the disk to use from now on."""

    space: Space
    filesystem: str
    disk: MemberDisk | None = None
    roster: Roster | None = None  # in force when it was welcomed


class Probe:
    """Probes all members. One thread calls `probe_once`.

    ``open_disk(member)`` gives a disk for a member that is away, wherever it is now (MemberAway if nowhere);
    ``lock(disk, cancel)`` takes the member's lock, on the member's own thread; ``unlock(uuid)`` lets it go and never
    blocks."""

    def __init__(
        self,
        membership: Membership,
        *,
        open_disk: Callable[[Member], MemberDisk],
        lock: Callable[[MemberDisk, Cancel], None],
        filesystem_of: Callable[[MemberDisk], str] = lambda _disk: "",
        recent_write_s: float,
        unlock: Callable[[UUID], None] = lambda _member: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._membership = membership
        self._open_disk, self._lock, self._unlock = open_disk, lock, unlock
        self._filesystem_of = filesystem_of
        self.recent_write_s, self._clock = recent_write_s, clock
        self._pending: dict[UUID, Operation[Answer]] = {}

    def probe_once(self) -> None:
        """Ask everyone who is not still busy answering; act on what has come back."""
        members = {m.uuid: m for m in self._membership.members() if self._asked(m)}
        self._drop_answers(self._pending.keys() - members.keys())
        for uuid, member in members.items():
            if uuid not in self._pending and not self._hangs(member):
                self._pending[uuid] = member.submit("probe", self._question(member))
        asked = dict(self._pending)
        gathering = Gathering(list(asked.values()))
        gathering.wait(lambda: len(gathering.settled()) == len(asked), QUICK_S)
        for uuid, operation in asked.items():
            if operation.settled():
                self._hear(members[uuid], operation)

    def _drop_answers(self, uuids: Iterable[UUID]) -> None:
        """Of members that are let alone now: an old answer proves nothing when they are asked for again."""
        for uuid in list(uuids):
            self._pending.pop(uuid).withdraw()
            self._unlock(uuid)

    def _hangs(self, member: Member) -> bool:
        """True while any operation on it is overdue. It leaves then, also if nobody waits for that operation, and is
        not welcomed before it has ended: what wakes up late must not meet new work."""
        if not member.stuck():
            return False
        if member.present:
            member.judge(MemberTimeout("an operation did not end within its deadline", member=str(member.uuid)))
        return True

    def _asked(self, member: Member) -> bool:
        entry = self._membership.roster.find(member.uuid)
        return entry is not None and entry.state not in LET_ALONE

    def _question(self, member: Member) -> Callable[[MemberDisk, Cancel], Answer]:
        if not member.present:
            return lambda _disk, cancel: self._welcome(member, cancel)
        written = self._clock() - member.last_write_at < self.recent_write_s
        return lambda disk, cancel: self._check(disk, cancel, written)

    def _hear(self, member: Member, operation: Operation[Answer]) -> None:
        if operation.done():
            self._pending.pop(member.uuid, None)
        try:
            self._act_on(member, operation)
        finally:
            if not member.present:
                self._unlock(member.uuid)  # it stays away (a read-only disk can be locked, too): nothing stays open

    def _act_on(self, member: Member, operation: Operation[Answer]) -> None:
        try:
            answer = operation.result()
        except Cancelled:
            return
        except MemberError as error:
            if member.present:
                member.judge(error)
            else:
                member.still_away(error.message)
            return
        except RaiddError as error:  # its label is not to be trusted, its lock is another's, or the host is short
            if not member.present:
                member.still_away(error.message)
            elif isinstance(error, LabelInvalid):
                member.leave(error.message)
            return
        member.space, member.filesystem = answer.space, answer.filesystem
        member.full = False  # placement looks at the room itself; a write that fails says so again
        if answer.disk is not None and not member.present:
            self._arrive(member, answer.disk, answer.roster)

    def _arrive(self, member: Member, disk: MemberDisk, roster: Roster | None) -> None:
        """It counts, but only under the roster that its label tells. Is that changed, now or since: another welcome."""
        if not self._membership.changing.acquire(blocking=False):
            return
        try:
            if self._membership.decided == roster:
                member.disk = disk
                member.arrive()
        finally:
            self._membership.changing.release()

    # -- on the member's own thread ----------------------------------------------------------------------

    def _check(self, disk: MemberDisk, cancel: Cancel, written: bool) -> Answer:
        disk.check()
        try:
            label = Label.parse(disk.read(LABEL_NAME))
        except FileNotThere as error:
            raise MemberAway(f"{disk.path}: its label is gone", member=str(disk.uuid)) from error
        roster = self._membership.decided  # after the label: it is never older than that
        if label.member != disk.uuid or label.roster.array != roster.array:
            raise MemberAway(f"another disk is at {disk.path}: member {label.member}", member=str(disk.uuid))
        if label.roster != roster:
            prove(Sighting(disk.path, disk.uuid, label), roster)
            with suppress(MemberFull):
                bring_up_to_date(disk, label_for(disk.uuid, roster))
        space = disk.space()
        if not written:
            cancel.check()
            sing(disk, os.urandom(16))
        return Answer(space, self._filesystem_of(disk))

    def _welcome(self, member: Member, cancel: Cancel) -> Answer:
        """Prove that the disk is the member and of this array's line, lock it, bring its label up to date."""
        disk, roster = self._open_disk(member), self._membership.decided
        sighting = look_at(disk)
        prove(sighting, roster)
        cancel.check()
        self._lock(disk, cancel)
        sweep(disk)
        cancel.check()
        try:
            sing(disk, os.urandom(16))
            bring_up_to_date(disk, label_for(disk.uuid, roster))
        except MemberFull:  # full is not failed: it serves on, under a label that is ours though old
            if sighting.label is None:
                raise
        return Answer(disk.space(), self._filesystem_of(disk), disk, roster)


def prove(sighting: Sighting, roster: Roster) -> None:
    """The disk is of this array, and its roster is an ancestor of ours. LabelInvalid or MemberAway otherwise."""
    member = str(sighting.uuid)
    if not sighting.understood:
        raise LabelInvalid(sighting.fault)
    if sighting.array != roster.array:
        raise MemberAway(f"the disk at {sighting.path} is not of this array: {sighting.fault}", member=member)
    if sighting.label is None:
        remake_label(roster, sighting.uuid)  # refuses a retired member
        return
    theirs = sighting.label.roster.hash()
    if theirs != roster.hash() and theirs not in roster.history:
        raise LabelInvalid(
            f"the disk at {sighting.path} carries a roster (epoch {sighting.label.roster.epoch}) that this array has "
            f"never had; ours is epoch {roster.epoch}",
            next_step="Stop raidd, then look at all labels: raidctl assemble MOUNT…",
        )


def sing(disk: MemberDisk, token: bytes) -> None:
    """Write the canary in place, durably, and read it back past the cache. MemberFaulty if it reads otherwise."""
    song = (token * (CANARY_SIZE // len(token) + 1))[:CANARY_SIZE]
    try:
        disk.overwrite(CANARY, 0, song)
    except FileNotThere:
        disk.replace(CANARY, song)
    heard = disk.read(CANARY, 0, CANARY_SIZE, uncached=True)
    if heard != song:
        raise MemberFaulty("the canary does not read back as it was written", member=str(disk.uuid))
