"""A member on a mounted file system.

Why so strict: a mount can vanish or be swapped under a running daemon, and then the same path means the system's own
disk or a stranger's. So nothing is remembered between calls but the device number: every operation opens the member
folder anew by its full path, compares st_dev, and goes on from that descriptor. Below it neither links nor mounts are
followed (openat2; by hand, component by component, where the kernel or a filter lacks it).

Promises: what is not this member is never written to; an OSError leaves only as a MemberError; descriptors are closed
before a call returns (a `DiskFile` at its `close`), so that a member nobody uses can be unmounted.

Thread-safe. The set of names known to be durable is only a saving: losing it costs a few folder syncs.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from secrets import token_hex
from uuid import UUID

from raidd.array import syscalls
from raidd.array.local_file import LocalFile, fill, read_direct, read_range, reserve, write_all
from raidd.array.member_disk import FileNotThere, MemberDisk, Names, Space, member_error, parent_folder
from raidd.errors import MemberAway, MemberFaulty, RaiddError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_CLOEXEC
_NO_OPENAT2 = {errno.ENOSYS, errno.EPERM}
_NO_NOREPLACE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_FILE_MODE, _FOLDER_MODE = 0o600, 0o700


def member_folder(path: str, uuid: UUID) -> str:
    """Where a member lives below the mount's folder: the identity is in the path."""
    return f"{path.rstrip('/')}/raidd-{uuid}"


