"""What there is to repair, in which order, and how far it is.

Two sources: a queue of segments that somebody found incomplete (a laggard, a reader), and walks over the catalog
(repair/walks): rebuilds of replaced members, resyncs of members that came back, rehoming of what former members
held. The queue goes first, it is short; it is bounded, and what does not fit is found by a walk.

Nothing is lost by a crash: the queue is filled again from the catalog's exceptions, and a shard that was re-created
has left every walk. What cannot be mended now is skipped, reported, and tried again after `RETRY_S`.

`work_once` does one repair and says whether there was one; the loop and its thread live in daemon/supervisor.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from uuid import UUID

from raidd.array.catalog import Catalog, SegmentRow
from raidd.array.member_disk import FileNotThere, MemberDisk
from raidd.array.membership import Membership
from raidd.array.roster import MemberState, RosterEntry, RosterEvent, apply
from raidd.array.survey import Found, Verdict, inspect
from raidd.array.worker import Cancel
from raidd.codec.geometry import shard_length
from raidd.errors import RaiddError
from raidd.repair.pace import Pace, Priority
from raidd.repair.rebuild import Outcome, Rebuilder, try_repair
from raidd.repair.walks import HeldWalk, Job, Key, MissedWalk, ReplacedWalk

RETRY_S = 30.0
"""What could not be repaired is tried again after this time."""
REHOME_RETRY_S = 300.0
"""A former member's shards that nobody can take: nothing changes soon, and the walk is long."""
QUEUE_LIMIT = 10_000
"""Segments remembered one by one; beyond, the members' exceptions are walked."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One walk as it stands. Bytes are of shards re-created; ``eta_s`` None until it can be told."""

    kind: str
    slot: int | None
    member: UUID
    done: int
    total: int
    bytes_done: int
    bytes_total: int
    rate_bytes_s: float
    eta_s: float | None
    skipped: int
    paused: bool


