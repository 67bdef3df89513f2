"""All locks of this process: state_dir's, and each member's while it is used.

A member's lock is known by the member, not by its path: a disk may come back at another mount, or another mount may
lie at its path. So whoever takes a member's lock first drops what was held for it, and takes it where the disk is now.

Promises: dropping never blocks, whatever the disk does, so that it can be done wherever a member is given up: the lock
is let go at once, the file is closed by a thread of its own (which a hung disk may keep). Any thread may call anything.
"""

from __future__ import annotations

import threading
from uuid import UUID

from raidd.array.local_disk import member_folder
from raidd.array.lock import ArrayLock
from raidd.array.member_disk import MemberDisk
from raidd.array.worker import Cancel, Cancelled


class Locks:
    """See the module."""

    def __init__(self) -> None:
        self._places: dict[str, ArrayLock] = {}
        self._members: dict[UUID, ArrayLock] = {}
        self._lock = threading.Lock()

    def take_folder(self, folder: str) -> ArrayLock:
        """A folder's lock, state_dir's, until the end. ArrayLocked if another process has it."""
        lock = ArrayLock.acquire(folder)
        self._places[folder] = lock
        return lock

    def take(self, disk: MemberDisk, cancel: Cancel | None = None) -> None:
        """The member's lock, at the path where its disk is now. May block: on that member's worker.

        ArrayLocked, MemberError, Cancelled: none is held then. Who gives up raises ``cancel`` first, then drops:
        so none is left, whichever of the two comes first here."""
        self.drop(disk.uuid)
        cancel = cancel or Cancel()
        lock = ArrayLock.acquire(member_folder(disk.path, disk.uuid), member=str(disk.uuid), cancel=cancel)
        with self._lock:
            self._members[disk.uuid] = lock
        try:
            cancel.check()
        except Cancelled:
            self.drop(disk.uuid)
            raise

    def drop(self, member: UUID) -> None:
        """Nothing of this member stays locked or open. At once; nothing happens if it has no lock."""
        with self._lock:
            lock = self._members.pop(member, None)
        if lock is not None:
            lock.unlock()
            threading.Thread(target=lock.release, name=f"close {str(member)[:8]}", daemon=True).start()

    def members(self) -> frozenset[UUID]:
        """Whose lock is held."""
        with self._lock:
            return frozenset(self._members)

    def unlock_all(self, *, keep_folders: bool = False) -> None:
        """At the end of the process: without blocking, and closing nothing. With ``keep_folders`` state_dir's lock
        ends with the process: if a hung disk keeps that from ending, the next start sees a dead holder."""
        for lock in self._held():
            if not (keep_folders and lock in self._places.values()):
                lock.unlock()

    def release_all(self) -> None:
        """The same for a process that goes on: closes the files, too, and may block on a hung disk."""
        for lock in self._held():
            lock.release()
        self._members.clear()
        self._places.clear()

    def _held(self) -> list[ArrayLock]:
        with self._lock:
            return [*self._members.values(), *self._places.values()]
