"""The rounds that are made whatever the events say: scans, leftovers, emptied folders, kept originals that expire.

A scan each minute and at the start (each 5 s where no hints come); after it, what it found is acted upon. Any thread
may ask for a scan (``raidctl wait --idle`` has its own); one is made at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from raidd.inbox.custody import Custody
from raidd.inbox.endings import Endings
from raidd.inbox.tidy import EmptyFolders
from raidd.inbox.watch import RESCAN_DEGRADED_S, RESCAN_S, Scan, Watcher

EXPIRE_S = 3600.0


class Rounds:
    """Makes the rounds for one `Watcher`."""

    def __init__(self, watcher: Watcher, custody: Custody, endings: Endings, clock: Callable[[], float]) -> None:
        self._watcher, self._custody, self._endings, self._clock = watcher, custody, endings, clock
        self._empty_folders = EmptyFolders()
        self._lock = threading.Lock()
        self._next_scan = self._next_expiry = float("-inf")
        self._denied: frozenset[str] = frozenset()

    @property
    def denied(self) -> frozenset[str]:
        """Folders that could not be read at the last look, each with the reason."""
        return self._denied

    def due_in_s(self) -> float:
        """Seconds until the next round."""
        next_round = min(self._next_scan, self._next_expiry)
        return 0.0 if self._watcher.scan_wanted else max(0.0, next_round - self._clock())

    def once(self) -> bool:
        """Make a round if one is due."""
        if self.due_in_s() > 0:
            return False
        if self._clock() >= self._next_expiry:
            self._next_expiry = self._clock() + EXPIRE_S
            self._custody.expire_kept()
        if self._watcher.scan_wanted or self._clock() >= self._next_scan:
            self._listen()
            self.scan_once()
        return True

    def _listen(self) -> None:
        self._watcher.notices.keep_alive()
        degraded, complaint = self._watcher.notices.degraded, self._endings.unwatched
        for name, why in degraded.items():
            text = f"the {name} is looked through every {RESCAN_DEGRADED_S:.0f} s instead of being watched: {why}"
            complaint.add(name, text, (name,))
        complaint.settle(complaint.sufferers() - degraded.keys())

    def scan_once(self) -> Scan:
        """One scan and what follows from it."""
        with self._lock:
            scan = self._watcher.scan_once()
            self._next_scan = self._clock() + (RESCAN_DEGRADED_S if self._watcher.notices.degraded else RESCAN_S)
            if scan.leftovers and self._custody.restore_leftovers():
                self._next_scan = self._clock()
            self._empty_folders.tidy_once(scan.empty_folders, self._clock())
            self._report_denied(frozenset(scan.denied))
            return scan

    def _report_denied(self, denied: frozenset[str]) -> None:
        complaint = self._endings.unreadable
        for folder in denied - self._denied:
            complaint.add(folder, f"a folder of the inbox cannot be read: {folder}", (folder,))
        gone = [s for s in complaint.sufferers() if isinstance(s, tuple) and not self._watcher.holds(s)]
        complaint.settle([*(self._denied - denied), *gone])
        self._denied = denied
