"""Real threads, one at a time, chosen by a seed: the same seed gives the same life, to the last system call.

The store runs unchanged, with its workers, queues, deadlines and callbacks. Only who goes on when is decided here: a
worker's thread stops before each call to its disk (`park`), and goes on when it is chosen. It is chosen while the
caller waits for something, as `Operation.wait` and `Gathering.wait` do; a caller that does not wait gives nobody a
turn, as a fast one would not. Time is a number: it goes on only when everybody waits, to the moment that somebody
waits for. So a deadline of 30 s costs nothing, and a busy machine looks like an idle one.

    with simulated(seed) as turns: …            everything that is built in here
    turns.run_one(), turns.run_all()            background work that nobody waits for
    turns.slow.add(member)                      its calls go on only when nobody else can, and time may pass before
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from random import Random
from typing import Any
from unittest.mock import patch

from raidd.array import commit, members, reading, worker
from raidd.array.worker import Gathering, Operation, Worker
from raidd.daemon import graph, opening
from tests.support.faulty_disk import SimulatedCrash

PATIENCE_S = 60.0  # of the real clock: a thread that does not come to its next call by then never will
EPOCH_S = datetime(2026, 11, 24, tzinfo=UTC).timestamp()


class Turns:
    """Who may go on. All but `park`, `rest` and `hang` are for the one thread that drives the simulation."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.wall_offset_s = 0.0  # how wrong the host's clock is
        self.slow: set[str] = set()
        self._changed = threading.Condition()
        self._workers: list[TurnedWorker] = []
        self._chosen: TurnedWorker | None = None
        self._moves = self._seen = 0

    # -- time ---------------------------------------------------------------------------------------------

    def monotonic(self) -> float:
        """Seconds since the simulation began."""
        return self.now

    def wall_ms(self) -> int:
        """Unix time, milliseconds, as the host's clock has it."""
        return int((EPOCH_S + self.now + self.wall_offset_s) * 1000)

    def wall_text(self) -> str:
        """The same, RFC 3339."""
        moment = datetime.fromtimestamp(self.wall_ms() / 1000, UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def pass_time(self, seconds: float | None) -> None:
        """The caller waits at most so long: somebody else has a turn, or else time goes by."""
        self._quiet()
        if self._moves != self._seen:
            self._seen = self._moves  # somebody came to his end without a turn: the caller looks first
        elif not self.run_one(within_s=seconds):
            assert seconds is not None, f"everybody waits for ever: {self.states()}"
            self.now += max(seconds, 0.0) + 1e-6

    # -- turns --------------------------------------------------------------------------------------------

    def run_one(self, within_s: float | None = None) -> bool:
        """One parked thread goes on to its next call, its end, or where it hangs. False: nobody is parked (or those
        that are need longer than ``within_s``)."""
        self._quiet()
        parked = [each for each in self._workers if each.state == "parked"]
        quick = [each for each in parked if each.name[-8:] not in self.slow]
        if not quick and parked and within_s is not None and self.random.random() < 0.5:
            return False
        if not parked:
            return False
        chosen = self.random.choice(quick or parked)
        self.now += 1e-5
        with self._changed:
            chosen.state, self._chosen = "running", chosen
            self._changed.notify_all()
        self._quiet()
        self._seen = self._moves
        return True

    def run_all(self) -> None:
        """Until nobody is parked: all that was begun is done, or hangs."""
        while self.run_one():
            pass

    def states(self) -> list[str]:
        """For messages."""
        return [f"{each.name}: {each.state}" for each in self._workers if each.state != "gone"]

    def _quiet(self) -> None:
        """Wait until no worker's thread runs."""
        with self._changed:
            quiet = self._changed.wait_for(lambda: not any(each.busy() for each in self._workers), PATIENCE_S)
            assert quiet, f"a thread does not come to its next call: {self.states()}"
            self._workers = [each for each in self._workers if each.state != "gone"]

    # -- from the workers' threads ------------------------------------------------------------------------

    def join(self, newcomer: TurnedWorker) -> None:
        """One more worker."""
        self._workers.append(newcomer)

    def park(self) -> None:
        """Before a call: wait to be chosen. The driving thread does not wait."""
        mine = worker_of(threading.current_thread())
        if mine is None or mine.turns is not self:
            return
        with self._changed:
            mine.state, self._moves = "parked", self._moves + 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._chosen is mine)
            self._chosen = None

    def set_state(self, mine: TurnedWorker, state: str) -> None:
        """It rests, hangs, runs or is gone."""
        with self._changed:
            mine.state, self._moves = state, self._moves + 1
            self._changed.notify_all()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """A call that hangs: the others go on. When it is let go it waits for its turn like everybody."""
        mine = worker_of(threading.current_thread())
        if mine is None:
            yield
            return
        self.set_state(mine, "hanging")
        yield
        self.park()


