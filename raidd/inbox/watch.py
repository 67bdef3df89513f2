"""Which files are in the inbox and when each is due: a table, fed by hints and by scans, read by `Ingest`.

    hint (watchdog)  ─┐
    scan, each minute ┴─► look ─► Tracked (history, due) ─► take() ─► done / again / rest

Hints make it quick, scans make it complete: nothing depends on an event having arrived. The table is bounded
(`TRACKED_LIMIT`); files beyond are counted and met again by a later scan. It lives in memory only: a restart scans.

Threads: `hint` from watchdog's, `take` and the three endings from Ingest's, `scan_once` from any; one lock, never held
while the disk is read for long. A scan costs one stat a file.
"""

from __future__ import annotations

import heapq
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from raidd.inbox.folders import (
    FileSeen,
    FolderDenied,
    FolderSeen,
    Root,
    joined,
    look,
    opened,
    split,
    walk,
)
from raidd.inbox.intake import Offer, Owed
from raidd.inbox.names import NameKind, folder_is_walked, name_kind
from raidd.inbox.notices import Notices
from raidd.inbox.readiness import History, Observation, due_at, observe

RESCAN_S = 60.0
RESCAN_DEGRADED_S = 5.0
"""Where no hints come (watch limit reached), scans must make up for it."""
TRACKED_LIMIT = 50_000
HINTS_LIMIT = 10_000
REST_S, REST_LIMIT_S = 2.0, 60.0

Key = tuple[str, bytes]


@dataclass(slots=True)
class Tracked:
    """One file. ``due`` is when `take` may give it; ``in_hand``: Ingest has it."""

    root: Root
    history: History
    due: float
    seen_in: int
    in_hand: bool = False
    counted: bool = False
    hinted: bool = False
    rest_s: float = REST_S
    owed: Owed | None = None

    def update(self, history: History) -> None:
        """Take in another look. What was owed for the former content is not owed for a new one."""
        if not history.observation.same_content(self.history.observation):
            self.owed, self.rest_s = None, REST_S
        self.history = history


@dataclass(frozen=True, slots=True)
class Scan:
    """What one scan found. ``waiting``: files (leftovers of ours too) and folders that may not be read."""

    waiting: int
    denied: tuple[str, ...] = ()
    leftovers: int = 0
    empty_folders: tuple[tuple[Root, FolderSeen], ...] = ()


@dataclass(slots=True)
class _Tally:
    beyond: int = 0
    leftovers: int = 0
    denied: list[str] = field(default_factory=list)
    empty: list[tuple[Root, FolderSeen]] = field(default_factory=list)


