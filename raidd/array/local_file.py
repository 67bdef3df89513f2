"""The bytes of one open file: written without a copy, read exactly, from the cache or from the disk itself.

Why apart: `local_disk` decides which file may be touched; here is how. `LocalFile` is the `DiskFile` of a mounted file
system. The functions take descriptors and raise OSError: the caller is the edge that translates.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from raidd.array import syscalls
from raidd.array.member_disk import Buffer, member_error

_IOV_MAX = os.sysconf("SC_IOV_MAX")
_NO_FALLOCATE = {errno.EOPNOTSUPP, errno.ENOSYS}


class LocalFile:
    """A file under construction. One thread; a crash leaves it in tmp/, where a start clears it."""

    def __init__(self, file: int, path: str, member: str) -> None:
        self._file = file
        self._path = path
        self._member = member
        self._position = 0

    def write(self, buffers: Sequence[Buffer]) -> None:
        with self._asked("write"):
            self._position += write_all(self._file, buffers, self._position)

    def sync(self) -> None:
        with self._asked("fdatasync"):
            os.fdatasync(self._file)
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)  # nobody reads a shard soon: keep the cache

    def length(self) -> int:
        with self._asked("fstat"):
            return os.fstat(self._file).st_size

    def close(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            with self._asked("close"):
                os.close(file)

    @contextmanager
    def _asked(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise member_error(error, f"{action} {self._path}", self._member) from error


def reserve(file: int, length: int) -> None:
    """Take the room for `length` bytes now, where the file system can."""
    if length == 0:
        return
    try:
        syscalls.fallocate_keep_size(file, length)
    except OSError as error:
        if error.errno not in _NO_FALLOCATE:
            raise


def write_all(file: int, buffers: Sequence[Buffer], offset: int) -> int:
    """pwritev until everything is written; returns the number of bytes. No copy is made of any buffer."""
    views = [view for buffer in buffers if (view := memoryview(buffer).cast("B")).nbytes]
    total, first = 0, 0
    while first < len(views):
        written = os.pwritev(file, views[first : first + _IOV_MAX], offset + total)
        if written == 0:  # not possible by the standard; looping for ever would be worse than an error
            raise OSError(errno.EIO, "write took no bytes")
        total += written
        while first < len(views) and written >= views[first].nbytes:
            written -= views[first].nbytes
            first += 1
        if written:
            views[first] = views[first][written:]
    return total


def fill(file: int, offset: int, buffer: memoryview) -> int:
    """Read into all of `buffer`; returns how many bytes there were before the end of the file."""
    view, done = buffer.cast("B"), 0
    while done < view.nbytes:
        got = os.preadv(file, [view[done:]], offset + done)
        if got == 0:
            break
        done += got
    return done


def read_range(file: int, offset: int, length: int) -> bytes:
    """`length` bytes (-1: to the end) through the page cache."""
    wanted = _wanted(file, offset, length)
    data = bytearray(wanted)
    got = fill(file, offset, memoryview(data))
    return bytes(memoryview(data)[:got])


def read_direct(file: int, offset: int, length: int) -> bytes:
    """O_DIRECT wants offset, length and memory aligned: read the pages around and cut out."""
    wanted = _wanted(file, offset, length)
    if wanted == 0:
        return b""
    page = mmap.PAGESIZE
    start = offset // page * page
    with mmap.mmap(-1, -(-(offset + wanted - start) // page) * page) as memory, memoryview(memory) as view:
        got = 0
        while got < view.nbytes:
            more = os.preadv(file, [view[got:]], start + got)
            got += more
            if more == 0 or got % page:  # the end of the file; going on from an odd offset is not allowed
                break
        return bytes(view[offset - start : min(got, offset - start + wanted)])


def _wanted(file: int, offset: int, length: int) -> int:
    """Never more than the file holds: a huge `length` allocates nothing."""
    left = max(0, os.fstat(file).st_size - offset)
    return left if length < 0 else min(length, left)
