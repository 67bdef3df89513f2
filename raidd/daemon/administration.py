"""What an operator may do to the members: add, replace, offline, online, remove. One at a time.

Each looks at everything first and refuses with the reason; then it changes the roster by its one transition table,
durably, before anything that the change allows begins; then it is journaled with who asked for it. A crash in
between leaves either the old roster or the new one, on the labels and in state_dir; a state_dir that fails ends the
process (`give_up`).
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from uuid import uuid4

from raidd import api
from raidd.array.admission import Newcomer, examine
from raidd.array.catalog import Counts
from raidd.array.host import create_member_folder, remove_newborn
from raidd.array.label import label_for
from raidd.array.local_disk import LocalDisk
from raidd.array.member_disk import MemberDisk
from raidd.array.members import Member
from raidd.array.membership import Membership
from raidd.array.roster import (
    MemberState,
    Presence,
    Roster,
    RosterEntry,
    RosterEvent,
    add,
    apply,
    replace_member,
)
from raidd.array.store import Store
from raidd.array.worker import Operation
from raidd.config import Config
from raidd.daemon.advice import quantity
from raidd.daemon.opening import TAKEN_OFFLINE
from raidd.daemon.papers import papers
from raidd.daemon.view import View
from raidd.errors import RaiddError, RequestRefused, StateDirFaulty

Journal = Callable[[str, str, tuple[str, ...], dict[str, object]], None]


class Administration:
    """Changes the roster. Any thread; one change at a time."""

    def __init__(
        self,
        config: Config,
        store: Store,
        view: View,
        *,
        lock_disk: Callable[[MemberDisk], None],
        journal: Journal,
        changed: Callable[[], None],
        give_up: Callable[[StateDirFaulty], None],
    ) -> None:
        self._config, self._store, self._view = config, store, view
        self._membership: Membership = store.membership
        self._lock_disk = lock_disk
        self._journal, self._changed, self._give_up = journal, changed, give_up

    def use(self, config: Config) -> None:
        """Settings that were changed while running."""
        self._config = config

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        with self._membership.changing:
            try:
                yield
            except StateDirFaulty as error:
                self._give_up(error)
                raise

    def add(self, request: api.AddRequest, actor: str) -> api.MemberReply:
        """A blank disk becomes a member in a new slot, or a spare."""
        with self._one_at_a_time():
            newcomer = self._examine(request.path, request.allow_same_device, request.allow_filesystem)
            entry = _entry(newcomer, request.bay, request.enclosure)
            roster = add(self._roster(newcomer), entry, spare=request.spare)
            self._take_in(newcomer, entry, roster)
            self._journal(actor, "add", (str(entry.member),), {"path": newcomer.path, "spare": request.spare})
        message = _spare_message(newcomer) if request.spare else _added_message(roster)
        return api.MemberReply(member=self._view.member_of(entry.member), message=message, warnings=_warnings(newcomer))

    def replace(self, slot: int, request: api.ReplaceRequest, actor: str) -> api.ReplaceReply:
        """A blank disk takes the place of a failed, missing, suspect or offline member, and is rebuilt."""
        with self._one_at_a_time():
            spare = self._spare_at(request.path)
            if spare is not None:
                return self._replace_by_spare(slot, spare, request.dry_run, actor)
            old = self._membership.roster.slot_entry(slot)
            newcomer = self._examine(request.path, request.allow_same_device, request.allow_filesystem)
            entry = _entry(newcomer, request.bay or old.bay, request.enclosure or old.enclosure)
            roster = replace_member(self._roster(newcomer), slot, entry, self._presence(old))
            plan = self._plan(slot, old, entry, newcomer)
            if request.dry_run:
                return plan
            self._take_in(newcomer, entry, roster)
            return self._replacing(plan, old, entry, newcomer.path, actor)

    def _spare_at(self, path: str) -> RosterEntry | None:
        """The spare whose mount this is."""
        real = os.path.realpath(path)
        for entry in self._membership.roster.spares():
            member = self._membership.member(entry.member)
            if member is not None and member.present and os.path.realpath(member.path) == real:
                return entry
        return None

    def _replace_by_spare(self, slot: int, spare: RosterEntry, dry_run: bool, actor: str) -> api.ReplaceReply:
        old = self._membership.roster.slot_entry(slot)
        roster = replace_member(self._membership.roster, slot, spare, self._presence(old))
        shown = self._view.member_of(spare.member)
        free = (shown.size_bytes or 0) - (shown.used_bytes or 0)
        size, unfit = self._to_rebuild(old, free, shown.size_bytes or 0)
        plan = api.ReplaceReply(
            slot=slot,
            started=False,
            old=self._view.member_of(old.member),
            new=shown,
            rebuild_bytes=size,
            unfit_bytes=unfit,
        )
        if dry_run:
            return plan
        self._set(roster)
        return self._replacing(plan, old, spare, shown.path, actor)

    def _replacing(
        self, plan: api.ReplaceReply, old: RosterEntry, new: RosterEntry, path: str, actor: str
    ) -> api.ReplaceReply:
        """It is under way: journal it, and say what is true now."""
        self._journal(actor, "replace", (str(new.member),), {"slot": plan.slot, "old": str(old.member), "path": path})
        now = {"old": self._view.member_of(old.member), "new": self._view.member_of(new.member)}
        return plan.model_copy(update={"started": True, **now})

    def _to_rebuild(self, old: RosterEntry, free_bytes: int, size_bytes: int) -> tuple[int, int]:
        """(bytes to re-create, of these what will not fit)."""
        _segments, size = self._store.catalog.load(old.member)
        usable = free_bytes - int(size_bytes * self._config.capacity.reserve_percent / 100)
        return size, max(0, size - usable)

    def _plan(self, slot: int, old: RosterEntry, new: RosterEntry, newcomer: Newcomer) -> api.ReplaceReply:
        size, unfit = self._to_rebuild(old, newcomer.free_bytes, newcomer.size_bytes)
        shown = api.MemberInfo(
            slot=slot,
            state="rebuilding",
            path=newcomer.path,
            uuid=str(new.member),
            bay=new.bay,
            size_bytes=newcomer.size_bytes,
            model=newcomer.model,
            serial=newcomer.serial,
            filesystem=newcomer.filesystem,
        )
        return api.ReplaceReply(
            slot=slot,
            started=False,
            old=self._view.member_of(old.member),
            new=shown,
            rebuild_bytes=size,
            unfit_bytes=unfit,
            warnings=_warnings(newcomer),
        )

    def offline(self, slot: int, actor: str) -> api.MemberReply:
        """Let a member alone so that it can be unmounted; refused when images would be unprotected without it."""
        with self._one_at_a_time():
            entry = self._membership.roster.slot_entry(slot)
            roster = apply(self._membership.roster, entry.member, RosterEvent.OFFLINE, self._presence(entry))
            self._refuse_to_endanger(entry)
            self._set(roster)
            self._let_go(entry, TAKEN_OFFLINE)
            self._journal(actor, "offline", (str(entry.member),), {"slot": slot})
        return api.MemberReply(member=self._view.member_of(entry.member), message="It may be unmounted now.")

    def online(self, slot: int, actor: str) -> api.MemberReply:
        """Use a member again that was taken offline or judged failed; what it missed is mended."""
        with self._one_at_a_time():
            self._membership.roster.slot_entry(slot)  # RequestUnknown for a slot that is not there
            entry = self._membership.roster.slot_entries(slot)[0]
            self._set(apply(self._membership.roster, entry.member, RosterEvent.ONLINE, self._presence(entry)))
            self._count_on_again(entry)
            self._journal(actor, "online", (str(entry.member),), {"slot": slot})
        self._changed()
        return api.MemberReply(
            member=self._view.member_of(entry.member), message="It counts again as soon as the probe has found it well."
        )

    def remove(self, slot: int, actor: str) -> api.MemberReply:
        """Take a slot's member out of the array for good; refused while images need it."""
        with self._one_at_a_time():
            entry = self._membership.roster.slot_entry(slot)
            roster = apply(self._membership.roster, entry.member, RosterEvent.RETIRE, self._presence(entry))
            answer = self.can_remove(slot)
            if answer.answer != "yes":
                raise RequestRefused(
                    f"slot {slot} cannot be removed: {answer.reason}",
                    next_step=f"Give it a successor instead: raidctl replace {slot} MOUNT",
                )
            shown = self._view.member_of(entry.member)
            self._set(roster)
            self._journal(actor, "remove", (str(entry.member),), {"slot": slot})
        return api.MemberReply(member=shown.model_copy(update={"state": "retired"}), message="It is out of the array.")

    def can_remove(self, slot: int) -> api.CanRemove:
        """Would every image still survive one more failure without this slot?"""
        entry = self._membership.roster.slot_entry(slot)
        if unknown := self._view.unknown():
            return api.CanRemove(slot=slot, answer="unknown", reason=unknown)
        now, without = self._now_and_without(entry)
        if now.unreadable_images:
            return api.CanRemove(
                slot=slot, answer="unknown", reason="images cannot be read now; bring members back first"
            )
        if harm := _harm(without):
            return api.CanRemove(slot=slot, answer="no", reason=harm)
        return api.CanRemove(slot=slot, answer="yes", reason="every image survives one more failure without it")

    # ---------------------------------------------------------------------------------------------------------

    def _now_and_without(self, entry: RosterEntry) -> tuple[Counts, Counts]:
        away, counts = self._membership.away(), self._store.catalog.counts
        return counts(away), counts(away | {entry.member})

    def _refuse_to_endanger(self, entry: RosterEntry) -> None:
        if unknown := self._view.unknown():
            raise RequestRefused(unknown, next_step="Try again when it is done: raidctl status shows how far it is.")
        now, without = self._now_and_without(entry)
        worse = (without.unreadable_images, without.unprotected_images) > (
            now.unreadable_images,
            now.unprotected_images,
        )
        if not worse:
            return
        others = any(state != MemberState.ONLINE for state in self._states_but(entry)) or now.absent_shards
        raise RequestRefused(
            f"with slot {entry.slot} taken out, {_harm(without)}",
            next_step="Bring the other members back or finish the rebuild first (raidctl status)."
            if others
            else "To work on this disk, stop raidd meanwhile: systemctl stop raidd",
        )

    def _states_but(self, entry: RosterEntry) -> list[MemberState]:
        roster = self._membership.roster
        others = [e for e in roster.entries if e.slot is not None and e.member != entry.member]
        return [self._membership.state(e.member) for e in others]

    def _count_on_again(self, entry: RosterEntry) -> None:
        """Errors are counted anew. One that was judged failed while it was there has no lock yet."""
        member = self._membership.member(entry.member)
        if member is not None:
            member.put_online()
            if member.present:
                member.call("probe", lambda disk, _c: self._lock_disk(disk))

    def _presence(self, entry: RosterEntry) -> Presence:
        return self._membership.presence(entry.member)

    def _examine(self, path: str, allow_same_device: bool, allow_filesystem: bool) -> Newcomer:
        trial = self._membership.roster.trial
        return examine(
            [path],
            taken=[m.path for m in self._membership.members()],
            state_dir=str(self._config.raidd.state_dir),
            allow_same_device=allow_same_device or trial,
            allow_filesystem=allow_filesystem or trial,
        )[0]

    def _roster(self, newcomer: Newcomer) -> Roster:
        """The roster in force, marked as a trial once a member shares its disk."""
        roster = self._membership.roster
        return roster.successor(trial=True) if newcomer.trial and not roster.trial else roster

    def _take_in(self, newcomer: Newcomer, entry: RosterEntry, roster: Roster) -> None:
        """The path is remembered first, so that a crash leaves no member that nobody can find."""
        member = Member(
            LocalDisk(newcomer.path, entry.member),
            deadline_s=self._config.health.deadline_s,
            clock=time.monotonic,
            present=False,
            reason="being made",
        )
        self._membership.admit(member)
        files = {"label.json": label_for(entry.member, roster).pack(), **papers(roster, self._config.path)}
        birth = member.submit(
            "probe", lambda _d, cancel: create_member_folder(newcomer.path, entry.member, None, files, cancel.check)
        )
        try:
            member.result(birth)
            member.call("probe", lambda disk, _c: self._lock_disk(disk))
            member.space = member.call("probe", lambda disk, _c: disk.space())
        except BaseException:
            birth.cancel.cancel()
            self._unmake(member, birth)
            self._membership.dismiss(entry.member)
            raise
        member.arrive()
        self._set(roster)

    def _unmake(self, member: Member, birth: Operation[None]) -> None:
        """Its label names a roster that never came to be: the folder goes, at once or when the disk has woken up."""

        def remove(*_asked: object) -> None:
            with suppress(RaiddError):
                remove_newborn(member.path, member.uuid)

        if birth.done():
            member.submit("probe", remove).wait()
        else:
            birth.add_done_callback(remove)

    def _set(self, roster: Roster) -> None:
        self._membership.set_roster(roster)
        self._changed()

    def _let_go(self, entry: RosterEntry, reason: str) -> None:
        member = self._membership.member(entry.member)
        if member is not None:
            member.leave(reason)


def _entry(newcomer: Newcomer, bay: str, enclosure: str) -> RosterEntry:
    return RosterEntry(
        uuid4(),
        None,
        MemberState.SPARE,  # set by the roster's table
        enclosure=enclosure,
        bay=bay,
        model=newcomer.model,
        serial=newcomer.serial,
        size=newcomer.size_bytes,
    )


def _warnings(newcomer: Newcomer) -> list[str]:
    return ["it shares its disk with another member: this is a trial and protects nothing"] if newcomer.trial else []


def _harm(counts: Counts) -> str:
    """What it means for the images to be so; "" if all survive another failure."""
    if counts.unreadable_images:
        return f"{quantity(counts.unreadable_images, 'image')} could not be read"
    if counts.unprotected_images:
        return f"{quantity(counts.unprotected_images, 'image')} would be lost with the next disk"
    return ""


def _spare_message(newcomer: Newcomer) -> str:
    return f"It holds nothing until it replaces a member: raidctl replace SLOT {shlex.quote(newcomer.path)}"


def _added_message(roster: Roster) -> str:
    k, m = roster.geometry.k, roster.geometry.m
    return f"New images go to it from now on, still as {k}+{m}; older ones stay where they are."
