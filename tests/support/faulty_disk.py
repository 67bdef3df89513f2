"""Any member disk, with faults where a test wants them, and a log of every call.

    disk = FaultyDisk(MemoryDisk())
    disk.fail("file.sync", error=MemberFaulty("EIO"))            every fdatasync fails
    disk.fail("rename_new", "segments/*", call=2, after=True)    the second such rename happens, then fails
    hang = disk.hang("create"); …; hang.entered.wait(); …; hang.release()
    disk.delay("read*", 0.05); disk.corrupt("read*", "*-02.shard"); disk.tear("*-01.shard", 100); disk.lie("file.sync")
    disk.crash(step=7)           SimulatedCrash instead of the 7th call from now on, and at every call after it
    disk.on_call = hook          hook(Call), before each call
    disk.hanging                 threads that are inside a hanging call now
    disk.kill()                  the machine is off: whoever calls, or hangs and is let go, dies without doing anything

`log` has one `Call` for each, so that a test runs once without faults and then again for `step in 1…len(log)`. The
operations are the names of MemberDisk, and "file.write", "file.sync", "file.length", "file.close" for an open file.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from uuid import UUID

from raidd.array.member_disk import Buffer, DiskFile, MemberDisk, Names, Space
from raidd.errors import MemberFaulty

Change = Callable[[bytes], bytes]


class SimulatedCrash(BaseException):
    """The process died here. A BaseException, so that nobody tidies up after its own death."""


@dataclass(frozen=True, slots=True)
class Call:
    step: int  # from 1, over all calls of this disk
    operation: str
    path: str
    detail: str = ""


@dataclass(slots=True)
class Rule:
    operation: str
    path: str
    call: int | None  # only the call-th one that matches; None: each
    kind: str  # fail | fail-after | hang | delay | corrupt | tear | lie
    error: BaseException | None = None
    seconds: float = 0.0
    change: Change | None = None
    kept_bytes: int = 0
    hang: Hang | None = None
    seen: int = 0


Rules = list[Rule]


@dataclass(slots=True)
class Hang:
    """`entered` is set when the call is inside; it goes on after `release`."""

    entered: threading.Event = field(default_factory=threading.Event)
    _go: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        self._go.set()

    def hold(self) -> None:
        self.entered.set()
        self._go.wait()


def flip_first_byte(data: bytes) -> bytes:
    return bytes([data[0] ^ 0xFF]) + data[1:] if data else data


class FaultyDisk(MemberDisk):
    """Wraps `inner`; with no rules it is `inner`. Thread-safe as far as `inner` is."""

    def __init__(self, inner: MemberDisk) -> None:
        self.inner = inner
        self.log: list[Call] = []
        self.on_call: Callable[[Call], object] | None = None
        self.hanging: set[threading.Thread] = set()
        self.while_hanging: Callable[[], AbstractContextManager[None]] = nullcontext
        self._hangs: list[Hang] = []
        self._rules: Rules = []
        self._crash_at: int | None = None
        self._lock = threading.Lock()

    # -- what goes wrong ----------------------------------------------------------------------------------------------

    def fail(
        self,
        operation: str,
        path: str = "*",
        *,
        error: BaseException | None = None,
        call: int | None = None,
        after: bool = False,
    ) -> None:
        """Raise `error` (MemberFaulty) instead of doing it, or `after` having done it."""
        failure = error if error is not None else MemberFaulty(f"injected: {operation} {path}", member=str(self.uuid))
        self._add(Rule(operation, path, call, "fail-after" if after else "fail", error=failure))

    def hang(self, operation: str, path: str = "*", *, call: int | None = None) -> Hang:
        hang = Hang()
        self._hangs.append(hang)
        self._add(Rule(operation, path, call, "hang", hang=hang))
        return hang

    def delay(self, operation: str, seconds: float, path: str = "*", *, call: int | None = None) -> None:
        self._add(Rule(operation, path, call, "delay", seconds=seconds))

    def corrupt(
        self, operation: str = "read*", path: str = "*", change: Change = flip_first_byte, *, call: int | None = None
    ) -> None:
        """What is read is changed by `change`; the disk itself keeps the right bytes."""
        self._add(Rule(operation, path, call, "corrupt", change=change))

    def tear(self, path: str, kept_bytes: int, *, call: int | None = None) -> None:
        """Only the first `kept_bytes` of a file.write arrive; the rest are zeros, and it says all is well."""
        self._add(Rule("file.write", path, call, "tear", kept_bytes=kept_bytes))

    def lie(self, operation: str = "*sync*", path: str = "*", *, call: int | None = None) -> None:
        """Success without doing anything (file.sync, sync_folder, sync_all, unlink)."""
        self._add(Rule(operation, path, call, "lie"))

    def lies(self) -> bool:
        """Whether it says that things are done which it does not do."""
        return _has(self._rules, "lie")

    def crash(self, step: int) -> None:
        """Die instead of the step-th call counted from now."""
        with self._lock:
            self._crash_at = len(self.log) + step

    def heal(self) -> None:
        """No more rules, no crash. Hanging calls hang on until they are released."""
        with self._lock:
            self._rules, self._crash_at = [], None

    def release_all(self) -> None:
        """Let every hanging call go on, now and later."""
        for hang in self._hangs:
            hang.release()

    def kill(self) -> None:
        """Nothing that is still to come, or hangs, has any effect any more."""
        with self._lock:
            self._crash_at = 0
        self.release_all()

    def operations(self) -> list[str]:
        return [call.operation for call in self.log]

    # -- MemberDisk ---------------------------------------------------------------------------------------------------

    @property
    def uuid(self) -> UUID:
        return self.inner.uuid

    @property
    def path(self) -> str:
        return self.inner.path

    def create(self, path: str, length: int) -> DiskFile:
        with self.call("create", path, str(length)):
            return FaultyFile(self, self.inner.create(path, length), path)

    def rename_new(self, source: str, target: str) -> None:
        with self.call("rename_new", target, source):
            self.inner.rename_new(source, target)

    def replace(self, path: str, data: bytes) -> None:
        with self.call("replace", path, str(len(data))):
            self.inner.replace(path, data)

    def append(self, path: str, data: bytes) -> None:
        with self.call("append", path, str(len(data))):
            self.inner.append(path, data)

    def overwrite(self, path: str, offset: int, data: bytes) -> None:
        with self.call("overwrite", path, f"{offset}+{len(data)}"):
            self.inner.overwrite(path, offset, data)

    def read(self, path: str, offset: int = 0, length: int = -1, *, uncached: bool = False) -> bytes:
        with self.call("read", path, f"{offset}+{length}") as rules:
            return _changed(rules, self.inner.read(path, offset, length, uncached=uncached))

    def read_into(self, path: str, offset: int, buffer: memoryview) -> int:
        with self.call("read_into", path, f"{offset}+{buffer.nbytes}") as rules:
            got = self.inner.read_into(path, offset, buffer)
            view = buffer.cast("B")
            view[:got] = _changed(rules, bytes(view[:got]))
            return got

    def length(self, path: str) -> int:
        with self.call("length", path):
            return self.inner.length(path)

    def list(self, path: str) -> Names:
        with self.call("list", path):
            return self.inner.list(path)

    def make_folders(self, path: str) -> Names:
        with self.call("make_folders", path):
            return self.inner.make_folders(path)

    def sync_folder(self, path: str) -> None:
        with self.call("sync_folder", path) as rules:
            if not _has(rules, "lie"):
                self.inner.sync_folder(path)

    def sync_all(self) -> None:
        with self.call("sync_all", "") as rules:
            if not _has(rules, "lie"):
                self.inner.sync_all()

    def unlink(self, path: str) -> None:
        with self.call("unlink", path) as rules:
            if not _has(rules, "lie"):
                self.inner.unlink(path)

    def space(self) -> Space:
        with self.call("space", ""):
            return self.inner.space()

    def check(self) -> None:
        with self.call("check", ""):
            self.inner.check()

    # -- the machinery ------------------------------------------------------------------------------------------------

    def _add(self, rule: Rule) -> None:
        with self._lock:
            self._rules.append(rule)

    @contextmanager
    def call(self, operation: str, path: str, detail: str = "") -> Iterator[Rules]:
        """Log, crash, hang, delay, fail; yields the rules that concern the call's effect."""
        call, rules = self._enter(operation, path, detail)
        if self.on_call is not None:
            self.on_call(call)
        for rule in rules:
            if rule.hang is not None:
                self._hold(rule.hang)
            if rule.seconds:
                time.sleep(rule.seconds)
            if rule.kind == "fail" and rule.error is not None:
                raise rule.error
        self._die_if_dead(call.step)  # a crash while it hung: the process is gone
        yield rules
        for rule in rules:
            if rule.kind == "fail-after" and rule.error is not None:
                raise rule.error

    def _hold(self, hang: Hang) -> None:
        thread = threading.current_thread()
        self.hanging.add(thread)
        with self.while_hanging():
            try:
                hang.hold()
            finally:
                self.hanging.discard(thread)

    def _enter(self, operation: str, path: str, detail: str) -> tuple[Call, Rules]:
        with self._lock:
            call = Call(len(self.log) + 1, operation, path, detail)
            if self._crash_at is not None and call.step >= self._crash_at:
                raise SimulatedCrash(f"at {call}")
            self.log.append(call)
            rules: Rules = []
            for rule in self._rules:
                if fnmatchcase(operation, rule.operation) and fnmatchcase(path, rule.path):
                    rule.seen += 1
                    if rule.call is None or rule.call == rule.seen:
                        rules.append(rule)
            return call, rules

    def _die_if_dead(self, step: int) -> None:
        if self._crash_at is not None and step >= self._crash_at:
            raise SimulatedCrash(f"at step {step}")


