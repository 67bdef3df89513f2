"""Threads with owners, signals, and the end of the process.

Everything that loops is a function `…_once()` elsewhere; its loop, its pause and its thread are here. All threads are
daemon threads: one that is stuck on a hung disk must not hold up the end.

Promises
- The first exception that leaves a thread, also one not started here, stops the process: logged with its owner,
  exit code 1. A thread that returns though nothing asked it to stop has crashed too (unless it `may_end`).
- SIGTERM and SIGINT: threads are asked to stop and waited for (*drain*: the commit in flight is finished, no other
  begun), then exit hooks run, last registered first: they close sockets and release locks. Then os._exit. All of it
  within `stop_s` (20), whatever hangs: a hook that blocks is left behind, and an alarm thread ends the process even if
  this one blocks. A second signal skips the drain: `kill -9` would lose nothing either.
- Locks are released by hooks, in the living process, since a process with a thread in D state cannot finish exiting
  and would keep them (faults.md).
- SIGHUP calls the reload hook in a thread; a refused reload is logged and changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NoReturn

from raidd.daemon import logs
from raidd.daemon.logs import EventLog
from raidd.daemon.notify import Notifier
from raidd.errors import RaiddError

STOP_S: Final = 20.0
CRASH_STOP_S: Final = 5.0  # after a crash: what else runs may be in doubt
HOOKS_S: Final = 3.0  # kept of these for the exit hooks
HOOK_S: Final = 1.0  # and for each

Interval = float | Callable[[], float]


class Wake:
    """Ends a loop's pause early. `set` from any thread, also from a signal handler's."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def wait(self, timeout_s: float) -> None:
        self._event.wait(timeout_s)
        self._event.clear()


@dataclass(frozen=True, slots=True)
class _Stop:
    """Why the process ends. Of several, the first counts; a crash during the drain still makes the code 1."""

    reason: str
    code: int
    within_s: float


class _Reload:
    """SIGHUP came."""


class _Ended:
    """A thread has ended: count again."""


