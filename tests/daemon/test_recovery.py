"""assemble and catalog reindex: all that a machine knew comes back from the members, and nothing is taken on trust."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from raidd import config
from raidd.array.discovery import Sighting
from raidd.array.label import label_for
from raidd.array.roster import MemberState, Roster
from raidd.array.state_file import StateFile
from raidd.daemon import offline, premises, recovery
from raidd.daemon.papers import LEFT_OUT
from tests.daemon.test_birth import refused
from tests.support.rosters import roster_of
from tests.support.sample_segment import payload_bytes
from tests.support.trial_array import TrialArray

CONTENTS = [payload_bytes(size, str(size)) for size in (1, 5_000, 300_000)]


@pytest.fixture(autouse=True)
def asleep(monkeypatch: pytest.MonkeyPatch) -> list[Sighting]:
    """What is found on unmounted disks: nothing unless a test says so; this machine's disks are left alone."""
    found: list[Sighting] = []
    monkeypatch.setattr(recovery, "find_unmounted", lambda _deadline_s: found)
    return found


@pytest.fixture
def array(tmp_path: Path) -> TrialArray:
    """Three images on four members, raid6; stopped."""
    return made(TrialArray(tmp_path))


def made(array: TrialArray) -> TrialArray:
    assert array.init() == 0
    with array:
        running = array.open()
        assert array.put(running, CONTENTS).protected
        running.opened.catalog.append_journal("2026-11-24T08:00:00.000Z", "anna", "note", ("something",))
        while running.replicator.replicate_once():
            pass
    return array


def lose_system(array: TrialArray, *, settings: bool = True) -> None:
    """The system disk is gone; the members are not."""
    shutil.rmtree(array.state_dir)
    if settings:
        array.config_file.unlink()


def images(array: TrialArray) -> list[tuple[str, bytes]]:
    with array:
        running = array.open()
        rows = list(running.opened.catalog.all_images())
        return sorted((row.sop_instance_uid, b"".join(running.store.read(row))) for row in rows)


def relabel(array: TrialArray, slot: int, change: Callable[[Roster], Roster]) -> None:
    """Write another roster on one member's label, as a second machine would have."""
    label = array.label(slot)
    (array.folder(slot) / "label.json").write_bytes(label_for(label.member, change(label.roster)).pack())


# -- what comes back -------------------------------------------------------------------------------------------------


def test_everything_comes_back_on_a_new_machine(array: TrialArray, capsys: pytest.CaptureFixture[str]) -> None:
    """Roster, settings, journal, catalog: all of state_dir and the settings file were lost."""
    roster, settings, before = array.remembered().roster, array.config_file.read_bytes(), images(array)
    capsys.readouterr()
    lose_system(array)
    assert array.assemble() == 0
    assert array.config_file.read_bytes() == settings
    assert array.remembered().roster == roster
    assert images(array) == before
    assert [data for _uid, data in before] == CONTENTS
    with array:
        entries = array.open().opened.catalog.journal_after(0)
    assert [entry.action for entry in entries][:1] == ["init"]
    assert ("anna", "note") in [(entry.actor, entry.action) for entry in entries]
    assert entries[-1].action == "reindex"
    said = capsys.readouterr().out
    assert "3 images in 1 segment" in said
    assert "next: start it" in said


def test_any_k_members_are_enough(array: TrialArray) -> None:
    before = images(array)
    lose_system(array)
    shutil.rmtree(array.mounts[0])
    shutil.rmtree(array.mounts[2])
    assert array.assemble(array.mounts[1], array.mounts[3]) == 0
    assert images(array) == before


def test_an_existing_settings_file_is_kept(array: TrialArray) -> None:
    array.write_settings("# changed since\n[ingest]\nkeep_days = 3\n")
    text = array.config_file.read_bytes()
    lose_system(array, settings=False)
    assert array.assemble() == 0
    assert array.config_file.read_bytes() == text


def test_settings_come_from_the_member_that_was_there_last(array: TrialArray) -> None:
    """Member 0 was away when the settings changed: its copy is old, and so is its roster."""
    for slot in (1, 2, 3):
        copy = array.folder(slot) / "config" / "raidd.toml"
        copy.write_text(copy.read_text() + "[ingest]\nkeep_days = 7\n")
        relabel(array, slot, lambda roster: roster.successor(contact="Dr. Ä"))
    lose_system(array)
    assert array.assemble() == 0
    assert config.load(array.config_file).ingest.keep_days == 7


