"""array.json: what it remembers, that it is replaced whole, and what is said of one that cannot be read."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from raidd.array.roster import MemberState, Roster, RosterEntry, RosterEvent, apply, new_roster
from raidd.array.state_file import NAME, Remembered, StateFile
from raidd.codec.geometry import Geometry, Level
from raidd.errors import CatalogUnusable, StateDirFaulty

MEMBERS = [uuid4() for _ in range(3)]


def roster() -> Roster:
    entries = [
        RosterEntry(member, None, MemberState.SPARE, bay="oben", serial="S\u00e9rie", size=5) for member in MEMBERS
    ]
    first = new_roster(uuid4(), "Praxis Müller", Level("raid5"), Geometry(2, 1), entries, contact="Dr. Ä, 555")
    return apply(first.successor(trial=True), MEMBERS[1], RosterEvent.SUSPECT)


def remembered() -> Remembered:
    paths: dict[UUID, str] = {member: f"/srv/disks/{number} ö" for number, member in enumerate(MEMBERS)}
    return Remembered(roster(), paths, frozenset(MEMBERS[:2]))


@pytest.fixture
def file(tmp_path: Path) -> StateFile:
    return StateFile(tmp_path)


def test_what_is_saved_is_loaded_history_and_all(file: StateFile) -> None:
    saved = remembered()
    file.save(saved)
    assert file.load() == saved


def test_a_machine_that_knows_no_array_says_so(file: StateFile) -> None:
    assert file.load() is None


def test_the_last_save_counts_and_leaves_one_file_that_only_raidd_may_read(file: StateFile, tmp_path: Path) -> None:
    for _ in range(3):
        last = remembered()
        file.save(last)
    assert file.load() == last
    assert os.listdir(tmp_path) == [NAME]
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600


def test_a_save_that_is_cut_short_leaves_the_old_file(
    file: StateFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = remembered()
    file.save(old)

    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(StateDirFaulty, match=r"array\.json"):
            file.save(remembered())
    assert file.load() == old
    again = remembered()
    file.save(again)
    assert StateFile(tmp_path).load() == again


def change(**keys: object) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps({**json.loads(data), **keys}).encode()


def without(key: str) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps({k: v for k, v in json.loads(data).items() if k != key}).encode()


@pytest.mark.parametrize(
    "damage",
    [
        lambda _data: b"",
        lambda data: data[: len(data) // 2],
        lambda _data: b"[]",
        lambda _data: b"null",
        lambda _data: b"[" * 100_000,
        lambda data: data.replace(b"oben", b"0ben"),
        change(label=7),
        change(paths=[]),
        change(paths={"not an id": "/x"}),
        change(up_at_stop=["not an id"]),
        change(up_at_stop=None),
        without("label"),
        without("paths"),
        without("up_at_stop"),
    ],
)
def test_a_damaged_file_is_refused_with_the_way_out(
    file: StateFile, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    file.save(remembered())
    path = tmp_path / NAME
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CatalogUnusable) as refused:
        file.load()
    assert "raidctl assemble" in refused.value.next_step


def test_a_file_that_cannot_be_opened_is_state_dirs_fault(file: StateFile, tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(StateDirFaulty):
        file.load()


def test_a_state_dir_that_is_gone_is_state_dirs_fault(tmp_path: Path) -> None:
    with pytest.raises(StateDirFaulty):
        StateFile(tmp_path / "gone").save(remembered())
