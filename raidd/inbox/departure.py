"""A file's new place outside the watched tree: linked where possible, else copied; durable, never overwriting.

Used for refused files and kept originals. The caller holds the file under a dot-name and unlinks it afterwards, so
until then there are two names for it and a crash loses nothing. A copy grows under ``.raidd-<16 hex>.copy`` and gets
its name when it is complete and on the disk. Functions raise OSError.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator

from raidd.inbox.folders import rename_new
from raidd.inbox.names import numbered, shortened

REASON_ENDING = b".reason.txt"
_COPY_SIZE = 4 * 1024 * 1024
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_COPY_INSTEAD = frozenset(
    {
        errno.EXDEV,  # another file system
        errno.EPERM,  # no links there, or fs.protected_hardlinks and the file is not ours
        errno.EACCES,
        errno.EMLINK,
        errno.EOPNOTSUPP,
        errno.ENOSYS,
        errno.EINVAL,
    }
)


def bring(source: int, held: bytes, target: int, wanted: bytes, reason: bytes | None = None) -> bytes:
    """Give ``held`` (in folder ``source``) a second, durable existence in folder ``target``.

    It is called ``wanted``, or ``wanted-2``… when that is taken; with ``reason``, a file ``NAME.reason.txt`` holds it.
    Returns the name.
    """
    status = os.stat(held, dir_fd=source, follow_symlinks=False)
    if stat.S_ISREG(status.st_mode):
        _sync(source, held)  # the sender may never have flushed what is now the only copy
    try:
        name = _first_free(wanted, lambda name: _link(source, held, target, name))
    except OSError as error:
        if error.errno not in _COPY_INSTEAD:
            raise
        name = _first_free(wanted, lambda name: _recreate(source, held, status, target, name))
    if reason is not None:
        write_reason(target, name, reason, held + b".copy")
    os.fsync(target)
    return name


def write_reason(target: int, name: bytes, reason: bytes, temporary: bytes) -> None:
    """``NAME.reason.txt``, whole or not there."""
    _write_new(target, temporary, iter((reason,)))
    _first_free(reason_name(name), lambda free: rename_new(target, temporary, target, free))


def reason_name(name: bytes) -> bytes:
    """The reason file that belongs to a refused file."""
    return shortened(name, REASON_ENDING)


def _first_free(wanted: bytes, make: Callable[[bytes], None]) -> bytes:
    """Call ``make`` with one name after the other until none says FileExistsError."""
    for name in _candidates(wanted):
        try:
            make(name)
        except FileExistsError:
            continue
        return name
    raise FileExistsError(errno.EEXIST, "no free name", wanted)


def _candidates(wanted: bytes) -> Iterator[bytes]:
    yield shortened(wanted, b"")
    for number in range(2, 10):
        yield numbered(wanted, number)
    while True:
        yield numbered(wanted, os.urandom(8).hex())


def _link(source: int, held: bytes, target: int, name: bytes) -> None:
    os.link(held, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)


def _recreate(source: int, held: bytes, status: os.stat_result, target: int, name: bytes) -> None:
    """What a link could not do: the same thing made anew. Sockets and devices cannot be: EOPNOTSUPP."""
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(held, dir_fd=source), name, dir_fd=target)
    elif stat.S_ISFIFO(status.st_mode):
        os.mkfifo(name, 0o640, dir_fd=target)
    elif stat.S_ISREG(status.st_mode):
        _copy(source, held, status, target, name)
    else:
        raise OSError(errno.EOPNOTSUPP, "a socket or device cannot be moved to another file system")


def _copy(source: int, held: bytes, status: os.stat_result, target: int, name: bytes) -> None:
    temporary = held + b".copy"
    descriptor = os.open(held, _READ, dir_fd=source)
    try:
        _write_new(target, temporary, iter(lambda: os.read(descriptor, _COPY_SIZE), b""))
        os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=target, follow_symlinks=False)
    finally:
        os.close(descriptor)
    try:
        rename_new(target, temporary, target, name)
    except FileExistsError:
        os.unlink(temporary, dir_fd=target)
        raise


def _write_new(folder: int, name: bytes, pieces: Iterator[bytes]) -> None:
    descriptor = os.open(name, _MAKE, 0o640, dir_fd=folder)
    try:
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    except OSError:
        os.unlink(name, dir_fd=folder)
        raise
    finally:
        os.close(descriptor)


def _sync(folder: int, name: bytes) -> None:
    try:
        descriptor = os.open(name, _READ, dir_fd=folder)
    except PermissionError:
        return  # it may be moved although it may not be read
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