class LocalDisk(MemberDisk):
    """See the module. `device` is the st_dev this member must be on; None: taken from the first success."""

    def __init__(self, path: str, uuid: UUID, device: int | None = None) -> None:
        self._path = path
        self._uuid = uuid
        self._device = device
        self._member = str(uuid)
        self._names = _DurableNames()

    @property
    def uuid(self) -> UUID:
        return self._uuid

    @property
    def path(self) -> str:
        return self._path

    @property
    def device(self) -> int | None:
        return self._device

    def create(self, path: str, length: int) -> LocalFile:
        with self._asked(f"create {path}"), self._parent(path) as (folder, name):
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE, dir_fd=folder)
            try:
                reserve(file, length)
            except OSError:
                os.close(file)
                with suppress(OSError):  # it holds what room there was
                    os.unlink(name, dir_fd=folder)
                raise
            return LocalFile(file, path, self._member)

    def rename_new(self, source: str, target: str) -> None:
        with (
            self._asked(f"rename {source} to {target}"),
            self._member_folder() as member,
            self._parent(source, member) as (source_folder, source_name),
            self._parent(target, member) as (target_folder, target_name),
        ):
            try:
                syscalls.rename_noreplace(source_folder, source_name, target_folder, target_name)
            except OSError as error:
                if error.errno not in _NO_NOREPLACE:
                    raise
                os.link(
                    source_name, target_name, src_dir_fd=source_folder, dst_dir_fd=target_folder, follow_symlinks=False
                )
                os.unlink(source_name, dir_fd=source_folder)

    def replace(self, path: str, data: bytes) -> None:
        temporary = f"tmp/{path.rpartition('/')[2]}-{token_hex(8)}"  # there, so that a start clears it after a crash
        unsynced = [*self.make_folders("tmp"), *self.make_folders(parent_folder(path))]
        file = self.create(temporary, len(data))
        try:
            try:
                file.write([data])
                file.sync()
            finally:
                file.close()
            self._rename_over(temporary, path)
        except RaiddError:
            with suppress(RaiddError):
                self.unlink(temporary)
            raise
        for folder in dict.fromkeys([*map(parent_folder, unsynced), parent_folder(path)]):
            self.sync_folder(folder)

    def _rename_over(self, source: str, target: str) -> None:
        with (
            self._asked(f"rename {source} over {target}"),
            self._member_folder() as member,
            self._parent(source, member) as (source_folder, source_name),
            self._parent(target, member) as (target_folder, target_name),
        ):
            os.rename(source_name, target_name, src_dir_fd=source_folder, dst_dir_fd=target_folder)

    def append(self, path: str, data: bytes) -> None:
        folders = [*self.make_folders(parent_folder(path))]
        with self._asked(f"append to {path}"), self._opened(path, os.O_WRONLY | os.O_CREAT) as file:
            before = os.fstat(file).st_size
            if before == 0:
                self._names.made(path)  # new, or as good as new
            else:
                self._names.found(path)
            try:
                write_all(file, [data], before)
            except OSError:
                with suppress(OSError):  # half a line would only have to be healed later
                    os.ftruncate(file, before)
                raise
            os.fdatasync(file)
        owed = folders if self._names.durable(path) else [*folders, path]
        for folder in dict.fromkeys(map(parent_folder, owed)):
            self.sync_folder(folder)

    def overwrite(self, path: str, offset: int, data: bytes) -> None:
        with self._asked(f"overwrite {path}"), self._opened(path, os.O_WRONLY) as file:
            write_all(file, [data], offset)
            os.fdatasync(file)

    def read(self, path: str, offset: int = 0, length: int = -1, *, uncached: bool = False) -> bytes:
        with self._asked(f"read {path}"):
            if uncached:
                return self._read_uncached(path, offset, length)
            with self._opened(path, _READ) as file:
                return read_range(file, offset, length)

    def _read_uncached(self, path: str, offset: int, length: int) -> bytes:
        try:
            with self._opened(path, _READ | os.O_DIRECT) as file:
                return read_direct(file, offset, length)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
        with self._opened(path, _READ) as file:  # a file system without O_DIRECT: at least drop what is clean
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            return read_range(file, offset, length)

    def read_into(self, path: str, offset: int, buffer: memoryview) -> int:
        with self._asked(f"read {path}"), self._opened(path, _READ) as file:
            return fill(file, offset, buffer)

    def length(self, path: str) -> int:
        with self._asked(f"stat {path}"), self._opened(path, os.O_PATH) as file:
            return os.fstat(file).st_size

    def list(self, path: str) -> Names:
        try:
            with self._asked(f"list {path}"), self._folder(path) as folder, os.scandir(folder) as entries:
                return sorted(e.name + "/" if e.is_dir(follow_symlinks=False) else e.name for e in entries)
        except FileNotThere:
            return []

    def make_folders(self, path: str) -> Names:
        unsynced: Names = []
        with self._asked(f"make folder {path}"), self._member_folder() as member:
            for folder in _prefixes(path):
                with self._parent(folder, member) as (above, name):
                    try:
                        os.mkdir(name, _FOLDER_MODE, dir_fd=above)
                        self._names.made(folder)
                    except FileExistsError:
                        self._names.found(folder)
                if not self._names.durable(folder):
                    unsynced.append(folder)
        return unsynced

    def sync_folder(self, path: str) -> None:
        with self._asked(f"sync folder {path}"), self._folder(path) as folder:
            owed = self._names.owed(path)
            os.fsync(folder)
            self._names.synced(owed)

    def sync_all(self) -> None:
        with self._asked("sync the file system"), self._folder("") as folder:
            owed = self._names.owed(None)
            syscalls.syncfs(folder)
            self._names.synced(owed)

    def unlink(self, path: str) -> None:
        with suppress(FileNotThere), self._asked(f"unlink {path}"), self._parent(path) as (folder, name):
            os.unlink(name, dir_fd=folder)

    def space(self) -> Space:
        with self._asked("ask for space"), self._member_folder() as member:
            answer = os.fstatvfs(member)
        return Space(
            size_bytes=answer.f_blocks * answer.f_frsize,
            free_bytes=answer.f_bavail * answer.f_frsize,
            free_inodes=answer.f_favail if answer.f_files else sys.maxsize,
            read_only=bool(answer.f_flag & os.ST_RDONLY),
        )

    def check(self) -> None:
        with self._asked("look"), self._member_folder():
            pass

    # -- opening ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _asked(self, action: str) -> Iterator[None]:
        """The edge: an OSError inside becomes what it means for the member."""
        try:
            yield
        except OSError as error:
            raise member_error(error, f"{self._path}: {action}", self._member) from error

    @contextmanager
    def _member_folder(self) -> Iterator[int]:
        """A descriptor (O_PATH) of the member folder as it is mounted now, proven to be on the right device."""
        whole = member_folder(self._path, self._uuid)
        try:
            folder = os.open(whole, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MemberAway(f"{whole} is not there", member=self._member) from error
        try:
            device = os.fstat(folder).st_dev
            if self._device is None:
                self._device = device
            if device != self._device:
                raise MemberAway(f"{whole} is on another device than before", member=self._member)
            yield folder
        finally:
            os.close(folder)

    @contextmanager
    def _folder(self, path: str) -> Iterator[int]:
        """A readable descriptor of a folder below the member folder ('' is that folder itself)."""
        with self._member_folder() as member:
            folder = _open_below(member, path or ".", _FOLDER, self._device)
        try:
            yield folder
        finally:
            os.close(folder)

    @contextmanager
    def _parent(self, path: str, member: int | None = None) -> Iterator[tuple[int, str]]:
        """The folder that holds `path`, and the name in it: for calls that make, rename or remove names."""
        above, _, name = _checked(path).rpartition("/")
        if member is None:
            with self._member_folder() as opened:
                folder = _open_below(opened, above or ".", os.O_PATH | os.O_DIRECTORY, self._device)
        else:
            folder = _open_below(member, above or ".", os.O_PATH | os.O_DIRECTORY, self._device)
        try:
            yield folder, name
        finally:
            os.close(folder)

    @contextmanager
    def _opened(self, path: str, flags: int) -> Iterator[int]:
        """A regular file below the member folder; anything else in its place is a fault."""
        flags |= os.O_NOFOLLOW
        if not flags & os.O_PATH:
            flags |= os.O_NONBLOCK  # a FIFO that somebody put there must not block the worker
        with self._member_folder() as member:
            try:
                file = _open_below(member, _checked(path), flags, self._device)
            except OSError as error:
                if error.errno in (errno.ENXIO, errno.EISDIR):  # a FIFO or socket without a peer; a folder
                    raise self._not_a_file(path) from error
                raise
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise self._not_a_file(path)
            yield file
        finally:
            os.close(file)

    def _not_a_file(self, path: str) -> MemberFaulty:
        return MemberFaulty(f"{self._path}: {path} is not a regular file", member=self._member)


class _DurableNames:
    """Which names this process has seen to be durable. A name is when its folder was synced after the name was there.

    Needed because a folder may be left unsynced by an attempt that was cancelled, or by a process that was killed:
    whoever finds it there must not take its being there for its being durable.
    """

    def __init__(self) -> None:
        self._durable: frozenset[str] = frozenset()
        self._owed: frozenset[str] = frozenset()

    def made(self, path: str) -> None:
        self._durable -= {path}
        self._owed |= {path}

    def found(self, path: str) -> None:
        if path not in self._durable:
            self._owed |= {path}

    def durable(self, path: str) -> bool:
        return path in self._durable

    def owed(self, folder: str | None) -> frozenset[str]:
        """To be asked before the sync: what appears during it may be missed by it."""
        return frozenset(path for path in self._owed if folder is None or parent_folder(path) == folder)

    def synced(self, paths: frozenset[str]) -> None:
        self._durable |= paths
        self._owed -= paths


def _checked(path: str) -> str:
    """ValueError for what could never be a path of ours: a bug, not a fault of the disk."""
    if not path or any(part in ("", ".", "..") for part in path.split("/")) or "\0" in path:
        raise ValueError(f"not a path inside a member folder: {path!r}")
    return path


def _prefixes(path: str) -> list[str]:
    """'a/b/c' -> ['a', 'a/b', 'a/b/c']; '' -> []."""
    parts = _checked(path).split("/") if path else []
    return ["/".join(parts[: depth + 1]) for depth in range(len(parts))]


def _open_below(member: int, path: str, flags: int, device: int | None) -> int:
    """Open below the member folder without following links or crossing mounts."""
    flags |= os.O_CLOEXEC
    mode = _FILE_MODE if flags & os.O_CREAT else 0
    resolve = syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_XDEV | syscalls.RESOLVE_BENEATH
    try:
        return syscalls.openat2(member, path, flags, mode, resolve)
    except OSError as error:
        if error.errno not in _NO_OPENAT2:
            raise
    return _open_below_by_hand(member, path, flags, mode, device)


def _open_below_by_hand(member: int, path: str, flags: int, mode: int, device: int | None) -> int:
    """The same with one openat a component. Links show as ELOOP or, where a folder is wanted, ENOTDIR."""
    *above, name = path.split("/")
    folder = os.dup(member)
    try:
        for part in above:
            deeper = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = deeper
            _same_device(folder, device)
        file = os.open(name, flags | os.O_NOFOLLOW, mode, dir_fd=folder)
        try:
            _same_device(file, device)
        except OSError:
            os.close(file)
            raise
        return file
    finally:
        os.close(folder)


def _same_device(file: int, device: int | None) -> None:
    found = os.fstat(file)
    if stat.S_ISLNK(found.st_mode):  # O_PATH | O_NOFOLLOW opens the link itself
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if device is not None and found.st_dev != device:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
