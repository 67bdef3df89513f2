"""`raidctl init`: what it refuses, what it prints, what it makes, and that it makes all of it or nothing."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from uuid import uuid4

import pytest

from raidd import config
from raidd.array import host
from raidd.array.lock import ArrayLock
from raidd.array.roster import MemberState
from raidd.codec.geometry import Geometry
from raidd.config_template import render_template
from raidd.daemon import birth, premises
from raidd.errors import MemberFaulty
from tests.support.trial_array import TrialArray


@pytest.fixture
def array(tmp_path: Path) -> TrialArray:
    return TrialArray(tmp_path)


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    """The message; every refusal has a next step, and no traceback."""
    said = capsys.readouterr().err
    assert said.startswith("raidctl: "), said
    assert said.splitlines()[-1].startswith("next: ")
    assert "Traceback" not in said
    return said


def nothing_was_made(array: TrialArray) -> None:
    assert not any(entry for mount in array.mounts for entry in mount.glob("raidd-*"))
    assert not (array.state_dir / "array.json").exists()


# -- what it makes ---------------------------------------------------------------------------------------------------


def test_slots_are_in_the_order_given_and_every_label_knows_all(array: TrialArray) -> None:
    assert array.init(mounts=[*reversed(array.mounts)]) == 0
    rosters = {array.label(slot).roster for slot in range(4)}
    assert len(rosters) == 1
    (roster,) = rosters
    assert [array.label(slot).slot for slot in range(4)] == [3, 2, 1, 0]
    assert roster.geometry == Geometry(2, 2)
    assert {entry.state for entry in roster.entries} == {MemberState.ONLINE}
    assert array.remembered().roster == roster
    assert set(array.remembered().paths.values()) == {str(mount) for mount in array.mounts}


def test_a_member_carries_all_that_the_format_names(array: TrialArray) -> None:
    array.init()
    names = {path.name for path in array.folder(0).iterdir()}
    assert {"label.json", "lock", "README.txt", "recover.py", "config", "segments", "journal", "canary", "tmp"} <= names
    assert (array.folder(0) / "config" / "raidd.toml").read_bytes() == array.config_file.read_bytes()
    assert stat.S_IMODE(array.folder(0).stat().st_mode) == 0o700


def test_the_journal_records_who_made_it(array: TrialArray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "anna")
    array.init()
    with array:
        entry = array.open().opened.catalog.journal_after(0)[0]
    assert (entry.action, entry.actor) == ("init", "anna")


def test_missing_settings_are_written_from_the_template(
    array: TrialArray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    places = {f"raidd.{key}": str(tmp_path / key) for key in ("state_dir", "run_dir", "inbox", "spool")}
    monkeypatch.setattr(premises, "render_template", lambda: render_template(places))
    array.config_file = tmp_path / "etc" / "raidd.toml"
    assert array.init() == 0
    assert config.load(array.config_file).raidd.inbox == tmp_path / "inbox"
    assert stat.S_IMODE((tmp_path / "state_dir").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "run_dir").stat().st_mode) == 0o755  # group raidd-admin has to pass through it


def test_existing_settings_are_left_as_they_are(array: TrialArray) -> None:
    array.write_settings("# mine\n")
    before = array.config_file.read_bytes()
    array.init()
    assert array.config_file.read_bytes() == before


def test_folders_that_are_there_keep_mode_and_content(array: TrialArray) -> None:
    array.inbox.mkdir(mode=0o777)
    array.inbox.chmod(0o777)
    (array.inbox / "image.dcm").write_bytes(b"x")
    array.init()
    assert stat.S_IMODE(array.inbox.stat().st_mode) == 0o777
    assert (array.inbox / "image.dcm").read_bytes() == b"x"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_root_makes_belongs_to_user_raidd(array: TrialArray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(premises, "USER", "nobody")
    array.init()
    made = [array.state_dir, array.inbox, array.home / "run", array.home / "spool", *array.state_dir.iterdir()]
    made += [path for slot in range(4) for path in (array.folder(slot), *array.folder(slot).rglob("*"))]
    assert {path.stat().st_uid for path in made} == {65534}
    assert array.mounts[0].stat().st_uid == 0  # the disk itself was there before


def test_prints_what_each_level_would_give_and_marks_the_chosen(
    array: TrialArray, capsys: pytest.CaptureFixture[str]
) -> None:
    array.init("--level=raid5")
    said = capsys.readouterr().out
    chosen = [line.split() for line in said.splitlines() if "<- chosen" in line]
    assert [line[:2] for line in chosen] == [["raid5", "3+1"]]
    for name in ("mirror", "raid5", "raid6"):
        assert f"  {name} " in said
    assert "survives 1 dead disk " in said.replace("\n", " ")
    assert "survives 2 dead disks" in said


@pytest.mark.parametrize(
    ("options", "level", "shape"),
    [
        (("--level=RAID10",), "mirror", "1+1"),
        (("--level=custom", "--data=1", "--parity=3"), "custom", "1+3"),
        (("--level=mirror", "--copies=4"), "mirror", "1+3"),
    ],
)
def test_a_level_by_another_name_is_stored_under_its_own(
    array: TrialArray, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], level: str, shape: str
) -> None:
    assert array.init(*options) == 0
    assert array.label(0).roster.level.name == level
    chosen = [line.split() for line in capsys.readouterr().out.splitlines() if "<- chosen" in line]
    assert [line[:2] for line in chosen] == [[level, shape]]


def test_a_trial_says_so_and_the_label_keeps_it(array: TrialArray, capsys: pytest.CaptureFixture[str]) -> None:
    array.init()
    assert array.label(0).roster.trial
    assert "this protects nothing" in capsys.readouterr().out


def test_allow_same_device_is_enough_for_a_trial_on_any_filesystem(tmp_path: Path) -> None:
    """design.md 9: other file systems only with --allow-filesystem or, for trials, --allow-same-device."""
    shm = Path("/dev/shm") / f"raidd-{uuid4()}"
    array = TrialArray(tmp_path)
    array.mounts = [shm / str(number) for number in range(3)]
    try:
        for mount in array.mounts:
            mount.mkdir(parents=True)
        assert array.init("--allow-same-device", trial=False) == 0
    finally:
        shutil.rmtree(shm)


# -- what it refuses -------------------------------------------------------------------------------------------------


def test_refuses_a_folder_that_is_not_blank(array: TrialArray, capsys: pytest.CaptureFixture[str]) -> None:
    (array.mounts[1] / "holiday.jpg").write_bytes(b"x")
    assert array.init() == 1
    assert f"{array.mounts[1]} is not blank" in refused(capsys)
    nothing_was_made(array)


@pytest.mark.parametrize("name", ["lost+found", ".Trash-1000", "$RECYCLE.BIN", "System Volume Information"])
def test_a_fresh_file_system_counts_as_blank(array: TrialArray, name: str) -> None:
    (array.mounts[0] / name).mkdir()
    assert array.init() == 0


def test_refuses_a_disk_that_carries_a_label(array: TrialArray, capsys: pytest.CaptureFixture[str]) -> None:
    member = array.mounts[2] / f"raidd-{uuid4()}"
    member.mkdir()
    assert array.init() == 1
    said = refused(capsys)
    assert str(array.mounts[2]) in said
    assert "is a member already" in said


def test_refuses_two_on_one_device(array: TrialArray, capsys: pytest.CaptureFixture[str]) -> None:
    assert array.init("--allow-filesystem", trial=False) == 1
    said = refused(capsys)
    assert "same disk" in said
    assert "--allow-same-device" in said
    nothing_was_made(array)


def test_refuses_the_same_folder_twice_also_by_another_name(
    array: TrialArray, capsys: pytest.CaptureFixture[str]
) -> None:
    link = array.home / "link"
    link.symlink_to(array.mounts[0])
    assert array.init(mounts=[*array.mounts, link]) == 1
    assert "the same folder is named twice" in refused(capsys)


def test_refuses_other_filesystems(array: TrialArray, capsys: pytest.CaptureFixture[str]) -> None:
    shm = Path("/dev/shm") / f"raidd-{uuid4()}"
    shm.mkdir()
    try:
        assert array.init(mounts=[shm, array.mounts[0]], trial=False) == 1
        said = refused(capsys)
        assert "is tmpfs" in said
        assert "--allow-filesystem" in said
    finally:
        shm.rmdir()


def test_names_every_fault_at_once(array: TrialArray, capsys: pytest.CaptureFixture[str]) -> None:
    (array.mounts[0] / "file").touch()
    (array.mounts[1] / f"raidd-{uuid4()}").mkdir()
    array.mounts[2].rmdir()
    array.mounts[3].rmdir()
    array.mounts[3].write_bytes(b"a file")
    assert array.init() == 1
    said = refused(capsys)
    assert all(str(mount) in said for mount in array.mounts)
    assert said.count("is not a folder; is the disk mounted?") == 2


def test_refuses_a_second_array_in_the_same_state_dir(array: TrialArray, capsys: pytest.CaptureFixture[str]) -> None:
    array.init()
    before = array.remembered()
    capsys.readouterr()
    fresh = [array.home / "fresh0", array.home / "fresh1"]
    for mount in fresh:
        mount.mkdir()
    assert array.init(mounts=fresh) == 1
    assert "already belongs to array clinic-1" in refused(capsys)
    assert array.remembered() == before
    assert not any(entry for mount in fresh for entry in mount.iterdir())


@pytest.mark.parametrize("name", ["", "  ", "two words", "line\nbreak", "\x1b[31mred", "x" * 65, "a\x00b", "\udcff"])
def test_refuses_a_name_that_would_not_stand_on_a_line(
    array: TrialArray, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    array.name = name
    assert array.init() == 1
    assert "is no name for an array" in refused(capsys)
    nothing_was_made(array)


def test_a_name_may_have_any_letters(array: TrialArray) -> None:
    array.name = "Tierklinik-Köln_日本"
    assert array.init() == 0
    assert array.label(0).roster.array_name == "Tierklinik-Köln_日本"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--level=raid9",), "there is no level"),
        (("--level=raid7", "--copies=3"), "takes no copies"),
        (("--level=custom", "--data=9", "--parity=9"), "custom 9+9 on 4 members"),
        (("--level=raid60",), "raid60 on 4 members"),
    ],
)
def test_a_wrong_level_is_refused_before_anything_is_made(
    array: TrialArray, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    assert array.init(*options) == 1
    assert said in refused(capsys)
    nothing_was_made(array)


def test_one_member_is_no_array(array: TrialArray, capsys: pytest.CaptureFixture[str]) -> None:
    assert array.init(mounts=array.mounts[:1]) == 1
    refused(capsys)


def test_wrong_settings_are_told_and_nothing_is_made(array: TrialArray, capsys: pytest.CaptureFixture[str]) -> None:
    array.write_settings("[ingest]\nsettle = 3\n")
    assert array.init() == 64
    said = refused(capsys)
    assert "ingest.settle" in said
    assert "did you mean settle_s?" in said
    nothing_was_made(array)


def test_settings_that_are_a_folder_are_told(array: TrialArray, capsys: pytest.CaptureFixture[str]) -> None:
    array.config_file.unlink()
    array.config_file.mkdir()
    assert array.init() == 64
    assert "Is a directory" in refused(capsys)


def test_a_state_dir_that_cannot_be_made_is_told(array: TrialArray, capsys: pytest.CaptureFixture[str]) -> None:
    (array.home / "file").touch()
    array.state_dir = array.home / "file" / "state"
    array.write_settings()
    assert array.init() == 1
    assert str(array.state_dir) in refused(capsys)
    nothing_was_made(array)


def test_does_not_run_beside_another(array: TrialArray, capsys: pytest.CaptureFixture[str]) -> None:
    """The lock is another process's: flock is per open file, so one taken here refuses the next all the same."""
    array.state_dir.mkdir()
    lock = ArrayLock.acquire(str(array.state_dir))
    try:
        assert array.init() == 1
        assert "in use by" in refused(capsys)
        nothing_was_made(array)
    finally:
        lock.release()


