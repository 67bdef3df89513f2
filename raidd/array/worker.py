"""One thread per member: whatever a disk does, it does to its own thread.

Why: a hung disk blocks a system call for minutes, in a state that not even SIGKILL ends (faults.md). So each member has
one daemon thread that runs its operations in the order they were given; who waits for one waits for at most its
deadline, counted from its start.

Promises
  - An operation that misses its deadline raises MemberTimeout, now and for ever, and its cancel flag is up: when the
    disk wakes up later, the operation stops at its next step.
  - What stands behind an overdue operation times out with it and never runs; while it is stuck, `submit` fails at once.
    After the disk wakes up the same thread goes on: no second thread ever touches the member.
  - `add_done_callback` fires when the function has really ended (or can no longer begin): only then is its buffer free.
  - Nobody polls: `Gathering` sleeps until an operation starts, ends or becomes overdue.

Plain daemon threads, for ThreadPoolExecutor joins its threads at exit and hangs with them.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar, cast

from raidd.errors import MemberTimeout, RaiddError

T = TypeVar("T")
Clock = Callable[[], float]


class Cancelled(RaiddError):
    """The operation was abandoned by who asked for it and stopped before its next step."""

    next_step = "Nothing to do by hand: raidd went on without this operation."


class Cancel:
    """A flag that one thread raises and the operation's thread looks at before each step."""

    __slots__ = ("_raised",)

    def __init__(self) -> None:
        self._raised = False

    def cancel(self) -> None:
        self._raised = True  # a plain store is atomic; there is nothing to wait for

    @property
    def cancelled(self) -> bool:
        return self._raised

    def check(self) -> None:
        """Raises Cancelled when the flag is up."""
        if self._raised:
            raise Cancelled("abandoned")


