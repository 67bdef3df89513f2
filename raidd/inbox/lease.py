"""Ask the kernel whether anybody has a file open for writing: a read lease, taken and given back.

``fcntl(F_SETLEASE, F_RDLCK)`` is granted only while no writer has the file open (fcntl(2), "Leases"). It answers

- EAGAIN: somebody is writing;
- EACCES: the file is not ours and we lack CAP_LEASE; EINVAL, EOPNOTSUPP…: not on this file system (network,
  FUSE). Then nothing is known, and ``settle_s`` alone decides.

A writer that opens while the lease is held makes the kernel send the holder a signal, SIGIO unless told
otherwise, whose default kills the process. `F_SETSIG` makes it SIGURG, whose default is to be ignored: no
handler has to be installed, which only the main thread could do.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import signal
from collections.abc import Iterator
from enum import Enum, auto


class Writers(Enum):
    """What the kernel knows about writers of a file."""

    NONE = auto()
    SOME = auto()
    UNKNOWN = auto()


@contextlib.contextmanager
def read_lease(descriptor: int) -> Iterator[Writers]:
    """Hold a read lease on a descriptor opened read-only (-1: none), as far as the file system allows."""
    writers = _take(descriptor)
    try:
        yield writers
    finally:
        if writers is Writers.NONE:
            with contextlib.suppress(OSError):  # a lease that was broken meanwhile is gone already
                fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def writers_of(descriptor: int) -> Writers:
    """The same question, the lease given back at once."""
    with read_lease(descriptor) as writers:
        return writers


def _take(descriptor: int) -> Writers:
    if descriptor < 0:
        return Writers.UNKNOWN
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return Writers.SOME if error.errno == errno.EAGAIN else Writers.UNKNOWN
    return Writers.NONE
