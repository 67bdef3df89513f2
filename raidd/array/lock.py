"""One owner per array: lock files in state_dir and in each member folder (design.md, section 9).

Why not one flock and done: a process with one thread stuck on a hung disk survives even SIGKILL; its leader is a
zombie, and its flocks stay taken until the disk wakes up (tried). A restart must not wait for that. So a start looks at
`lock`, `lock.2`, …: each that exists it either takes, or its holder must be dead; it holds all it took, and makes the
next number if it took none. Then it looks again until nothing has changed, for another start may do the same.

A holder is dead only if this is certain: its record (pid, start time, boot) names a process of this boot whose leader
is a zombie, and the kernel's own list says that this process holds this very lock. A holder whose record says less (it
is just being written, or of another container) is asked again for a while, then counts as alive.

Promises: two live processes never both hold the locks of a folder; a crash needs no cleaning; lock files are never
renamed or removed. On a member everything here may block: call it on that member's worker, and with its `cancel`, so
that an attempt which was given up lets go of what it takes too late.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from raidd.array.member_disk import LOCK_SIZE, member_error
from raidd.array.worker import Cancel
from raidd.errors import ArrayLocked, MemberAway, RaiddError, StateDirFaulty

_NAME = re.compile(r"lock(?:\.([2-9]|[1-9][0-9]+))?\Z")
_PATIENCE_S, _PAUSE_S = 2.0, 0.05


class Verdict(Enum):
    ALIVE = "alive"
    DEAD = "dead"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class Holder:
    """Who wrote a lock file's record: a process, told apart from a later one with the same number."""

    pid: int
    started: int  # clock ticks since boot, /proc/PID/stat field 22
    boot: str  # /proc/sys/kernel/random/boot_id

    @classmethod
    def myself(cls) -> Holder:
        stat = _process_stat(os.getpid())
        return cls(os.getpid(), stat[1] if stat else 0, _boot_id())

    def pack(self) -> bytes:
        text = json.dumps({"pid": self.pid, "started": self.started, "boot": self.boot})
        return text.encode().ljust(LOCK_SIZE - 1) + b"\n"

    @classmethod
    def parse(cls, data: bytes) -> Holder | None:
        try:
            record = json.loads(data)
            return cls(int(record["pid"]), int(record["started"]), str(record["boot"]))
        except (ValueError, TypeError, KeyError):
            return None


class ArrayLock:
    """The locks of one folder, held. May be given back from any thread; the kernel does it when the process ends."""

    def __init__(self, folder: str, files: dict[str, int], *, passed_dead: bool = False) -> None:
        self.folder = folder
        self.passed_dead = passed_dead
        """A process that is dead and cannot end still holds a lock here, and whatever else it held."""
        self._files = files

    @classmethod
    def acquire(cls, folder: str, *, member: str = "", cancel: Cancel | None = None) -> ArrayLock:
        """Take the locks in `folder`. `member` is the member's uuid when it is a member folder.

        ArrayLocked if another process has them; a MemberError (or StateDirFaulty, without `member`) if the disk
        refuses; Cancelled if `cancel` was raised meanwhile: nothing is held then.
        """
        until = time.monotonic() + _PATIENCE_S
        if not member:
            folder = os.path.realpath(folder)  # state_dir may be a link; a member folder may not
        while True:
            attempt = _Attempt(folder, cancel or Cancel())
            try:
                return cls(folder, attempt.run(), passed_dead=attempt.passed_dead)
            except _AskAgain as unclear:
                if time.monotonic() >= until:
                    raise ArrayLocked(f"{folder}: locked, {unclear}") from unclear
            except OSError as error:
                raise _translated(error, folder, member) from error
            time.sleep(_PAUSE_S)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._files)

    def unlock(self) -> None:
        """Let go without closing anything: never blocks, whatever the disk does."""
        for file in self._files.values():
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)

    def release(self) -> None:
        """Let go, then close the files (which may block on a hung disk)."""
        self.unlock()
        _close_all(self._files)


class _AskAgain(Exception):
    """Somebody holds a lock, and who is not known yet."""