class FaultyFile:
    def __init__(self, disk: FaultyDisk, inner: DiskFile, path: str) -> None:
        self._disk, self._inner, self._path = disk, inner, path

    def write(self, buffers: Sequence[Buffer]) -> None:
        size = sum(memoryview(buffer).nbytes for buffer in buffers)
        with self._disk.call("file.write", self._path, str(size)) as rules:
            torn = next((rule for rule in rules if rule.kind == "tear"), None)
            if torn is not None:
                whole = b"".join(memoryview(buffer).tobytes() for buffer in buffers)
                buffers = [whole[: torn.kept_bytes] + bytes(max(0, size - torn.kept_bytes))]
            self._inner.write(buffers)

    def sync(self) -> None:
        with self._disk.call("file.sync", self._path) as rules:
            if not _has(rules, "lie"):
                self._inner.sync()

    def length(self) -> int:
        with self._disk.call("file.length", self._path):
            return self._inner.length()

    def close(self) -> None:
        try:
            with self._disk.call("file.close", self._path):
                pass
        finally:  # whatever is simulated, the test's own descriptors are given back
            self._inner.close()


def _has(rules: Rules, kind: str) -> bool:
    return any(rule.kind == kind for rule in rules)


def _changed(rules: Rules, data: bytes) -> bytes:
    for rule in rules:
        if rule.change is not None:
            data = rule.change(data)
    return data
