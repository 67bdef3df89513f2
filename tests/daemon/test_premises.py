"""What an array has on this machine: made where it is missing, left where it is there, given to user raidd."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from raidd import config
from raidd.config import Config
from raidd.daemon import premises
from raidd.errors import ConfigInvalid, RequestRefused


def settings(home: Path) -> Config:
    places = {"state_dir": "state", "run_dir": "run", "inbox": "deep/inbox", "spool": "deep/spool"}
    return config.parse("[raidd]\n" + "".join(f'{key} = "{home / name}"\n' for key, name in places.items()))


def test_missing_folders_are_made_with_the_modes_their_use_needs(tmp_path: Path) -> None:
    """Whatever the umask: group raidd-admin passes through run_dir, groups drop images, nobody reads state_dir."""
    before = os.umask(0o077)
    try:
        premises.make_folders(settings(tmp_path), None)
    finally:
        os.umask(before)
    modes = {
        name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("state", "run", "deep/inbox", "deep/spool")
    }
    assert modes == {"state": 0o700, "run": 0o755, "deep/inbox": 0o770, "deep/spool": 0o770}


def test_folders_that_are_there_are_left_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o750)
    premises.make_folders(settings(tmp_path), None)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o750


def test_a_folder_that_cannot_be_made_is_named_with_the_cause(tmp_path: Path) -> None:
    (tmp_path / "deep").touch()
    with pytest.raises(RequestRefused, match=f"{tmp_path}/deep/inbox cannot be made: ") as refused:
        premises.make_folders(settings(tmp_path), None)
    assert "--config FILE" in refused.value.next_step


def test_without_a_settings_file_the_template_is_taken(tmp_path: Path) -> None:
    found, text = premises.load_or_template(tmp_path / "raidd.toml")
    assert text is not None
    assert found == config.parse(text)
    assert found.path == tmp_path / "raidd.toml"
    assert not (tmp_path / "raidd.toml").exists(), "nothing is written before all was checked"


def test_a_link_to_nowhere_is_not_taken_for_a_missing_file(tmp_path: Path) -> None:
    """Writing through it would make a file in a place that nobody named."""
    (tmp_path / "raidd.toml").symlink_to(tmp_path / "nowhere" / "raidd.toml")
    with pytest.raises(ConfigInvalid, match="there is no such settings file"):
        premises.load_or_template(tmp_path / "raidd.toml")


@pytest.mark.parametrize(("name", "missing"), [("there", False), ("not-there", True), ("file/below", False)])
def test_only_what_is_surely_not_there_is_missing(tmp_path: Path, name: str, missing: bool) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    assert premises.is_missing(tmp_path / name) == missing


def test_the_nearest_folder_that_is_there(tmp_path: Path) -> None:
    assert premises.nearest_existing(tmp_path / "a" / "b") == tmp_path
    assert premises.nearest_existing(tmp_path) == tmp_path


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_gives_to_user_raidd_if_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(premises, "USER", "no-such-user")
    assert premises.owner_here() is None
    monkeypatch.setattr(premises, "USER", "nobody")
    owner = premises.owner_here()
    assert owner is not None
    premises.make_folders(settings(tmp_path), owner)
    (tmp_path / "state" / "file").touch()
    premises.own(tmp_path / "state", owner)
    assert {path.stat().st_uid for path in (tmp_path / "state", tmp_path / "state" / "file")} == {65534}
    assert (tmp_path / "deep" / "inbox").stat().st_uid == 65534


def test_what_others_make_stays_theirs(tmp_path: Path) -> None:
    premises.own(tmp_path / "nowhere", None)
    premises.give(tmp_path / "nowhere", None)
    premises.become(None)
    assert os.geteuid() == os.getuid()


def test_a_folder_that_cannot_be_given_away_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RequestRefused, match="nowhere cannot be read: No such file or directory"):
        premises.own(tmp_path / "nowhere", (0, 0))
    with pytest.raises(RequestRefused, match="nowhere cannot be given to user raidd"):
        premises.give(tmp_path / "nowhere", (0, 0))
