"""Members on disks that nobody has mounted: found by looking, and nothing is changed by it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from uuid import uuid4

import pytest

from raidd.array import unmounted
from raidd.array.host import create_member_folder, mounts
from raidd.array.label import label_for
from raidd.array.unmounted import find_unmounted
from tests.support.loop_disks import LoopDisk, loop_disks, requires_disks
from tests.support.rosters import member_id, roster_of


def label(disk: LoopDisk, number: int = 0) -> None:
    files = {"label.json": label_for(member_id(number), roster_of(4)).pack()}
    create_member_folder(str(disk.folder), member_id(number), None, files)


def digest(disk: LoopDisk) -> str:
    with disk.image.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.disks
@requires_disks("ext4", "xfs", "btrfs")
@pytest.mark.parametrize("filesystem", ["ext4", "xfs", "btrfs"])
def test_a_label_on_an_unmounted_disk_is_read_and_the_disk_is_not_changed(filesystem: str) -> None:
    with loop_disks(1, filesystem) as (disk,):
        label(disk)
        disk.umount()
        before = digest(disk)
        (seen,) = find_unmounted(30.0, [disk.device])
        assert (seen.path, seen.uuid, seen.label and seen.label.slot) == (disk.device, member_id(0), 0)
        assert digest(disk) == before
        assert disk.device not in {mount.source for mount in mounts()}


@pytest.mark.disks
@requires_disks("ext4", "xfs")
@pytest.mark.parametrize("filesystem", ["ext4", "xfs"])
def test_a_disk_that_was_not_unmounted_cleanly_is_not_repaired_by_looking(filesystem: str) -> None:
    """Its journal waits to be replayed: that is for whoever mounts it."""
    with loop_disks(1, filesystem) as (disk,):
        label(disk)
        (disk.folder / "later").write_bytes(b"x" * 100_000)
        disk.shutdown()
        disk.umount()
        before = digest(disk)
        find_unmounted(30.0, [disk.device])
        assert digest(disk) == before


@pytest.mark.disks
@requires_disks("ext4")
def test_a_disk_that_is_mounted_or_holds_no_file_system_is_passed_over() -> None:
    with loop_disks(2, "ext4") as (used, wiped):
        label(used)
        label(wiped, 1)
        wiped.umount()
        with wiped.image.open("r+b") as image:
            image.write(bytes(4096))
        assert find_unmounted(30.0, [used.device, wiped.device, "/dev/null", "/dev/no-such-disk"]) == []


@pytest.mark.disks
@requires_disks("ext4")
def test_a_damaged_label_is_told() -> None:
    with loop_disks(1, "ext4") as (disk,):
        create_member_folder(str(disk.folder), uuid4(), None, {"label.json": b"{"})
        disk.umount()
        (seen,) = find_unmounted(30.0, [disk.device])
        assert seen.label is None
        assert "label" in seen.fault


def test_disks_are_looked_at_by_their_partitions_where_they_have_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/sys/class/block as the kernel shows it: a divided disk holds its partitions' folders."""
    for name, size in {"sda": 100, "sda1": 99, "sdb": 100, "loop0": 0, "zram0": 7, "sr0": 9, "cciss!c0d0": 5}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "size").write_text(f"{size}\n")
    (tmp_path / "sda" / "sda1").mkdir()
    (tmp_path / "sda" / "sda1" / "partition").write_text("1\n")
    (tmp_path / "sdc").mkdir()  # vanishes while it is looked at
    monkeypatch.setattr(unmounted, "_SYSTEM_BLOCK", tmp_path)
    assert unmounted._block_devices() == ["/dev/cciss/c0d0", "/dev/sda1", "/dev/sdb"]
