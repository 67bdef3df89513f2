"""What there is to repair, in which order, and how far it is: one queue and one rebuild at a time.

The queue holds segments that somebody found incomplete (a laggard, a reader, a member that came back). A rebuild
walks the segments of a replaced member, fewest surviving shards first. Both lose nothing by a crash: the queue is
filled again from the catalog's exceptions, and a rebuilt shard has left the old member's list.

`work_once` does one step and says whether there was one; the loop and its thread live in daemon/supervisor.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from uuid import UUID

from raidd.array.catalog import Catalog, SegmentRow
from raidd.array.members import Member
from raidd.array.membership import Membership
from raidd.array.roster import MemberState, RosterEntry, RosterEvent, apply
from raidd.array.survey import Verdict, inspect
from raidd.codec.geometry import shard_length
from raidd.errors import MemberError
from raidd.repair.pace import Pace, Priority
from raidd.repair.rebuild import Outcome, Rebuilder, try_repair

PAGE = 64
RETRY_S = 30.0
"""What could not be repaired is tried again after this time."""
RATE_WINDOW_S = 30.0
"""Rate and time left are taken over this window: neither jumpy nor out of date."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One rebuild as it stands. Bytes are of shards re-created; ``eta_s`` None until it can be told."""

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


class Job:
    """The rebuild of one member: a cursor over what its predecessors hold."""

    def __init__(self, new: RosterEntry, old: list[UUID], total: int, bytes_total: int) -> None:
        self.new, self.old = new, old
        self.total, self.bytes_total = total, bytes_total
        self.done = self.bytes_done = 0
        self.skipped: set[UUID] = set()
        self.after: UUID | None = None
        self.cursor: tuple[int, UUID] | None = None
        self.samples: deque[tuple[float, int]] = deque()

    def note(self, now: float, size: int) -> None:
        """One more segment, ``size`` bytes of its shard."""
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


