from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from raidd.array import host
from raidd.array.host import (
    create_member_folder,
    filesystem,
    find_member_folders,
    host_mounts,
    is_blank,
    parse_mountinfo,
    whole_disk,
    whole_disks,
)
from raidd.array.local_disk import LocalDisk
from raidd.errors import MemberAway, MemberConflict, MemberError, MemberFaulty, MemberFull, MemberReadOnly
from tests.support.loop_disks import loop_disks, requires_disks

MOUNTINFO = rb"""36 35 98:0 / / rw,noatime shared:1 - ext4 /dev/root rw,errors=continue
37 36 0:22 / /proc rw - proc proc rw
38 36 8:17 /sub /srv/with\040space\011and\134tab rw master:2 shared:7 - xfs /dev/sdb1 rw
39 36 0:50 /@ /srv/b rw - btrfs /dev/sdc rw,subvolid=5
"""


def test_mountinfo_is_read_with_its_escapes_and_optional_fields() -> None:
    mounts = parse_mountinfo(MOUNTINFO)
    assert [(m.mount_id, m.device, m.folder, m.filesystem, m.source) for m in mounts] == [
        (36, "98:0", "/", "ext4", "/dev/root"),
        (37, "0:22", "/proc", "proc", "proc"),
        (38, "8:17", "/srv/with space\tand\\tab", "xfs", "/dev/sdb1"),
        (39, "0:50", "/srv/b", "btrfs", "/dev/sdc"),
    ]


def test_the_hosts_mounts_have_the_root_and_no_kernel_file_systems() -> None:
    mounts = host_mounts()
    assert "/" in mounts
    assert not {"/proc", "/sys"} & set(mounts)


def test_member_folders_are_found_by_their_exact_name(tmp_path: Path) -> None:
    first, second = uuid4(), uuid4()
    for folder, uuid in (("a", first), ("b", second)):
        (tmp_path / folder).mkdir()
        create_member_folder(str(tmp_path / folder), uuid)
    (tmp_path / "a" / f"raidd-{str(uuid4()).upper()}").mkdir()
    (tmp_path / "a" / f".raidd-new-{uuid4()}").mkdir()
    (tmp_path / "a" / f"raidd-{uuid4()}").symlink_to(tmp_path)
    (tmp_path / "a" / f"raidd-{uuid4()}").touch()
    folders = [str(tmp_path / name) for name in ("a", "none", "b")]
    assert find_member_folders(folders) == [(folders[0], first), (folders[2], second)]


def test_blank_is_nothing_but_an_empty_lost_and_found_trash_and_the_unborn(tmp_path: Path) -> None:
    assert is_blank(str(tmp_path))
    for name in ("lost+found", ".Trash-1000", "$RECYCLE.BIN", "System Volume Information", f".raidd-new-{uuid4()}"):
        (tmp_path / name).mkdir()
    assert is_blank(str(tmp_path))
    (tmp_path / "lost+found" / "#12").touch()
    assert not is_blank(str(tmp_path))


@pytest.mark.parametrize("name", ["photo.jpg", ".hidden", "lost+found", ".Trash"])
def test_a_file_is_not_blank_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert not is_blank(str(tmp_path))


def test_a_folder_that_is_not_there_is_neither_blank_nor_not(tmp_path: Path) -> None:
    with pytest.raises(MemberAway):
        is_blank(str(tmp_path / "none"))
    with pytest.raises(MemberAway):
        whole_disk(str(tmp_path / "none"))


def test_a_member_folder_is_born_whole_private_and_readable(tmp_path: Path) -> None:
    uuid = uuid4()
    create_member_folder(
        str(tmp_path), uuid, (os.getuid(), os.getgid()), {"label.json": b"{}", "config/raidd.toml": b"x"}
    )
    assert os.listdir(tmp_path) == [f"raidd-{uuid}"]
    born = tmp_path / f"raidd-{uuid}"
    assert stat.S_IMODE(born.stat().st_mode) == 0o700
    assert stat.S_IMODE((born / "label.json").stat().st_mode) == 0o600
    disk = LocalDisk(str(tmp_path), uuid)
    assert disk.read("label.json") == b"{}"
    assert disk.list("config") == ["raidd.toml"]


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
def test_all_of_it_belongs_to_the_owner(tmp_path: Path) -> None:
    uuid = uuid4()
    create_member_folder(str(tmp_path), uuid, (12345, 23456), {"label.json": b"{}"})
    born = tmp_path / f"raidd-{uuid}"
    everything = [born, *born.rglob("*")]
    assert len(everything) > 7
    assert {(path.stat().st_uid, path.stat().st_gid) for path in everything} == {(12345, 23456)}


