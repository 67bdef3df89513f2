"""The Linux system calls that Python's `os` lacks: openat2, renameat2, fallocate, syncfs, mount, umount2.

Why: safe resolution inside a member folder, renaming without replacing, reserving room without glibc's fallback of
writing zeros, syncing one file system, and looking at a disk that nobody has mounted. Through ctypes, which lets other
threads run while a disk blocks.
Each raises OSError as `os` would, and is repeated when a signal interrupts it (PEP 475).
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from typing import Any

RESOLVE_NO_XDEV = 0x01  # openat2(2): mounts below the start are refused (EXDEV)
RESOLVE_NO_SYMLINKS = 0x04  # … links (ELOOP)
RESOLVE_BENEATH = 0x08  # … everything that leads outside
RENAME_NOREPLACE = 1
FALLOC_FL_KEEP_SIZE = 1
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MNT_DETACH = 2
_SYS_OPENAT2 = 437  # the same number on every architecture

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _call(function: Callable[..., Any], *arguments: Any) -> int:
    while True:
        result = int(function(*arguments))
        if result >= 0:
            return result
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def _symbol(name: str) -> Callable[..., Any]:
    function: Callable[..., Any] | None = getattr(_libc, name, None)
    if function is None:
        raise OSError(errno.ENOSYS, f"the C library has no {name}")
    return function


def openat2(folder: int, path: str, flags: int, mode: int, resolve: int) -> int:
    """openat2(2): a new descriptor. ENOSYS before Linux 5.6, EPERM under an old container's filter."""
    how = _OpenHow(flags, mode, resolve)
    encoded = ctypes.c_char_p(os.fsencode(path))
    size = ctypes.c_size_t(ctypes.sizeof(how))
    return _call(_libc.syscall, ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(folder), encoded, ctypes.byref(how), size)


def rename_noreplace(source_folder: int, source: str, target_folder: int, target: str) -> None:
    """renameat2(2) with RENAME_NOREPLACE. EEXIST if taken, EINVAL or ENOSYS where it is not supported."""
    names = (ctypes.c_char_p(os.fsencode(source)), ctypes.c_char_p(os.fsencode(target)))
    _call(
        _symbol("renameat2"),
        ctypes.c_int(source_folder),
        names[0],
        ctypes.c_int(target_folder),
        names[1],
        ctypes.c_uint(RENAME_NOREPLACE),
    )


def fallocate_keep_size(file: int, length: int) -> None:
    """fallocate(2) of 0…length that reserves room; the length still counts only what is written."""
    offset, size = ctypes.c_int64(0), ctypes.c_int64(length)
    _call(_symbol("fallocate64"), ctypes.c_int(file), ctypes.c_int(FALLOC_FL_KEEP_SIZE), offset, size)


def syncfs(folder: int) -> None:
    """syncfs(2): the whole file system that holds `folder` (reports write-back errors since Linux 5.8)."""
    _call(_symbol("syncfs"), ctypes.c_int(folder))


def mount_to_look(device: str, folder: str, filesystem: str, options: str) -> None:
    """mount(2), read-only, with nothing on it that could run or grant rights."""
    flags = ctypes.c_ulong(MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    texts = [ctypes.c_char_p(os.fsencode(text)) for text in (device, folder, filesystem, options)]
    _call(_symbol("mount"), *texts[:3], flags, texts[3])


def unmount(folder: str) -> None:
    """umount2(2) with MNT_DETACH: the folder is free at once, also if the disk hangs."""
    _call(_symbol("umount2"), ctypes.c_char_p(os.fsencode(folder)), ctypes.c_int(MNT_DETACH))
