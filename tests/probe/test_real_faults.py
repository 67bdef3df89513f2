"""Real disks that die, vanish, fill up, are swapped and hang, under a real daemon that takes in and gives back images.

Six disks on loop devices, XFS and ext4 by turns, 4+2. In each test a sender and a reader run all the while; the
reader compares every image, and not one may fail: two disks may go wrong at once, nobody waits for them. What the
kernel does in each case was tried before (faults.md); each docstring numbers its steps.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.load import Reader, reading, sending
from tests.support.loop_disks import LoopDisk, loop_disks, requires_disks
from tests.support.owed import assert_at_rest, assert_nothing_lost, assert_one_of_each
from tests.support.real_daemon import PATIENCE_S, RealDaemon, process_state, real_daemon

pytestmark = [pytest.mark.disks, requires_disks("ext4", "xfs"), pytest.mark.timeout(600)]

SIZE_MIB = {"xfs": 320, "ext4": 160}
SICK = XFS, EXT4 = (0, 1)
"""Slots of the disks that go wrong; the others are well all the time."""
WELL = (2, 3, 4, 5)
FROZEN_AT_MOST_S = 150


class Ward:
    """A daemon on real disks. `disks` are in the order of the slots."""

    def __init__(self, raidd: RealDaemon, disks: list[LoopDisk]) -> None:
        self.raidd, self.disks = raidd, disks
        self._reader: Reader | None = None

    @contextmanager
    def load(self) -> Iterator[None]:
        """Images are sent and read all the while; every one that is read must come back as it went in."""
        seed = str(time.time_ns())
        print(f"load: {seed}")
        with sending(self.raidd, seed, largest=60_000), reading(self.raidd, seed) as reader:
            self._reader = reader
            self.goes_on()
            yield
        assert reader.faults == []

    def goes_on(self) -> None:
        """Images are taken in and read back, now as before."""
        assert self._reader is not None
        stored, read = self._stored(), self._reader.count
        self.raidd.until(lambda: self._stored() >= stored + 20, "images are taken in")
        self.raidd.until(lambda: self._reader.count >= read + 20, "images are read")  # type: ignore[union-attr]
        assert self._reader.faults == []

    def _stored(self) -> int:
        return int(self.raidd.status()["images"]["count"])

    def wait_for(self, **states: str) -> None:
        """Until the slots named (`slot0="missing"`) are in these states, and all others online."""
        wanted = {slot: states.get(f"slot{slot}", "online") for slot in range(6)}
        self.raidd.until(lambda: self.raidd.states() == wanted, f"the slots are {wanted}")

    def assert_made_good(self) -> None:
        """Everything acknowledged is there, also without two disks that were well all the time: so what the sick ones
        missed was made good. The last thing a test does."""
        self.raidd.wait_healthy()
        assert_at_rest(self.raidd)
        assert_one_of_each(self.raidd)
        for slot in WELL[:2]:
            self.disks[slot].shutdown()
        self.raidd.until(lambda: {self.raidd.states()[slot] for slot in WELL[:2]} == {"missing"}, "two more are dead")
        assert_nothing_lost(self.raidd)


@contextmanager
def ward(home: Path, *, prepare: Callable[[Sequence[LoopDisk]], object] = lambda _disks: None) -> Iterator[Ward]:
    """Six disks, XFS and ext4 by turns, and a daemon."""
    homes: set[Path] = set()
    with ExitStack() as stack:
        # Last of all: a disk that changed places is still mounted in the other's home when that one is taken down.
        stack.callback(_remove, homes)
        xfs = stack.enter_context(loop_disks(3, "xfs", SIZE_MIB["xfs"]))
        ext4 = stack.enter_context(loop_disks(3, "ext4", SIZE_MIB["ext4"]))
        disks = [disk for pair in zip(xfs, ext4, strict=True) for disk in pair]
        homes |= {disk.folder.parent for disk in disks}
        prepare(disks)
        raidd = stack.enter_context(real_daemon(home / "home", [disk.folder for disk in disks]))
        yield Ward(raidd, disks)


def _remove(folders: set[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def umount(raidd: RealDaemon, disk: LoopDisk) -> None:
    """As soon as nothing of it is open any more: of a disk that is away raidd keeps nothing open."""

    def done() -> bool:
        with suppress(RuntimeError):
            disk.umount()
        return not os.path.ismount(disk.folder)

    raidd.until(done, f"nothing on {disk.folder} is open any more")


def test_dead_disks_stop_nobody_and_come_back_whole(tmp_path: Path) -> None:
    """1. An XFS and an ext4 disk die. 2. Both are away, with the reason; no further one may die. 3. Ingest and reads go
    on. 4. The disks can be unmounted under the running raidd. 5. Mounted again, both come back by themselves, and what
    they missed is made good."""
    with ward(tmp_path) as it:
        with it.load():
            for slot in SICK:
                it.disks[slot].shutdown()
            it.wait_for(slot0="missing", slot1="missing")
            status = it.raidd.status()
            reasons = [row["reason"] for row in status["members"] if row["slot"] in SICK]
            assert all("Input/output error" in reason for reason in reasons), reasons
            assert status["array"]["failures_tolerated"] == 0
            it.goes_on()
            for slot in SICK:
                umount(it.raidd, it.disks[slot])
            it.goes_on()
            for slot in SICK:
                it.disks[slot].mount()
            it.wait_for()
            it.goes_on()
        it.assert_made_good()


def test_yanked_disks_are_replaced_while_work_goes_on(tmp_path: Path) -> None:
    """1. Two disks lose their platter: reads fail, writes succeed and their fsync fails. 2. Both are away, work goes
    on. 3. Unmount them; two new disks are given to `replace`. 4. The rebuild ends while work goes on."""
    with (
        loop_disks(1, "xfs", SIZE_MIB["xfs"]) as new_xfs,
        loop_disks(1, "ext4", SIZE_MIB["ext4"]) as new_ext4,
        ward(tmp_path) as it,
    ):
        with it.load():
            for slot in SICK:
                it.disks[slot].cut_backing()
            it.wait_for(slot0="missing", slot1="missing")
            it.goes_on()
            for slot, new in zip(SICK, (*new_ext4, *new_xfs), strict=True):
                umount(it.raidd, it.disks[slot])
                it.raidd.raidctl("replace", str(slot), str(new.folder)).ok()
                it.disks[slot].dismantle()
                it.disks[slot] = new
            it.raidd.members = [disk.folder for disk in it.disks]
            it.goes_on()
            it.wait_for()
            it.goes_on()
        it.assert_made_good()


def test_disks_gone_read_only_are_away_and_come_back(tmp_path: Path) -> None:
    """1. An ext4 disk turns itself read-only after an error of its own. 2. It is away, work goes on. 3. It can be
    unmounted; mounted anew, it comes back. 4. raidd is stopped, an XFS disk is mounted read-only. 5. raidd starts all
    the same and does without it. 6. Mounted as it should be, it comes back."""

    def errors_make_it_read_only(disks: Sequence[LoopDisk]) -> None:
        disks[EXT4].umount()
        disks[EXT4].mount("-o", "errors=remount-ro")

    with ward(tmp_path, prepare=errors_make_it_read_only) as it:
        with it.load():
            loop = Path(it.disks[EXT4].device).name
            Path(f"/sys/fs/ext4/{loop}/trigger_fs_error").write_text("tried by a test")
            it.wait_for(slot1="missing")
            it.goes_on()
            umount(it.raidd, it.disks[EXT4])
            it.disks[EXT4].mount()
            it.wait_for()
            it.goes_on()
        assert it.raidd.stop() == 0
        it.disks[XFS].remount_ro()
        it.raidd.start()
        it.wait_for(slot0="missing")
        assert_nothing_lost(it.raidd)  # ingest waits for a disk that was there at the stop, reads do not
        umount(it.raidd, it.disks[XFS])
        it.disks[XFS].mount()
        it.wait_for()
        with it.load():
            it.goes_on()
        it.assert_made_good()


def test_full_disks_go_on_serving_and_get_new_shards_when_they_have_room(tmp_path: Path) -> None:
    """1. Fill an XFS and an ext4 disk. 2. Work goes on; both stay online; new segments leave them out. 3. Make room.
    4. New shards go to them again."""
    with ward(tmp_path) as it:
        with it.load():
            for slot in SICK:
                it.disks[slot].fill()
            it.goes_on()
            it.goes_on()
            it.wait_for()
            held = [newest_shard(it.disks[slot]) for slot in SICK]
            it.goes_on()
            assert [newest_shard(it.disks[slot]) for slot in SICK] == held, "a full disk was written to"
            for slot in SICK:
                it.disks[slot].empty()
            it.raidd.until(
                lambda: all(newest_shard(it.disks[slot]) > old for slot, old in zip(SICK, held, strict=True)),
                "new shards go to the disks that have room again",
            )
            it.goes_on()
        it.assert_made_good()


def newest_shard(disk: LoopDisk) -> str:
    """The highest name: ids grow with time."""
    return max(path.name for path in disk.folder.glob("raidd-*/segments/*/*/*/*.shard"))


def test_nothing_lands_on_the_parent_of_disks_that_are_lazily_unmounted(tmp_path: Path) -> None:
    """1. Detach two disks with writes in flight. 2. Work goes on. 3. What is seen at their mountpoints now is the empty
    folder of the parent, and it stays empty. 4. Mounted again, both come back."""
    with ward(tmp_path) as it:
        with it.load():
            for slot in SICK:
                it.disks[slot].lazy_umount()
            it.wait_for(slot0="missing", slot1="missing")
            it.goes_on()
            assert [list(it.disks[slot].folder.iterdir()) for slot in SICK] == [[], []]
            for slot in SICK:
                it.disks[slot].mount()
            it.wait_for()
            it.goes_on()
        it.assert_made_good()


def test_disks_that_change_places_are_followed(tmp_path: Path) -> None:
    """1. Two disks are mounted each at the other's place, under a running raidd. 2. Both are found by their ids and
    used where they are now. 3. raidd is restarted: the same. 4. Each disk holds its own member and nothing else."""
    with ward(tmp_path) as it:
        one, other = it.disks[XFS], it.disks[EXT4]
        ids = [member_names(disk) for disk in (one, other)]
        with it.load():
            for disk in (one, other):
                disk.lazy_umount()
            one.folder, other.folder = other.folder, one.folder
            for disk in (one, other):
                disk.mount()
            swapped = {XFS: str(one.folder), EXT4: str(other.folder)}
            it.raidd.until(lambda: places(it.raidd) == swapped, "they are used where they are now")
            it.wait_for()
            it.goes_on()
        it.raidd.restart()
        assert places(it.raidd) == swapped
        assert [member_names(disk) for disk in (one, other)] == ids
        it.assert_made_good()


def places(raidd: RealDaemon) -> dict[int, str]:
    """Slot -> where raidd uses its disk."""
    return {row["slot"]: row["path"] for row in raidd.status()["members"] if row["slot"] in SICK}


def member_names(disk: LoopDisk) -> list[str]:
    """Every member folder on a disk, also one that is being born."""
    return sorted(path.name for path in disk.folder.glob("*raidd-*"))


ENDINGS = [("kill -9", XFS), ("SIGTERM", EXT4), ("kill -9", EXT4), ("SIGTERM", XFS)]


@pytest.mark.parametrize(("ending", "slot"), ENDINGS if "RAIDD_DRILL" in os.environ else ENDINGS[:2])
def test_a_hung_disk_stops_neither_work_nor_a_stop_nor_a_start(tmp_path: Path, ending: str, slot: int) -> None:
    """1. A disk hangs (fsfreeze) with writes in flight: threads of raidd are in D state. 2. Ingest, reads and commands
    go on. 3. End raidd in the middle of its work: its process cannot finish; it becomes a zombie, whose locks stay
    taken. 4. Start another while the disk still hangs: it takes over and works. 5. Thaw: late writes happen now.
    6. They do no harm: the disk is back, nothing is left in tmp/, catalog and members agree, everything reads back."""
    with ward(tmp_path) as it:
        raidd, disk = it.raidd, it.disks[slot]
        try:
            with it.load():
                disk.freeze(at_most_s=FROZEN_AT_MOST_S)
                it.wait_for(**{f"slot{slot}": "missing"})
                it.goes_on()
                assert raidd.raidctl("status").code == 1
            assert raidd.process is not None
            first = raidd.process
            assert "D" in thread_states(first.pid), "nothing hangs: this would prove nothing"
            with sending(raidd, time.time_ns(), largest=60_000):
                time.sleep(1)
                first.send_signal(signal.SIGTERM if ending == "SIGTERM" else signal.SIGKILL)
            raidd.until(lambda: process_state(first.pid) in ("Z", ""), "the process has ended as far as it can")
            assert process_state(first.pid) == "Z"
            raidd.start()
            it.wait_for(**{f"slot{slot}": "missing"})
            with it.load():
                assert "D" in thread_states(first.pid), "it does not hang any more: this would prove nothing"
                disk.thaw()
                it.wait_for()
                it.goes_on()
            first.wait(PATIENCE_S)
        finally:
            disk.thaw()
        it.assert_made_good()


def thread_states(pid: int) -> set[str]:
    """The states of a process's threads: R, S, D, Z."""
    states = set[str]()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            states.add((task / "stat").read_text().rpartition(")")[2].split()[0])
    return states
