"""Which SOP Instance UIDs are on their way into the array, and who waits for them.

Two files with one UID must not be in flight together: the second could not tell whether it is a duplicate, nor which
version it is. It waits until the first has its end and is then looked at again. Thread-safe; bounded by the table of
files (`Watcher`), each of which waits for one UID at most.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from raidd.inbox.intake import Offer


class Claims:
    def __init__(self) -> None:
        self._waiting: dict[str, list[Offer]] = {}
        self._lock = threading.Lock()

    def claim(self, uid: str, offer: Offer) -> bool:
        """Take the UID for ``offer``. False when it is taken: then the offer is kept until `release`."""
        with self._lock:
            if uid in self._waiting:
                self._waiting[uid].append(offer)
                return False
            self._waiting[uid] = []
            return True

    def release(self, uids: Iterable[str]) -> list[Offer]:
        """Let the UIDs go; returns the offers that waited for them."""
        with self._lock:
            return [offer for uid in uids for offer in self._waiting.pop(uid, [])]