def test_a_birth_never_replaces_a_member(tmp_path: Path) -> None:
    uuid = uuid4()
    create_member_folder(str(tmp_path), uuid, None, {"label.json": b"first"})
    with pytest.raises(MemberConflict):
        create_member_folder(str(tmp_path), uuid, None, {"label.json": b"second"})
    assert LocalDisk(str(tmp_path), uuid).read("label.json") == b"first"
    assert os.listdir(tmp_path) == [f"raidd-{uuid}"]


def test_a_birth_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(*_: object) -> None:
        raise OSError(5, "injected")

    monkeypatch.setattr(host, "_rename_whole", break_off)
    with pytest.raises(MemberFaulty):
        create_member_folder(str(tmp_path), uuid4())
    assert os.listdir(tmp_path) == []


def test_what_a_killed_birth_left_is_removed_by_the_next(tmp_path: Path) -> None:
    leftover = tmp_path / f".raidd-new-{uuid4()}"
    (leftover / "tmp").mkdir(parents=True)
    uuid = uuid4()
    create_member_folder(str(tmp_path), uuid)
    assert os.listdir(tmp_path) == [f"raidd-{uuid}"]


def test_a_birth_elsewhere_makes_no_mountpoint(tmp_path: Path) -> None:
    with pytest.raises(MemberAway):
        create_member_folder(str(tmp_path / "none"), uuid4())
    assert os.listdir(tmp_path) == []


@requires_disks("ext4", "xfs", "btrfs")
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_real_disks_are_told_apart_and_are_blank_when_fresh(kind: str) -> None:
    with loop_disks(2, kind) as disks:
        paths = [str(disk.folder) for disk in disks]
        assert [whole_disk(path) for path in paths] == [disk.device for disk in disks]
        assert [filesystem(path) for path in paths] == [kind, kind]
        assert set(paths) <= set(host_mounts())
        assert all(is_blank(path) for path in paths)
        uuid = uuid4()
        create_member_folder(paths[1], uuid)
        assert find_member_folders(paths) == [(paths[1], uuid)]
        assert not is_blank(paths[1])
        if kind != "btrfs":
            disks[1].power_cut()
        assert LocalDisk(paths[1], uuid).length("canary") == 4096


@requires_disks("btrfs")
def test_a_subvolume_is_on_the_disk_of_its_file_system() -> None:
    with loop_disks(1, "btrfs") as disks:
        subprocess.run(["btrfs", "subvolume", "create", str(disks[0].folder / "sub")], check=True, capture_output=True)
        assert (disks[0].folder / "sub").stat().st_dev != disks[0].folder.stat().st_dev
        assert whole_disks(str(disks[0].folder / "sub")) == {disks[0].device}


@requires_disks("ext4")
def test_a_plain_folder_is_on_the_disk_of_its_mount_and_memory_is_on_none() -> None:
    with loop_disks(1, "ext4") as disks:
        inside = disks[0].folder / "plain"
        inside.mkdir()
        assert whole_disk(str(inside)) == disks[0].device
        assert whole_disk(str(disks[0].folder.parent)).startswith("dev:0:")


@requires_disks("ext4")
def test_a_birth_on_a_disk_that_is_full_or_read_only_says_so() -> None:
    with loop_disks(1, "ext4") as disks:
        cases: list[tuple[object, type[MemberError]]] = [
            (disks[0].fill, MemberFull),
            (disks[0].remount_ro, MemberReadOnly),
        ]
        for spoil, kind in cases:
            spoil()  # type: ignore[operator]
            with pytest.raises(kind):
                create_member_folder(str(disks[0].folder), uuid4(), None, {"README.txt": bytes(100000)})
            assert not find_member_folders([str(disks[0].folder)])
