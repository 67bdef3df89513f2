"""Who may become a member: a blank folder on a disk of its own, everything looked at before anything is written."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from raidd.array import admission
from raidd.array.admission import examine, hardware
from raidd.errors import MemberFaulty, RequestRefused
from tests.support.loop_disks import LoopDisk, loop_disks, requires_disks

A_WHILE_S = 60.0
TRIAL = {"allow_same_device": True, "allow_filesystem": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


def refusal(*paths: Path | str, **options: Any) -> RequestRefused:
    with pytest.raises(RequestRefused) as refused:
        examine([str(path) for path in paths], **options)
    return refused.value


def everything(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


# -- folders -----------------------------------------------------------------------------------------------------


def test_a_blank_folder_may_join_a_trial_and_is_marked_as_one(folder: Path) -> None:
    (newcomer,) = examine([str(folder)], **TRIAL)
    assert newcomer.path == os.path.realpath(folder)
    assert newcomer.trial
    assert 0 < newcomer.free_bytes <= newcomer.size_bytes


@pytest.mark.parametrize("name", ["lost+found", ".Trash-1000"])
def test_what_a_file_system_or_a_desktop_makes_is_blank(folder: Path, name: str) -> None:
    (folder / name).mkdir()
    assert examine([str(folder)], **TRIAL)


def test_a_folder_with_anything_else_is_refused_and_left_as_it_is(folder: Path) -> None:
    (folder / "thesis.doc").write_text("ten years of work")
    before = everything(folder)
    assert "not blank" in refusal(folder, **TRIAL).message
    assert everything(folder) == before


def test_a_member_is_refused_by_its_name(folder: Path) -> None:
    member = uuid4()
    (folder / f"raidd-{member}").mkdir()
    assert str(member) in refusal(folder, **TRIAL).message


@pytest.mark.parametrize(
    ("path", "said"),
    [("disk", "absolute"), ("/no/such/folder", "not a folder"), ("/dev/null", "not a folder"), ("/a\0b", "absolute")],
)
def test_what_is_no_folder_is_refused(path: str, said: str) -> None:
    assert said in refusal(path, **TRIAL).message


def test_one_folder_under_two_names_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert "named twice" in refusal(folder, tmp_path / "link", **TRIAL).message


def test_every_fault_is_named_at_once_with_a_next_step(folder: Path, tmp_path: Path) -> None:
    (folder / "file").touch()
    (tmp_path / "member").mkdir()
    (tmp_path / "member" / f"raidd-{uuid4()}").mkdir()
    refused = refusal(folder, tmp_path / "member", tmp_path / "gone", **TRIAL)
    assert len(refused.message.splitlines()) == 3
    assert "nothing was changed" in refused.next_step


def test_other_file_systems_only_when_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "filesystem", lambda _path: "ntfs3")
    monkeypatch.setattr(admission, "whole_disks", lambda path: frozenset({f"disk of {path}"}))
    assert "ntfs3" in refusal(folder).message
    (newcomer,) = examine([str(folder)], allow_filesystem=True)
    assert (newcomer.filesystem, newcomer.trial) == ("ntfs3", False)


# -- disks -------------------------------------------------------------------------------------------------------


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch) -> dict[str, frozenset[str]]:
    """folder → the disks behind it; the system's is "sys"."""
    behind: dict[str, frozenset[str]] = {}

    def whole_disks(path: str) -> frozenset[str]:
        return behind.get(os.path.realpath(path), frozenset({"sys"}))

    monkeypatch.setattr(admission, "whole_disks", whole_disks)
    monkeypatch.setattr(admission, "filesystem", lambda _path: "xfs")
    return behind


def mount(tmp_path: Path, disks: dict[str, frozenset[str]], name: str, *behind: str) -> str:
    (tmp_path / name).mkdir()
    disks[os.path.realpath(tmp_path / name)] = frozenset(behind)
    return str(tmp_path / name)


def test_disks_of_their_own_are_taken_and_are_no_trial(tmp_path: Path, disks: dict[str, frozenset[str]]) -> None:
    paths = [mount(tmp_path, disks, name, name) for name in ("sda", "sdb", "sdc")]
    assert [one.trial for one in examine(paths)] == [False] * 3