@dataclass(slots=True)
class Supervisor:
    """One per process. `watch` and `run` belong to the main thread; all else may be called from any thread."""

    stop_s: float = STOP_S
    notifier: Notifier = field(default_factory=Notifier)
    log: EventLog = field(default_factory=lambda: EventLog("supervisor"))
    stopping: threading.Event = field(default_factory=threading.Event)
    drained: bool = False  # set before the exit hooks: every thread ended by itself, in time, and none crashed
    _events: queue.SimpleQueue[_Stop | _Reload | _Ended] = field(default_factory=queue.SimpleQueue)
    _running: list[str] = field(default_factory=list)  # owners of the threads that have not ended
    _wakes: list[Wake] = field(default_factory=list)
    _exit_hooks: list[tuple[str, Callable[[], object]]] = field(default_factory=list)
    _reload: Callable[[], object] | None = None
    _reloading: threading.Lock = field(default_factory=threading.Lock)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    # --- threads

    def start(self, owner: str, target: Callable[[threading.Event], object], *, may_end: bool = False) -> None:
        """Run `target(stopping)` in a thread named `owner`; it has to end soon after `stopping` is set."""
        thread = threading.Thread(target=self._guard, args=(owner, target, may_end), name=owner, daemon=True)
        with self._lock:
            if not self.stopping.is_set():
                thread.start()
                self._running.append(owner)

    def loop(self, owner: str, once: Callable[[], object], interval: Interval, wake: Wake | None = None) -> Wake:
        """Call `once` again and again: after `interval` seconds, when woken, or at once if it returned True."""
        wake = wake or Wake()
        with self._lock:
            self._wakes.append(wake)

        def rounds(stopping: threading.Event) -> None:
            while not stopping.is_set():
                if once() is not True and not stopping.is_set():
                    wake.wait(interval() if callable(interval) else interval)

        self.start(owner, rounds)
        return wake

    # --- hooks

    def on_exit(self, name: str, hook: Callable[[], object]) -> None:
        """`hook` runs after the drain and before the end, the last registered first, for at most `HOOK_S`."""
        self._exit_hooks.append((name, hook))

    def on_reload(self, hook: Callable[[], object]) -> None:
        """`hook` runs at SIGHUP; a RaiddError from it is logged, all else is a crash."""
        self._reload = hook

    # --- the process

    def watch(self) -> None:
        """Take over signals and crashes. Early: until then SIGHUP kills. Signals wait for `run`.

        SIGIO is ignored: it kills by default, and may follow each lease that the inbox takes (faults.md).
        """
        threading.excepthook = self._crashed_elsewhere
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def ready(self, status: str) -> None:
        self.notifier.ready(status)

    def stop(self, reason: str, code: int = 0) -> None:
        """Ask for the end; returns at once, takes no lock (signal handlers call it)."""
        self._events.put(_Stop(reason, code, self.stop_s if code == 0 else min(CRASH_STOP_S, self.stop_s)))

    def run(self) -> NoReturn:
        """Wait for a reason to end, drain, run the hooks and end the process. Main thread only."""
        self.watch()
        stop = self._first_stop()
        hooks_by = time.monotonic() + stop.within_s * 0.95
        self._arm(stop.within_s, stop.code)
        self._announce(stop)
        code = self._drain(stop.code, hooks_by - min(HOOKS_S, stop.within_s / 2))
        self._run_exit_hooks(hooks_by)
        _end(code)

    def _first_stop(self) -> _Stop:
        while True:
            event = self._next_event(1.0)  # bounded, so that a signal's handler always gets its turn
            if isinstance(event, _Stop):
                return event
            if isinstance(event, _Reload):
                self.start("daemon/reload", lambda _: self._reload_once(), may_end=True)

    def _next_event(self, timeout_s: float) -> _Stop | _Reload | _Ended | None:
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def _announce(self, stop: _Stop) -> None:
        with self._lock:
            self.stopping.set()
            for wake in self._wakes:
                wake.set()
        self.log.info("stopping", reason=stop.reason, within_s=stop.within_s)
        self.notifier.stopping(stop.reason)

    def _drain(self, code: int, deadline: float) -> int:
        """Wait for all threads to end. Returns the exit code: a crash on the way makes it 1."""
        hurried = False
        while self._running and not hurried and (left := deadline - time.monotonic()) > 0:
            event = self._next_event(left)
            if isinstance(event, _Stop):
                code, hurried = max(code, event.code), event.code == 0
        stuck = ",".join(self._running)
        self.drained = not stuck and code == 0
        if stuck:
            self.log.warning("stopped-without", threads=stuck, hurried=hurried)
        return code

    def _run_exit_hooks(self, deadline: float) -> None:
        for name, hook in reversed(self._exit_hooks):
            thread = threading.Thread(target=self._exit_hook, args=(name, hook), name=f"exit/{name}", daemon=True)
            thread.start()
            thread.join(max(0.05, min(HOOK_S, deadline - time.monotonic())))
            if thread.is_alive():
                self.log.warning("exit-hook-stuck", hook=name)

    def _exit_hook(self, name: str, hook: Callable[[], object]) -> None:
        try:
            hook()
        except Exception as error:
            self.log.error("exit-hook-failed", hook=name, error=error)

    def _arm(self, within_s: float, code: int) -> None:
        """The last resort: even writing a log line can block (a full pipe that nobody reads)."""
        alarm = threading.Timer(within_s, os._exit, args=(code,))
        alarm.daemon = True
        alarm.start()

    # --- what ends or reloads it

    def _guard(self, owner: str, target: Callable[[threading.Event], object], may_end: bool) -> None:
        try:
            target(self.stopping)
            if not may_end and not self.stopping.is_set():
                self._crashed(owner, RaiddError("it returned though nothing had asked it to stop"))
        except BaseException as error:
            self._crashed(owner, error)
        finally:
            self._ended(owner)

    def _ended(self, owner: str) -> None:
        with self._lock:
            self._running.remove(owner)
        self._events.put(_Ended())

    def _crashed(self, owner: str, error: BaseException) -> None:
        """The stop comes first: writing the log may block."""
        self.stop(f"{owner} crashed: {type(error).__name__}: {error}", code=1)
        next_step = error.next_step if isinstance(error, RaiddError) else "Report this as a bug, with these lines."
        self.log.critical("thread-crashed", owner=owner, error=error, next=next_step, traceback=logs.trace(error))

    def _crashed_elsewhere(self, crash: threading.ExceptHookArgs) -> None:
        """For threads not started here (threading.excepthook). The drain waits until the log has it."""
        owner = crash.thread.name if crash.thread is not None else "thread"
        with self._lock:
            self._running.append(owner)
        try:
            self._crashed(owner, crash.exc_value or crash.exc_type())
        finally:
            self._ended(owner)

    def _on_signal(self, number: int, _: object) -> None:
        """Runs between any two steps of the main thread: it only queues."""
        if number == signal.SIGHUP:
            self._events.put(_Reload())
        else:
            self.stop(signal.Signals(number).name)

    def _reload_once(self) -> None:
        with self._reloading:
            self.notifier.reloading()
            try:
                if self._reload is not None:
                    self._reload()
                    self.log.info("reloaded")
            except RaiddError as error:
                self.log.error("reload-refused", error=error, next=error.next_step)
            finally:
                self.notifier.ready("")


def _end(code: int) -> NoReturn:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
