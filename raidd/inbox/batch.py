"""The way in: ready files become batches, batches become segments, and protected originals are taken away.

    prepare_once: rounds, hints -> files that are due -> read, hash, header -> batch ─┐ one at a time
    commit_once:                 originals taken away <- receipt <- sink.commit(batch) <┘

Natural group commit: while one commit is in flight the next batch is filled; when it ends, and nothing more is due (or
32 MiB are full), the next goes. An image that somebody waits for goes at once; those that nobody waits for are gathered
for `PACE_S` after the start of the commit before: a commit costs two flushes on each member, whatever it holds.

Promises: an original is taken away only after a receipt that says protected (or as a duplicate read back equal and
protected); an image that cannot be stored now waits where it is; one that breaks its batch is found by halving, and
refused alone. Memory: two batches of 32 MiB, whatever arrives. A crash at any moment loses nothing: originals stay
until they are protected.

Threads: one calls `prepare_once`, one `commit_once`, any `idle_once` and `counters`. They meet in a queue of one.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

from raidd.errors import ArrayError, RaiddError
from raidd.inbox.claims import Claims
from raidd.inbox.complaints import Complaint
from raidd.inbox.custody import Custody
from raidd.inbox.drafting import Batch, Entry
from raidd.inbox.endings import Endings
from raidd.inbox.examine import Refusal
from raidd.inbox.large import PART_SIZE
from raidd.inbox.preparing import NOT_NOW, PartEnd, Preparer
from raidd.inbox.refusals import RefusalCode
from raidd.inbox.rounds import Rounds
from raidd.inbox.sink import Draft, Receipt, Sink
from raidd.inbox.tally import Counters, Tally
from raidd.inbox.watch import Watcher

__all__ = ["Draft", "Ingest", "Receipt", "Sink"]

PACE_S = 0.05
"""Between the starts of two commits that nobody waits for (measured, design 5: 12 -> 2.4 flushes an image)."""
HOLD_S, HOLD_LIMIT_S = 1.0, 30.0

logger = logging.getLogger(__name__)


class Ingest:
    """One per daemon. ``image_max_bytes``: larger files are refused. Clocks: ``clock`` monotonic, ``now`` UTC."""

    def __init__(
        self,
        sink: Sink,
        watcher: Watcher,
        custody: Custody,
        *,
        image_max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        part_size: int = PART_SIZE,
    ) -> None:
        self._sink, self._watcher, self._clock = sink, watcher, clock
        self._tally = Tally()
        self._claims = Claims()
        self._endings = Endings(sink, watcher, custody, self._tally, clock=clock, now=now)
        self._rounds = Rounds(watcher, custody, self._endings, clock)
        self._preparer = Preparer(
            sink,
            watcher,
            self._endings,
            self._claims,
            image_max_bytes=image_max_bytes,
            clock=clock,
            now=now,
            part_size=part_size,
        )
        self._handed: queue.Queue[Batch] = queue.Queue(maxsize=1)
        self._busy = threading.Event()
        self._waiting = Complaint(sink.event, "images-waiting", "images are taken in again")
        self._last_start = float("-inf")
        self._hold_until = float("-inf")
        self._hold_s = HOLD_S

    def limit_images(self, image_max_bytes: int) -> None:
        """Larger files are refused from now on."""
        self._preparer.image_max_bytes = image_max_bytes

    # The preparing thread

    def prepare_once(self, timeout_s: float = 1.0) -> bool:
        """Take in what is due and hand a batch over if it may go; waits up to ``timeout_s`` when there is nothing."""
        self._rounds.once()
        self._watcher.follow_hints_once()
        moved = self._may_take_in() and self._preparer.fill_once()
        handed = self._hand_over()
        if moved or handed:
            return True
        self._watcher.wait(min(timeout_s, self._next_in_s()))
        return False

    def _may_take_in(self) -> bool:
        if self._clock() < self._hold_until:
            return False
        reason = self._sink.writable()
        if reason:
            self._hold(reason, HOLD_S)
        return not reason

    def _hold(self, reason: str, seconds: float) -> None:
        self._hold_until = self._clock() + seconds
        if self._watcher.waiting:
            self._waiting.add("array", f"images wait in the inbox: {reason}")

    def _hand_over(self) -> bool:
        if self._busy.is_set():
            return False
        batch = self._preparer.open  # after busy: a part that failed has been heard of
        if batch is None or not (batch.full or batch.urgent or self._pace_in_s() <= 0):
            return False
        self._busy.set()
        self._handed.put(self._preparer.take())
        return True

    def _pace_in_s(self) -> float:
        return self._last_start + PACE_S - self._clock()

    def _next_in_s(self) -> float:
        """How long nothing can happen unless the bell rings."""
        waits = [self._rounds.due_in_s()]
        held_s = self._hold_until - self._clock()
        due_in_s = self._watcher.due_in_s()
        if held_s > 0:
            waits.append(held_s)
        elif self._preparer.accepting and due_in_s is not None:
            waits.append(due_in_s)
        if self._preparer.open is not None and not self._busy.is_set():
            waits.append(self._pace_in_s())
        return max(0.0, min(waits))

    # The committing thread

    def commit_once(self, timeout_s: float = 1.0) -> bool:
        """Commit the batch that was handed over; waits up to ``timeout_s`` for one."""
        try:
            batch = self._handed.get(timeout=timeout_s)
        except queue.Empty:
            return False
        try:
            self._commit(batch)
        finally:
            self._settle(batch)
        return True

    def _commit(self, batch: Batch) -> None:
        self._last_start = self._clock()
        images = [entry.image for entry in batch.entries]
        try:
            receipt = self._sink.commit(batch.draft, batch.used, images, self._replaced(batch))
        except (*NOT_NOW, MemoryError) as error:
            self._put_off(batch, error)
        except ArrayError:
            raise  # the state folder or the catalog failed: raidd stops, the originals are untouched
        except Exception as error:  # whatever one image breaks in there must not stop the others, start after start
            self._divide(batch, error)
        else:
            self._stored(batch, receipt)
        finally:
            batch.draft.discard()

    def _replaced(self, batch: Batch) -> list[UUID]:
        """Unfinished attempts at a large image give way to the one that is finished now."""
        large = batch.large
        if large is None or not batch.entries[0].image.sha256:
            return []
        earlier = self._sink.incomplete(large.header.sop_instance_uid)
        return [segment for segment in earlier if segment not in large.segments]

    def _stored(self, batch: Batch, receipt: Receipt) -> None:
        self._hold_s = HOLD_S
        self._waiting.settle(("array",))
        self._tally.batch(len(batch.entries), batch.used)
        for entry in batch.entries:
            if entry.large is None:
                self._endings.committed(entry, receipt.protected)
            else:
                self._part_stored(entry, receipt)

    def _part_stored(self, entry: Entry, receipt: Receipt) -> None:
        large = entry.large
        assert large is not None
        large.segments.append(receipt.segment)
        large.protected = large.protected and receipt.protected
        if entry.image.sha256:
            self._endings.committed(entry, large.protected)
        self._part_ended(entry, PartEnd.STORED)

    def _put_off(self, batch: Batch, error: Exception) -> None:
        """Nothing was stored, through no fault of the batch: its images wait, longer each time."""
        for entry in batch.entries:
            if entry.large is None:
                self._watcher.later(entry.offer, self._clock())
            else:
                self._part_ended(entry, PartEnd.FAILED)
        self._hold(str(error) or "the host is short of memory", self._hold_s)
        self._hold_s = min(2 * self._hold_s, HOLD_LIMIT_S)

    def _divide(self, batch: Batch, error: Exception) -> None:
        """Some image in it cannot be stored: look for it in halves."""
        expected = isinstance(error, RaiddError | ValueError)
        logger.warning("a batch of %d images failed: %s", len(batch.entries), error, exc_info=not expected)
        if len(batch.entries) == 1:
            self._refuse(batch.entries[0], error)
            return
        small = [entry.offer for entry in batch.entries if entry.large is None]
        for entry in batch.entries:
            if entry.large is not None:
                self._part_ended(entry, PartEnd.FAILED_IN_COMPANY)
        middle = len(small) // 2 if batch.large is None else len(small)
        for half in (small[:middle], small[middle:]):
            if half:
                self._preparer.suspect(half)

    def _refuse(self, entry: Entry, error: Exception) -> None:
        self._endings.refuse(entry.offer, Refusal(RefusalCode.UNSTORABLE, str(error)))
        if entry.large is not None:
            self._part_ended(entry, PartEnd.REFUSED)

    def _part_ended(self, entry: Entry, end: PartEnd) -> None:
        assert entry.large is not None
        self._preparer.part_ended(entry.large, entry.image.image_offset + entry.image.length, end)

    def _settle(self, batch: Batch) -> None:
        """Whatever became of it: its UIDs are free, and the next may go."""
        uids = [entry.image.sop_instance_uid for entry in batch.entries if entry.large is None]
        for offer in self._claims.release(uids):
            self._watcher.later(offer, self._clock())
        self._busy.clear()
        self._watcher.wake()

    # Any thread

    def idle_once(self) -> bool:
        """Look at the folders now: is nothing waiting, nothing in flight, and no original left?"""
        return self._rounds.scan_once().waiting == 0

    def counters(self) -> Counters:
        return self._tally.read(self._watcher.dropped, self._watcher.withdrawn, self._watcher.waiting)

    @property
    def waiting(self) -> int:
        """Files in inbox and spool that have no end yet."""
        return self._watcher.waiting

    @property
    def denied(self) -> frozenset[str]:
        """Folders of inbox and spool that cannot be read, each with the reason: what waits there is not known."""
        return self._rounds.denied

    @property
    def rejected(self) -> int:
        """Files refused since the start."""
        return self.counters().rejected_total

    @property
    def last_stored_at(self) -> str | None:
        return self.counters().last_stored_at

    def close(self) -> None:
        """After both threads have ended: give back what is held, listen no longer."""
        self._preparer.close()
        self._watcher.stop()