class Operation(Generic[T]):
    """One call on a member's worker, seen from outside. All methods may be called from any thread."""

    def __init__(self, worker: Worker, function: Callable[[Cancel], T]) -> None:
        self.cancel = Cancel()
        self._worker = worker
        self._function: Callable[[Cancel], T] | None = function
        self._value: T | None = None
        self._error: BaseException | None = None
        self._timed_out = False
        self._done = False
        self._started_at: float | None = None
        self._ended_at: float | None = None
        self._callbacks: list[Callable[[Operation[T]], object]] = []
        self._listeners: list[Callable[[], object]] = []

    def done(self) -> bool:
        """The function has really ended or will never begin. False while a hung one is still out there."""
        with self._worker.changed:
            return self._done

    def overdue(self) -> bool:
        """It missed its deadline (and stays a MemberTimeout, even if it ends later)."""
        with self._worker.changed:
            self._worker.expire()
            return self._timed_out

    def settled(self) -> bool:
        """`result` would not block: done, or overdue."""
        with self._worker.changed:
            self._worker.expire()
            return self._done or self._timed_out

    def succeeded(self) -> bool:
        """Ended in time, without an error."""
        with self._worker.changed:
            return self._done and not self._timed_out and self._error is None

    def elapsed_s(self) -> float:
        """Seconds it ran, up to now if it still does; 0.0 if it has not begun."""
        with self._worker.changed:
            if self._started_at is None:
                return 0.0
            return (self._worker.clock() if self._ended_at is None else self._ended_at) - self._started_at

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until settled, at most `timeout_s`; returns `done()`."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        with self._worker.changed:
            while not self._done:
                self._worker.expire()
                left = _least(self._worker.seconds_left(), None if until is None else until - time.monotonic())
                if self._timed_out or (left is not None and left <= 0):
                    return False
                self._worker.changed.wait(left)
            return True

    def wait_ended(self, timeout_s: float | None = None) -> bool:
        """Wait for its real end, also beyond the deadline; returns `done()`."""
        with self._worker.changed:
            return self._worker.changed.wait_for(lambda: self._done, timeout_s)

    def result(self) -> T:
        """What the function returned or raised; MemberTimeout once its deadline has passed."""
        while not self.settled():
            self.wait()
        with self._worker.changed:
            if self._timed_out:
                raise MemberTimeout(
                    f"{self._worker.name}: no answer within {self._worker.deadline_s:g} s", member=self._worker.name
                )
            if self._error is not None:
                raise self._error
            return cast(T, self._value)

    def add_done_callback(self, callback: Callable[[Operation[T]], object]) -> None:
        """Call `callback(operation)` once it is `done()`, on the worker's thread (at once if it is already)."""
        with self._worker.changed:
            if not self._done:
                self._callbacks.append(callback)
                return
        callback(self)

    def began(self) -> bool:
        """Its turn has come: something of it may have happened."""
        with self._worker.changed:
            return self._started_at is not None

    def withdraw(self) -> None:
        """Nobody wants it any more. If its turn has not come it is done at once and never begins, so that what is held
        for it is free though the disk hangs; else its cancel flag is up."""
        due: list[Callable[[], object]] = []
        with self._worker.changed:
            self.cancel.cancel()
            if self._worker.drop(self):
                self._function = None
                due = self._end(None, Cancelled(f"{self._worker.name}: withdrawn"), None)
                self._worker.changed.notify_all()
        _call_all(due)

    def seconds_left(self) -> float | None:
        """Until it becomes overdue, as far as known now: None before its turn has come, or when it is done."""
        with self._worker.changed:
            return None if self._done else self._worker.seconds_left()

    def listen(self, listener: Callable[[], object]) -> None:
        """Call `listener()` whenever the worker's queue moves while this is not done. For `Gathering`."""
        with self._worker.changed:
            if not self._done:
                self._listeners.append(listener)

    # -- the worker's side, `changed` held ----------------------------------------------------------------------------

    def _run(self) -> tuple[Any, BaseException | None]:
        function, self._function = self._function, None  # what it closed over is freed with it
        assert function is not None
        try:
            self.cancel.check()
            return function(self.cancel), None
        except BaseException as error:  # handed to whoever asks for the result
            return None, error

    def _abandon(self) -> None:
        self._timed_out = True
        self.cancel.cancel()

    def _end(self, value: Any, error: BaseException | None, at: float | None) -> list[Callable[[], object]]:
        self._value, self._error, self._ended_at, self._done = value, error, at, True
        due: list[Callable[[], object]] = [lambda c=callback: c(self) for callback in self._callbacks]  # type: ignore[misc]
        due += self._listeners
        self._callbacks, self._listeners = [], []
        return due


def _least(*seconds: float | None) -> float | None:
    return min((each for each in seconds if each is not None), default=None)


class Worker:
    """The one thread that touches a member. `name` says whose it is, in errors and in thread lists; deadlines are
    measured by `clock`, how long a caller is willing to wait by real time."""

    def __init__(self, name: str, deadline_s: float, clock: Clock = time.monotonic) -> None:
        self.name = name
        self.deadline_s = deadline_s
        self.clock = clock
        self.changed = threading.Condition(threading.RLock())
        self._queue: deque[Operation[Any]] = deque()
        self._current: Operation[Any] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name=f"member {name}", daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[Cancel], T]) -> Operation[T]:
        """Queue `function(cancel)`. While the current operation is overdue, or after `close`, it fails at once."""
        operation = Operation(self, function)
        with self.changed:
            self.expire()
            stuck = self._current is not None and self._current._timed_out
            if not stuck and not self._closed:
                self._queue.append(operation)
                self.changed.notify_all()
                return operation
            if stuck:
                operation._abandon()
            operation._end(None, Cancelled(f"{self.name}: closed"), None)
        return operation

    def stuck(self) -> bool:
        """Its current operation is overdue: the disk hangs."""
        with self.changed:
            self.expire()
            return self._current is not None and self._current._timed_out

    def close(self) -> None:
        """Take nothing more. What is queued is cancelled; the thread leaves after its current operation, whenever that
        ends. Never blocks."""
        with self.changed:
            self._closed = True
            for operation in self._queue:
                operation.cancel.cancel()
            self.changed.notify_all()

    # -- `changed` held -----------------------------------------------------------------------------------------------

    def seconds_left(self) -> float | None:
        """Until the current operation becomes overdue; all that wait behind it do so with it."""
        current = self._current
        if current is None or current._started_at is None:
            return None
        return current._started_at + self.deadline_s - self.clock()

    def drop(self, operation: Operation[Any]) -> bool:
        """Take an operation out of the queue. False when its turn has come already."""
        try:
            self._queue.remove(operation)
        except ValueError:
            return False
        return True

    def expire(self) -> None:
        """Notice that the deadline has passed: from here on this operation and those behind it are MemberTimeout."""
        left = self.seconds_left()
        if self._current is None or left is None or left > 0 or self._current._timed_out:
            return
        for operation in (self._current, *self._queue):
            operation._abandon()
        self.changed.notify_all()

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while (operation := self._next()) is not None:
            value, error = operation._run()
            with self.changed:
                self._current = None
                due = operation._end(value, error, self.clock())
                self.changed.notify_all()
            del operation, value, error  # an idle worker keeps no buffer alive
            _call_all(due)

    def _next(self) -> Operation[Any] | None:
        with self.changed:
            while not self._queue:
                if self._closed:
                    return None
                self.changed.wait()
            operation = self._current = self._queue.popleft()
            operation._started_at = self.clock()
            listeners = [listener for each in (operation, *self._queue) for listener in each._listeners]
            self.changed.notify_all()
        _call_all(listeners)
        return operation


