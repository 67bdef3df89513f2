"""A member on real disks that die, vanish, are swapped, fill up and hang.

Numbers in the names of steps are those of format.md's C1. Every disk is a file system of its own on a loop device.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from raidd.array import syscalls
from raidd.array.host import create_member_folder
from raidd.array.local_disk import LocalDisk, member_folder
from raidd.array.member_disk import FileNotThere, MemberDisk, write_durable
from raidd.array.worker import Cancel, Worker
from raidd.errors import MemberAway, MemberError, MemberFaulty, MemberFull, MemberReadOnly, MemberTimeout
from tests.support.faulty_disk import Call, FaultyDisk, SimulatedCrash
from tests.support.loop_disks import LoopDisk, loop_disks, requires_disks

FOLDER = "segments/2026/11/24"
BODY = bytes(range(251)) * 1000
A_WHILE_S = 20.0


def born(folder: Path, uuid: UUID | None = None) -> LocalDisk:
    uuid = uuid or uuid4()
    create_member_folder(str(folder), uuid)
    disk = LocalDisk(str(folder), uuid)
    disk.check()  # remembers the device
    return disk


def write(disk: MemberDisk, name: str = "one", cancel: Cancel | None = None) -> str:
    target = f"{FOLDER}/{name}.shard"
    write_durable(disk, f"tmp/{name}", target, [b"head", BODY], cancel or Cancel())
    return target


def every_way_to_touch(disk: LocalDisk) -> list[tuple[str, Callable[[], object]]]:
    return [
        ("create", lambda: disk.create("tmp/x", 10)),
        ("rename_new", lambda: disk.rename_new("canary", "tmp/canary")),
        ("replace", lambda: disk.replace("label.json", b"x")),
        ("append", lambda: disk.append("journal/x", b"x")),
        ("overwrite", lambda: disk.overwrite("canary", 0, b"x")),
        ("make_folders", lambda: disk.make_folders("segments/9")),
        ("unlink", lambda: disk.unlink("lock")),
        ("sync_folder", lambda: disk.sync_folder("tmp")),
        ("sync_all", disk.sync_all),
        ("read", lambda: disk.read("canary")),
        ("read_into", lambda: disk.read_into("canary", 0, memoryview(bytearray(9)))),
        ("length", lambda: disk.length("canary")),
        ("list", lambda: disk.list("tmp")),
        ("space", disk.space),
        ("check", disk.check),
    ]


def assert_away(disk: LocalDisk) -> None:
    for name, touch in every_way_to_touch(disk):
        with pytest.raises(MemberAway) as raised:
            touch()
        assert raised.value.member == str(disk.uuid), name


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# -- strangers, links, mounts ------------------------------------------------------------------------------------------


def test_a_member_folder_that_is_not_there_is_away_and_nothing_is_made(tmp_path: Path) -> None:
    assert_away(LocalDisk(str(tmp_path), uuid4()))
    assert_away(LocalDisk(str(tmp_path / "no" / "mount"), uuid4()))
    assert everything_below(tmp_path) == []


def test_a_member_folder_that_is_a_link_or_a_file_is_away(tmp_path: Path) -> None:
    real = born(tmp_path)
    for uuid, make in ((uuid4(), "link"), (uuid4(), "file")):
        path = Path(member_folder(str(tmp_path), uuid))
        if make == "link":
            path.symlink_to(member_folder(str(tmp_path), real.uuid))
        else:
            path.touch()
        assert_away(LocalDisk(str(tmp_path), uuid))


@pytest.fixture(params=["openat2", "ENOSYS", "EPERM"])
def resolver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the system call, and by hand where the kernel lacks it or a container's filter forbids it."""
    if request.param != "openat2":

        def missing(*_: object) -> int:
            raise OSError(getattr(errno, request.param), "injected")

        monkeypatch.setattr(syscalls, "openat2", missing)


