"""Folders of the inbox, walked by descriptor: no link is ever followed, whatever is swapped in meanwhile.

Anybody on the hospital's network may write into the inbox, also a link that points elsewhere. So each folder
is opened from its parent's descriptor with O_NOFOLLOW, and every name is used relative to such a descriptor.
The root itself comes from the settings and is trusted (it may be a link).

The functions here raise OSError; it is caught inside the package (`Walk` reports what cannot be read as a value).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raidd.array.syscalls import rename_noreplace
from raidd.inbox.names import folder_is_walked, source_text
from raidd.inbox.readiness import Observation

DEPTH_LIMIT = 64
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_VANISHED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


@dataclass(frozen=True, slots=True)
class Root:
    """One watched tree (the inbox, or the gateway's spool) and where its files go when they leave it."""

    name: str
    path: Path
    rejected: Path
    stored: Path
    urgent: bool = False
    """Somebody waits for each of its images (C-STORE, STOW): they are committed at once."""


def inbox_root(path: Path) -> Root:
    """The inbox at ``path``: refused files go to ``<path>-rejected``, kept originals to ``<path>-stored``."""
    return Root("inbox", path, path.with_name(path.name + "-rejected"), path.with_name(path.name + "-stored"))


def spool_root(path: Path, inbox: Path) -> Root:
    """The gateway's spool, on the same footing; what is refused or kept lies with the inbox's, where people look."""
    beside = inbox_root(inbox)
    return Root("spool", path, beside.rejected, beside.stored, urgent=True)


@dataclass(frozen=True, slots=True)
class FileSeen:
    """Anything in a folder that is not a folder."""

    folder: bytes
    name: bytes
    observation: Observation


@dataclass(frozen=True, slots=True)
class FolderSeen:
    """A folder, reported after what is in it."""

    folder: bytes
    identity: tuple[int, int, int]
    empty: bool


@dataclass(frozen=True, slots=True)
class FolderDenied:
    """A folder that cannot be read, and why."""

    folder: bytes
    reason: str


Seen = FileSeen | FolderSeen | FolderDenied


@contextlib.contextmanager
def opened(start: Path, folder: bytes = b"") -> Iterator[int]:
    """A descriptor of ``start/folder``. OSError when it is not there, or a link is on the way (ELOOP, ENOTDIR)."""
    descriptor = os.open(start, _FOLDER)
    try:
        for part in filter(None, folder.split(b"/")):
            inner = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def opened_for_writing(start: Path, folder: bytes = b"") -> Iterator[int]:
    """The same, making what is missing (``start`` too, but not its parents)."""
    with contextlib.suppress(FileExistsError):
        start.mkdir(mode=0o770)
    descriptor = os.open(start, _FOLDER)
    try:
        for part in filter(None, folder.split(b"/")):
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o770, dir_fd=descriptor)
                os.fsync(descriptor)
            inner = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def look(folder: int, name: bytes) -> Observation | None:
    """One look at a name, following no link; None when it is gone or a folder."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return None if is_folder(status) else Observation.of(status)


def is_folder(status: os.stat_result) -> bool:
    return (status.st_mode & 0o170000) == 0o040000


def walk(start: Path, under: bytes = b"") -> Iterator[Seen]:
    """Everything below ``start/under``, folders after their contents, in bounded memory."""
    try:
        with opened(start, under) as descriptor:
            yield from _walk(descriptor, under, under.count(b"/") + bool(under))
    except OSError as error:
        if error.errno not in _VANISHED or not under:
            yield FolderDenied(under, _said(error))


def _walk(descriptor: int, folder: bytes, depth: int) -> Iterator[Seen]:
    empty = True
    status = os.fstat(descriptor)
    with os.scandir(descriptor) as entries:
        for entry in entries:
            empty = False
            name = os.fsencode(entry.name)
            if not _maybe_folder(entry):
                yield from _file(descriptor, folder, name)
            elif folder_is_walked(name):
                yield from _inner(descriptor, folder, name, depth + 1)
    yield FolderSeen(folder, (status.st_dev, status.st_ino, status.st_mtime_ns), empty)


def _maybe_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _file(descriptor: int, folder: bytes, name: bytes) -> Iterator[Seen]:
    observation = look(descriptor, name)
    if observation is not None:
        yield FileSeen(folder, name, observation)


def _inner(parent: int, folder: bytes, name: bytes, depth: int) -> Iterator[Seen]:
    path = joined(folder, name)
    if depth > DEPTH_LIMIT:
        yield FolderDenied(path, f"more than {DEPTH_LIMIT} folders deep")
        return
    try:
        descriptor = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as error:
        if error.errno not in _VANISHED:
            yield FolderDenied(path, _said(error))
        return
    try:
        yield from _walk(descriptor, path, depth)
    except OSError as error:
        yield FolderDenied(path, _said(error))
    finally:
        os.close(descriptor)


def joined(folder: bytes, name: bytes) -> bytes:
    """The path of ``name`` in ``folder``, both relative to a root."""
    return folder + b"/" + name if folder else name


def split(path: bytes) -> tuple[bytes, bytes]:
    """(folder, name) of a relative path."""
    folder, _, name = path.rpartition(b"/")
    return folder, name


def source_of(root: Root, folder: bytes, name: bytes) -> str:
    """How manifests and people name where an image came from: ``inbox:sub/name``, valid text, reversible."""
    return f"{root.name}:{source_text(joined(folder, name))}"


def rename_new(folder: int, name: bytes, target_folder: int, target: bytes) -> None:
    """Rename without ever replacing. FileExistsError when the target is taken, another OSError when impossible."""
    try:
        rename_noreplace(folder, os.fsdecode(name), target_folder, os.fsdecode(target))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        os.link(name, target, src_dir_fd=folder, dst_dir_fd=target_folder, follow_symlinks=False)
        os.unlink(name, dir_fd=folder)


def _said(error: OSError) -> str:
    return error.strerror or str(error)