# -- all or nothing --------------------------------------------------------------------------------------------------


def test_a_disk_that_fails_on_the_way_leaves_the_others_blank(
    array: TrialArray, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third disk dies while it is labelled. Afterwards the same command works with another disk."""
    real = birth.create_member_folder

    def dying(path: str, *rest: object) -> None:
        if path == str(array.mounts[2]):
            raise MemberFaulty(f"{path}: make the member folder: Input/output error")
        real(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(birth, "create_member_folder", dying)
    assert array.init() == 1
    assert "Input/output error" in refused(capsys)
    nothing_was_made(array)
    monkeypatch.setattr(birth, "create_member_folder", real)
    assert array.init() == 0


def test_a_state_dir_that_fails_at_the_end_leaves_all_disks_blank(
    array: TrialArray, capsys: pytest.CaptureFixture[str]
) -> None:
    array.state_dir.mkdir()
    (array.state_dir / "array.json").mkdir()  # cannot be replaced by a file
    (array.state_dir / "array.json" / "x").touch()
    assert array.init() == 1
    refused(capsys)
    assert all(host.is_blank(str(mount)) for mount in array.mounts)


def test_ctrl_c_leaves_all_disks_blank(
    array: TrialArray, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(birth, "_remember", interrupted)
    assert array.init() == 130
    assert "Traceback" not in capsys.readouterr().err
    nothing_was_made(array)
