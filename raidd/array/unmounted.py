"""Members on disks that are there and not mounted: after the loss of the system disk nobody has mounted anything yet.

Only `assemble` looks, as root, and only at disks that nobody uses (an exclusive open tells: not mounted, no part of
md, LVM or another mount). Each is mounted read-only in a folder of its own for as long as it takes to read the labels;
the options keep even a file system that was not unmounted cleanly from replaying its journal, so that nothing is ever
written. A disk that hangs costs one thread.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import UUID

from raidd.array.discovery import Sighting, each_in_time, look
from raidd.array.host import find_member_folders
from raidd.array.syscalls import mount_to_look, unmount
from raidd.errors import MemberError

_SYSTEM_BLOCK = Path("/sys/class/block")
_NO_DISK = ("ram", "zram", "sr", "fd")
_HEAD = 0x10048
_MAGIC = {  # file system: (offset, magic of its superblock, options that replay nothing)
    "ext4": (0x438, b"\x53\xef", "noload"),
    "xfs": (0, b"XFSB", "norecovery,nouuid"),
    "btrfs": (0x10040, b"_BHRfS_M", "rescue=nologreplay"),
}


def find_unmounted(deadline_s: float, devices: Iterable[str] | None = None) -> list[Sighting]:
    """Member folders on disks that nobody has mounted (None: all of the host); `path` is the device. Needs root."""
    asked = list(_block_devices() if devices is None else devices)
    answers = each_in_time([partial(_look, device) for device in asked], deadline_s)
    return [sighting for answer in answers if answer for sighting in answer]


def _block_devices() -> list[str]:
    """Whole disks without partitions, and partitions."""
    nodes = [node for node in sorted(_SYSTEM_BLOCK.glob("*")) if not node.name.startswith(_NO_DISK)]
    return ["/dev/" + node.name.replace("!", "/") for node in nodes if _has_room(node) and not _is_divided(node)]


def _has_room(node: Path) -> bool:
    try:
        return int((node / "size").read_text(encoding="ascii")) > 0
    except (OSError, ValueError):
        return False


def _is_divided(node: Path) -> bool:
    return any(node.glob("*/partition"))


def _look(device: str) -> Sequence[Sighting]:
    try:
        kind = _filesystem(device)
        if not kind:
            return ()
        with _mounted(device, kind) as folder:
            return [_seen(device, path, uuid) for path, uuid in find_member_folders([folder])]
    except OSError:
        return ()  # in use, or not what it seemed to be: nothing can be said of it


def _filesystem(device: str) -> str:
    """By its superblock. OSError EBUSY when somebody uses the device."""
    descriptor = os.open(device, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        head = os.pread(descriptor, _HEAD, 0)
    finally:
        os.close(descriptor)
    found = (kind for kind, (offset, magic, _options) in _MAGIC.items() if head[offset:].startswith(magic))
    return next(found, "")


@contextmanager
def _mounted(device: str, kind: str) -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="raidd-look-")
    try:
        mount_to_look(device, folder, kind, _MAGIC[kind][2])
        try:
            yield folder
        finally:
            unmount(folder)
    finally:
        with suppress(OSError):
            os.rmdir(folder)


def _seen(device: str, folder: str, uuid: UUID) -> Sighting:
    try:
        return replace(look(folder, uuid), path=device)
    except MemberError as error:
        return Sighting(device, uuid, None, error.message)