def test_secrets_that_are_not_on_the_disks_are_asked_for(array: TrialArray, capsys: pytest.CaptureFixture[str]) -> None:
    array.write_settings('[alerts]\nurls = ["tgram://123:secret/42"]\n')
    with array:
        running = array.open()
        while running.replicator.replicate_once():
            pass
        running.replicator.furnish(running.opened.membership.members()[0])
    lose_system(array)
    capsys.readouterr()
    assert array.assemble() == 0
    assert "hold secrets" in capsys.readouterr().out
    assert config.load(array.config_file).alerts.urls == (f"tgram://{LEFT_OUT}",)


def test_a_damaged_label_is_made_again_and_its_member_counts(array: TrialArray) -> None:
    """Three of four labels are half-written. The shards prove whose the disks are."""
    before = images(array)
    for slot in (0, 1, 3):
        label = array.folder(slot) / "label.json"
        label.write_bytes(label.read_bytes()[:100])
    lose_system(array)
    assert array.assemble() == 0
    assert [array.label(slot).slot for slot in range(4)] == [0, 1, 2, 3]
    assert images(array) == before


def test_a_damaged_journal_on_one_member_costs_neither_journal_nor_member(array: TrialArray) -> None:
    (day,) = (array.folder(1) / "journal").glob("*.jsonl")
    lines = day.read_bytes().splitlines(keepends=True)
    (day.parent / "2026-01-01.jsonl").write_bytes(b"garbage\n" + lines[0])
    before = images(array)
    lose_system(array)
    assert array.assemble() == 0
    with array:
        running = array.open()
        assert ("anna", "note") in [(e.actor, e.action) for e in running.opened.catalog.journal_after(0)]
        assert all(member.present for member in running.opened.membership.members())
    assert images(array) == before