class Repairs:
    """The repair queue and the rebuilds. `note` from any thread; `work_once` from one."""

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
        self._queue: dict[UUID, float] = {}
        self._lock = threading.Lock()
        self._jobs: dict[UUID, Job] = {}
        self._rest_until: dict[UUID, float] = {}
        self.wake: Callable[[], None] = lambda: None

    # -- the queue ----------------------------------------------------------------------------------------

    def note(self, segment: UUID) -> None:
        """This segment misses a shard, or holds a damaged one."""
        with self._lock:
            self._queue[segment] = 0.0
        self.wake()

    def note_member(self, member: UUID) -> None:
        """A member is (back) here: all it missed."""
        for segment, _index, _kind in self._catalog.exceptions(member):
            self.note(segment)

    def due(self) -> list[UUID]:
        """Segments whose repair may be tried now."""
        now = self._clock()
        with self._lock:
            return [segment for segment, due in self._queue.items() if due <= now]

    def queued(self) -> int:
        """Segments waiting for a repair, those that must wait for a disk included."""
        with self._lock:
            return len(self._queue)

    def set_pace(self, pace: Pace) -> None:
        """A new priority, floor or cap, from now on."""
        self.pace = pace
        self.wake()

    def work_once(self) -> bool:
        """One repair, or one segment of a rebuild. True if there was anything to do."""
        if self.pace.priority == "pause":
            return False
        segment = self._next_queued()
        if segment is not None:
            self._timed(segment)
            return True
        return self._rebuild_once()

    def _next_queued(self) -> UUID | None:
        now = self._clock()
        with self._lock:
            return next((segment for segment, due in self._queue.items() if due <= now), None)

    def _timed(self, segment: UUID) -> Outcome | None:
        began = self._clock()
        outcome = try_repair(self._rebuilder, segment)
        with self._lock:
            self._queue.pop(segment, None)
            if outcome is None or not outcome.whole:
                self._queue[segment] = self._clock() + RETRY_S
        if outcome is not None and outcome.bytes:
            took = self._clock() - began
            rest = self.pace.delay_s(outcome.bytes, took, busy=self._busy())
            if rest > 0:
                self._sleep(rest)
        return outcome

    # -- rebuilds -----------------------------------------------------------------------------------------

    def _rebuilding(self) -> list[RosterEntry]:
        """Members being rebuilt that are there."""
        entries = self._membership.roster.entries
        return [
            e
            for e in entries
            if e.state == MemberState.REBUILDING
            and self._membership.writable(e.member) is not None
            and self._rest_until.get(e.member, 0.0) <= self._clock()
        ]

    def _rebuild_once(self) -> bool:
        for entry in self._rebuilding():
            job = self._jobs.get(entry.member) or self._begin(entry)
            page = self._page(job)
            if page:
                for row in page:
                    if self.pace.priority == "pause":
                        return True
                    self._rebuild_segment(job, row)
                    if self._next_queued() is not None:
                        return True
                return True
            self._finish(job)
            return True
        return False

    def _begin(self, entry: RosterEntry) -> Job:
        assert entry.slot is not None
        others = [e.member for e in self._membership.roster.slot_entries(entry.slot) if e.member != entry.member]
        # a member that was judged failed and put online again has no predecessor: all it should hold is looked at
        old = others or [entry.member]
        counted = [self._catalog.load(member) for member in old]
        job = Job(entry, old, sum(c[0] for c in counted), sum(c[1] for c in counted))
        self._jobs[entry.member] = job
        return job

    def _page(self, job: Job) -> list[SegmentRow]:
        """The next segments, fewest surviving shards first, then in disk order; at the end of one pass, nothing."""
        if job.new.member in job.old:
            rows = self._catalog.segments_on(job.new.member, after=job.after, limit=PAGE)
            job.after = rows[-1].segment if rows else job.after
            return rows
        while True:
            away = self._membership.away() | set(job.old)
            page = self._catalog.endangered(away, after=job.cursor, limit=PAGE)
            if not page:
                return []
            job.cursor = page[-1].cursor
            rows = [one.segment for one in page if set(job.old) & set(one.segment.placement.members)]
            if rows:
                return rows

    def _rebuild_segment(self, job: Job, row: SegmentRow) -> None:
        if job.new.member in job.old:
            self._look_at(job.new.member, row)
        outcome = self._timed(row.segment)
        if outcome is None or not outcome.whole:
            job.skipped.add(row.segment)
        job.note(self._clock(), shard_length(row.payload_length, row.placement.geometry.k))

    def _look_at(self, uuid: UUID, row: SegmentRow) -> None:
        """A member that was judged failed: what it holds is believed only after every block was read."""
        member = self._membership.member(uuid)
        index = row.placement.members.index(uuid)
        if member is not None and not self._is_good(member, row.segment, index):
            self._catalog.mark(row.segment, index, "damaged")

    def _is_good(self, member: Member, segment: UUID, index: int) -> bool:
        try:
            return member.call("repair", lambda d, _c: inspect(d, segment, index, whole=True)).verdict == Verdict.GOOD
        except MemberError:
            return False

    def _finish(self, job: Job) -> None:
        """End of a pass: online when nothing is left on the old members, else another pass after a while."""
        left = any(self._catalog.segments_on(old, after=None, limit=1) for old in job.old if old != job.new.member)
        self._jobs.pop(job.new.member, None)
        if left or (job.new.member in job.old and job.skipped):
            self._rest_until[job.new.member] = self._clock() + RETRY_S
            return
        entry = self._membership.roster.find(job.new.member)
        if entry is not None and entry.state == MemberState.REBUILDING:
            self._membership.set_roster(apply(self._membership.roster, entry.member, RosterEvent.REBUILT))

    def progress(self) -> list[Progress]:
        """Each rebuild under way, as last seen."""
        return [self._progress_of(job) for job in list(self._jobs.values())]

    def _progress_of(self, job: Job) -> Progress:
        rate = job.rate()
        left = max(0, job.bytes_total - job.bytes_done)
        return Progress(
            slot=job.new.slot,
            member=job.new.member,
            done=job.done,
            total=max(job.total, job.done),
            bytes_done=job.bytes_done,
            bytes_total=max(job.bytes_total, job.bytes_done),
            rate_bytes_s=rate,
            eta_s=left / rate if rate > 0 else None,
            skipped=len(job.skipped),
            paused=self.pace.priority == "pause",
        )

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

    def skipped(self) -> list[UUID]:
        """Segments that the rebuilds under way could not mend, so far."""
        return sorted(segment for job in list(self._jobs.values()) for segment in job.skipped)
