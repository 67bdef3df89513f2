"""Real disks to break: file systems on loop devices, and the ways real disks go wrong.

    with loop_disks(6, "xfs") as disks:       each mounted at .folder
        disks[0].shutdown()                   dies: EIO from now on
        disks[1].power_cut()                  and comes back with what was durable
        disks[2].freeze() … .thaw()           hangs writers in D state; an independent process thaws it after 30 s
        disks[3].cut_backing()                every block reads EIO
        disks[4].lazy_umount()                gone from under its path
        disks[5].remount_ro(); .fill()

Only devices attached here are detached, each while it still has the backing file it was given. Everything lies in a
folder of its own in /dev/shm (fsync is five times faster there than on a disk). No machine-wide sync or drop_caches.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from raidd.array.host import mounts

FIRST_LOOP, LAST_LOOP = 300, 900
SIZES_MIB = {"xfs": 300, "ext4": 64, "btrfs": 128}
_GOING_DOWN = 0x8004587D  # FS_IOC_SHUTDOWN, _IOR('X', 125, __u32)
_MKFS = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,nodiscard"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-K"],
    "btrfs": ["mkfs.btrfs", "-q", "-f", "-K"],
}


def missing_for(*filesystems: str) -> str:
    """Why real disks cannot be made here; "" if they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "real disks need root on Linux"
    if not Path("/dev/loop-control").exists():
        return "real disks need loop devices"
    for tool in ("losetup", "mount", "umount", "fsfreeze", *(_MKFS[name][0] for name in filesystems)):
        if shutil.which(tool) is None:
            return f"real disks need {tool}"
    return ""


def requires_disks(*filesystems: str) -> pytest.MarkDecorator:
    """Mark for tests on real disks: skipped, with the reason, where they cannot be made."""
    reason = missing_for(*(filesystems or ("ext4", "xfs")))
    return pytest.mark.skipif(bool(reason), reason=reason or "can be made here")


def _run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout.strip()


@dataclass
class LoopDisk:
    """One disk. `folder` is its mountpoint, `device` its loop device, `image` the file that is its platter."""

    folder: Path
    device: str
    image: Path
    filesystem: str
    size_bytes: int
    _safety: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def mount(self, *options: str) -> None:
        _run("mount", "-t", self.filesystem, *options, self.device, str(self.folder))

    def umount(self) -> None:
        _run("umount", str(self.folder))

    def lazy_umount(self) -> None:
        """The mountpoint is the parent's empty folder now; open files go on working on the detached disk."""
        _run("umount", "-l", str(self.folder))

    def shutdown(self, *, log_flush: bool = False) -> None:
        """The disk dies now; what was not flushed is lost. xfs and ext4."""
        folder = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(folder, _GOING_DOWN, struct.pack("I", 1 if log_flush else 2))
        finally:
            os.close(folder)

    def power_cut(self, *, log_flush: bool = False) -> None:
        """The power goes and comes back: mounted again, with what was durable."""
        self.shutdown(log_flush=log_flush)
        self.umount()
        self.mount()

    def remount_ro(self) -> None:
        _run("mount", "-o", "remount,ro", str(self.folder))

    def remount_rw(self) -> None:
        _run("mount", "-o", "remount,rw", str(self.folder))

    def freeze(self, *, at_most_s: int = 30) -> None:
        """Writers block in D state until `thaw`. Whatever happens to this process, it ends after `at_most_s`."""
        script = f"sleep {at_most_s}; fsfreeze -u {self.folder}"
        null = subprocess.DEVNULL
        self._safety.append(subprocess.Popen(["sh", "-c", script], stdout=null, stderr=null, start_new_session=True))
        _run("fsfreeze", "-f", str(self.folder))

    def thaw(self) -> None:
        _run("fsfreeze", "-u", str(self.folder), check=False)
        for safety in self._safety:
            with suppress(ProcessLookupError):
                os.killpg(safety.pid, signal.SIGKILL)  # its own session: the sleep goes with it
            safety.wait()
        self._safety.clear()

    def cut_backing(self, keep_bytes: int = 0) -> None:
        """The platter ends at `keep_bytes`: reads beyond give EIO, writes succeed and their fsync fails."""
        os.truncate(self.image, keep_bytes)
        _run("losetup", "-c", self.device)

    def restore_backing(self) -> None:
        """The full size again; what was cut away is zeros."""
        os.truncate(self.image, self.size_bytes)
        _run("losetup", "-c", self.device)

    def fill(self, leave_bytes: int = 0) -> None:
        """Leave about `leave_bytes` (ext4 is made without a reserve, or root would find more)."""
        path = self.folder / "filler"
        with path.open("wb", buffering=0) as file:
            for step in (1 << 20, 4096):
                with suppress(OSError):
                    while os.statvfs(self.folder).f_bavail * os.statvfs(self.folder).f_frsize > leave_bytes:
                        file.write(bytes(step))
            os.fsync(file.fileno())

    def empty(self) -> None:
        (self.folder / "filler").unlink()

    def flip(self, path: Path, offset: int, length: int = 1) -> None:
        """Bytes of a file change on the platter, behind the file system's back: it reads back wrong without an error.
        For ext4 and xfs, and a synced file."""
        rows = _run("filefrag", "-b512", "-e", "-s", str(path)).splitlines()
        for row in rows:
            parts = row.replace("..", " ").replace(":", " ").split()
            if len(parts) < 5 or not parts[0].isdigit():
                continue
            first, last, physical = int(parts[1]) * 512, (int(parts[2]) + 1) * 512, int(parts[3]) * 512
            if first <= offset < last:
                self._flip_platter(physical + offset - first, length)
                break
        else:
            raise RuntimeError(f"no extent of {path} at {offset}")
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)

    def _flip_platter(self, position: int, length: int) -> None:
        with self.image.open("r+b") as platter:
            platter.seek(position)
            old = platter.read(length)
            platter.seek(position)
            platter.write(bytes(byte ^ 0xFF for byte in old))

    def dismantle(self) -> None:
        """Whatever state it is in: unmounted, detached, its file gone."""
        self.thaw()
        while _is_mounted(self.folder):
            if subprocess.run(["umount", str(self.folder)], check=False, capture_output=True).returncode:
                _run("umount", "-l", str(self.folder))
        self._detach()
        self.image.unlink(missing_ok=True)

    def _detach(self) -> None:
        backing = _run("losetup", "-nO", "BACK-FILE", self.device, check=False).removesuffix(" (deleted)")
        if backing == str(self.image):
            _run("losetup", "-d", self.device, check=False)


