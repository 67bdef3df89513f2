"""Opening an array: on real folders, with real labels, locks and catalog, as the daemon, assemble and reindex do."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from raidd import config
from raidd.array.label import label_for
from raidd.array.members import NOT_FOUND
from raidd.array.roster import MemberState, Roster
from raidd.array.state_file import StateFile
from raidd.daemon.graph import Array
from raidd.daemon.opening import TAKEN_OFFLINE, open_array
from raidd.errors import ArrayLocked, CatalogUnusable, LabelForked, RequestUnknown, StateDirFaulty
from tests.support.trial_array import TrialArray

CONTENTS = [b"first", b"second" * 10_000]


@pytest.fixture
def array(tmp_path: Path) -> Iterator[TrialArray]:
    """Two images on four members, raid6; stopped. What a test opens is closed for it."""
    with TrialArray(tmp_path) as made:
        assert made.init() == 0
        running = made.open()
        made.put(running, CONTENTS)
        while running.replicator.replicate_once():
            pass
        made.close()
        yield made


def contents(running: Array) -> list[bytes]:
    return sorted(b"".join(running.store.read(row)) for row in running.opened.catalog.all_images())


def verdicts(array: TrialArray, **states: MemberState) -> Roster:
    """A roster in which some slots have other states, on all labels and in state_dir."""
    known = array.remembered()
    wanted = {int(slot.removeprefix("slot")): state for slot, state in states.items()}
    entries = tuple(
        replace(e, state=wanted.get(-1 if e.slot is None else e.slot, e.state)) for e in known.roster.entries
    )
    roster = known.roster.successor(entries=entries)
    StateFile(array.state_dir).save(replace(known, roster=roster))
    for slot in range(len(array.mounts)):
        label = array.label(slot)
        (array.folder(slot) / "label.json").write_bytes(label_for(label.member, roster).pack())
    return roster


def held_open(array: TrialArray, slot: int) -> list[str]:
    """Files of this member that this process has open."""
    links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return [str(link) for link in links if link.is_relative_to(array.mounts[slot])]


def test_opens_what_state_dir_remembers(array: TrialArray) -> None:
    running = array.open()
    assert contents(running) == sorted(CONTENTS)
    assert [member.path for member in running.opened.membership.members()] == [str(mount) for mount in array.mounts]
    assert running.opened.reindex_because == ""


@pytest.mark.parametrize("exists", [True, False])
def test_without_an_array_says_how_to_get_one(tmp_path: Path, exists: bool) -> None:
    array = TrialArray(tmp_path)
    if exists:
        array.state_dir.mkdir()
    with pytest.raises(RequestUnknown, match=f"state_dir is {array.state_dir}") as refused:
        open_array(config.load(array.config_file))
    assert "raidctl init" in refused.value.next_step
    assert "raidctl assemble" in refused.value.next_step


def test_a_second_one_is_refused_and_the_first_goes_on(array: TrialArray) -> None:
    running = array.open()
    with pytest.raises(ArrayLocked, match="in use by process") as refused:
        open_array(config.load(array.config_file))
    assert "systemctl stop raidd" in refused.value.next_step
    assert contents(running) == sorted(CONTENTS)


def test_a_refused_start_holds_no_lock(array: TrialArray) -> None:
    """Another process has one of the members: state_dir and the others are free again."""
    running = array.open()
    config_file = array.home / "other.toml"
    config_file.write_text(array.config_file.read_text().replace(str(array.state_dir), str(array.home / "copy")))
    shutil.copytree(array.state_dir, array.home / "copy", ignore=shutil.ignore_patterns("lock*"))
    with pytest.raises(ArrayLocked, match="raidd-"):
        open_array(config.load(config_file))
    del running
    array.close()
    array.config_file = config_file
    assert contents(array.open()) == sorted(CONTENTS)


def test_a_member_that_is_not_there_is_away_and_the_rest_opens(array: TrialArray) -> None:
    array.mounts[1].rename(array.home / "elsewhere")
    running = array.open()
    away = [member for member in running.opened.membership.members() if not member.present]
    assert [(member.path, member.presence.reason) for member in away] == [(str(array.mounts[1]), NOT_FOUND)]
    assert contents(running) == sorted(CONTENTS)


def test_an_empty_folder_where_a_disk_was_is_left_empty(array: TrialArray) -> None:
    """umount -l: the parent's folder shows. Nothing is ever made there."""
    array.mounts[1].rename(array.home / "elsewhere")
    array.mounts[1].mkdir()
    array.put(array.open(), [b"third"], first=10)
    assert not list(array.mounts[1].iterdir())


def test_every_member_away_still_opens(array: TrialArray) -> None:
    """So that `status` can say what is missing."""
    for mount in array.mounts:
        mount.rename(mount.with_suffix(".away"))
    opened = open_array(config.load(array.config_file))
    try:
        assert not any(member.present for member in opened.membership.members())
    finally:
        opened.catalog.close()
        opened.locks.release_all()


def test_a_running_member_is_locked(array: TrialArray) -> None:
    array.open()
    assert [Path(name).name for name in held_open(array, 0)] == ["lock"]


@pytest.mark.parametrize("state", [MemberState.OFFLINE, MemberState.FAILED])
def test_nothing_of_an_offline_or_failed_member_is_kept_open(array: TrialArray, state: MemberState) -> None:
    """So that it can be unmounted, also after raidd was started again (design, section 7)."""
    verdicts(array, slot2=state)
    running = array.open()
    assert held_open(array, 2) == []
    assert held_open(array, 1) != []
    assert contents(running) == sorted(CONTENTS)


