"""The host's mounts and disks, as far as members need them: what is mounted, what lies behind it, what is on it; and
the birth of a member folder.

Why here: "the same device" means the same whole disk (partitions, subvolumes and device-mapper resolved), and a disk is
adopted or initialised only when it is blank. Read from /proc and /sys, nothing is run.

Promises: `create_member_folder` is the only thing in raidd that makes anything at or above a member folder, and it
appears whole or not at all. Asking a hung mount may block: callers ask on a worker.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from raidd.array import syscalls
from raidd.array.member_disk import CANARY_SIZE, FOLDERS, LOCK_SIZE, member_error
from raidd.errors import MemberAway, MemberFaulty, RaiddError

_MEMBER = re.compile(r"raidd-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\Z")
_UNBORN = re.compile(r"\.raidd-new-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_TRASH = re.compile(r"(\.Trash(-\d+|es)?|\$RECYCLE\.BIN|System Volume Information|\.fseventsd|\.Spotlight-V100)\Z")
_NO_DISK = re.compile(
    "proc|sysfs|cgroup2?|devpts|devtmpfs|securityfs|debugfs|tracefs|pstore|bpf|configfs|fusectl|mqueue|hugetlbfs|autofs"
    "|binfmt_misc|rpc_pipefs|nsfs|efivarfs|selinuxfs|fuse\\.portal|fuse\\.gvfsd-fuse"
)
_MOUNTINFO = Path("/proc/self/mountinfo")
_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo (proc(5))."""

    mount_id: int
    device: str  # "major:minor"
    folder: str
    filesystem: str
    source: str


def mounts() -> list[Mount]:
    """Everything mounted in this process's namespace, in the order it was mounted."""
    try:
        return parse_mountinfo(_MOUNTINFO.read_bytes())
    except OSError as error:  # the host is short of descriptors
        raise _translated(error, str(_MOUNTINFO)) from error


def parse_mountinfo(text: bytes) -> list[Mount]:
    found = []
    for line in text.splitlines():
        before, _, after = line.partition(b" - ")
        fields, rest = before.split(b" "), after.split(b" ")
        filesystem_type, source = rest[0].decode(), _unescaped(rest[1])
        found.append(Mount(int(fields[0]), fields[2].decode(), _unescaped(fields[4]), filesystem_type, source))
    return found


def _unescaped(field: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))


def host_mounts() -> list[str]:
    """Folders where a disk may be mounted, sorted; the kernel's own file systems are left out."""
    return sorted({mount.folder for mount in mounts() if not _NO_DISK.fullmatch(mount.filesystem)})


def find_member_folders(folders: Iterable[str]) -> list[tuple[str, UUID]]:
    """(mount folder, member uuid) for each `raidd-<uuid>` folder directly in one of `folders`.

    A folder that cannot be listed has no members to offer; it is passed over.
    """
    found = []
    for folder in folders:
        with suppress(OSError), os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            found += [(folder, UUID(match[1])) for name in sorted(names) if (match := _MEMBER.match(name))]
    return found


def filesystem(path: str) -> str:
    """The type of the file system `path` is on: "xfs", "ext4", …"""
    return _mount_of(path).filesystem


def whole_disk(path: str) -> str:
    """What must be another for two members to die apart: "/dev/sda", several joined by "+" (a device-mapper device or
    a btrfs over several), "zfs:POOL", or "dev:MAJOR:MINOR" where no disk is to be seen behind it (tmpfs, overlay)."""
    return "+".join(sorted(whole_disks(path)))


def whole_disks(path: str) -> frozenset[str]:
    """The same as a set: two members share a disk if their sets meet."""
    mount = _mount_of(path)
    if mount.filesystem == "zfs":
        return frozenset({f"zfs:{mount.source.partition('/')[0]}"})
    device = _stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    if os.major(device) == 0 and mount.source.startswith("/dev/"):  # btrfs: each subvolume has a number of its own
        return frozenset(disk for member in _btrfs_devices(mount.source) for disk in _disks_below(member))
    return _disks_below(number) or frozenset({f"dev:{number}"})


def _btrfs_devices(source: str) -> list[str]:
    """major:minor of every device of the btrfs that `source` is part of; of `source` alone if that cannot be told."""
    device = _stat(source).st_rdev
    own = f"{os.major(device)}:{os.minor(device)}"
    for devices in Path("/sys/fs/btrfs").glob("*/devices"):
        numbers = [(entry / "dev").read_text(encoding="ascii").strip() for entry in devices.iterdir()]
        if own in numbers:
            return numbers
    return [own]


def _disks_below(number: str) -> frozenset[str]:
    """Whole disks behind a block device; empty if it is none."""
    node = Path("/sys/dev/block") / number
    if not node.exists():
        return frozenset()
    return frozenset(_whole(node.resolve()))


def _whole(node: Path) -> Iterator[str]:
    if (node / "partition").exists():
        yield from _whole(node.parent)
        return
    slaves = list((node / "slaves").iterdir()) if (node / "slaves").is_dir() else []
    for slave in slaves:  # device-mapper, md
        yield from _whole(slave.resolve())
    if not slaves:
        yield "/dev/" + node.name.replace("!", "/")


