"""Page-aligned payload buffers, reused, and never while a disk may still read from them.

Why: the first touch of fresh pages costs more than the erasure code, and O_DIRECT wants page alignment; so a few large
buffers go round. A write stuck on a hung disk takes whatever is in its buffer when it goes through, hours later:
a buffer returns to the pool only when everybody who holds it has let go, abandoned operations included.

Promise: memory is bounded by `count` × `capacity_bytes`; with every buffer held by hung disks, `lease` gives None, and
the caller's images wait.
"""

from __future__ import annotations

import mmap
import threading
import time


class Lease:
    """One buffer in use. The taker has one hold; `hold` adds one, `release` drops one. Any thread may call either:
    `operation.add_done_callback(lambda _: lease.release())` after `lease.hold()` ties it to a disk operation."""

    def __init__(self, pool: BufferPool, memory: mmap.mmap) -> None:
        self.buffer = memoryview(memory)
        self._pool = pool
        self._memory = memory
        self._holds = 1
        self._lock = threading.Lock()

    def hold(self) -> None:
        with self._lock:
            if self._holds == 0:
                raise RuntimeError("this buffer has been given back already")
            self._holds += 1

    def release(self) -> None:
        with self._lock:
            if self._holds == 0:
                raise RuntimeError("released more often than held")
            self._holds -= 1
            if self._holds:
                return
        self.buffer.release()  # a stale reference fails loudly instead of writing into somebody else's payload
        self._pool._give_back(self._memory)


class BufferPool:
    """`count` buffers of `capacity_bytes` (rounded up to whole pages), made when first needed."""

    def __init__(self, capacity_bytes: int, count: int) -> None:
        self.capacity_bytes = -(-capacity_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.count = count
        self._free: list[mmap.mmap] = []
        self._made = 0
        self._returned = threading.Condition()

    def lease(self, timeout_s: float | None = None) -> Lease | None:
        """A buffer with whatever was in it before; None if none came free within `timeout_s` (None: wait for ever)."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        with self._returned:
            while not self._free and self._made == self.count:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._returned.wait(left)
            return Lease(self, self._free.pop() if self._free else self._make())

    def in_use(self) -> int:
        with self._returned:
            return self._made - len(self._free)

    def _make(self) -> mmap.mmap:
        self._made += 1
        return mmap.mmap(-1, self.capacity_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def _give_back(self, memory: mmap.mmap) -> None:
        with self._returned:
            self._free.append(memory)
            self._returned.notify()
