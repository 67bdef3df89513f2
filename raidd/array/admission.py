"""Which mounted folder may become a member, and what is known of the disk behind it.

A member is born once, and only on a blank disk of its own: what is refused here is what would make the array
protect nothing (two members on one disk, one on the system's) or destroy something (a folder that is not blank,
or carries a label). For trials two of these can be allowed; the label keeps that, status shows it.

Everything is looked at before anything is written. Sources of model and serial: sysfs (kernel documentation,
admin-guide/sysfs-rules); absent for what is not a whole disk.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raidd.array.host import filesystem, find_member_folders, is_blank, whole_disks
from raidd.errors import RequestRefused

FILESYSTEMS = ("ext4", "xfs", "btrfs", "zfs")
"""Whose fsync and rename were tried with power cuts."""
SYSTEM_FOLDERS = ("/", "/usr", "/var", "/home", "/boot")


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A folder that may become a member. ``disks``: the whole disks behind it; sizes in bytes."""

    path: str
    disks: frozenset[str]
    filesystem: str
    size_bytes: int
    free_bytes: int
    model: str = ""
    serial: str = ""
    trial: bool = False


def examine(
    paths: Sequence[str],
    *,
    taken: Iterable[str] = (),
    state_dir: str = "",
    allow_same_device: bool = False,
    allow_filesystem: bool = False,
) -> list[Newcomer]:
    """All of these folders as new members, beside members at ``taken``. RequestRefused names every fault at once."""
    faults: list[str] = []
    newcomers = [one for path in paths if (one := _look(path, allow_filesystem, faults)) is not None]
    if len({one.path for one in newcomers}) != len(newcomers):
        faults.append("the same folder is named twice")
    shared = _shared(newcomers, taken, state_dir)
    if shared and not allow_same_device:
        faults += shared
    if faults:
        raise RequestRefused("\n".join(faults), next_step=_next_step(faults))
    return [replace(one, trial=bool(shared)) for one in newcomers]


def _next_step(faults: Sequence[str]) -> str:
    if any("same disk" in fault for fault in faults):
        return "Give each member a disk of its own; to try raidd out on one disk: --allow-same-device"
    return "Mount an empty disk and name its mount point (sudo raidctl disk list); nothing was changed."


def _look(path: str, allow_filesystem: bool, faults: list[str]) -> Newcomer | None:
    real = os.path.realpath(path)
    if not os.path.isdir(real):
        faults.append(f"{path} is not a folder; is the disk mounted?")
        return None
    labelled = [str(uuid) for _path, uuid in find_member_folders([real])]
    if labelled:
        faults.append(f"{path} is a member already: {', '.join(labelled)}")
        return None
    if not os.access(real, os.W_OK | os.X_OK):
        faults.append(f"{path} cannot be written to by this user")
        return None
    if not is_blank(real):
        faults.append(f"{path} is not blank: it holds other files, and raidd never shares a disk")
        return None
    kind = filesystem(real)
    if kind not in FILESYSTEMS and not allow_filesystem:
        faults.append(
            f"{path} is {kind}; tried with power cuts are {', '.join(FILESYSTEMS)} (--allow-filesystem takes it)"
        )
        return None
    usage = shutil.disk_usage(real)
    disks = whole_disks(real)
    model, serial = hardware(next(iter(sorted(disks)), ""))
    return Newcomer(real, disks, kind, usage.total, usage.free, model, serial)


def _shared(newcomers: Sequence[Newcomer], taken: Iterable[str], state_dir: str) -> list[str]:
    """A sentence for each newcomer whose disk is not its own."""
    faults = []
    owners = {d: f"the member at {path}" for path in taken if os.path.isdir(path) for d in whole_disks(path)}
    for folder in (*SYSTEM_FOLDERS, state_dir):
        for disk in whole_disks(folder) if folder and os.path.isdir(folder) else ():
            owners.setdefault(disk, "the system")
    for one in newcomers:
        for disk in one.disks & owners.keys():
            faults.append(f"{one.path} is on the same disk as {owners[disk]}: one dead disk would take both")
        for disk in one.disks:
            owners.setdefault(disk, one.path)
    return faults


def hardware(disk: str) -> tuple[str, str]:
    """Model and serial of a whole disk ("sda", "/dev/sda"); empty where the kernel tells none."""
    folder = Path("/sys/block") / Path(disk).name
    model = _line(folder / "device" / "model")
    serial = _line(folder / "device" / "serial") or _line(folder / "serial")
    return model, serial


def _line(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