class Watcher:
    """The table of files in all roots."""

    def __init__(
        self,
        roots: Sequence[Root],
        settle_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        tracked_limit: int = TRACKED_LIMIT,
        listen: bool = True,
    ) -> None:
        self.roots = tuple(roots)
        self.settle_s = settle_s
        self._clock = clock
        self._limit = tracked_limit
        self._lock = threading.RLock()
        self._scanning = threading.Lock()
        self._bell = threading.Event()
        self._tracked: dict[Key, Tracked] = {}
        self._queue: list[tuple[float, Key]] = []
        self._hints: dict[Key, tuple[Root, bool]] = {}
        self._generation = 0
        self._beyond = 0
        self._scan_wanted = True
        self.dropped = 0
        """Files given out by `take`, each counted once however often it is looked at."""
        self.withdrawn = 0
        """Of those, the ones that their sender took back before they were stored or refused."""
        self.notices = Notices(self.roots, self.hint, listen=listen)

    def stop(self) -> None:
        """Listen no longer."""
        self.notices.stop()

    # Hints

    def hint(self, root: Root, path: bytes, placed: bool) -> None:
        """Something happened at ``path`` (relative to ``root``). Quick; never raises."""
        if not _may_matter(path):
            return
        with self._lock:
            key = (root.name, path)
            if len(self._hints) >= HINTS_LIMIT and key not in self._hints:
                self._scan_wanted = True
            else:
                self._hints[key] = (root, placed or (key in self._hints and self._hints[key][1]))
        self._bell.set()

    def follow_hints_once(self) -> None:
        """Look at what was hinted at."""
        with self._lock:
            hints, self._hints = self._hints, {}
        for (_, path), (root, placed) in hints.items():
            self._look(root, path, placed)

    def _look(self, root: Root, path: bytes, placed: bool) -> None:
        folder, name = split(path)
        try:
            with opened(root.path, folder) as descriptor:
                observation = look(descriptor, name)
        except OSError:
            return  # gone again, or the next scan reports that it may not be read
        if observation is not None:
            self._found(root, FileSeen(folder, name, observation), placed=placed, hinted=True)
        elif folder_is_walked(name):
            # Perhaps a folder, in which files lay before it was watched.
            for seen in walk(root.path, path):
                if isinstance(seen, FileSeen):
                    self._found(root, seen)

    def _found(self, root: Root, seen: FileSeen, *, placed: bool = False, hinted: bool = False) -> bool:
        """Note one look. False when the table is full."""
        folder, name, observation = seen.folder, seen.name, seen.observation
        if name_kind(name) in (NameKind.OWN, NameKind.NOT_YET):
            return True
        key = (root.name, joined(folder, name))
        with self._lock:
            tracked = self._tracked.get(key)
            if tracked is None:
                if len(self._tracked) >= self._limit:
                    return False
                history = observe(None, observation, self._clock(), placed=placed)
                self._tracked[key] = Tracked(root, history, due_at(history, self.settle_s), self._generation)
                self._enqueue(key)
                return True
            tracked.seen_in = self._generation
            if tracked.in_hand:
                tracked.hinted = True
            else:
                self._observed_again(key, tracked, observation, placed, hinted)
        return True

    def _observed_again(self, key: Key, tracked: Tracked, observation: Observation, placed: bool, hinted: bool) -> None:
        before = tracked.history
        tracked.update(observe(before, observation, self._clock(), placed=placed))
        due = due_at(tracked.history, self.settle_s)
        if tracked.history != before or (hinted and due < tracked.due):
            tracked.due = due
            self._enqueue(key)

    def _enqueue(self, key: Key) -> None:
        heapq.heappush(self._queue, (self._tracked[key].due, key))
        self._bell.set()

    # What Ingest asks and answers

    def take(self) -> Offer | None:
        """The file that has been due longest, or None. It is in the caller's hand until `done`, `again` or `rest`."""
        with self._lock:
            while self._queue and self._queue[0][0] <= self._clock():
                due, key = heapq.heappop(self._queue)
                tracked = self._tracked.get(key)
                if tracked is None or tracked.in_hand or tracked.due != due:
                    continue  # an entry of the queue that was overtaken
                tracked.in_hand = True
                ended = tracked.owed is not None and tracked.owed.acknowledged
                self.dropped += not (tracked.counted or ended)
                tracked.counted = not ended
                return _offer(key, tracked)
        return None

    def due_in_s(self) -> float | None:
        """Seconds until `take` has something; None while nothing is in sight."""
        with self._lock:
            return max(0.0, self._queue[0][0] - self._clock()) if self._queue else None

    def done(self, offer: Offer, *, withdrawn: bool = False) -> None:
        """The original is gone from its place. Something new may have come there meanwhile."""
        with self._lock:
            tracked = self._tracked.pop(offer.key, None)
            self.withdrawn += withdrawn
            if tracked is not None and tracked.hinted:
                self._hints.setdefault(offer.key, (offer.root, False))
            if self._beyond and len(self._tracked) < self._limit // 2:
                self._scan_wanted = True
        self._bell.set()

    def again(self, offer: Offer, *, ended: bool = False) -> None:
        """Look at it anew. ``ended``: what was read has its end; what is there now is another drop."""
        with self._lock:
            tracked = self._let_go(offer)
            if tracked is None:
                return
            tracked.counted = tracked.counted and not ended
        self._relook(offer, tracked)

    def later(self, offer: Offer, at: float) -> None:
        """Give it out again at ``at`` (monotonic), or when it changes."""
        with self._lock:
            tracked = self._let_go(offer)
            if tracked is not None:
                tracked.due = at
                self._enqueue(offer.key)

    def rest(self, offer: Offer, owed: Owed | None = None) -> None:
        """Leave it alone for a while, longer each time. ``owed``: it is stored, and this remains to be done."""
        with self._lock:
            tracked = self._tracked.get(offer.key)
            if tracked is None:
                return
            rest_s, tracked.rest_s = tracked.rest_s, min(2 * tracked.rest_s, REST_LIMIT_S)
            if owed is not None:
                tracked.owed = owed
                tracked.counted = tracked.counted and not owed.acknowledged
            self.later(offer, self._clock() + rest_s)

    def _let_go(self, offer: Offer) -> Tracked | None:
        tracked = self._tracked.get(offer.key)
        if tracked is None:
            return None
        tracked.in_hand = False
        tracked.seen_in = self._generation  # a scan that is under way may have missed it under its dot-name
        if tracked.hinted:
            tracked.hinted = False
            self._hints.setdefault(offer.key, (offer.root, False))
        return tracked

    def _relook(self, offer: Offer, tracked: Tracked) -> None:
        try:
            with opened(offer.root.path, offer.folder) as descriptor:
                observation = look(descriptor, offer.name)
        except OSError:
            observation = None
        with self._lock:
            if self._tracked.get(offer.key) is not tracked:
                return
            if observation is None:
                self._forget(offer.key)
                return
            tracked.update(observe(tracked.history, observation, self._clock()))
            tracked.due = due_at(tracked.history, self.settle_s)
            self._enqueue(offer.key)

    def _forget(self, key: Key) -> None:
        tracked = self._tracked.pop(key)
        self.withdrawn += tracked.counted

    def holds(self, key: Key) -> bool:
        """Is this file still in the table?"""
        with self._lock:
            return key in self._tracked

    def wait(self, timeout_s: float) -> None:
        """Until something may have changed, or ``timeout_s`` have passed."""
        if self._bell.wait(timeout_s):
            self._bell.clear()

    def wake(self) -> None:
        self._bell.set()

    @property
    def waiting(self) -> int:
        """Files that are in the inbox, as far as known."""
        with self._lock:
            return len(self._tracked) + self._beyond

    @property
    def scan_wanted(self) -> bool:
        """A scan is due before its time: hints were lost, or the table had overflowed and has room again."""
        return self._scan_wanted

    # Scans

    def scan_once(self) -> Scan:
        """Walk all roots and bring the table up to date."""
        with self._scanning:
            with self._lock:
                self._scan_wanted = False
                self._generation += 1
                generation = self._generation
            tally = _Tally()
            for root in self.roots:
                self._scan_root(root, tally)
            with self._lock:
                self._drop_vanished(generation)
                self._beyond = tally.beyond
                waiting = len(self._tracked) + tally.beyond + tally.leftovers + len(tally.denied)
            return Scan(waiting, tuple(tally.denied), tally.leftovers, tuple(tally.empty))

    def _scan_root(self, root: Root, tally: _Tally) -> None:
        for seen in walk(root.path):
            if isinstance(seen, FileSeen):
                tally.leftovers += name_kind(seen.name) is NameKind.OWN
                tally.beyond += not self._found(root, seen)
            elif isinstance(seen, FolderDenied):
                place = os.fsencode(root.path) + (b"/" + seen.folder if seen.folder else b"")
                tally.denied.append(f"{place.decode('utf-8', 'replace')}: {seen.reason}")
            elif seen.empty:
                tally.empty.append((root, seen))

    def _drop_vanished(self, generation: int) -> None:
        gone = [key for key, tracked in self._tracked.items() if tracked.seen_in < generation and not tracked.in_hand]
        for key in gone:
            self._forget(key)


def _offer(key: Key, tracked: Tracked) -> Offer:
    folder, name = split(key[1])
    history = tracked.history
    return Offer(tracked.root, folder, name, history.observation, history.changed_at, tracked.owed)


def _may_matter(path: bytes) -> bool:
    folder, name = split(path)
    walked = all(folder_is_walked(part) for part in folder.split(b"/") if part)
    return walked and name_kind(name) not in (NameKind.OWN, NameKind.NOT_YET)
