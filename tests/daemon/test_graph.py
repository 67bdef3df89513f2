"""How the parts are tied: what happens at a start, when a member leaves, and when it comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from raidd import config
from raidd.array.discovery import MountSearch
from raidd.array.local_disk import LocalDisk
from raidd.array.members import Member
from raidd.array.roster import RosterEvent, apply
from raidd.codec.shard import shard_path
from raidd.daemon import graph
from raidd.errors import MemberAway, StateDirFaulty
from tests.support.arrays import SmallArray
from tests.support.trial_array import TrialArray

DATA = {f"1.2.{n}": Random(n).randbytes(size) for n, size in enumerate([1, 4096, 300_000])}


@pytest.fixture
def array(tmp_path: Path) -> SmallArray:
    """Six members, raid6, three images."""
    array = SmallArray(tmp_path)
    array.put(DATA)
    return array


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[TrialArray]:
    """Four folders, raid6, made and stopped; what a test opens is closed for it."""
    with TrialArray(tmp_path) as made:
        assert made.init() == 0
        yield made


def codes(array: SmallArray) -> list[str]:
    return [code for code, _severity, _message in array.events]


# -- leaving and coming back -----------------------------------------------------------------------------------------


def test_who_leaves_is_named_once_with_slot_place_and_reason(array: SmallArray) -> None:
    array.lose(2, "fsync returned EIO")
    array.membership.member(array.uuid(2)).leave("and again")  # type: ignore[union-attr]
    away = [event for event in array.events if event[0] == "member-away"]
    assert away == [("member-away", "warning", "slot 2 (/m/2): fsync returned EIO")]


def test_who_comes_back_is_named_and_gets_what_it_missed(array: SmallArray) -> None:
    array.disk(2).fail("file.sync", "tmp/*")
    array.put({"9.9": b"x" * 100_000})
    array.disk(2).heal()
    array.bring_back(2)
    assert ("member-back", "info", "slot 2 (/m/2) is back") in array.events
    assert array.parts.repairs.queued() == 1
    array.repair_all()
    assert array.catalog.counts().absent_shards == 0


def test_at_a_start_those_who_are_missing_are_named_and_those_taken_offline_are_not(array: SmallArray) -> None:
    array.lose(1)
    roster = array.membership.roster
    array.membership.set_roster(
        apply(roster, array.uuid(3), RosterEvent.OFFLINE, array.membership.presence(array.uuid(3)))
    )
    array.lose(3)
    told: list[str] = []
    graph.tell_absent(array.parts, lambda _code, _severity, message, _objects: told.append(message))
    assert [message.split(" (")[0] for message in told] == ["slot 1"]


def test_a_member_that_leaves_while_it_is_welcomed_stops_nobody(array: SmallArray) -> None:
    array.lose(2)
    array.lost.discard(array.uuid(2))
    member = array.membership.member(array.uuid(2))
    assert member is not None
    member.arrive()
    array.disk(2).fail("*")
    array.welcome_all()
    assert not member.present
    for uid, data in DATA.items():
        assert array.read(uid) == data


def test_a_state_dir_that_fails_in_a_welcome_is_not_taken_for_a_members_fault(
    array: SmallArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has to end the process, through the thread that meets it."""

    def failing(**_given: object) -> None:
        raise StateDirFaulty("Input/output error")

    array.lose(2)
    array.lost.discard(array.uuid(2))
    array.membership.member(array.uuid(2)).arrive()  # type: ignore[union-attr]
    monkeypatch.setattr(array.membership, "remember", failing)
    with pytest.raises(StateDirFaulty):
        array.welcome_all()


# -- damage ----------------------------------------------------------------------------------------------------------


def test_a_bad_shard_is_counted_told_once_marked_and_queued(array: SmallArray) -> None:
    segment = array.row("1.2.2").parts[0].segment
    row = array.catalog.segment(segment)
    assert row is not None
    disk = array.disks[row.placement.members[0]]
    disk.corrupt("read*", "segments/*")
    for _ in range(3):
        assert array.read("1.2.2") == DATA["1.2.2"]
    assert array.parts.shard_errors["damaged"] >= 1
    assert codes(array).count("shard-damaged") == 1
    assert array.catalog.excepted(segment) == {0: "damaged"}
    assert array.parts.repairs.queued() == 1
    disk.heal()
    array.repair_all()
    assert array.catalog.excepted(segment) == {}


