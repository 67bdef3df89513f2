"""What the array asks of one disk, and the commit rule of one shard (format.md, C1).

Why: everything above speaks to a member through `MemberDisk`, so the same store runs on a real disk (`local_disk`), in
memory, and on a disk that fails where a test wants it to (tests/support). Paths are relative to the member folder and
'/'-separated; nothing outside that folder can be named.

Promises
  - `write_durable` is the only way a shard comes to be. When it returns, the shard survives a power cut under its final
    name; when it raises, at most a leftover exists that its checksums or C5 recognise.
  - Every failure is a `MemberError`; `member_error` is the one table from errno to what it means for the member.
  - Nothing here waits, retries or judges: deadlines belong to `worker`, verdicts to the caller.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from raidd.array.worker import Cancel
from raidd.errors import (
    MemberAway,
    MemberConflict,
    MemberError,
    MemberFaulty,
    MemberFull,
    MemberReadOnly,
    RaiddError,
)

Buffer = bytes | bytearray | memoryview
Names = list[str]

FOLDERS = ("config", "journal", "quarantine", "segments", "tmp")  # format.md, "The member folder"
CANARY_SIZE = 4096
LOCK_SIZE = 256  # the holder's record is rewritten in place, so it needs no room on a full disk


class FileNotThere(MemberError):
    """The member is fine; this file is not on it."""

    next_step = "Nothing to do by hand: raidd re-creates what is missing from the other members."


@dataclass(frozen=True, slots=True)
class Space:
    """Room on the member's file system. `free_bytes` is what an ordinary user may still take (f_bavail)."""

    size_bytes: int
    free_bytes: int
    free_inodes: int  # sys.maxsize where the file system has no fixed number (btrfs)
    read_only: bool