@pytest.mark.usefixtures("resolver")
def test_links_inside_a_member_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()
    disk = born(tmp_path / "mount")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    inside = Path(member_folder(disk.path, disk.uuid))
    (inside / "segments" / "folder").symlink_to(outside)
    (inside / "segments" / "file").symlink_to(outside / "secret")
    (inside / "tmp" / "near").symlink_to("../canary")
    touches: list[Callable[[], object]] = [
        lambda: disk.read("segments/folder/secret"),
        lambda: disk.read("segments/file"),
        lambda: disk.length("segments/file"),
        lambda: disk.read("tmp/near", uncached=True),
        lambda: disk.list("segments/folder"),
        lambda: disk.create("segments/folder/new", 1),
        lambda: disk.append("segments/folder/new", b"x"),
        lambda: disk.overwrite("segments/file", 0, b"x"),
        lambda: disk.append("segments/file", b"x"),
        lambda: disk.unlink("segments/folder/secret"),
        lambda: disk.rename_new("canary", "segments/folder/canary"),
        lambda: disk.make_folders("segments/folder/deep"),
        lambda: disk.sync_folder("segments/folder"),
        lambda: disk.replace("segments/folder/secret", b"x"),
    ]
    for touch in touches:
        with pytest.raises(MemberError):
            touch()
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"secret": b"secret"}
    assert disk.list("segments") == ["file", "folder"], "shown as what they are not: neither folder nor to be followed"


@requires_disks("ext4")
@pytest.mark.usefixtures("resolver")
def test_a_mount_inside_a_member_is_refused() -> None:
    with loop_disks(2, "ext4") as disks:
        disk = born(disks[0].folder)
        inside = Path(member_folder(disk.path, disk.uuid)) / "segments"
        inner = LoopDisk(inside, disks[1].device, disks[1].image, "ext4", disks[1].size_bytes)
        disks[1].umount()
        inner.mount()
        try:
            for touch in (lambda: disk.create("segments/x", 1), lambda: disk.make_folders("segments/2026")):
                with pytest.raises(MemberFaulty):
                    touch()
            with pytest.raises(MemberFaulty):
                write(disk)
            assert os.listdir(inside) == ["lost+found"]
        finally:
            inner.umount()


