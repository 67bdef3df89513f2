"""One event for a trouble that many files share, and one when it is over: not one for each file and retry."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Sequence

Event = Callable[[str, str, str, Sequence[str]], None]


class Complaint:
    """Told of each file that suffers and of each that no longer does. Thread-safe."""

    def __init__(self, event: Event, code: str, over: str) -> None:
        self._event, self._code, self._over = event, code, over
        self._sufferers: set[Hashable] = set()
        self._lock = threading.Lock()

    def add(self, sufferer: Hashable, message: str, objects: Sequence[str] = ()) -> None:
        with self._lock:
            first = not self._sufferers
            self._sufferers.add(sufferer)
        if first:
            self._event(self._code, "warning", message, objects)

    def settle(self, sufferers: Iterable[Hashable]) -> None:
        with self._lock:
            before = len(self._sufferers)
            self._sufferers.difference_update(sufferers)
            over = before > 0 and not self._sufferers
        if over:
            self._event(self._code, "info", self._over, ())

    def sufferers(self) -> frozenset[Hashable]:
        with self._lock:
            return frozenset(self._sufferers)