def test_members_are_found_without_naming_them(array: TrialArray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without MOUNT, every mount of the host is looked at; here these are said to be the host's."""
    monkeypatch.setattr("raidd.array.discovery.host_mounts", lambda: [str(mount) for mount in array.mounts])
    before = images(array)
    lose_system(array)
    assert offline.main(["assemble", "--config", str(array.config_file)]) == 0
    assert images(array) == before


def test_assembling_twice_changes_nothing(array: TrialArray) -> None:
    before = images(array)
    lose_system(array)
    assert array.assemble() == 0
    assert array.assemble() == 0
    assert images(array) == before


def test_an_interrupted_assemble_is_begun_again(array: TrialArray, monkeypatch: pytest.MonkeyPatch) -> None:
    before = images(array)
    lose_system(array)

    def interrupted(*_given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recovery, "make_whole", interrupted)
        assert array.assemble() == 130
    assert array.assemble() == 0
    assert images(array) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_owners_come_back_as_user_raidd_of_this_machine(array: TrialArray, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the new machine the user has another number. What root's assemble writes is that user's, too."""
    for slot in range(4):
        for path in (array.folder(slot), *array.folder(slot).rglob("*")):
            os.chown(path, 12345, 12345)
    lose_system(array)
    monkeypatch.setattr(premises, "USER", "nobody")
    became: list[object] = []
    monkeypatch.setattr(recovery, "become", lambda owner: became.append(owner))  # this process stays root
    assert array.assemble() == 0
    assert became == [(65534, 65534)]
    assert array.config_file.stat().st_uid == 65534
    for slot in range(4):
        written_later = {"label.json"} | {p.name for p in (array.folder(slot) / "journal").iterdir()}
        paths = [p for p in (array.folder(slot), *array.folder(slot).rglob("*")) if p.name not in written_later]
        assert {path.stat().st_uid for path in paths if "config" not in path.parts} == {65534}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_roots_assemble_and_reindex_leave_nothing_of_roots_behind() -> None:
    """In a process of its own, which becomes the user for good; in a place that this user may pass through."""
    with TemporaryDirectory(dir="/tmp") as home:
        Path(home).chmod(0o755)
        array = made(TrialArray(Path(home)))
        lose_system(array)
        as_root(["assemble", "--config", str(array.config_file), *map(str, array.mounts)])
        check_owner(array)
        as_root(["catalog", "reindex", "--config", str(array.config_file)])
        check_owner(array)


def as_root(words: list[str]) -> None:
    # This interpreter may be root's alone: what it loads late is loaded before.
    program = (
        "import sys, encodings.ascii, encodings.utf_16_le; from raidd.daemon import offline, premises;"
        "premises.USER = 'nobody'; sys.exit(offline.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


def check_owner(array: TrialArray) -> None:
    everything = [path for mount in array.mounts for path in mount.rglob("*")]
    everything += [array.config_file, array.state_dir, *array.state_dir.rglob("*")]
    assert {path for path in everything if path.stat().st_uid != 65534} == set()


# -- what is refused or told -----------------------------------------------------------------------------------------


def test_a_fork_stops_and_both_sides_are_shown(array: TrialArray, capsys: pytest.CaptureFixture[str]) -> None:
    """Two members of four went with another machine for a while."""
    for slot in (0, 1):
        relabel(array, slot, lambda roster: roster.successor(contact="one machine"))
    for slot in (2, 3):
        relabel(array, slot, lambda roster: roster.successor(contact="another").successor(contact="machine"))
    labels = [(array.folder(slot) / "label.json").read_bytes() for slot in range(4)]
    lose_system(array, settings=False)
    capsys.readouterr()
    assert array.assemble() == 1
    said = capsys.readouterr()
    assert "epoch 2, on 2 members" in said.err
    assert "epoch 3, on 2 members" in said.err
    assert all(str(mount) in said.out for mount in array.mounts)
    assert "raidctl assemble" in said.err.splitlines()[-1]
    assert [(array.folder(slot) / "label.json").read_bytes() for slot in range(4)] == labels
    assert not (array.state_dir / "array.json").exists()
    assert array.assemble(array.mounts[2], array.mounts[3]) == 0


def test_members_of_two_arrays_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = TrialArray(tmp_path / "a", 2, name="clinic-1"), TrialArray(tmp_path / "b", 2, name="clinic-2")
    assert one.init() == 0
    assert other.init() == 0
    lose_system(one, settings=False)
    capsys.readouterr()
    assert one.assemble(*one.mounts, *other.mounts) == 1
    said = refused(capsys)
    assert "clinic-1" in said
    assert "clinic-2" in said
    assert "Name the mounts of one of them" in said


def test_another_arrays_state_dir_is_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = TrialArray(tmp_path / "a", 2, name="clinic-1"), TrialArray(tmp_path / "b", 2, name="clinic-2")
    assert one.init() == 0
    assert other.init() == 0
    before = one.remembered()
    capsys.readouterr()
    assert one.assemble(*other.mounts) == 1
    assert "already belongs to array clinic-1" in refused(capsys)
    assert one.remembered() == before


def test_a_label_of_a_newer_raidd_stops_it(array: TrialArray, capsys: pytest.CaptureFixture[str]) -> None:
    label = array.label(1)
    newer = replace(label, requires=("time-travel",))
    (array.folder(1) / "label.json").write_bytes(newer.pack())
    lose_system(array)
    capsys.readouterr()
    assert array.assemble() == 1
    said = refused(capsys)
    assert "time-travel" in said
    assert str(array.mounts[1]) in said
    assert (array.folder(1) / "label.json").read_bytes() == newer.pack()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_members_on_disks_that_are_not_mounted_are_not_done_without(
    array: TrialArray, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, asleep: list[Sighting]
) -> None:
    """Nobody has mounted anything yet on the new machine: said with the commands that do it. Named mounts suffice."""
    monkeypatch.setattr("raidd.array.discovery.host_mounts", lambda: [str(mount) for mount in array.mounts[:2]])
    asleep += [Sighting(f"/dev/sd{slot}", array.label(slot).member, array.label(slot)) for slot in (2, 3)]
    lose_system(array)
    capsys.readouterr()
    assert offline.main(["assemble", "--config", str(array.config_file)]) == 1
    said = capsys.readouterr()
    assert "/dev/sd2  clinic-1  slot 2" in said.out
    assert "2 disks with a label are not mounted: /dev/sd2, /dev/sd3" in said.err
    assert "mkdir -p /srv/raidd/disks/sd2 && mount /dev/sd2 /srv/raidd/disks/sd2" in said.err
    assert not array.state_dir.exists()
    assert array.assemble(*array.mounts[:2]) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_unmounted_disks_of_another_array_are_no_hindrance(
    array: TrialArray, monkeypatch: pytest.MonkeyPatch, asleep: list[Sighting]
) -> None:
    monkeypatch.setattr("raidd.array.discovery.host_mounts", lambda: [str(mount) for mount in array.mounts])
    stranger = roster_of(4)
    member = stranger.entries[0].member
    asleep.append(Sighting("/dev/sdz", member, label_for(member, stranger)))
    lose_system(array)
    assert offline.main(["assemble", "--config", str(array.config_file)]) == 0


def test_no_label_at_all_is_told(array: TrialArray, capsys: pytest.CaptureFixture[str]) -> None:
    empty = array.home / "empty"
    empty.mkdir()
    lose_system(array)
    capsys.readouterr()
    assert array.assemble(empty) == 1
    said = capsys.readouterr()
    assert f"{empty}  no label" in said.out
    assert "no label was found" in said.err
    assert not array.config_file.exists()


def test_a_mount_that_is_none_is_told_before_anything_else(
    array: TrialArray, capsys: pytest.CaptureFixture[str]
) -> None:
    file = array.home / "fi\x1b[31mle"
    file.touch()
    lose_system(array)
    capsys.readouterr()
    assert array.assemble(*array.mounts, array.home / "nowhere", file) == 1
    said = refused(capsys)
    assert said.count("is not a folder; is the disk mounted?") == 2
    assert "\x1b" not in said
    assert not array.state_dir.exists()


def test_too_few_members_take_in_what_can_be_and_say_what_cannot(
    array: TrialArray, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of four members (k = 2). When the others are back, the same command takes all of it in."""
    before = images(array)
    lose_system(array)
    capsys.readouterr()
    assert array.assemble(array.mounts[1]) == 1
    said = capsys.readouterr()
    assert "1 segment more could not be taken in" in said.err
    assert "Bring the missing disks back" in said.err
    assert "slot 0" in said.err
    assert array.assemble() == 0
    assert images(array) == before


def test_damaged_memory_of_the_array_is_told_with_the_way_out(
    array: TrialArray, capsys: pytest.CaptureFixture[str]
) -> None:
    (array.state_dir / "array.json").write_text("{")
    capsys.readouterr()
    assert array.assemble() == 1
    said = refused(capsys)
    assert "array.json" in said
    assert "Move it away" in said


# -- reindex ---------------------------------------------------------------------------------------------------------


def test_reindex_makes_the_same_catalog_and_keeps_the_old_one_aside(array: TrialArray) -> None:
    before = images(array)
    assert array.reindex() == 0
    assert images(array) == before
    assert list(array.state_dir.glob("catalog-*.aside*"))


def test_reindex_without_an_array_says_how_to_get_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    array = TrialArray(tmp_path)
    assert array.reindex() == 1
    said = refused(capsys)
    assert "no array is known on this machine" in said
    assert "raidctl init" in said
    assert "raidctl assemble" in said


def test_neither_runs_beside_a_daemon(array: TrialArray, capsys: pytest.CaptureFixture[str]) -> None:
    catalog = (array.state_dir / "catalog.sqlite").stat().st_ino
    with array:
        array.open()
        capsys.readouterr()
        for command in (array.reindex, array.assemble):
            assert command() == 1
            said = refused(capsys)
            assert "in use by" in said
            assert "systemctl stop raidd" in said
    assert (array.state_dir / "catalog.sqlite").stat().st_ino == catalog


def test_a_members_lock_refuses_another_machines_state_dir(
    array: TrialArray, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another state_dir, the same disks: the members' own locks are in the way."""
    with array:
        array.open()
        other = TrialArray(array.home / "other", 0)
        capsys.readouterr()
        assert other.assemble(*array.mounts) == 1
        assert "in use by" in refused(capsys)


def test_a_member_that_is_offline_is_not_touched(array: TrialArray) -> None:
    """Its disk may be on its way to another machine."""
    known = array.remembered()
    entries = tuple(
        replace(entry, state=MemberState.OFFLINE) if entry.slot == 3 else entry for entry in known.roster.entries
    )
    roster = known.roster.successor(entries=entries)
    StateFile(array.state_dir).save(replace(known, roster=roster))
    before = {path: path.stat().st_mtime_ns for path in array.folder(3).rglob("*")}
    assert array.reindex() == 0
    assert {path: path.stat().st_mtime_ns for path in array.folder(3).rglob("*")} == before
    assert array.label(2).roster.slot_entry(3).state == MemberState.OFFLINE
