"""Deadlines run on a clock the test moves, disks hang until the test lets them go: nothing waits for time to pass."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from raidd.array.worker import Cancel, Cancelled, Gathering, Operation, Worker, first_done, wait_all
from raidd.errors import MemberTimeout

DEADLINE_S = 30.0
A_WHILE_S = 20.0  # never reached when things work


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Hung:
    """A function that blocks until it is released, as a disk in D state does."""

    def __init__(self, value: object = "late") -> None:
        self.entered, self.go, self.value = threading.Event(), threading.Event(), value
        self.cancelled: bool | None = None

    def __call__(self, cancel: Cancel) -> object:
        self.entered.set()
        assert self.go.wait(A_WHILE_S)
        self.cancelled = cancel.cancelled
        return self.value


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def worker(clock: Clock) -> Iterator[Worker]:
    worker = Worker("disk-1", DEADLINE_S, clock)
    yield worker
    worker.close()


def hang(worker: Worker) -> tuple[Hung, Operation[object]]:
    hung = Hung()
    operation = worker.submit(hung)
    assert hung.entered.wait(A_WHILE_S)
    return hung, operation


def test_results_and_errors_come_back_to_whoever_asks(worker: Worker) -> None:
    assert worker.submit(lambda _: 42).result() == 42
    failed = worker.submit(lambda _: 1 // 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            failed.result()
    assert failed.done()
    assert not failed.succeeded()


def test_operations_run_in_the_order_they_were_given_on_one_daemon_thread(worker: Worker) -> None:
    seen: list[int] = []
    threads: set[threading.Thread] = set()

    def step(number: int) -> Callable[[Cancel], None]:
        def run(_: Cancel) -> None:
            seen.append(number)
            threads.add(threading.current_thread())

        return run

    operations = [worker.submit(step(number)) for number in range(50)]
    assert wait_all(operations, A_WHILE_S)
    assert seen == list(range(50))
    assert len(threads) == 1
    assert threads.pop().daemon


def test_an_operation_that_misses_its_deadline_is_a_timeout_for_ever(worker: Worker, clock: Clock) -> None:
    hung, operation = hang(worker)
    assert not operation.overdue()
    assert not operation.settled()
    clock.now += DEADLINE_S
    assert operation.overdue()
    assert operation.settled()
    assert not operation.done(), "it is still out there, with its buffer"
    with pytest.raises(MemberTimeout) as raised:
        operation.result()
    assert raised.value.member == "disk-1"
    assert not operation.wait(), "waiting does not go beyond the deadline"
    hung.go.set()
    assert operation.wait_ended(A_WHILE_S)
    assert hung.cancelled, "it was told to stop at its next step"
    with pytest.raises(MemberTimeout):
        operation.result()
    assert not operation.succeeded()


def test_a_waiter_is_woken_when_the_deadline_passes() -> None:
    worker = Worker("disk-1", 0.05)  # the real clock, once
    hung, operation = hang(worker)
    with pytest.raises(MemberTimeout):
        operation.result()
    hung.go.set()
    worker.close()


def test_the_deadline_counts_from_the_start_not_from_the_queue(worker: Worker, clock: Clock) -> None:
    hung, _ = hang(worker)
    queued = worker.submit(lambda _: "mine")
    clock.now += DEADLINE_S - 1
    hung.go.set()
    assert queued.wait(A_WHILE_S)
    clock.now += DEADLINE_S
    assert queued.result() == "mine"


def test_what_waits_behind_an_overdue_operation_times_out_with_it_and_never_runs(worker: Worker, clock: Clock) -> None:
    hung, _ = hang(worker)
    ran: list[int] = []
    queued = worker.submit(lambda _: ran.append(1))
    clock.now += DEADLINE_S
    with pytest.raises(MemberTimeout):
        queued.result()
    hung.go.set()
    assert queued.wait_ended(A_WHILE_S)
    assert ran == []
    with pytest.raises(MemberTimeout):
        queued.result()


def test_while_it_is_stuck_submit_fails_at_once_and_afterwards_it_works_again(worker: Worker, clock: Clock) -> None:
    hung, operation = hang(worker)
    clock.now += DEADLINE_S
    assert worker.stuck()
    refused = worker.submit(lambda _: 1)
    assert refused.done(), "it will never touch a buffer"
    with pytest.raises(MemberTimeout):
        refused.result()
    hung.go.set()
    assert operation.wait_ended(A_WHILE_S)
    assert not worker.stuck()
    assert worker.submit(lambda _: "again").result() == "again"


def test_an_operation_that_ends_late_unnoticed_counts(worker: Worker, clock: Clock) -> None:
    hung, operation = hang(worker)
    clock.now += DEADLINE_S
    hung.go.set()
    assert operation.wait_ended(A_WHILE_S)
    assert operation.result() == "late"


def test_callbacks_fire_at_the_real_end_not_at_the_deadline(worker: Worker, clock: Clock) -> None:
    hung, operation = hang(worker)
    queued = worker.submit(lambda _: None)
    ended: list[str] = []
    both = threading.Event()
    operation.add_done_callback(lambda _: ended.append("hung"))
    queued.add_done_callback(lambda _: ended.append("queued"))
    queued.add_done_callback(lambda _: both.set())
    clock.now += DEADLINE_S
    assert operation.overdue()
    assert ended == [], "the buffers are not free yet"
    refused = worker.submit(lambda _: None)
    refused.add_done_callback(lambda _: ended.append("refused"))
    assert ended == ["refused"], "this one never held any"
    hung.go.set()
    assert both.wait(A_WHILE_S)
    assert ended == ["refused", "hung", "queued"]


def test_a_callback_added_after_the_end_fires_at_once(worker: Worker) -> None:
    operation = worker.submit(lambda _: None)
    operation.wait()
    seen: list[Operation[None]] = []
    operation.add_done_callback(seen.append)
    assert seen == [operation]


def test_a_broken_callback_does_not_cost_the_member_its_thread(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", reported.append)
    hung, operation = hang(worker)
    operation.add_done_callback(lambda _: 1 // 0)
    hung.go.set()
    assert worker.submit(lambda _: "alive").result() == "alive"
    assert [args.exc_type for args in reported] == [ZeroDivisionError]


def test_a_cancelled_operation_that_has_not_begun_never_runs(worker: Worker) -> None:
    hung, _ = hang(worker)
    ran: list[int] = []
    queued = worker.submit(lambda _: ran.append(1))
    queued.cancel.cancel()
    hung.go.set()
    with pytest.raises(Cancelled):
        queued.result()
    assert ran == []


def test_close_cancels_what_waits_and_ends_the_thread(worker: Worker) -> None:
    hung, operation = hang(worker)
    queued = worker.submit(lambda _: 1)
    worker.close()
    hung.go.set()
    assert operation.result() == "late", "what runs may end"
    for refused in (queued, worker.submit(lambda _: 1)):
        with pytest.raises(Cancelled):
            refused.result()
    worker._thread.join(A_WHILE_S)
    assert not worker._thread.is_alive()


def test_an_idle_worker_keeps_nothing_alive(worker: Worker) -> None:
    class Payload:
        def __call__(self, _: Cancel) -> None:
            pass

    payload = Payload()
    gone = weakref.ref(payload)
    operation: Operation[None] | None = worker.submit(payload)
    assert operation is not None
    operation.wait()
    worker.submit(lambda _: None).wait()
    del payload, operation
    gc.collect()
    assert gone() is None


def test_elapsed_time_is_that_of_the_run(worker: Worker, clock: Clock) -> None:
    hung, operation = hang(worker)
    queued = worker.submit(lambda _: None)
    clock.now += 2.5
    assert (operation.elapsed_s(), queued.elapsed_s()) == (2.5, 0.0)
    hung.go.set()
    operation.wait_ended()
    clock.now += 1
    assert operation.elapsed_s() == 2.5


# -- several members ---------------------------------------------------------------------------------------------------


@pytest.fixture
def workers(clock: Clock) -> Iterator[list[Worker]]:
    workers = [Worker(f"disk-{number}", DEADLINE_S, clock) for number in range(4)]
    yield workers
    for worker in workers:
        worker.close()


def test_gathering_returns_as_soon_as_enough_have_succeeded(workers: list[Worker]) -> None:
    hung, _ = hang(workers[0])
    operations = [workers[0].submit(lambda _: 0), *[worker.submit(lambda _: 1) for worker in workers[1:]]]
    gathering = Gathering(operations)
    assert gathering.wait_succeeded(3)
    assert gathering.succeeded() == operations[1:]
    hung.go.set()
    assert gathering.wait_succeeded(4)


def test_gathering_gives_up_when_too_few_are_left(workers: list[Worker]) -> None:
    hung, slow = hang(workers[0])
    operations: list[Operation[Any]] = [slow, *[worker.submit(lambda _: 1 // 0) for worker in workers[1:]]]
    assert not Gathering(operations).wait_succeeded(2)
    hung.go.set()


def test_gathering_wakes_up_when_a_member_becomes_overdue() -> None:
    workers = [Worker("fast", 0.05), Worker("slow", 0.05)]
    hung, slow = hang(workers[1])
    behind = workers[1].submit(lambda _: 1)
    gathering = Gathering([workers[0].submit(lambda _: 1), behind])
    assert not gathering.wait_succeeded(2)
    assert gathering.operations[1].overdue()
    assert slow.overdue()
    hung.go.set()
    for worker in workers:
        worker.close()


def test_gathering_counts_the_deadline_of_what_starts_while_it_waits() -> None:
    worker = Worker("disk", 0.1)
    first, _ = hang(worker)
    second = Hung()
    behind = worker.submit(second)
    gathering = Gathering([behind])
    releaser = threading.Timer(0.01, first.go.set)
    releaser.start()
    assert not gathering.wait(lambda: False, A_WHILE_S), "settled by its own deadline"
    assert behind.overdue()
    releaser.join()
    second.go.set()
    worker.close()


def test_gathering_honours_its_own_timeout(workers: list[Worker]) -> None:
    hung, operation = hang(workers[0])
    assert first_done([operation], timeout_s=0.01) == []
    assert not wait_all([operation], timeout_s=0.01)
    assert not operation.wait(0.01)
    hung.go.set()
    assert first_done([operation], timeout_s=A_WHILE_S) == [operation]


def test_first_done_names_those_that_are(workers: list[Worker]) -> None:
    hung, slow = hang(workers[0])
    quick: Operation[object] = workers[1].submit(lambda _: 1)
    assert first_done([slow, quick], A_WHILE_S) == [quick]
    hung.go.set()


def test_gathering_nothing_is_over_at_once() -> None:
    assert wait_all([])
    assert first_done([]) == []
    assert Gathering[int]([]).wait_succeeded(0)


def test_many_operations_on_many_members_all_settle(workers: list[Worker]) -> None:
    for _ in range(50):
        operations = [worker.submit(lambda _: None) for worker in workers for _ in range(5)]
        assert wait_all(operations, A_WHILE_S)


# -- withdrawn ----------------------------------------------------------------------------------------------------


def test_what_is_withdrawn_before_its_turn_never_begins_and_is_done_at_once(worker: Worker) -> None:
    hung, _operation = hang(worker)
    ran: list[bool] = []
    freed: list[bool] = []
    waiting = worker.submit(lambda _cancel: ran.append(True))
    waiting.add_done_callback(lambda ended: freed.append(ended.done()))
    waiting.withdraw()
    assert freed == [True], "its buffer is free though the disk hangs"
    assert not waiting.began()
    with pytest.raises(Cancelled):
        waiting.result()
    hung.go.set()
    worker.submit(lambda _cancel: None).result()
    assert ran == []


def test_what_is_withdrawn_amid_its_run_keeps_its_buffer_and_stops_at_its_next_step(worker: Worker) -> None:
    hung, operation = hang(worker)
    freed: list[bool] = []
    operation.add_done_callback(lambda _ended: freed.append(True))
    operation.withdraw()
    assert operation.began()
    assert not operation.done()
    assert freed == []
    hung.go.set()
    assert operation.wait_ended(A_WHILE_S)
    assert hung.cancelled is True


def test_withdrawing_what_has_ended_changes_nothing(worker: Worker) -> None:
    operation = worker.submit(lambda _cancel: 7)
    assert operation.result() == 7
    operation.withdraw()
    assert operation.result() == 7


def test_what_stood_behind_an_overdue_one_can_be_withdrawn_and_stays_a_timeout(worker: Worker, clock: Clock) -> None:
    hung, first = hang(worker)
    freed: list[bool] = []
    waiting = worker.submit(lambda _cancel: None)
    waiting.add_done_callback(lambda _ended: freed.append(True))
    clock.now += DEADLINE_S + 1
    assert first.overdue()
    waiting.withdraw()
    assert freed == [True]
    with pytest.raises(MemberTimeout):
        waiting.result()
    hung.go.set()
    assert first.wait_ended(A_WHILE_S)


def test_who_gathers_hears_of_a_withdrawal(worker: Worker) -> None:
    hung, _operation = hang(worker)
    waiting = worker.submit(lambda _cancel: None)
    gathering = Gathering([waiting])
    threading.Timer(0.05, waiting.withdraw).start()
    assert gathering.wait(waiting.settled, A_WHILE_S)
    assert gathering.succeeded() == []
    hung.go.set()
