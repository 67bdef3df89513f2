"""Which mounted folder may become a member, and what is known of the disk behind it.

A member is born once, and only on a blank disk of its own: what is refused here is what would make the array
protect nothing (two members on one disk, one on the system's) or destroy something (a folder that is not blank,
or carries a label). For trials two of these can be allowed; the label keeps that, status shows it.

Everything is looked at before anything is written. Sources of model and serial: sysfs (kernel documentation,
admin-guide/sysfs-rules); absent for what is not a whole disk.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from raidd.array.discovery import each_in_time
from raidd.array.host import filesystem, find_member_folders, is_blank, whole_disks
from raidd.errors import RaiddError, RequestRefused

FILESYSTEMS = ("ext4", "xfs", "btrfs", "zfs")
"""Whose fsync and rename were tried with power cuts."""
LOOK_S = 4.0
"""How long a member's mount is asked which disk it is on."""
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
    other_filesystem = allow_filesystem or allow_same_device  # a trial may be on anything
    looked = each_in_time([partial(_look, path, other_filesystem) for path in paths], LOOK_S)
    for path, answer in zip(paths, looked, strict=True):
        faults += [f"{path} does not answer"] if answer is None else [answer] if isinstance(answer, str) else []
    newcomers = [one for one in looked if isinstance(one, Newcomer)]
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
    return "Mount an empty disk and name its mount point (lsblk -f lists disks and mounts); nothing was changed."


def _look(path: str, allow_filesystem: bool) -> Newcomer | str:
    """What is there, or why it cannot become a member."""
    try:
        return _candidate(path, allow_filesystem)
    except RaiddError as error:
        return error.message
    except OSError as error:
        return f"{path}: {error.strerror}"


def _candidate(path: str, allow_filesystem: bool) -> Newcomer | str:
    if not os.path.isabs(path) or "\0" in path:
        return f"{path!r} is not the absolute path of a folder"
    real = os.path.realpath(path)
    if not _is_text(real):
        return f"{real!r} is not valid text (UTF-8): mount the disk at another place"
    if not os.path.isdir(real):
        return f"{path} is not a folder; is the disk mounted?"
    labelled = [str(uuid) for _path, uuid in find_member_folders([real])]
    if labelled:
        return f"{path} is a member already: {', '.join(labelled)}"
    if not os.access(real, os.W_OK | os.X_OK):
        return f"{path} cannot be written to by user {_me()}: sudo chown {_me()} {shlex.quote(real)}"
    if not is_blank(real):
        return f"{path} is not blank: it holds other files, and raidd never shares a disk"
    kind = filesystem(real)
    if kind not in FILESYSTEMS and not allow_filesystem:
        return f"{path} is {kind}; tried with power cuts are {', '.join(FILESYSTEMS)} (--allow-filesystem takes it)"
    usage = shutil.disk_usage(real)
    disks = whole_disks(real)
    model, serial = hardware(next(iter(sorted(disks)), ""))
    return Newcomer(real, disks, kind, usage.total, usage.free, model, serial)


def _is_text(path: str) -> bool:
    """It is shown, and goes over the socket."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shared(newcomers: Sequence[Newcomer], taken: Iterable[str], state_dir: str) -> list[str]:
    """A sentence for each newcomer whose disk is not its own."""
    faults = []
    owners = {disk: f"the member at {path}" for path, disks in _disks_in_time(taken) for disk in disks}
    for folder in (*SYSTEM_FOLDERS, state_dir):
        for disk in whole_disks(folder) if folder and os.path.isdir(folder) else ():
            owners.setdefault(disk, "the system")
    for one in newcomers:
        for disk in one.disks & owners.keys():
            faults.append(f"{one.path} is on the same disk as {owners[disk]}: one dead disk would take both")
        for disk in one.disks:
            owners.setdefault(disk, one.path)
    return faults


def _disks_in_time(paths: Iterable[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """The disks behind the members. One that hangs must not keep its replacement out: it is passed over."""
    asked = list(paths)
    answers = each_in_time([partial(whole_disks, path) for path in asked], LOOK_S)
    return ((path, disks) for path, disks in zip(asked, answers, strict=True) if disks is not None)


def _me() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


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
