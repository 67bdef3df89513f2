"""A member at run time: its disk, the threads that may wait for it, and whether it is there.

Why lanes: a disk that hangs takes the thread that waits for it, for ever. Each member has one worker for
writes, one for reads, one for repairs and one for the probe, so that a stuck write stops neither the reads
of the same disk nor anything of the others. Every operation has a deadline from its start.

Away is a fact, not a verdict: an error that means "do not count on this disk" makes the member leave at
once (`leave`), with the reason; only the probe brings it back (`arrive`). What to conclude from it is
decided elsewhere. A full member does not leave: it takes no new shards and goes on serving.

Thread-safe. Nothing here is persisted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal, TypeVar
from uuid import UUID

from raidd.array.journal import JournalDamaged
from raidd.array.member_disk import FileNotThere, MemberDisk, Space
from raidd.array.roster import Presence
from raidd.array.worker import Cancel, Operation, Worker
from raidd.errors import (
    MemberAway,
    MemberConflict,
    MemberError,
    MemberFull,
    RaiddError,
)

Result = TypeVar("Result")
Lane = Literal["write", "read", "repair", "probe"]
LANES: tuple[Lane, ...] = ("write", "read", "repair", "probe")
HARMLESS = (FileNotThere, JournalDamaged, MemberConflict, MemberFull)
"""Errors that say something about a file or about room, not about the disk."""

NOT_FOUND = "not found at the start"
"""Why a member is away until the probe has looked and knows better."""


class Member:
    """One member. ``on_change`` is called, without a lock held, after it left or arrived."""

    def __init__(
        self,
        disk: MemberDisk,
        *,
        deadline_s: float,
        clock: Callable[[], float],
        present: bool = True,
        reason: str = "",
    ) -> None:
        self.disk = disk
        self.uuid: UUID = disk.uuid
        self.errors = 0
        self.full = False
        self.space: Space | None = None
        self.filesystem = ""
        self.last_write_at = float("-inf")
        self.on_change: Callable[[Member], None] = lambda _member: None
        self.on_error: Callable[[Member, str], None] = lambda _member, _message: None
        self._clock = clock
        self._lock = threading.Lock()
        self._presence = Presence(present, reason, clock())
        self.since = datetime.now(UTC)
        self._workers: dict[Lane, Worker] = {lane: Worker(f"{lane} {str(self.uuid)[:8]}", deadline_s) for lane in LANES}

    @property
    def path(self) -> str:
        """The mount's folder, as the operator names it."""
        return self.disk.path

    @property
    def presence(self) -> Presence:
        """Whether it is there now, why not, since when (seconds of the clock given)."""
        return self._presence

    @property
    def present(self) -> bool:
        """True while nothing speaks against counting on it."""
        return self._presence.present

    def stuck(self) -> bool:
        """True while any of its workers waits for an overdue operation."""
        return any(worker.stuck() for worker in self._workers.values())

    def submit(self, lane: Lane, work: Callable[[MemberDisk, Cancel], Result]) -> Operation[Result]:
        """Queue ``work`` on a lane. Raises MemberAway at once for a member that has left (the probe may try)."""
        if lane != "probe" and not self.present:
            raise MemberAway(f"member {self.uuid} is away: {self._presence.reason}", member=str(self.uuid))
        return self._workers[lane].submit(lambda cancel: work(self.disk, cancel))

    def result(self, operation: Operation[Result]) -> Result:
        """Wait for an operation of this member; what its failure says of the disk is acted on at once."""
        try:
            return operation.result()
        except MemberError as error:
            self.judge(error)
            raise

    def heed(self, ended: Operation[Result]) -> None:
        """For an operation that nobody waits for, when it has ended: what its failure says of the disk is acted on."""
        with suppress(RaiddError):
            self.result(ended)

    def call(self, lane: Lane, work: Callable[[MemberDisk, Cancel], Result]) -> Result:
        """Submit and wait."""
        return self.result(self.submit(lane, work))

    def judge(self, error: MemberError) -> None:
        """Act on what an error says: no room, or not to be counted on."""
        if isinstance(error, MemberFull):
            self.full = True
        if isinstance(error, HARMLESS):
            return
        self.count_error(error.message)
        self.leave(error.message)

    def count_error(self, message: str, count: int = 1) -> None:
        """One more failed operation, or so many bad blocks, since it was last put online."""
        with self._lock:
            self.errors += count
        self.on_error(self, message)

    def leave(self, reason: str) -> None:
        """It is not to be counted on from now; the first reason stays."""
        self._set(False, reason)

    def still_away(self, reason: str) -> None:
        """The probe looked again; what it found is a better reason than the first, if that was only a start's."""
        with self._lock:
            if not self._presence.present and self._presence.reason in ("", NOT_FOUND):
                self._presence = Presence(False, reason, self._presence.since)

    def put_online(self) -> None:
        """The operator wants it used again: errors are counted anew, and why it was let alone is no reason any more."""
        with self._lock:
            self.errors = 0
            if not self._presence.present:
                self._presence = Presence(False, "", self._presence.since)

    def arrive(self) -> None:
        """The probe found it well."""
        self._set(True, "")

    def _set(self, present: bool, reason: str) -> None:
        with self._lock:
            if self._presence.present == present:
                return
            self._presence = Presence(present, reason, self._clock())
            self.since = datetime.now(UTC)
        self.on_change(self)

    def use_deadline(self, deadline_s: float) -> None:
        """From now on; also for what is under way."""
        for worker in self._workers.values():
            worker.deadline_s = deadline_s

    def close(self) -> None:
        """End the workers that are idle; stuck ones are daemon threads and end with the process."""
        for worker in self._workers.values():
            worker.close()
