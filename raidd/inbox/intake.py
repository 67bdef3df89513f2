"""One file of the inbox, opened and read: an `Offer` names it, `OpenImage` gives its bytes.

An offer carries what was observed when the file was found ready. Opening compares: the very same file,
unchanged, a plain file, and no writer has it open; else `NotTaken` says why, and the file is looked at again later.
Reading compares again at the end, so that what was read is what the file held at one moment.

The descriptor that an `OpenImage` holds is the caller's to close (it is a context manager). Nothing here changes a
file; that is `raidd.inbox.custody`.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from types import TracebackType
from typing import Self

from raidd.errors import ImageError
from raidd.inbox.folders import Root, joined, opened, source_of, split
from raidd.inbox.lease import Writers, writers_of
from raidd.inbox.names import source_path
from raidd.inbox.readiness import Observation

READ_SIZE = 4 * 1024 * 1024
_DENIED = (errno.EACCES, errno.EPERM)
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)
_BUSY = (errno.EAGAIN, errno.EWOULDBLOCK, errno.ETXTBSY)


class Hindrance(Enum):
    """Why a file could not be taken just now."""

    GONE = auto()
    CHANGED = auto()
    WRITING = auto()
    DENIED = auto()


class NotTaken(ImageError):
    """The file cannot be taken at this moment; nothing is wrong with raidd."""

    next_step = "Nothing to do by hand: raidd looks at the file again."

    def __init__(self, hindrance: Hindrance, message: str) -> None:
        super().__init__(message)
        self.hindrance = hindrance


@dataclass(frozen=True, slots=True)
class Owed:
    """What is still to be done for a file that was read and stored: to become protected, or only to be removed."""

    uid: str
    sha256: str
    acknowledged: bool


@dataclass(frozen=True, slots=True)
class Offer:
    """A file that is due. ``folder`` and ``name`` are relative to ``root``; ``changed_at`` is its last change seen
    (monotonic seconds); ``owed`` is set when it was stored before and has not changed since."""

    root: Root
    folder: bytes
    name: bytes
    observed: Observation
    changed_at: float
    owed: Owed | None = None

    @property
    def source(self) -> str:
        return source_of(self.root, self.folder, self.name)

    @property
    def key(self) -> tuple[str, bytes]:
        """What identifies its place in the inbox."""
        return self.root.name, joined(self.folder, self.name)


class OpenImage:
    """An open file. One thread at a time; costs one descriptor; a crash loses nothing."""

    def __init__(self, offer: Offer) -> None:
        """Open and compare. Raises NotTaken."""
        self.offer = offer
        self._descriptor = _open(offer)
        try:
            if not Observation.of(os.fstat(self._descriptor)).same_content(offer.observed):
                raise NotTaken(Hindrance.CHANGED, f"{offer.source} has changed")
            if writers_of(self._descriptor) is Writers.SOME:
                raise NotTaken(Hindrance.WRITING, f"{offer.source} is still being written")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def size(self) -> int:
        """Bytes, as observed."""
        return self.offer.observed.size

    def read_into(self, buffer: memoryview, offset: int = 0) -> None:
        """Fill ``buffer`` with the file's bytes from ``offset`` on. NotTaken(CHANGED) when it has fewer."""
        filled = 0
        while filled < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[filled:]], offset + filled)
            except OSError as error:
                raise _hindered(self.offer, error) from error
            if count == 0:
                raise NotTaken(Hindrance.CHANGED, f"{self.offer.source} became shorter while it was read")
            filled += count

    def some(self, offset: int, length: int = 4096) -> bytes:
        """Up to ``length`` bytes from ``offset`` on, fewer at the end of the file."""
        try:
            return os.pread(self._descriptor, length, offset)
        except OSError as error:
            raise _hindered(self.offer, error) from error

    def chunks(self, offset: int = 0, size: int = READ_SIZE) -> Iterator[bytes]:
        """The rest of the file from ``offset`` on, in pieces."""
        while piece := self.some(offset, size):
            yield piece
            offset += len(piece)

    def confirm(self) -> None:
        """Raise NotTaken(CHANGED) unless the file is still as it was offered (also no longer); after the last byte."""
        if not Observation.of(os.fstat(self._descriptor)).same_content(self.offer.observed):
            raise NotTaken(Hindrance.CHANGED, f"{self.offer.source} changed while it was read")


def _open(offer: Offer) -> int:
    """O_NONBLOCK: neither a FIFO put in the file's place nor another's lease (Samba's oplocks) may stop raidd."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        with opened(offer.root.path, offer.folder) as folder:
            status = os.stat(offer.name, dir_fd=folder, follow_symlinks=False)
            if not Observation.of(status).regular:  # opening a device may already do something to it
                raise NotTaken(Hindrance.CHANGED, f"{offer.source} is no longer a plain file")
            return os.open(offer.name, flags, dir_fd=folder)
    except OSError as error:
        raise _hindered(offer, error) from error


def _hindered(offer: Offer, error: OSError) -> NotTaken:
    if error.errno in _GONE:
        return NotTaken(Hindrance.GONE, f"{offer.source} is gone")
    if error.errno in _BUSY:
        return NotTaken(Hindrance.WRITING, f"{offer.source} is in use by another program")
    word = "may not be read" if error.errno in _DENIED else "cannot be read"
    return NotTaken(Hindrance.DENIED, f"{offer.source} {word}: {error.strerror}")


def still_offered(roots: Sequence[Root], source: str, sha256: str | None) -> bool:
    """Does the inbox still hold, under ``source``, a file of this SHA-256 (hex)? Decides what is debris (C5).

    None: the digest was not known yet (a part of a large image); then any plain file there counts: its sender has it.
    """
    name, _, path = source.partition(":")
    root = next((root for root in roots if root.name == name), None)
    if root is None or not path:
        return False
    digest = hashlib.sha256()
    folder, file = split(source_path(path))
    return _digested(root, folder, file, digest.update) and sha256 in (None, digest.hexdigest())


def _digested(root: Root, folder: bytes, name: bytes, take: Callable[[bytes], None]) -> bool:
    try:
        with opened(root.path, folder) as parent:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        offer = Offer(root, folder, name, Observation.of(status), 0.0)
        with OpenImage(offer) as image:
            for piece in image.chunks():
                take(piece)
            image.confirm()
    except (OSError, NotTaken, ValueError):
        return False
    return True