class Repairs:
    """The repair queue and the walks. `note`, `note_member`, `look_again` from any thread; `work_once` from one."""

    def __init__(
        self,
        catalog: Catalog,
        membership: Membership,
        rebuilder: Rebuilder,
        pace: Pace,
        *,
        busy: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._catalog, self._membership, self._rebuilder = catalog, membership, rebuilder
        self.pace = pace
        self._priority: Priority = "normal" if pace.priority == "pause" else pace.priority
        self._busy, self._clock, self._sleep = busy, clock, sleep
        self._lock = threading.Lock()
        self._queue: dict[UUID, float] = {}  # segment → when it may be tried
        self._wanted: dict[Key, float] = {}  # walk → when it may begin
        self._jobs: dict[Key, Job] = {}
        self.wake: Callable[[], None] = lambda: None

    # -- what is to be done -------------------------------------------------------------------------------

    def note(self, segment: UUID) -> None:
        """This segment misses a shard, or holds a damaged one."""
        with self._lock:
            if segment in self._queue or len(self._queue) < QUEUE_LIMIT:
                self._queue[segment] = 0.0
                full = False
            else:
                full = True
        if full:
            self.look_again()
        self.wake()

    def note_member(self, member: UUID) -> None:
        """A member is (back) here: all it missed."""
        self._want(("resync", member), 0.0)

    def look_again(self) -> None:
        """The members changed, or it is a start: whatever is missing anywhere and can be mended now."""
        for entry in self._membership.roster.entries:
            if self._membership.writable(entry.member) is not None:
                self._want(("resync", entry.member), 0.0)
        for former in self._formers():
            self._want(("rehome", former), 0.0)

    def _formers(self) -> set[UUID]:
        """Members that segments name and no slot holds: removed ones, spares that came back from a slot."""
        held = {e.member for e in self._membership.roster.entries if e.slot is not None}
        return {m for m in self._catalog.placement_members() - held if self._catalog.load(m)[0]}

    def _want(self, key: Key, due: float) -> None:
        with self._lock:
            self._wanted[key] = due
        self.wake()

    def due(self) -> list[UUID]:
        """Queued segments whose repair may be tried now."""
        now = self._clock()
        with self._lock:
            return [segment for segment, due in self._queue.items() if due <= now]

    def queued(self) -> int:
        """Segments waiting for a repair, those that must wait for a disk included."""
        with self._lock:
            return len(self._queue)

    # -- one step -----------------------------------------------------------------------------------------

    def work_once(self) -> bool:
        """One repair, from the queue or from a walk. True if there was anything to do."""
        if self.pace.priority == "pause":
            return False
        segment = next(iter(self.due()), None)
        if segment is not None:
            self._repair(segment)
            return True
        job = self._next_job()
        if job is None:
            return False
        row = job.next_segment()
        if row is None:
            self._end(job)
        else:
            self._step(job, row)
        return True

    def _repair(self, segment: UUID) -> Outcome | None:
        began = self._clock()
        with self._lock:
            self._queue.pop(segment, None)  # before the repair looks: what is noted meanwhile stays noted
        outcome = try_repair(self._rebuilder, segment)
        if outcome is None or not outcome.whole:
            with self._lock:
                self._queue.setdefault(segment, self._clock() + RETRY_S)
        self._rest(outcome, began)
        return outcome

    def _rest(self, outcome: Outcome | None, began: float) -> None:
        if outcome is not None and outcome.bytes:
            rest = self.pace.delay_s(outcome.bytes, self._clock() - began, busy=self._busy())
            if rest > 0:
                self._sleep(rest)

    # -- walks --------------------------------------------------------------------------------------------

    def _next_job(self) -> Job | None:
        """The walk to go on with: a rebuild before a resync before a rehoming."""
        now = self._clock()
        with self._lock:
            due = [key for key, at in self._wanted.items() if at <= now]
            resting = {key for key, at in self._wanted.items() if at > now}
        keys: list[Key] = [("rebuild", e.member) for e in self._rebuilding() if ("rebuild", e.member) not in resting]
        for kind in ("resync", "rehome"):
            keys += [key for key, job in self._jobs.items() if key[0] == kind and not job.ended]
            keys += [key for key in due if key[0] == kind]
        for key in keys:
            if key[0] != "resync" or self._membership.writable(key[1]) is not None:
                job = self._jobs.get(key)
                return self._begin(key) if job is None or job.ended else job
            self._jobs.pop(key, None)  # it is away again, and says so when it is back
            with self._lock:
                self._wanted.pop(key, None)
        return None

    def _rebuilding(self) -> list[RosterEntry]:
        """Members being rebuilt that are there; jobs of members that are not rebuilt any more are forgotten."""
        there = [
            entry
            for entry in self._membership.roster.entries
            if entry.state == MemberState.REBUILDING and self._membership.writable(entry.member) is not None
        ]
        for key in [k for k in self._jobs if k[0] == "rebuild" and not self._is_rebuilding(k[1])]:
            del self._jobs[key]
        return there

    def _is_rebuilding(self, member: UUID) -> bool:
        entry = self._membership.roster.find(member)
        return entry is not None and entry.state == MemberState.REBUILDING

    def _begin(self, key: Key) -> Job:
        kind, member = key
        with self._lock:
            self._wanted.pop(key, None)  # before the walk looks: who wants it from now on wants another
        entry = self._membership.roster.find(member)
        job = Job(key, None if entry is None else entry.slot, HeldWalk(self._catalog, member))
        if kind == "resync":
            job.walk = MissedWalk(self._catalog, member)
        elif kind == "rebuild" and (old := self._predecessors(entry)):
            job.walk = ReplacedWalk(self._catalog, self._membership.away, old)
            job.total, job.bytes_total = self._load(old)
        else:
            job.total, job.bytes_total = self._load(frozenset({member}))
        self._jobs[key] = job
        return job

    def _predecessors(self, entry: RosterEntry | None) -> frozenset[UUID]:
        """The others in the slot; a member that was judged failed and put online again has none."""
        if entry is None or entry.slot is None:
            return frozenset()
        others = self._membership.roster.slot_entries(entry.slot)
        return frozenset(other.member for other in others if other.member != entry.member)

    def _load(self, members: frozenset[UUID]) -> tuple[int, int]:
        counted = [self._catalog.load(member) for member in members]
        return sum(segments for segments, _bytes in counted), sum(size for _segments, size in counted)

    def _step(self, job: Job, row: SegmentRow) -> None:
        began = self._clock()
        looked = not job.looks_at_itself or self._look_at(job.key[1], row.segment)
        outcome = try_repair(self._rebuilder, row.segment)
        if looked and self._is_dealt_with(job, row.segment, outcome):
            job.skipped.discard(row.segment)
            job.note(self._clock(), row.body_offset + shard_length(row.payload_length, row.placement.geometry.k))
        else:
            job.skipped.add(row.segment)
        self._rest(outcome, began)

    def _is_dealt_with(self, job: Job, segment: UUID, outcome: Outcome | None) -> bool:
        """Whether the walk's own member has what it should: another's shard that cannot be mended is not its matter."""
        if job.key[0] != "rebuild":
            return outcome is not None and outcome.whole
        row = self._catalog.segment(segment)
        if row is None:
            return True
        if isinstance(job.walk, ReplacedWalk):
            return not job.walk.old & set(row.placement.members)
        holders = row.placement.members
        return job.key[1] not in holders or holders.index(job.key[1]) not in self._catalog.excepted(segment)

    def _look_at(self, uuid: UUID, segment: UUID) -> bool:
        """A member that was judged failed: what it holds is believed only after every block was read. False when that
        cannot be done now; what it is worth is not known then."""
        member, row = self._membership.member(uuid), self._catalog.segment(segment)
        if member is None or row is None or uuid not in row.placement.members:
            return True
        index = row.placement.members.index(uuid)
        try:
            verdict = member.call("repair", partial(_inspected, segment, index)).verdict
        except FileNotThere:
            self._catalog.mark(segment, index, "missing")
            return True
        except RaiddError:
            return False
        if verdict != Verdict.GOOD:
            self._catalog.mark(segment, index, "unsupported" if verdict == Verdict.UNSUPPORTED else "damaged")
        return True

    def _end(self, job: Job) -> None:
        """End of a pass: done, or another pass after a while. Till then the job tells what was skipped."""
        kind, member = job.key
        left = bool(job.skipped) or (isinstance(job.walk, ReplacedWalk) and bool(self._load(job.walk.old)[0]))
        if left:
            job.ended = True
            with self._lock:
                self._wanted.setdefault(job.key, self._clock() + (REHOME_RETRY_S if kind == "rehome" else RETRY_S))
            return
        self._jobs.pop(job.key, None)
        if kind == "rebuild":
            self._rebuilt(member)

    def _rebuilt(self, member: UUID) -> None:
        with self._membership.changing:
            entry = self._membership.roster.find(member)
            if entry is not None and entry.state == MemberState.REBUILDING:
                self._membership.set_roster(apply(self._membership.roster, member, RosterEvent.REBUILT))

    # -- how it stands ------------------------------------------------------------------------------------

    def progress(self) -> list[Progress]:
        """Each walk under way, as last seen."""
        return [self._progress_of(job) for job in list(self._jobs.values())]

    def _progress_of(self, job: Job) -> Progress:
        paused = self.pace.priority == "pause"
        rate = 0.0 if paused or job.ended else job.rate()
        left = max(0, job.bytes_total - job.bytes_done)
        return Progress(
            kind=job.key[0],
            slot=job.slot,
            member=job.key[1],
            done=job.done,
            total=max(job.total, job.done),
            bytes_done=job.bytes_done,
            bytes_total=max(job.bytes_total, job.bytes_done),
            rate_bytes_s=rate,
            eta_s=left / rate if rate > 0 and job.bytes_total else None,
            skipped=len(job.skipped),
            paused=paused,
        )

    def skipped(self) -> list[UUID]:
        """Segments that the walks under way could not mend, so far."""
        return sorted({segment for job in list(self._jobs.values()) for segment in job.skipped})

    # -- pace ---------------------------------------------------------------------------------------------

    def set_pace(self, pace: Pace) -> None:
        """A new priority, floor or cap, from now on."""
        self.pace = pace
        if pace.priority != "pause":
            self._priority = pace.priority
        self.wake()

    def control(self, action: str | None, priority: Priority | None) -> None:
        """Pause or resume, and the priority to go on with."""
        if priority is not None and priority != "pause":
            self._priority = priority
        paused = self.pace.priority == "pause"
        if action == "pause" or priority == "pause":
            paused = True
        elif action == "resume" or priority is not None:
            paused = False
        self.set_pace(replace(self.pace, priority="pause" if paused else self._priority))

    @property
    def priority(self) -> Priority:
        """The priority that holds, or that will hold again after a pause."""
        return self._priority


def _inspected(segment: UUID, index: int, disk: MemberDisk, _cancel: Cancel) -> Found:
    return inspect(disk, segment, index, whole=True)
