"""Disks to measure on, and what a measurement costs: flushes, processor time, memory.

File systems on loop devices, their images in `home`: on a disk by default, since an image in /dev/shm makes fsync five
times faster than any real disk. Needs root. Everything made here is taken down again.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.loop_disks import LoopDisk, make_disk

FLUSH_FIELD = 15  # Documentation/block/stat.rst: flush requests completed
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Pool:
    """A mounted folder and the devices below it."""

    folder: Path
    devices: tuple[str, ...]

    def flushes(self) -> int:
        return flushes(self.devices)


@contextmanager
def ext4_disks(home: Path, names: Iterable[str], size_mib: int) -> Iterator[list[LoopDisk]]:
    """One ext4 disk a name, each mounted at its `folder`."""
    disks: list[LoopDisk] = []
    try:
        for name in names:
            disks.append(make_disk(home, name, "ext4", size_mib))
        yield disks
    finally:
        for disk in disks:
            disk.dismantle()


@contextmanager
def btrfs_raid6(home: Path, count: int, size_mib: int) -> Iterator[Pool]:
    """btrfs over `count` devices: raid6 for data, three copies of the metadata, as its manual advises."""
    disks: list[LoopDisk] = []
    folder = home / "btrfs"
    folder.mkdir()
    try:
        for number in range(count):
            disks.append(make_disk(home, f"btrfs{number}", "btrfs", size_mib))
            disks[-1].umount()
        devices = [disk.device for disk in disks]
        run("mkfs.btrfs", "-q", "-f", "-K", "-d", "raid6", "-m", "raid1c3", *devices)
        run("mount", "-t", "btrfs", "-o", ",".join(f"device={device}" for device in devices), devices[0], str(folder))
        yield Pool(folder, tuple(devices))
    finally:
        if os.path.ismount(folder):
            run("umount", str(folder))
        for disk in disks:
            disk.dismantle()


def run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")


def flushes(devices: Iterable[str]) -> int:
    """Flush requests that these block devices have completed so far."""
    return sum(int(Path(f"/sys/block/{Path(one).name}/stat").read_text().split()[FLUSH_FIELD]) for one in devices)


def settle(folders: Iterable[Path]) -> None:
    """What earlier rounds left unwritten is not charged to the next. These file systems only, never the machine."""
    for folder in folders:
        run("sync", "-f", str(folder))


def forget_pages(folder: Path) -> None:
    """Drop what the page cache holds of the files below `folder`, so that reads come from the device."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all its threads, so far (proc(5), stat: fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def peak_rss_mib(pid: int) -> float:
    """The most that was ever resident (VmHWM)."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))


@dataclass(frozen=True, slots=True)
class Cost:
    """What some work took of a process and of devices."""

    cpu_s: float
    flushes: int


def cost_of(work: Callable[[], object], pid: int, devices: Iterable[str]) -> Cost:
    devices = tuple(devices)
    cpu_before, flushes_before = cpu_seconds(pid), flushes(devices)
    work()
    return Cost(cpu_seconds(pid) - cpu_before, flushes(devices) - flushes_before)