class DiskFile(Protocol):
    """A file being written, by one thread, from its start to its end."""

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append all of `buffers`."""

    def sync(self) -> None:
        """fdatasync. After an error nothing is known of what was written: never call it again on this file."""

    def length(self) -> int:
        """Bytes the file has now, as the file system sees it."""

    def close(self) -> None:
        """Give the descriptor back; calling it twice is fine."""


class MemberDisk(Protocol):
    """One member's folder. Each call stands alone and may be made from any thread; each may block for as long as the
    disk pleases, so only a `worker.Worker` calls it."""

    @property
    def uuid(self) -> UUID: ...

    @property
    def path(self) -> str:
        """The mount's folder the operator gave; the member folder is `path`/raidd-<uuid>."""

    def create(self, path: str, length: int) -> DiskFile:
        """A new file with room for `length` bytes reserved. MemberConflict if the name is taken."""

    def rename_new(self, source: str, target: str) -> None:
        """Rename without ever replacing: MemberConflict if `target` exists. FileNotThere if `source` does not."""

    def replace(self, path: str, data: bytes) -> None:
        """Put a small file in place whole and durably: after a power cut it is the old one or the new one."""

    def append(self, path: str, data: bytes) -> None:
        """Add `data` at the end, durably; folders and file are made when new."""

    def overwrite(self, path: str, offset: int, data: bytes) -> None:
        """Write in place, durably, within an existing file."""

    def read(self, path: str, offset: int = 0, length: int = -1, *, uncached: bool = False) -> bytes:
        """Up to `length` bytes (-1: to the end); fewer at the end of the file. `uncached` asks the disk itself."""

    def read_into(self, path: str, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` from `offset` on; returns how many bytes there were (fewer only at the end of the file)."""

    def length(self, path: str) -> int:
        """The file's length in bytes, by its name."""

    def list(self, path: str) -> Names:
        """Sorted names in a folder, folders with a '/' at the end; [] if the folder is not there."""

    def make_folders(self, path: str) -> Names:
        """Make the folder and those above it. Returns, from the top, those not yet known to be durable: the new ones,
        and those that an earlier attempt or process made and may never have synced."""

    def sync_folder(self, path: str) -> None:
        """fsync of a folder: the names in it are durable. A dead XFS answers with success (faults.md)."""

    def sync_all(self) -> None:
        """syncfs: everything written to this member so far is durable."""

    def unlink(self, path: str) -> None:
        """Remove a file; one that is not there is fine. Not durable until the folder is synced."""

    def space(self) -> Space: ...

    def check(self) -> None:
        """The member folder is at its path and on its own device; MemberAway otherwise. Proves nothing about I/O."""


def parent_folder(path: str) -> str:
    """'a/b/c' -> 'a/b'; '' is the member folder itself."""
    return path.rpartition("/")[0]


def write_durable(disk: MemberDisk, temporary: str, target: str, buffers: Sequence[Buffer], cancel: Cancel) -> None:
    """C1: make one shard durable under its final name, or raise.

    `buffers` are the file's bytes in order. MemberConflict if `target` exists: one id has one content for ever, so
    whoever asked twice has to look first. Cancelled when abandoned meanwhile: it is asked before every step, so a disk
    that wakes up after its deadline renames nothing. After a raise, nothing may be concluded about `target`.
    """
    length = sum(memoryview(buffer).nbytes for buffer in buffers)
    cancel.check()
    file = disk.create(temporary, length)  # exclusive, and with its room reserved: a full disk says so before the data
    try:
        try:
            folders = _write_and_rename(disk, file, temporary, target, buffers, length, cancel)
        finally:
            file.close()
    except RaiddError:
        with suppress(RaiddError):  # the room it took would be missed; the first error is the one that counts
            disk.unlink(temporary)
        raise
    for folder in folders:  # from the top: a name is durable only when each folder above it is
        cancel.check()
        disk.sync_folder(folder)
    cancel.check()
    _confirm(disk, target, length)  # a dying XFS syncs folders with success and forgets the name: tried


def _write_and_rename(
    disk: MemberDisk,
    file: DiskFile,
    temporary: str,
    target: str,
    buffers: Sequence[Buffer],
    length: int,
    cancel: Cancel,
) -> Names:
    """Up to the fdatasync; returns the folders whose fsync is still owed, from the top."""
    cancel.check()
    file.write(buffers)
    cancel.check()
    if (written := file.length()) != length:  # a file system that took less without an error
        raise MemberFaulty(f"{temporary} has {written} bytes after {length} were written", member=str(disk.uuid))
    cancel.check()
    folder = parent_folder(target)
    unsynced = disk.make_folders(folder)
    cancel.check()
    disk.rename_new(
        temporary, target
    )  # before the fdatasync: one journal flush serves both (24 -> 12 flushes a commit)
    cancel.check()
    file.sync()  # the bytes; never repeated after an error, the kernel may have dropped them
    return [*map(parent_folder, unsynced), folder]


def _confirm(disk: MemberDisk, target: str, length: int) -> None:
    try:
        found = disk.length(target)
    except FileNotThere as error:
        raise MemberFaulty(f"{target} vanished after its folder was synced", member=str(disk.uuid)) from error
    if found != length:
        raise MemberFaulty(f"{target} has {found} bytes, {length} were made durable", member=str(disk.uuid))


def quarantine(disk: MemberDisk, path: str, reason: str, now: str) -> str:
    """Move a file into quarantine/ beside a NAME.reason.txt, durably and overwriting nothing; returns its new path.

    `now` is an RFC 3339 time for the reason file. FileNotThere if `path` is not there (any more).
    """
    disk.make_folders("quarantine")
    name = path.rpartition("/")[2]
    taken = {entry.rstrip("/") for entry in disk.list("quarantine")}
    number, target = 1, name
    while target in taken or f"{target}.reason.txt" in taken:
        number += 1
        target = f"{name}.{number}"
    moved = f"quarantine/{target}"
    disk.rename_new(path, moved)
    text = f"{now}\n{path}\n{reason}\n"
    disk.replace(f"{moved}.reason.txt", text.encode("utf-8", "replace"))  # syncs quarantine/, and so the move into it
    disk.sync_folder(parent_folder(path))
    return moved


_AWAY = {errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ESTALE, errno.ENOMEDIUM, errno.ENOTDIR}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_STRANGE_FILES = {errno.ELOOP: "a link inside the member folder", errno.EXDEV: "a mount inside the member folder"}
_HOST = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_DENIED = {errno.EACCES, errno.EPERM}


def member_error(error: OSError, action: str, member: str) -> RaiddError:
    """What an errno of a member's file system means for the member. `action` is "read segments/…" and the like.

    Running out of descriptors or memory is the host's trouble: a plain RaiddError that condemns no disk.
    """
    code = error.errno or 0
    said = f"{action}: {os.strerror(code) if code else error} [{errno.errorcode.get(code, code)}]"
    if code in _HOST:
        return RaiddError(said, next_step="The host is short of memory or file descriptors, no disk is at fault.")
    if code == errno.ENOENT:
        return FileNotThere(said, member=member)
    if code == errno.EEXIST:
        return MemberConflict(said, member=member)
    if code == errno.EROFS:
        return MemberReadOnly(said, member=member)
    if code in _FULL:
        return MemberFull(said, member=member)
    if code in _AWAY:
        return MemberAway(said, member=member)
    if code in _STRANGE_FILES:
        return MemberFaulty(f"{said}: {_STRANGE_FILES[code]} is refused", member=member)
    if code in _DENIED:
        step = "The member folder must belong to the user raidd runs as: chown -R raidd: MOUNT/raidd-*"
        return MemberFaulty(said, member=member, next_step=step)
    return MemberFaulty(said, member=member)