def test_what_is_not_a_regular_file_is_refused_without_blocking(tmp_path: Path) -> None:
    disk = born(tmp_path)
    inside = Path(member_folder(disk.path, disk.uuid))
    os.mkfifo(inside / "tmp" / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(inside / "tmp")  # a socket's path is short
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
        for name in ("tmp/fifo", "tmp/socket", "tmp"):
            for touch in (disk.read, disk.length):
                with pytest.raises(MemberFaulty):
                    touch(name)
            with pytest.raises(MemberFaulty):
                disk.overwrite(name, 0, b"x")


@requires_disks("ext4")
def test_a_lazily_unmounted_disk_is_away_and_nothing_lands_on_the_parent() -> None:
    with loop_disks(1, "ext4") as disks:
        disk = born(disks[0].folder)
        disks[0].lazy_umount()
        assert_away(disk)
        with pytest.raises(MemberAway):
            write(disk)
        assert os.listdir(disks[0].folder) == []


@requires_disks("ext4")
def test_a_disk_unmounted_in_the_middle_of_a_write_gets_no_final_name() -> None:
    with loop_disks(1, "ext4") as disks:
        disk = FaultyDisk(born(disks[0].folder))

        def pull(call: Call) -> None:
            if call.operation == "make_folders":
                disks[0].lazy_umount()

        disk.on_call = pull
        with pytest.raises(MemberAway):
            write(disk)
        assert os.listdir(disks[0].folder) == []
        disks[0].mount()
        assert disk.inner.list("segments") == []


@requires_disks("ext4", "xfs")
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_swapped_disk_is_away_even_with_the_right_name_on_it(kind: str) -> None:
    """1 unmount the member's disk; 2 mount another in its place: a stranger, then one that carries the same folder."""
    with loop_disks(2, kind) as disks:
        disk = born(disks[0].folder)
        disks[0].umount()
        disks[1].umount()
        other = LoopDisk(disks[0].folder, disks[1].device, disks[1].image, kind, disks[1].size_bytes)
        other.mount()
        before = everything_below(other.folder)
        assert_away(disk)
        assert everything_below(other.folder) == before
        create_member_folder(str(other.folder), disk.uuid)
        before = everything_below(other.folder)
        assert_away(disk)
        assert everything_below(other.folder) == before
        other.umount()


def test_a_device_that_is_given_is_demanded_from_the_first_call(tmp_path: Path) -> None:
    disk = born(tmp_path)
    assert disk.device == tmp_path.stat().st_dev
    assert_away(LocalDisk(str(tmp_path), disk.uuid, device=(disk.device or 0) + 1))
    LocalDisk(str(tmp_path), disk.uuid, device=disk.device).check()


def test_a_member_folder_deleted_under_the_daemon_is_away(tmp_path: Path) -> None:
    disk = born(tmp_path)
    shutil.rmtree(member_folder(str(tmp_path), disk.uuid))
    assert_away(disk)
    assert everything_below(tmp_path) == []


# -- power cuts and dying disks ----------------------------------------------------------------------------------------


@requires_disks("ext4", "xfs")
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_what_is_durable_survives_a_power_cut_on_a_real_disk(kind: str) -> None:
    with loop_disks(1, kind) as disks:
        disk = born(disks[0].folder)
        for number in range(5):
            target = write(disk, f"{number}")
            disk.append("journal/2026-11-24.jsonl", b"%d\n" % number)
            disk.replace("label.json", b"label %d" % number)
            disks[0].power_cut()
            assert disk.read(target) == b"head" + BODY
            assert disk.read("journal/2026-11-24.jsonl").splitlines()[-1] == b"%d" % number
            assert disk.read("label.json") == b"label %d" % number


@requires_disks("ext4", "xfs")
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_power_cut_at_any_step_of_a_real_write_shows_nothing_wrong(kind: str) -> None:
    """1 die before step n of C1; 2 cut the power; 3 what has its final name is whole, or tells that it is not."""
    with loop_disks(1, kind) as disks:
        disk = born(disks[0].folder)
        done = []
        for step in range(1, 40):
            killed = FaultyDisk(disk)
            killed.crash(step)
            folder = f"segments/2026/11/{step}"
            target = f"{folder}/one.shard"
            try:
                write_durable(killed, f"tmp/{step}", target, [b"head", BODY], Cancel())
                done.append(target)
            except SimulatedCrash:
                pass
            disks[0].power_cut()
            try:
                data = disk.read(target)
            except FileNotThere:
                data = b""
            assert data in (b"", b"head" + BODY) or (target not in done and data != b"head" + BODY)
            assert all(disk.read(each) == b"head" + BODY for each in done)
            if done:
                return
        raise AssertionError("C1 never came to its end")


@requires_disks("xfs")
def test_a_dying_xfs_that_syncs_its_folder_with_success_is_caught_by_the_stat(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 write, rename, fdatasync; 2 the disk dies while the call that syncs the folder is on its way; 3 the folder's
    fsync succeeds all the same; 4 the stat by the final name does not."""
    with loop_disks(1, "xfs") as disks:
        disk = born(disks[0].folder)
        write(disk, "warm")
        real, succeeded = os.fsync, []

        def dies_meanwhile(file: int) -> None:
            if disk.list(FOLDER) == ["one.shard", "warm.shard"]:
                disks[0].shutdown()
            real(file)
            succeeded.append(file)

        monkeypatch.setattr(os, "fsync", dies_meanwhile)
        with pytest.raises(MemberFaulty, match="stat"):
            write(disk)
        monkeypatch.undo()
        assert len(succeeded) == 1, "the trap: no error from a dead disk"
        disks[0].umount()
        disks[0].mount()
        assert disk.read(f"{FOLDER}/warm.shard") == b"head" + BODY


@requires_disks("ext4", "xfs")
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_dead_disk_is_faulty_whatever_is_asked_of_it(kind: str) -> None:
    with loop_disks(1, kind) as disks:
        disk = born(disks[0].folder)
        target = write(disk)
        disks[0].shutdown()
        for touch in (
            lambda: write(disk, "two"),
            lambda: disk.read(target),
            lambda: disk.read("canary", uncached=True),
            lambda: disk.overwrite("canary", 0, b"x"),
            lambda: disk.append("journal/x", b"x"),
            lambda: disk.replace("label.json", b"x"),
        ):
            with pytest.raises(MemberFaulty):
                touch()


@requires_disks("xfs", "btrfs", "ext4")
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_disk_whose_platter_is_gone_fails_the_write_and_keeps_failing(kind: str) -> None:
    """write() succeeds on it, the fdatasync does not (faults.md)."""
    with loop_disks(1, kind) as disks:
        disk = born(disks[0].folder)
        disks[0].cut_backing()
        for name in ("one", "two"):
            with pytest.raises((MemberFaulty, MemberReadOnly)):
                write(disk, name)


@requires_disks("ext4")
def test_a_flipped_bit_is_returned_without_an_error_so_checksums_have_to_find_it() -> None:
    with loop_disks(1, "ext4") as disks:
        disk = born(disks[0].folder)
        target = write(disk)
        disks[0].flip(Path(member_folder(disk.path, disk.uuid)) / target, 5000)
        data = disk.read(target, uncached=True)
        assert [index for index, byte in enumerate(data) if byte != (b"head" + BODY)[index]] == [5000]


# -- read-only and full ------------------------------------------------------------------------------------------------


@requires_disks("ext4", "xfs", "btrfs")
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_read_only_disk_says_so_and_goes_on_reading(kind: str) -> None:
    with loop_disks(1, kind) as disks:
        disk = born(disks[0].folder)
        target = write(disk)
        disks[0].remount_ro()
        for touch in (
            lambda: write(disk, "two"),
            lambda: disk.append("journal/x", b"x"),
            lambda: disk.overwrite("canary", 0, b"x"),
            lambda: disk.replace("label.json", b"x"),
            lambda: disk.unlink(target),
            lambda: disk.make_folders("segments/2027"),
        ):
            with pytest.raises(MemberReadOnly):
                touch()
        assert disk.space().read_only
        assert disk.read(target) == b"head" + BODY
        disk.check()


@requires_disks("ext4", "xfs", "btrfs")
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_full_disk_says_so_keeps_nothing_of_the_attempt_and_goes_on_reading(kind: str) -> None:
    with loop_disks(1, kind) as disks:
        disk = born(disks[0].folder)
        target = write(disk)
        disks[0].fill()
        with pytest.raises(MemberFull):
            write_durable(disk, "tmp/big", f"{FOLDER}/big", [bytes(8 << 20)], Cancel())
        assert disk.list("tmp") == []
        assert disk.read(target) == b"head" + BODY
        disks[0].empty()
        disk.sync_all()
        write(disk, "two")


def test_a_journal_file_made_anew_is_made_durable_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = born(tmp_path)
    synced: list[str] = []

    def sync_folder(path: str) -> None:
        synced.append(path)
        LocalDisk.sync_folder(disk, path)

    monkeypatch.setattr(disk, "sync_folder", sync_folder)
    disk.append("journal/x", b"1\n")
    disk.append("journal/x", b"2\n")
    assert synced.count("journal") == 1
    disk.unlink("journal/x")
    disk.append("journal/x", b"3\n")
    assert synced.count("journal") == 2


@requires_disks("ext4")
def test_a_full_disk_takes_no_half_journal_line() -> None:
    with loop_disks(1, "ext4") as disks:
        disk = born(disks[0].folder)
        disk.append("journal/x", b"whole\n")
        disks[0].fill()
        with pytest.raises(MemberFull):
            disk.append("journal/x", bytes(1 << 20))
        assert disk.read("journal/x") == b"whole\n"


# -- a hung disk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def frozen() -> Iterator[tuple[LoopDisk, LocalDisk]]:
    with loop_disks(1, "ext4") as disks:
        disk = born(disks[0].folder)
        write(disk, "before")
        disks[0].freeze()
        try:
            yield disks[0], disk
        finally:
            disks[0].thaw()


@requires_disks("ext4")
def test_a_hung_disk_costs_its_own_thread_and_recovers(frozen: tuple[LoopDisk, LocalDisk]) -> None:
    """1 freeze; 2 a write misses its deadline; 3 the next submit fails at once; 4 thaw; 5 the late write sees that it
    was abandoned and renames nothing; 6 the same worker goes on."""
    loop, local = frozen
    disk = FaultyDisk(local)
    worker = Worker("slot-0", deadline_s=0.2)
    hung = worker.submit(lambda cancel: write(disk, "late", cancel))
    with pytest.raises(MemberTimeout):
        hung.result()
    assert worker.stuck()
    assert not hung.done()
    refused = worker.submit(lambda cancel: write(disk, "refused", cancel))
    with pytest.raises(MemberTimeout):
        refused.result()
    assert refused.done()
    loop.thaw()
    assert hung.wait_ended(A_WHILE_S)
    assert "rename_new" not in disk.operations()
    assert local.list(FOLDER) == ["before.shard"]
    assert local.list("tmp") == []
    healthy = Worker("slot-0 again", deadline_s=A_WHILE_S)
    assert not worker.stuck()
    healthy.submit(lambda cancel: write(disk, "after", cancel)).result()
    assert local.list(FOLDER) == ["after.shard", "before.shard"]
    worker.close()
    healthy.close()


@requires_disks("ext4")
def test_a_hung_disk_still_reads(frozen: tuple[LoopDisk, LocalDisk]) -> None:
    _, disk = frozen
    assert disk.read(f"{FOLDER}/before.shard", uncached=True) == b"head" + BODY


@requires_disks("ext4")
def test_a_rename_stuck_in_the_kernel_happens_late_and_is_whole(frozen: tuple[LoopDisk, LocalDisk]) -> None:
    """What the cancel flag cannot stop: it must at least be the right bytes under the right name."""
    loop, disk = frozen
    loop.thaw()
    disk = LocalDisk(disk.path, disk.uuid)
    faulty = FaultyDisk(disk)
    frozen_now = threading.Event()

    def freeze_before_rename(call: Call) -> None:
        if call.operation == "rename_new":
            loop.freeze()
            frozen_now.set()

    faulty.on_call = freeze_before_rename
    worker = Worker("slot-0", deadline_s=0.2)
    hung = worker.submit(lambda cancel: write(faulty, "late", cancel))
    assert frozen_now.wait(A_WHILE_S)
    with pytest.raises(MemberTimeout):
        hung.result()
    loop.thaw()
    assert hung.wait_ended(A_WHILE_S)
    assert disk.read(f"{FOLDER}/late.shard") == b"head" + BODY
    worker.close()


# -- the kernel's limits -----------------------------------------------------------------------------------------------


def test_short_writes_and_long_lists_of_buffers_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.pwritev, []

    def short(file: int, views: list[memoryview], offset: int) -> int:
        assert len(views) <= 1024
        calls.append(len(views))
        first = bytes(views[0]) + b"".join(map(bytes, views[1:2]))
        return real(file, [first[: max(1, len(first) * 2 // 3)]], offset)

    monkeypatch.setattr(os, "pwritev", short)
    disk = born(tmp_path)
    pieces = [bytes([number % 251]) * (number % 7) for number in range(3000)]
    file = disk.create("tmp/x", 9000)
    file.write(pieces)
    file.close()
    assert disk.read("tmp/x") == b"".join(pieces)
    assert len(calls) > 1000


def test_a_write_that_takes_nothing_is_an_error_not_a_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    file = born(tmp_path).create("tmp/x", 1)
    with pytest.raises(MemberFaulty):
        file.write([b"x"])
    file.close()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS])
def test_without_renameat2_a_link_does_not_replace_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(code, "injected")

    disk = born(tmp_path)
    monkeypatch.setattr(syscalls, "rename_noreplace", unsupported)
    write(disk)
    assert disk.read(f"{FOLDER}/one.shard") == b"head" + BODY
    assert disk.list("tmp") == []
    with pytest.raises(MemberError):
        write(disk)
    assert disk.read(f"{FOLDER}/one.shard") == b"head" + BODY


def test_without_fallocate_a_shard_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "injected")

    monkeypatch.setattr(syscalls, "fallocate_keep_size", unsupported)
    disk = born(tmp_path)
    assert disk.read(write(disk)) == b"head" + BODY


def test_without_o_direct_an_uncached_read_still_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = syscalls.openat2

    def no_direct(folder: int, path: str, flags: int, mode: int, resolve: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "injected")
        return real(folder, path, flags, mode, resolve)

    disk = born(tmp_path)
    target = write(disk)
    monkeypatch.setattr(syscalls, "openat2", no_direct)
    assert disk.read(target, 4, uncached=True) == BODY


def test_a_host_out_of_descriptors_is_no_fault_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = born(tmp_path)

    def exhausted(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, "injected")

    monkeypatch.setattr(os, "open", exhausted)
    with pytest.raises(Exception, match="EMFILE") as raised:
        disk.check()
    assert not isinstance(raised.value, MemberError)