def _call_all(functions: Iterable[Callable[[], object]]) -> None:
    """A bug in a callback must not cost the member its thread: it goes to threading.excepthook, as a crash would."""
    for function in functions:
        try:
            function()
        except Exception:
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))


class Gathering(Generic[T]):
    """Wait for something about several operations on several workers.

    `Gathering(operations).wait(lambda: enough…, timeout_s)` wakes up on every start, end and missed deadline among
    them. One thread waits at a time.
    """

    def __init__(self, operations: Sequence[Operation[T]]) -> None:
        self.operations = tuple(operations)
        self._changed = threading.Condition()
        self._changes = 0
        for operation in self.operations:
            operation.listen(self._notice)

    def _notice(self) -> None:
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    def wait(self, enough: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Until `enough()`, or until all are settled, or `timeout_s` has passed; returns `enough()` as it is then."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            seen = self._changes
            if enough():
                return True
            unsettled = [operation for operation in self.operations if not operation.settled()]
            left = None if until is None else until - time.monotonic()
            if not unsettled or (left is not None and left <= 0):
                return enough()
            left = _least(left, *(operation.seconds_left() for operation in unsettled))
            with self._changed:
                if self._changes == seen:
                    self._changed.wait(None if left is None else max(left, 0.0))

    def settled(self) -> list[Operation[T]]:
        """Those whose `result` would not block, in the order given."""
        return [operation for operation in self.operations if operation.settled()]

    def succeeded(self) -> list[Operation[T]]:
        """Those that ended in time without an error, in the order given."""
        return [operation for operation in self.operations if operation.succeeded()]

    def wait_succeeded(self, count: int, timeout_s: float | None = None) -> bool:
        """Until `count` have succeeded; False as soon as too few are left that could, or after `timeout_s`."""

        def decided() -> bool:
            settled, good = len(self.settled()), len(self.succeeded())
            return good >= count or good + len(self.operations) - settled < count

        self.wait(decided, timeout_s)
        return len(self.succeeded()) >= count


def first_done(operations: Sequence[Operation[T]], timeout_s: float | None = None) -> list[Operation[T]]:
    """Wait until at least one is settled; those that are, in the order given ([] after `timeout_s`)."""
    gathering = Gathering(operations)
    gathering.wait(lambda: any(operation.settled() for operation in operations), timeout_s)
    return gathering.settled()


def wait_all(operations: Sequence[Operation[T]], timeout_s: float | None = None) -> bool:
    """Wait until all are settled; False if that took longer than `timeout_s`."""
    return Gathering(operations).wait(lambda: all(operation.settled() for operation in operations), timeout_s)