class TurnedCondition(threading.Condition):
    """A worker's `changed`: when the driving thread waits on it, it gives turns."""

    def __init__(self, turns: Turns) -> None:
        super().__init__(threading.RLock())
        self._turns = turns

    def wait(self, timeout: float | None = None) -> bool:
        """As Condition.wait, for a worker's own thread; for the driving thread a turn, or the passing of time."""
        if worker_of(threading.current_thread()) is not None:
            return super().wait(timeout)
        state = self._release_save()  # type: ignore[attr-defined]
        try:
            self._turns.pass_time(timeout)
        finally:
            self._acquire_restore(state)  # type: ignore[attr-defined]
        return True


_WORKERS: dict[threading.Thread, TurnedWorker] = {}


def worker_of(thread: threading.Thread) -> TurnedWorker | None:
    """Whose thread it is; None for the driving one."""
    return _WORKERS.get(thread)


class TurnedWorker(Worker):
    """The real worker, but for its clock and for who waits when."""

    def __init__(self, name: str, deadline_s: float, turns: Turns) -> None:
        self.turns = turns
        self.state = "running"  # until its thread has come to rest
        self.name, self.deadline_s, self.clock = name, deadline_s, turns.monotonic
        self.changed = TurnedCondition(turns)
        self._queue = worker.deque()
        self._current = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"member {name}", daemon=True)
        _WORKERS[self._thread] = self
        turns.join(self)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._loop()
        except SimulatedCrash:
            pass  # a callback met the death of its process
        finally:
            _WORKERS.pop(self._thread, None)
            self.turns.set_state(self, "gone")

    def _next(self) -> Operation[Any] | None:
        with self.changed:
            while not self._queue and not self._closed:
                self.turns.set_state(self, "resting")
                self.changed.wait()
            self.turns.set_state(self, "running")
        return super()._next()

    def busy(self) -> bool:
        """Its thread runs, or is about to."""
        return self.state == "running" or (self.state == "resting" and (bool(self._queue) or self._closed))


def _gather(turns: Turns) -> Callable[..., bool]:
    def wait(self: Gathering[Any], enough: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Gathering.wait, giving turns."""
        until = None if timeout_s is None else turns.now + timeout_s
        while not enough():
            unsettled = [operation for operation in self.operations if not operation.settled()]
            left = None if until is None else until - turns.now
            if not unsettled or (left is not None and left <= 0):
                return enough()
            turns.pass_time(worker._least(left, *(operation.seconds_left() for operation in unsettled)))
        return True

    return wait


@contextmanager
def simulated(seed: int) -> Iterator[Turns]:
    """All arrays that are built in here take turns by this seed."""
    turns = Turns(seed)

    def worker_class(name: str, deadline_s: float, *_clock: object) -> TurnedWorker:
        return TurnedWorker(name, deadline_s, turns)

    with ExitStack() as stack:
        for module in (worker, commit, reading, graph):
            stack.enter_context(patch.object(module, "time", turns))
        for module in (graph, opening):
            stack.enter_context(patch.object(module, "now_text", turns.wall_text))
            stack.enter_context(patch.object(module, "now_ms", turns.wall_ms))
        stack.enter_context(patch.object(members, "Worker", worker_class))
        stack.enter_context(patch.object(Gathering, "wait", _gather(turns)))
        yield turns