def test_an_offline_member_is_neither_used_nor_written_to(array: TrialArray) -> None:
    verdicts(array, slot2=MemberState.OFFLINE)
    before = {path: path.stat().st_mtime_ns for path in array.mounts[2].rglob("*")}
    running = array.open()
    array.put(running, [b"third"], first=10)
    (entry,) = [e for e in running.opened.membership.roster.entries if e.state == MemberState.OFFLINE]
    assert running.opened.membership.presence(entry.member).reason == TAKEN_OFFLINE
    assert {path: path.stat().st_mtime_ns for path in array.mounts[2].rglob("*")} == before


def test_the_highest_epoch_on_the_members_wins_over_an_old_state_dir(array: TrialArray) -> None:
    """The system disk came back from a backup."""
    old = (array.state_dir / "array.json").read_bytes()
    roster = verdicts(array, slot3=MemberState.SUSPECT)
    (array.state_dir / "array.json").write_bytes(old)
    assert array.open().opened.membership.roster == roster


def test_labels_that_missed_a_roster_are_brought_up_to_date(array: TrialArray) -> None:
    old = (array.folder(3) / "label.json").read_bytes()
    roster = verdicts(array, slot0=MemberState.SUSPECT)
    (array.folder(3) / "label.json").write_bytes(old)
    array.open()
    assert array.label(3).roster == roster


def test_a_fork_that_nobody_wins_is_refused(array: TrialArray) -> None:
    for slots, contact in (((0, 1), "one"), ((2, 3), "another")):
        for slot in slots:
            label = array.label(slot)
            forked = label.roster.successor(contact=contact)
            (array.folder(slot) / "label.json").write_bytes(label_for(label.member, forked).pack())
    with pytest.raises(LabelForked, match="on 2 members"):
        open_array(config.load(array.config_file))


def test_a_foreign_label_at_a_members_place_is_away_and_untouched(tmp_path: Path) -> None:
    """Somebody put another array's disk into the bay."""
    one, other = TrialArray(tmp_path / "a", 3), TrialArray(tmp_path / "b", 3)
    assert one.init() == 0
    assert other.init() == 0
    one.mounts[0].rename(tmp_path / "taken-out")
    other.mounts[0].rename(one.mounts[0])
    before = (one.folder(0) / "label.json").read_bytes()
    with one:
        assert [member.present for member in one.open().opened.membership.members()] == [False, True, True]
    assert (one.folder(0) / "label.json").read_bytes() == before


def test_a_state_dir_that_is_a_file_is_named(array: TrialArray) -> None:
    shutil.rmtree(array.state_dir)
    array.state_dir.touch()
    with pytest.raises(StateDirFaulty, match=str(array.state_dir)):
        open_array(config.load(array.config_file))


def test_an_unreadable_memory_of_the_array_is_refused_with_the_way_out(array: TrialArray) -> None:
    (array.state_dir / "array.json").write_bytes(b"\x00" * 100)
    with pytest.raises(CatalogUnusable, match=r"array\.json") as refused:
        open_array(config.load(array.config_file))
    assert "raidctl assemble" in refused.value.next_step


# -- the catalog -----------------------------------------------------------------------------------------------------


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:8192] = b"\xaa" * 4096
    path.write_bytes(data)


def newer(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 999")
        connection.execute("UPDATE meta SET value = '999' WHERE key LIKE '%schema%'")


@pytest.mark.parametrize("damage", [Path.unlink, spoil, newer, lambda path: path.write_bytes(b"not a database")])
def test_a_catalog_that_cannot_be_used_is_made_again(array: TrialArray, damage: object) -> None:
    for side in array.state_dir.glob("catalog.sqlite-*"):
        side.unlink()
    damage(array.state_dir / "catalog.sqlite")  # type: ignore[operator]
    running = array.open()
    assert running.opened.reindex_because
    assert contents(running) == sorted(CONTENTS)
    array.close()
    assert array.open().opened.reindex_because == ""


def test_a_catalog_from_a_backup_is_behind_and_made_again(array: TrialArray) -> None:
    backup = {path.name: path.read_bytes() for path in array.state_dir.glob("catalog.sqlite*")}
    running = array.open()
    for number in range(70):  # more than the ids that the old catalog has reserved
        array.put(running, [b"x%d" % number], first=100 + number)
    array.close()
    for path in array.state_dir.glob("catalog.sqlite*"):
        path.unlink()
    for name, data in backup.items():
        (array.state_dir / name).write_bytes(data)
    running = array.open()
    assert "newer than any the catalog has reserved" in running.opened.reindex_because
    assert len(contents(running)) == 72
    aside = list(array.state_dir.glob("catalog-*.aside*"))
    assert aside, "what was there is renamed, never deleted"


def test_a_rebuild_that_did_not_end_is_begun_again(array: TrialArray) -> None:
    (array.state_dir / "catalog.sqlite").unlink()
    opened = open_array(config.load(array.config_file))  # and the process dies before the rebuild
    opened.catalog.close()
    opened.locks.unlock_all()
    running = array.open()
    assert running.opened.reindex_because
    assert contents(running) == sorted(CONTENTS)


def test_a_damaged_journal_on_a_member_keeps_nobody_away(array: TrialArray) -> None:
    (array.folder(2) / "journal" / "2026-01-01.jsonl").write_bytes(b"garbage\n")
    running = array.open()
    assert all(member.present for member in running.opened.membership.members())
    assert running.opened.reindex_because == ""