class _Attempt:
    """One try at a folder; what it has taken is let go again if it does not succeed."""

    def __init__(self, folder: str, cancel: Cancel) -> None:
        self._folder = folder
        self._cancel = cancel
        self._held: dict[str, int] = {}
        self.passed_dead = False

    def run(self) -> dict[str, int]:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            while self._pass(descriptor):
                pass
            for file in self._held.values():
                self._cancel.check()
                _write_record(file)
            self._cancel.check()
        except BaseException:
            _close_all(self._held)
            raise
        finally:
            os.close(descriptor)
        return self._held

    def _pass(self, folder: int) -> bool:
        """Look at each lock file once; True if that changed what is held, so that all have to be looked at again."""
        before = len(self._held)
        self._cancel.check()
        numbers = sorted(_number(name) for name in os.listdir(folder) if _NAME.match(name))
        for number in numbers:
            if _name(number) not in self._held:
                self._cancel.check()
                self._take_or_pass(folder, _name(number))
        if not self._held:
            self._make(folder, _name(numbers[-1] + 1 if numbers else 1))
        return len(self._held) != before

    def _take_or_pass(self, folder: int, name: str) -> None:
        file = _open(folder, name)
        if _try_flock(file):
            self._held[name] = file
            return
        try:
            holder = Holder.parse(os.pread(file, LOCK_SIZE, 0))
            verdict = judge(holder, os.fstat(file).st_ino)
        finally:
            os.close(file)
        if verdict is Verdict.ALIVE and holder is not None:
            raise ArrayLocked(f"{self._folder}: in use by process {holder.pid}")
        if verdict is Verdict.UNCLEAR:
            raise _AskAgain("and its holder is not known")
        self.passed_dead = True

    def _make(self, folder: int, name: str) -> None:
        try:
            file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
        except FileExistsError as error:
            raise _AskAgain("by a process that starts just now") from error
        if not _try_flock(file):
            os.close(file)
            raise _AskAgain("by a process that starts just now")
        self._held[name] = file


def judge(holder: Holder | None, inode: int) -> Verdict:
    """Whether the process that holds the flock on `inode` is one that the record proves dead."""
    if holder is None or holder.boot != _boot_id():
        return Verdict.UNCLEAR  # not written yet, or left by an earlier owner: the flock itself cannot outlive a boot
    stat = _process_stat(holder.pid)
    if stat is None or stat[1] != holder.started:
        return Verdict.UNCLEAR  # a dead process holds no flock: somebody else took it and has not signed yet
    if stat[0] not in "ZX":
        return Verdict.ALIVE
    owners = _flock_owners(inode)
    return Verdict.DEAD if owners is None or holder.pid in owners else Verdict.UNCLEAR


def _number(name: str) -> int:
    return int(name.partition(".")[2] or 1)


def _name(number: int) -> str:
    return "lock" if number == 1 else f"lock.{number}"


def _open(folder: int, name: str) -> int:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(name, os.O_RDWR | flags, dir_fd=folder)
    except OSError as error:
        if error.errno != errno.EROFS:  # a lock needs no writing, only its record does
            raise
    return os.open(name, os.O_RDONLY | flags, dir_fd=folder)


def _try_flock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_record(file: int) -> None:
    """A disk that is full or read-only keeps an old record: others then wait a while and see the lock as taken."""
    with suppress(OSError):
        os.pwrite(file, Holder.myself().pack(), 0)


def _close_all(files: dict[str, int]) -> None:
    while files:
        with suppress(OSError):
            os.close(files.popitem()[1])


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _process_stat(pid: int) -> tuple[str, int] | None:
    """State letter and start time of a process's leader; None if there is none (proc(5), /proc/PID/stat)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def _flock_owners(inode: int) -> set[int] | None:
    """Pids that hold a flock on `inode` by the kernel's list (proc(5), /proc/locks); None where it is hidden."""
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    rows = [line.split() for line in lines]
    return {int(row[4]) for row in rows if row[1] == "FLOCK" and row[5].rpartition(":")[2] == str(inode)}


def _translated(error: OSError, folder: str, member: str) -> RaiddError:
    if not member:
        return StateDirFaulty(f"{folder}: cannot be locked: {error.strerror}")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return MemberAway(f"{folder} is not there", member=member)
    return member_error(error, f"{folder}: lock", member)
