"""How the process ends: real child processes, real signals, threads that hang."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from raidd.daemon.notify import Notifier
from raidd.daemon.supervisor import Supervisor
from tests.support.supervised import Supervised


def test_the_first_crash_of_a_thread_ends_the_process_with_its_reason() -> None:
    code = """
    def crash():
        raise StateDirFaulty("fsync of the catalog returned EIO")
    supervisor.on_exit("lock", lambda: say("unlocked"))
    supervisor.start("daemon/patient", lambda stopping: stopping.wait())
    supervisor.loop("array/commit", crash, 1.0)
    """
    with Supervised(code) as child:
        status, said, log = child.end()
    assert status == 1
    assert said[-1] == "unlocked"
    crash = next(line for line in log.splitlines() if "event=thread-crashed" in line)
    assert " critical " in crash
    assert 'owner=array/commit error="StateDirFaulty: fsync of the catalog returned EIO"' in crash
    assert "nothing acknowledged depends on state_dir" in crash


@pytest.mark.parametrize(
    "code",
    [
        "threading.Thread(target=lambda: 1 / 0, name='elsewhere').start()",
        "supervisor.start('elsewhere', lambda stopping: 1 / 0)",
        "supervisor.start('elsewhere', lambda stopping: sys.exit(0))",
        "supervisor.start('elsewhere', lambda stopping: None)",
        "supervisor.start('elsewhere', lambda stopping: 1 / 0, may_end=True)",
    ],
    ids=["a foreign thread", "an owned thread", "sys.exit in a thread", "a silent return", "one that may end"],
)
def test_whatever_way_a_thread_is_lost_the_process_ends(code: str) -> None:
    with Supervised(code) as child:
        status, _, log = child.end()
    assert status == 1
    assert "owner=elsewhere" in log
    assert "event=stopping" in log


def test_a_crash_ends_the_process_also_beside_a_stuck_thread() -> None:
    code = "supervisor.start('a/stuck', stuck)\nsupervisor.start('a/crash', lambda stopping: 1 / 0)"
    with Supervised(code, stop_s=2.0) as child:
        status, _, log = child.end()
    assert status == 1
    assert "threads=a/stuck" in log


def test_a_thread_that_may_end_does_not_end_the_process() -> None:
    code = "supervisor.start('once', lambda stopping: say('done'), may_end=True)"
    with Supervised(code) as child:
        child.expect("done")
        child.signal(signal.SIGTERM)
        assert child.end()[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_round_in_flight_and_begins_no_other(number: signal.Signals) -> None:
    code = """
    def commit_once():
        say("begun")
        supervisor.stopping.wait()
        time.sleep(0.2)
        say("committed")
        return True
    supervisor.on_exit("lock", lambda: say("unlocked"))
    supervisor.on_exit("socket", lambda: say(f"closed-{supervisor.drained}"))
    supervisor.loop("array/commit", commit_once, 3600)
    """
    with Supervised(code) as child:
        child.expect("begun")
        child.signal(number)
        status, said, log = child.end()
    assert status == 0
    assert [word for word in said if word != "running"] == ["committed", "closed-True", "unlocked"]
    assert f"reason={number.name}" in log


def test_stuck_threads_and_hooks_do_not_hold_up_the_end() -> None:
    code = """
    supervisor.start("array/worker-3", stuck)
    supervisor.on_exit("lock", lambda: say(f"unlocked-{supervisor.drained}"))
    supervisor.on_exit("hung", lambda: stuck(None))
    supervisor.on_exit("broken", lambda: 1 / 0)
    """
    with Supervised(code, stop_s=4.0) as child:
        child.expect("running")
        child.signal(signal.SIGTERM)
        status, said, log = child.end()
    assert status == 0
    assert said == ["unlocked-False"]
    assert "event=stopped-without threads=array/worker-3" in log
    assert "event=exit-hook-stuck hook=hung" in log
    assert "event=exit-hook-failed hook=broken" in log


def test_the_alarm_ends_it_even_if_the_log_blocks() -> None:
    """stderr is a full pipe that nobody reads."""
    code = """
    import fcntl
    os.set_blocking(2, False)
    try:
        while True:
            os.write(2, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(2, True)
    """
    with Supervised(code, stop_s=1.0) as child:
        child.expect("running")
        child.signal(signal.SIGTERM)
        assert child.process.wait(timeout=120) == 0


def test_a_second_signal_skips_the_drain() -> None:
    code = "supervisor.start('stuck', stuck)\nsupervisor.on_exit('lock', lambda: say('unlocked'))"
    with Supervised(code, stop_s=1000.0) as child:
        child.expect("running")
        child.signal(signal.SIGTERM)
        while "event=stopping" not in (child.process.stderr.readline() if child.process.stderr else ""):
            pass
        child.signal(signal.SIGINT)
        status, said, log = child.end()
    assert (status, said) == (0, ["unlocked"])
    assert "hurried=True" in log


def test_a_crash_during_the_drain_makes_the_exit_code_one() -> None:
    code = """
    def late(stopping):
        stopping.wait()
        raise OSError("late")
    supervisor.start("late", late)
    """
    with Supervised(code) as child:
        child.expect("running")
        child.signal(signal.SIGTERM)
        status, _, log = child.end()
    assert status == 1
    assert "owner=late" in log


def test_sighup_reloads_and_a_refused_reload_changes_nothing() -> None:
    code = """
    faults = [None, ConfigInvalid(["ingest.settle_s = -1: must be positive"]), None]
    def reload():
        fault = faults.pop(0)
        say("reload")
        if fault:
            raise fault
    supervisor.on_reload(reload)
    """
    with Supervised(code) as child:
        child.expect("running")
        for _ in range(3):
            child.signal(signal.SIGHUP)
            child.expect("reload")
        child.signal(signal.SIGTERM)
        status, _, log = child.end()
    assert status == 0
    assert log.count("event=reloaded") == 2
    assert 'event=reload-refused error="ConfigInvalid: ingest.settle_s = -1: must be positive"' in log


def test_a_lease_break_does_not_kill() -> None:
    with Supervised("") as child:
        child.expect("running")
        child.signal(signal.SIGIO)
        child.signal(signal.SIGTERM)
        assert child.end()[0] == 0


def test_a_process_without_threads_ends_at_once_and_locks_are_free(tmp_path: Path) -> None:
    code = f"""
    import fcntl
    lock = open({str(tmp_path / "lock")!r}, "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    supervisor.on_exit("lock", lambda: (fcntl.flock(lock, fcntl.LOCK_UN), say("free"), stuck(None)))
    """
    with Supervised(code) as child:
        child.expect("running")
        child.signal(signal.SIGTERM)
        assert child.end()[:2] == (0, ["free"])


# --- loops, in this process


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    one = Supervisor()
    yield one
    one.stopping.set()


def test_a_loop_runs_again_when_woken_and_at_once_while_there_is_more(supervisor: Supervisor) -> None:
    rounds = threading.Semaphore(0)
    more = iter([True, True, False, None, True, False])

    def once() -> bool | None:
        rounds.release()
        return next(more, None)

    wake = supervisor.loop("test", once, 3600.0)
    assert all(rounds.acquire(timeout=20) for _ in range(3))
    assert not rounds.acquire(timeout=0.05)
    wake.set()
    assert rounds.acquire(timeout=20)
    wake.set()
    assert all(rounds.acquire(timeout=20) for _ in range(2))


def test_a_loop_asks_for_its_interval_each_time(supervisor: Supervisor) -> None:
    asked = threading.Semaphore(0)

    def interval() -> float:
        asked.release()
        return 0.001

    supervisor.loop("test", lambda: None, interval)
    assert all(asked.acquire(timeout=20) for _ in range(5))


# --- systemd


def test_systemd_is_told_every_step(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60)
        environ = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with Supervised('supervisor.ready("six members, healthy")', environ=environ) as child:
            assert systemd.recv(999) == b"READY=1\nSTATUS=six members, healthy"
            child.expect("running")
            child.signal(signal.SIGHUP)
            assert systemd.recv(999).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert systemd.recv(999) == b"READY=1"
            child.signal(signal.SIGTERM)
            assert systemd.recv(999) == b"STOPPING=1\nSTATUS=SIGTERM"
            assert child.end()[0] == 0


def test_a_status_is_one_line_of_what_systemd_can_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        Notifier().status("Müller’s\nREADY=1")
        assert systemd.recv(999) == b"STATUS=M?ller?s READY=1"


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().ready("x")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
    Notifier().ready("x")
