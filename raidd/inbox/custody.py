"""Files leave the inbox here, and only here: taken away once they are protected, or refused with a reason.

    look -> rename to a dot-name in the same folder -> look again, no writer -> (link or copy elsewhere) -> unlink

The dot-name takes the file out of everybody's reach first; the second look then decides about exactly the file that
will be unlinked. If it is not the one that was read (the sender replaced or continued it meanwhile) it is put back,
never over a newcomer of that name. Files leave the watched tree by link or copy and unlink, never by a rename out
of it, which would hold watchdog's events back for half a second.

Promises: killed at any step, at least one name of the file is left, and `restore_leftovers` takes it in again; a
refused file is durable in its new place, with its reason, before the original goes; nothing is overwritten.
``step(name)`` is called after each step, for tests that kill there: away:renamed, away:checked, away:brought,
away:unlinked, back:renamed. Thread-safe (commits and refusals come from two threads). OSError stays inside: an
outcome says STUCK, with the reason.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import Enum, auto
from pathlib import Path

from raidd.inbox.departure import bring, reason_name
from raidd.inbox.folders import FileSeen, Root, look, opened, opened_for_writing, rename_new, walk
from raidd.inbox.intake import Offer
from raidd.inbox.lease import Writers, read_lease
from raidd.inbox.names import NameKind, is_copy_name, name_kind, own_name
from raidd.inbox.refusals import RefusalCode, reason_text

_FOR_LEASE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class Ending(Enum):
    """How an attempt to move a file out of the inbox ended."""

    TAKEN = auto()
    GONE = auto()
    """It was not there any more: its sender took it back."""
    CHANGED = auto()
    """It is not the file that was read: left (or put back) to be taken in again."""
    STUCK = auto()
    """The file system refused; try again later."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """``reason`` says why it is STUCK, for the operator."""

    ending: Ending
    reason: str = ""


_Elsewhere = Callable[[int, bytes], None]


class Custody:
    """Takes originals away for all roots. ``keep_days`` > 0 keeps them in ``<inbox>-stored/DATE/`` so long."""

    def __init__(
        self,
        roots: Sequence[Root],
        *,
        keep_days: int = 0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        step: Callable[[str], None] = lambda _: None,
        token: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self._roots = tuple(roots)
        self.keep_days = keep_days
        self._now = now
        self._step = step
        self._token = token
        self._lock = threading.Lock()
        self._held: set[bytes] = set()

    def take_away(self, offer: Offer) -> Outcome:
        """Remove the original of a protected image, or keep it aside when ``keep_days`` says so."""

        def to_stored(folder: int, held: bytes) -> None:
            below = os.fsencode(self._now().date().isoformat()) + (b"/" + offer.folder if offer.folder else b"")
            with opened_for_writing(offer.root.stored, below) as target:
                bring(folder, held, target, offer.name)

        return self._leave(offer, to_stored if self.keep_days > 0 else None)

    def reject(self, offer: Offer, code: RefusalCode, detail: str = "") -> Outcome:
        """Move a refused file to ``<inbox>-rejected``, into the subfolder it lay in, with NAME.reason.txt."""
        at = self._now().isoformat(timespec="seconds")
        reason = reason_text(code, detail, offer.source, at).encode()

        def to_rejected(folder: int, held: bytes) -> None:
            with opened_for_writing(offer.root.rejected, offer.folder) as target:
                bring(folder, held, target, offer.name, reason)

        return self._leave(offer, to_rejected)

    def _leave(self, offer: Offer, elsewhere: _Elsewhere | None) -> Outcome:
        try:
            with opened(offer.root.path, offer.folder) as folder:
                return self._leave_folder(folder, offer, elsewhere)
        except (FileNotFoundError, NotADirectoryError):
            return Outcome(Ending.GONE)
        except OSError as error:
            return Outcome(Ending.STUCK, error.strerror or str(error))

    def _leave_folder(self, folder: int, offer: Offer, elsewhere: _Elsewhere | None) -> Outcome:
        seen = look(folder, offer.name)
        if seen is None or not seen.same_content(offer.observed):
            return Outcome(Ending.GONE if seen is None else Ending.CHANGED)
        with self._holding() as held:
            os.rename(offer.name, held, src_dir_fd=folder, dst_dir_fd=folder)
            self._step("away:renamed")
            with _no_writer(folder, held, offer) as free:
                if not free:
                    self._put_back(folder, held, offer.name)
                    return Outcome(Ending.CHANGED)
                self._step("away:checked")
                return self._finish(folder, held, offer, elsewhere)

    def _finish(self, folder: int, held: bytes, offer: Offer, elsewhere: _Elsewhere | None) -> Outcome:
        try:
            if elsewhere is not None:
                elsewhere(folder, held)
                self._step("away:brought")
            os.unlink(held, dir_fd=folder)
        except OSError as error:
            self._put_back(folder, held, offer.name)
            return Outcome(Ending.STUCK, error.strerror or str(error))
        self._step("away:unlinked")
        return Outcome(Ending.TAKEN)

    def _put_back(self, folder: int, held: bytes, name: bytes) -> None:
        """To its old name, or to a new one when somebody has put a file there meanwhile."""
        try:
            rename_new(folder, held, folder, name)
        except OSError:  # taken, or this file system can neither link nor rename safely
            os.rename(held, _restored_name(held), src_dir_fd=folder, dst_dir_fd=folder)
        self._step("back:renamed")

    @contextlib.contextmanager
    def _holding(self) -> Iterator[bytes]:
        held = own_name(self._token())
        with self._lock:
            self._held.add(held)
        try:
            yield held
        finally:
            with self._lock:
                self._held.discard(held)

    def restore_leftovers(self) -> int:
        """Take in again what a crash left half taken away; how many. At start, and whenever a scan sees some."""
        restored = 0
        for root in self._roots:
            leftovers = [seen for seen in walk(root.path) if isinstance(seen, FileSeen) and self._is_leftover(seen)]
            restored += sum(self._restore(root, seen) for seen in leftovers)
            self._clear_copies(root.rejected)
            self._clear_copies(root.stored)
        return restored

    def _is_leftover(self, seen: FileSeen) -> bool:
        with self._lock:
            return name_kind(seen.name) is NameKind.OWN and seen.name not in self._held

    def _restore(self, root: Root, seen: FileSeen) -> bool:
        try:
            with opened(root.path, seen.folder) as folder:
                _undo_rejection(root, seen)
                os.rename(seen.name, _restored_name(seen.name), src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            return False  # still there, seen again by the next scan
        return True

    def _clear_copies(self, place: Path) -> None:
        """Unfinished copies: their originals are still in the inbox."""
        for seen in walk(place) if place.is_dir() else ():
            if isinstance(seen, FileSeen) and is_copy_name(seen.name) and not self._in_use(seen.name):
                with contextlib.suppress(OSError), opened(place, seen.folder) as folder:
                    os.unlink(seen.name, dir_fd=folder)

    def _in_use(self, copy: bytes) -> bool:
        with self._lock:
            return copy.removesuffix(b".copy") in self._held

    def expire_kept(self) -> int:
        """Remove the days in ``<inbox>-stored`` that are older than ``keep_days``; how many."""
        if self.keep_days <= 0:
            return 0
        oldest = self._now().date() - timedelta(days=self.keep_days)
        return sum(_expire(place, oldest) for place in {root.stored for root in self._roots})


def _restored_name(held: bytes) -> bytes:
    """Its own name is lost with the process; the token makes this one unique."""
    return b"restored-" + held.removeprefix(own_name(""))


@contextlib.contextmanager
def _no_writer(folder: int, held: bytes, offer: Offer) -> Iterator[bool]:
    """True while ``held`` is exactly the file that was read and nobody has it open for writing."""
    if not offer.observed.regular:
        seen = look(folder, held)
        yield seen is not None and seen.same_content(offer.observed)
        return
    try:
        descriptor = os.open(held, _FOR_LEASE, dir_fd=folder)
    except BlockingIOError:  # another program's lease, on its way to being given up
        yield False
        return
    except OSError:
        descriptor = -1  # may be moved although it may not be read
    try:
        with read_lease(descriptor) as writers:
            seen = look(folder, held)
            yield writers is not Writers.SOME and seen is not None and seen.same_content(offer.observed)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _undo_rejection(root: Root, seen: FileSeen) -> None:
    """A crash between the link into the rejected folder and the unlink here: there must not be two in the end."""
    with contextlib.suppress(OSError), opened(root.rejected, seen.folder) as target:
        with os.scandir(target) as entries:
            names = [os.fsencode(entry.name) for entry in entries if entry.inode() == seen.observation.inode]
        for name in names:
            there = look(target, name)
            if there is not None and there.same_content(seen.observation):
                os.unlink(name, dir_fd=target)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(reason_name(name), dir_fd=target)


def _expire(place: Path, oldest: date) -> int:
    expired = 0
    with contextlib.suppress(OSError), opened(place) as folder:
        for name in os.listdir(folder):
            with contextlib.suppress(ValueError, OSError):
                if date.fromisoformat(name) < oldest:
                    shutil.rmtree(name, dir_fd=folder)  # follows no link (avoids_symlink_attacks)
                    expired += 1
    return expired