# -- a start ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mend_s", "left"), [(60.0, 0), (0.0, 1)])
def test_a_start_mends_what_it_adopted_for_a_bounded_time(
    array: SmallArray, monkeypatch: pytest.MonkeyPatch, mend_s: float, left: int
) -> None:
    """Images wait for the start: what it cannot mend in time is left to the repairs' own thread."""
    row = array.catalog.segment(array.put({"9.9": b"x" * 100_000}).segment)
    assert row is not None
    array.disks[row.placement.members[0]].inner.unlink(shard_path(row.segment, 0))
    monkeypatch.setattr(graph, "MEND_S", mend_s)
    array.lose_catalog()
    assert array.catalog.counts().absent_shards == left
    array.repair_all()
    assert array.catalog.counts().absent_shards == 0


def test_only_ids_that_nobody_will_get_are_looked_for(array: SmallArray) -> None:
    """Ids that this process still hands out are in nobody's hands yet; those of the last run may lie about."""
    assert graph.stale_ids(array.parts) == []
    array.crash()
    assert set(graph.stale_ids(array.parts)).isdisjoint(array.catalog.unused())


# -- the probe's means -----------------------------------------------------------------------------------------------


def test_a_member_is_found_where_it_was(trial: TrialArray) -> None:
    member = trial.open().opened.membership.members()[0]
    assert graph.find_again(MountSearch(), config.load(trial.config_file), member).path == str(trial.mounts[0])


def test_a_member_is_found_at_another_mount_of_the_host(trial: TrialArray) -> None:
    running, moved = trial.open(), trial.home / "moved"
    member: Member = running.opened.membership.members()[0]
    trial.mounts[0].rename(moved)
    search = MountSearch(mounts=lambda: ["/proc/nowhere", str(moved)])
    found = graph.find_again(search, config.load(trial.config_file), member)
    assert (found.path, found.uuid) == (str(moved), member.uuid)


def test_a_member_that_is_nowhere_is_away(trial: TrialArray) -> None:
    search = MountSearch(mounts=lambda: map(str, trial.mounts))
    running = trial.open()
    member = running.opened.membership.members()[0]
    trial.mounts[0].rename(trial.home / "taken-out")
    with pytest.raises(MemberAway):
        graph.find_again(search, config.load(trial.config_file), member)


def test_a_member_that_this_machine_never_saw_is_not_looked_for_at_no_path(trial: TrialArray) -> None:
    """As after an assemble without it: no "/raidd-… is not there"."""
    known = trial.open().opened.membership.members()[0]
    stranger = Member(LocalDisk("", known.uuid), deadline_s=5, clock=time.monotonic, present=False)
    with pytest.raises(MemberAway, match="not been seen on this machine"):
        graph.find_again(MountSearch(mounts=lambda: ()), config.load(trial.config_file), stranger)


def test_who_comes_back_is_locked_unless_it_was_judged_failed(trial: TrialArray) -> None:
    """A failed disk may be pulled at any time: nothing of it is kept open."""
    running = trial.open()
    membership, probe = running.opened.membership, graph.make_probe(running)
    failed, missing = membership.members()[:2]
    for member in (failed, missing):
        member.leave("pulled")
        running.opened.locks.drop(member.uuid)
    membership.set_roster(apply(membership.roster, failed.uuid, RosterEvent.FAIL))
    probe.probe_once()
    assert (failed.present, missing.present) == (True, True)
    held = running.opened.locks.members()
    assert failed.uuid not in held
    assert missing.uuid in held


def test_a_member_that_leaves_is_let_go_at_once(trial: TrialArray) -> None:
    running = trial.open()
    probe = graph.make_probe(running)
    member = running.opened.membership.members()[0]
    assert member.uuid in running.opened.locks.members()
    trial.mounts[0].rename(trial.home / "taken-out")
    probe.probe_once()
    assert not member.present
    assert isinstance(member.disk, LocalDisk)
    probe.probe_once()
    assert member.uuid not in running.opened.locks.members()


def test_the_pace_is_that_of_the_settings() -> None:
    settings = config.parse('[repair]\npriority = "low"\nfloor_mib_s = 2\nrate_mib_s = 50\n')
    pace = graph.pace_of(settings)
    assert (pace.priority, pace.floor_mib_s, pace.rate_mib_s) == ("low", 2.0, 50.0)
