"""What the inbox counts, since the start, for status and metrics: read as one frozen `Counters`.

The law: ``dropped = stored + duplicates + rejected + withdrawn`` once nothing waits (withdrawn: the sender took the
file back before raidd had it). `Tally` is thread-safe.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from raidd.inbox.refusals import RefusalCode

BATCH_IMAGES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 4096.0)
BATCH_BYTES = tuple(float(1 << power) for power in range(12, 26))
LATENCY_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)


@dataclass(frozen=True, slots=True)
class Histogram:
    """``counts[i]`` values above ``bounds[i-1]`` and not above ``bounds[i]``, the last above all; ``total``: sum."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


@dataclass(frozen=True, slots=True)
class Counters:
    """One reading. ``rejected`` by refusal code; ``last_stored_at`` is RFC 3339, UTC, None before the first."""

    dropped: int
    stored: int
    duplicates: int
    rejected: Mapping[str, int]
    withdrawn: int
    waiting: int
    last_stored_at: str | None
    batch_images: Histogram
    batch_bytes: Histogram
    acknowledge_s: Histogram
    """From a file's last change (its close, as far as raidd can see) to its acknowledgement."""

    @property
    def rejected_total(self) -> int:
        return sum(self.rejected.values())


class Tally:
    """The running counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stored = 0
        self._duplicates = 0
        self._rejected: Counter[str] = Counter()
        self._last_stored_at: str | None = None
        self._images, self._bytes, self._latency = _Running(BATCH_IMAGES), _Running(BATCH_BYTES), _Running(LATENCY_S)

    def stored(self, at: str, latency_s: float) -> None:
        with self._lock:
            self._stored += 1
            self._last_stored_at = at
            self._latency.add(max(0.0, latency_s))

    def duplicate(self) -> None:
        with self._lock:
            self._duplicates += 1

    def rejected(self, code: RefusalCode) -> None:
        with self._lock:
            self._rejected[code.value] += 1

    def batch(self, images: int, size_bytes: int) -> None:
        with self._lock:
            self._images.add(images)
            self._bytes.add(size_bytes)

    def read(self, dropped: int, withdrawn: int, waiting: int) -> Counters:
        """All at one moment, beside what the watcher counts."""
        with self._lock:
            return Counters(
                dropped,
                self._stored,
                self._duplicates,
                dict(self._rejected),
                withdrawn,
                waiting,
                self._last_stored_at,
                self._images.read(),
                self._bytes.read(),
                self._latency.read(),
            )


class _Running:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def read(self) -> Histogram:
        return Histogram(self._bounds, tuple(self._counts), self._total)