def _is_mounted(folder: Path) -> bool:
    """By the kernel's list: os.path.ismount says no on a dead XFS, whose stat fails."""
    return str(folder) in {mount.folder for mount in mounts()}


def _attach(image: Path) -> str:
    """The first free loop device of our own range."""
    for number in range(FIRST_LOOP, LAST_LOOP):
        device = f"/dev/loop{number}"
        if not Path(device).exists():
            with suppress(FileExistsError):
                os.mknod(device, 0o600 | 0o060000, os.makedev(7, number))
        if subprocess.run(["losetup", device, str(image)], check=False, capture_output=True).returncode == 0:
            return device
    raise RuntimeError("no free loop device")


def make_disk(
    home: Path, name: str, filesystem: str, size_mib: int | None = None, options: tuple[str, ...] = ()
) -> LoopDisk:
    """A formatted, mounted disk `home`/`name`. The caller dismantles it."""
    size = (size_mib or SIZES_MIB[filesystem]) << 20
    image, folder = home / f"{name}.img", home / name
    with image.open("wb") as file:
        file.truncate(size)
    folder.mkdir(exist_ok=True)
    _run(*_MKFS[filesystem], *options, str(image))
    disk = LoopDisk(folder, _attach(image), image, filesystem, size)
    try:
        disk.mount()
    except BaseException:
        disk.dismantle()
        raise
    return disk


@contextmanager
def loop_disks(count: int, filesystem: str = "ext4", size_mib: int | None = None) -> Iterator[list[LoopDisk]]:
    """`count` mounted disks named disk0…, dismantled at the end whatever happened to them."""
    home = Path(tempfile.mkdtemp(prefix="raidd-disks-", dir="/dev/shm"))
    disks: list[LoopDisk] = []
    try:
        for number in range(count):
            disks.append(make_disk(home, f"disk{number}", filesystem, size_mib))
        yield disks
    finally:
        for disk in disks:
            disk.dismantle()
        shutil.rmtree(home, ignore_errors=True)
