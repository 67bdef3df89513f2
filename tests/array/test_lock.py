"""Who owns the array: real processes, killed for real, one of them with a thread stuck on a frozen disk."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from raidd.array import lock
from raidd.array.lock import ArrayLock, Holder, Verdict, judge
from raidd.array.worker import Cancel, Cancelled, Worker
from raidd.errors import ArrayLocked, MemberAway, MemberTimeout, StateDirFaulty
from tests.support.loop_disks import loop_disks, requires_disks

HOLDER = """
import os, sys, threading
from raidd.array.lock import ArrayLock
held = ArrayLock.acquire(sys.argv[1])
def get_stuck_on(path):  # a second thread, in D state
    def write():
        with open(path, "w") as file:
            print("through", file=file)
    threading.Thread(target=write, daemon=True).start()
    while not any(
        open(f"/proc/self/task/{task}/stat").read().rpartition(")")[2].split()[0] == "D"
        for task in os.listdir("/proc/self/task")
    ):
        pass
if len(sys.argv) > 2:
    get_stuck_on(sys.argv[2])
print(*held.names, flush=True)
for line in sys.stdin:
    get_stuck_on(line.strip())
    print("stuck", flush=True)
"""


ROOT = Path(__file__).parents[2]  # where the child finds raidd


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_PATIENCE_S", 0.2)


class Process:
    """Another process that holds, or could not get, the locks of a folder."""

    def __init__(self, folder: Path, stuck_on: Path | None = None) -> None:
        arguments = [sys.executable, "-c", HOLDER, str(folder), *([str(stuck_on)] if stuck_on else [])]
        pipe = subprocess.PIPE
        self._popen = subprocess.Popen(arguments, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)
        assert self._popen.stdout is not None
        self.names = self._popen.stdout.readline().split()  # [] if it has failed
        self.pid = self._popen.pid

    def write(self, path: Path) -> None:
        """A thread of it writes there, and is stuck when this returns."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        print(path, file=self._popen.stdin, flush=True)
        assert self._popen.stdout.readline() == "stuck\n"

    def state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def kill(self) -> None:
        self._popen.send_signal(signal.SIGKILL)
        while self.state() != "Z":
            pass

    def end(self) -> str:
        return self._popen.communicate(timeout=30)[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def test_a_lock_excludes_another_process_and_is_free_after_release(folder: Path) -> None:
    held = ArrayLock.acquire(str(folder))
    assert held.names == ("lock",)
    refused = Process(folder)
    assert refused.names == []
    assert f"in use by process {os.getpid()}" in refused.end()
    held.release()
    allowed = Process(folder)
    assert allowed.names == ["lock"]
    allowed.end()


def test_a_lock_excludes_a_second_owner_in_the_same_process(folder: Path) -> None:
    held = ArrayLock.acquire(str(folder))
    with pytest.raises(ArrayLocked):
        ArrayLock.acquire(str(folder))
    held.unlock()
    again = ArrayLock.acquire(str(folder))
    held.release()
    with pytest.raises(ArrayLocked):
        ArrayLock.acquire(str(folder))
    again.release()


def test_a_killed_holder_needs_no_cleaning(folder: Path) -> None:
    process = Process(folder)
    process.kill()
    held = ArrayLock.acquire(str(folder))
    assert held.names == ("lock",)
    assert Holder.parse((folder / "lock").read_bytes()) == Holder.myself()
    held.release()
    process.end()


def test_the_record_says_who_holds_it(folder: Path) -> None:
    process = Process(folder)
    record = json.loads((folder / "lock").read_text())
    assert record["pid"] == process.pid
    assert set(record) == {"pid", "started", "boot"}
    process.end()


def test_every_lock_file_that_exists_is_taken(folder: Path) -> None:
    for name in ("lock", "lock.2", "lock.10"):
        (folder / name).touch()
    for other in ("lock.1", "lock.02", "lock.x", "locked", "lock.2.bak"):
        (folder / other).touch()
    held = ArrayLock.acquire(str(folder))
    assert held.names == ("lock", "lock.2", "lock.10")
    held.release()


def test_a_live_holder_of_any_of_them_is_enough_to_be_refused(folder: Path) -> None:
    with (folder / "lock.3").open("w+b") as third:
        fcntl.flock(third, fcntl.LOCK_EX)
        third.write(Holder.myself().pack())
        third.flush()
        (folder / "lock").touch()
        with pytest.raises(ArrayLocked):
            ArrayLock.acquire(str(folder))
    held = ArrayLock.acquire(str(folder))
    assert held.names == ("lock", "lock.3"), "and nothing was kept from the attempt that failed"
    held.release()


@pytest.mark.parametrize("record", [b"", b"{", b"[]", b'{"pid": "x"}', b"\xff" * 256])
def test_a_holder_that_cannot_be_told_counts_as_alive(folder: Path, record: bytes) -> None:
    with (folder / "lock").open("w+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(record)
        file.flush()
        with pytest.raises(ArrayLocked):
            ArrayLock.acquire(str(folder))


def test_a_record_of_another_boot_or_a_later_process_proves_nothing() -> None:
    myself = Holder.myself()
    assert judge(myself, 1) is Verdict.ALIVE
    assert judge(Holder(myself.pid, myself.started, "another boot"), 1) is Verdict.UNCLEAR
    assert judge(Holder(myself.pid, myself.started + 1, myself.boot), 1) is Verdict.UNCLEAR
    assert judge(Holder(2**22 - 1, 1, myself.boot), 1) is Verdict.UNCLEAR
    assert judge(None, 1) is Verdict.UNCLEAR


def test_a_zombie_that_no_longer_holds_the_lock_is_not_taken_for_its_holder(folder: Path) -> None:
    """A dead, unreaped process's record is still in the file while the next owner has the flock but has not signed."""
    process = Process(folder)
    process.kill()
    with (folder / "lock").open("r+b") as next_owner:
        fcntl.flock(next_owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        record = Holder.parse((folder / "lock").read_bytes())
        assert record is not None
        assert record.pid == process.pid
        assert process.state() == "Z"
        with pytest.raises(ArrayLocked):
            ArrayLock.acquire(str(folder))
    assert sorted(os.listdir(folder)) == ["lock"]
    process.end()


def test_of_many_that_start_at_once_exactly_one_gets_it(folder: Path) -> None:
    for _ in range(20):
        got: list[ArrayLock] = []
        barrier = threading.Barrier(6)

        def start(got: list[ArrayLock] = got, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            with suppress(ArrayLocked):
                got.append(ArrayLock.acquire(str(folder)))

        threads = [threading.Thread(target=start) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1
        got[0].release()
    assert os.listdir(folder) == ["lock"]


def test_an_attempt_given_up_lets_go_of_what_it_took(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cancel = Cancel()
    write = lock._write_record

    def write_and_give_up(file: int) -> None:
        write(file)
        cancel.cancel()

    monkeypatch.setattr(lock, "_write_record", write_and_give_up)
    with pytest.raises(Cancelled):
        ArrayLock.acquire(str(folder), cancel=cancel)
    monkeypatch.undo()
    ArrayLock.acquire(str(folder)).release()


def test_a_state_dir_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(StateDirFaulty, match="none"):
        ArrayLock.acquire(str(folder / "none"))


def test_a_member_that_is_not_there_is_away_and_a_link_is_refused(folder: Path) -> None:
    with pytest.raises(MemberAway):
        ArrayLock.acquire(str(folder / "none"), member="the-uuid")
    (folder / "link").symlink_to(folder)
    with pytest.raises(MemberAway):
        ArrayLock.acquire(str(folder / "link"), member="the-uuid")
    assert os.listdir(folder) == ["link"]


@requires_disks("ext4")
def test_a_killed_holder_with_a_thread_stuck_on_a_hung_disk_does_not_stop_a_restart(folder: Path) -> None:
    with loop_disks(1, "ext4") as disks:
        disks[0].freeze()
        process = Process(folder, disks[0].folder / "stuck")
        try:
            assert process.names == ["lock"]
            process.kill()
            with (folder / "lock").open("r+b") as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # even SIGKILL has not freed it
            second = ArrayLock.acquire(str(folder))
            assert second.names == ("lock.2",)
            assert second.passed_dead
            with pytest.raises(ArrayLocked):
                ArrayLock.acquire(str(folder))
        finally:
            disks[0].thaw()
            process.end()
        assert Process(folder).names == [], "the old lock is free now, and still only one may own the array"
        second.release()
        third = ArrayLock.acquire(str(folder))
        assert third.names == ("lock", "lock.2")
        assert not third.passed_dead
        third.release()


@requires_disks("ext4")
def test_two_generations_of_stuck_holders(folder: Path) -> None:
    with loop_disks(1, "ext4") as disks:
        disks[0].freeze()
        stuck: list[Process] = []
        try:
            for expected in (["lock"], ["lock.2"]):
                stuck.append(Process(folder, disks[0].folder / f"stuck{len(stuck)}"))
                assert stuck[-1].names == expected
                stuck[-1].kill()
            third = ArrayLock.acquire(str(folder))
            assert third.names == ("lock.3",)
            third.release()
        finally:
            disks[0].thaw()
            for process in stuck:
                process.end()


@requires_disks("ext4")
def test_a_live_holder_with_a_stuck_thread_is_alive(folder: Path) -> None:
    with loop_disks(1, "ext4") as disks:
        disks[0].freeze()
        process = Process(folder, disks[0].folder / "stuck")
        try:
            with pytest.raises(ArrayLocked, match=str(process.pid)):
                ArrayLock.acquire(str(folder))
        finally:
            disks[0].thaw()
            process.end()


@requires_disks("ext4")
def test_a_member_that_is_read_only_or_full_can_still_be_locked() -> None:
    with loop_disks(1, "ext4") as disks:
        folder = disks[0].folder
        (folder / "lock").write_bytes(b" " * 256)
        disks[0].fill()
        held = ArrayLock.acquire(str(folder), member="the-uuid")
        assert Holder.parse((folder / "lock").read_bytes()) == Holder.myself()
        held.release()
        disks[0].remount_ro()
        held = ArrayLock.acquire(str(folder), member="the-uuid")
        with pytest.raises(ArrayLocked):
            ArrayLock.acquire(str(folder), member="the-uuid")
        held.release()


@requires_disks("ext4")
def test_the_lock_of_a_hung_member_is_a_timeout_and_what_comes_too_late_lets_go() -> None:
    """1 a daemon holds the member's lock; 2 the member hangs, with one of its threads; 3 SIGKILL; 4 a restart's attempt
    on that member misses its deadline; 5 the disk wakes up: the abandoned attempt ends and keeps nothing."""
    with loop_disks(1, "ext4") as disks:
        folder = disks[0].folder
        process = Process(folder)
        disks[0].freeze()
        worker = Worker("slot-0", deadline_s=0.3)
        try:
            process.write(folder / "stuck")
            process.kill()
            late = worker.submit(lambda cancel: ArrayLock.acquire(str(folder), member="slot-0", cancel=cancel))
            with pytest.raises(MemberTimeout):
                late.result()
        finally:
            disks[0].thaw()
            process.end()
        assert late.wait_ended(20)
        held = ArrayLock.acquire(str(folder), member="slot-0")
        assert held.names[0] == "lock"
        held.release()
        worker.close()