def test_two_on_one_disk_are_refused_though_partitions_differ(tmp_path: Path, disks: dict[str, frozenset[str]]) -> None:
    """Joined disks (a volume over two) share with each of them."""
    one, two = mount(tmp_path, disks, "one", "sda", "sdb"), mount(tmp_path, disks, "two", "sdb")
    refused = refusal(one, two)
    assert "one dead disk would take both" in refused.message
    assert "--allow-same-device" in refused.next_step
    assert [new.trial for new in examine([one, two], allow_same_device=True)] == [True, True]


def test_the_systems_disk_and_that_of_state_dir_are_refused(tmp_path: Path, disks: dict[str, frozenset[str]]) -> None:
    assert "the system" in refusal(mount(tmp_path, disks, "one", "sys")).message
    state = mount(tmp_path, disks, "state", "nvme")
    assert "the system" in refusal(mount(tmp_path, disks, "two", "nvme"), state_dir=state).message


def test_a_members_disk_is_refused_to_the_next(tmp_path: Path, disks: dict[str, frozenset[str]]) -> None:
    member = mount(tmp_path, disks, "member", "sda")
    assert f"the member at {member}" in refusal(mount(tmp_path, disks, "new", "sda"), taken=[member]).message


def test_members_that_are_gone_or_failing_are_passed_over(
    tmp_path: Path, disks: dict[str, frozenset[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    new, known = mount(tmp_path, disks, "new", "sdb"), admission.whole_disks

    def fail(path: str) -> frozenset[str]:
        if path == "/failing":
            raise MemberFaulty("EIO")
        return known(path)

    monkeypatch.setattr(admission, "whole_disks", fail)
    assert len(examine([new], taken=["/failing"])) == 1


def test_a_member_that_hangs_does_not_keep_a_disk_out_and_a_newcomer_that_hangs_is_told(
    tmp_path: Path, disks: dict[str, frozenset[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    new, hung = mount(tmp_path, disks, "new", "sdb"), mount(tmp_path, disks, "hung", "sda")
    go, known = threading.Event(), admission.whole_disks

    def hang(path: str) -> frozenset[str]:
        if path == hung:
            go.wait(A_WHILE_S)
        return known(path)

    monkeypatch.setattr(admission, "whole_disks", hang)
    monkeypatch.setattr(admission, "LOOK_S", 0.3)
    try:
        assert len(examine([new], taken=[hung])) == 1
        assert "does not answer" in refusal(hung).message
    finally:
        go.set()


def test_what_the_kernel_does_not_tell_is_empty() -> None:
    assert hardware("zfs:tank") == ("", "")
    assert hardware("") == ("", "")
    assert hardware("/dev/no-such-disk") == ("", "")


def test_model_and_serial_are_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "sda" / "device"
    device.mkdir(parents=True)
    (device / "model").write_bytes(b"ST8000VN004-2M2101  \n")
    (device / "serial").write_bytes(b"  WSD0\xffA1B2\n")
    monkeypatch.setattr(admission, "Path", lambda path: tmp_path if path == "/sys/block" else Path(path))
    assert hardware("/dev/sda") == ("ST8000VN004-2M2101", "WSD0\ufffdA1B2")


# -- real disks --------------------------------------------------------------------------------------------------


@pytest.mark.disks
@requires_disks("ext4")
def test_freshly_made_disks_are_taken_and_a_folder_on_one_of_them_is_not() -> None:
    with loop_disks(2, "ext4") as real:
        paths = [str(disk.folder) for disk in real]
        newcomers = examine(paths)
        assert [(one.path, one.filesystem, one.trial) for one in newcomers] == [(p, "ext4", False) for p in paths]
        assert not newcomers[0].disks & newcomers[1].disks
        _refused_beside(real[0])


def _refused_beside(disk: LoopDisk) -> None:
    inner = disk.folder / "inner"
    inner.mkdir()
    assert "same disk" in refusal(inner, taken=[str(disk.folder)]).message
