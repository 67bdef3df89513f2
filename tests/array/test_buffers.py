from __future__ import annotations

import ctypes
import mmap
import threading

import pytest

from raidd.array.buffers import BufferPool


def test_buffers_are_page_aligned_and_whole_pages() -> None:
    lease = BufferPool(5000, 1).lease()
    assert lease is not None
    assert lease.buffer.nbytes == 2 * mmap.PAGESIZE
    assert ctypes.addressof(ctypes.c_char.from_buffer(lease.buffer)) % mmap.PAGESIZE == 0


def test_the_pool_never_gives_more_than_its_count() -> None:
    pool = BufferPool(1, 2)
    first, second = pool.lease(), pool.lease()
    assert first is not None
    assert second is not None
    assert pool.lease(timeout_s=0) is None
    assert pool.in_use() == 2
    first.release()
    assert pool.in_use() == 1
    assert pool.lease(timeout_s=0) is not None


def test_a_buffer_is_reused_only_when_every_hold_is_gone() -> None:
    pool = BufferPool(1, 1)
    lease = pool.lease()
    assert lease is not None
    lease.hold()  # a disk operation that hangs
    lease.release()  # the store has given the batch up
    assert pool.lease(timeout_s=0) is None
    lease.buffer[0] = 1  # the late operation may still look at it
    lease.release()
    assert pool.lease(timeout_s=0) is not None


def test_a_stale_reference_fails_instead_of_writing_into_the_next_payload() -> None:
    pool = BufferPool(1, 1)
    stale = pool.lease()
    assert stale is not None
    stale.release()
    with pytest.raises(ValueError, match="released"):
        stale.buffer[0] = 1


def test_holding_or_releasing_what_was_given_back_is_a_bug() -> None:
    lease = BufferPool(1, 1).lease()
    assert lease is not None
    lease.release()
    for wrong in (lease.release, lease.hold):
        with pytest.raises(RuntimeError):
            wrong()


def test_a_waiter_gets_the_buffer_that_comes_back() -> None:
    pool = BufferPool(1, 1)
    first = pool.lease()
    assert first is not None
    got = []
    waiter = threading.Thread(target=lambda: got.append(pool.lease(timeout_s=20)))
    waiter.start()
    first.release()
    waiter.join()
    assert got[0] is not None


def test_buffers_are_made_only_when_needed_and_then_reused() -> None:
    pool = BufferPool(1, 8)
    for _ in range(5):
        lease = pool.lease()
        assert lease is not None
        lease.release()
    assert pool._made == 1