def _mount_of(path: str) -> Mount:
    """By mount id, for mounts may lie upon each other and st_dev does not tell btrfs subvolumes."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii").splitlines()
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _translated(error, path) from error
    wanted = next(int(line.partition(":")[2]) for line in lines if line.startswith("mnt_id:"))
    for mount in mounts():
        if mount.mount_id == wanted:
            return mount
    raise MemberAway(f"{path}: was unmounted just now")


def _stat(path: str) -> os.stat_result:
    try:
        return Path(path).stat()
    except OSError as error:
        raise _translated(error, path) from error


def _translated(error: OSError, path: str, action: str = "look", member: str = "") -> RaiddError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return MemberAway(f"{path} is not a folder that exists", member=member)
    return member_error(error, f"{path}: {action}", member)


def is_blank(path: str) -> bool:
    """Nothing there but an empty lost+found, a desktop's trash, or a member folder of ours that was never born."""
    try:
        return all(_means_nothing(Path(path), name) for name in os.listdir(path))
    except OSError as error:
        raise _translated(error, path) from error


def _means_nothing(folder: Path, name: str) -> bool:
    if (folder / name).is_symlink() or not (folder / name).is_dir():
        return False
    if name == "lost+found":
        try:
            return not os.listdir(folder / name)
        except PermissionError:
            return False  # who cannot look must not guess
    return bool(_TRASH.match(name) or _UNBORN.match(name))


def create_member_folder(
    path: str,
    uuid: UUID,
    owner: tuple[int, int] | None = None,
    files: Mapping[str, bytes] | None = None,
    still_wanted: Callable[[], None] = lambda: None,
) -> None:
    """Make `path`/raidd-<uuid> whole: its folders, lock, canary, and `files` ({"label.json": …, "README.txt": …}).

    `owner` is (uid, gid), None to keep the caller's. Durable when it returns; after a crash either the whole folder is
    there or only a `.raidd-new-…`, which the next birth on this disk removes. MemberConflict if it exists.
    `still_wanted` raises if nobody waits for it any more: on a disk that hung, nothing is born late.
    """
    newborn = Path(path) / f".raidd-new-{uuid}"
    try:
        _remove_unborn(Path(path))
        _build(newborn, {**_first_files(), **(files or {})}, owner)
        still_wanted()
        _rename_whole(Path(path), newborn.name, f"raidd-{uuid}")
    except OSError as error:
        with suppress(OSError):
            shutil.rmtree(newborn)
        raise _translated(error, path, f"make raidd-{uuid}", str(uuid)) from error


def remove_newborn(path: str, uuid: UUID) -> None:
    """Undo a birth that nothing has followed: the folder holds no image yet. A crash leaves a blank disk."""
    newborn = Path(path) / f".raidd-new-{uuid}"
    try:
        (Path(path) / f"raidd-{uuid}").rename(newborn)
        shutil.rmtree(newborn)
    except OSError as error:
        raise _translated(error, path, f"remove raidd-{uuid}", str(uuid)) from error


def own_member_folder(path: str, uuid: UUID, owner: tuple[int, int]) -> None:
    """Give all of a member folder to (uid, gid). Links are given, never followed; what is theirs already is left."""
    top = Path(path) / f"raidd-{uuid}"
    try:
        for folder, _folders, files in os.walk(top, onerror=_raise):
            for name in ("", *files):
                entry = os.path.join(folder, name) if name else folder
                seen = os.lstat(entry)
                if (seen.st_uid, seen.st_gid) != owner:
                    os.lchown(entry, *owner)
    except OSError as error:
        raise _translated(error, path, f"give raidd-{uuid} to another user", str(uuid)) from error


def _raise(error: OSError) -> None:
    raise error


def _first_files() -> dict[str, bytes]:
    return {"lock": b" " * LOCK_SIZE, "canary": bytes(CANARY_SIZE)}


def _remove_unborn(folder: Path) -> None:
    for name in os.listdir(folder):
        if _UNBORN.match(name) and not (folder / name).is_symlink():
            shutil.rmtree(folder / name)


def _build(newborn: Path, files: Mapping[str, bytes], owner: tuple[int, int] | None) -> None:
    newborn.mkdir(mode=0o700)
    folders = [newborn, *(newborn / name for name in FOLDERS)]
    for folder in folders[1:]:
        folder.mkdir(mode=0o700)
    for name, data in files.items():
        target = newborn / name
        if target.parent not in folders:
            raise MemberFaulty(f"no folder for {name} in a member folder")
        _write_file(target, data, owner)
    for folder in reversed(folders):  # from below: the newborn itself is last
        if owner is not None:
            os.chown(folder, *owner)
        _sync_folder(folder)


def _write_file(path: Path, data: bytes, owner: tuple[int, int] | None) -> None:
    with path.open("xb") as file:
        path.chmod(0o600)
        file.write(data)
        file.flush()
        if owner is not None:
            os.fchown(file.fileno(), *owner)
        os.fsync(file.fileno())


def _rename_whole(folder: Path, newborn: str, name: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.rename_noreplace(descriptor, newborn, descriptor, name)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    (folder / name).stat()  # as in C1: a dead XFS syncs folders with success


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
