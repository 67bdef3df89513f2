"""`status --json`: the shape that scripts depend on, and what its numbers mean."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest

from raidd import api
from raidd.array.member_disk import Space
from raidd.array.roster import RosterEvent, apply
from raidd.codec.geometry import Level
from raidd.daemon.beginning import Beginning
from raidd.daemon.view import rfc3339
from tests.support.arrays import SmallArray
from tests.support.governed import Governed

DATA = {f"1.2.{n}": Random(n).randbytes(size) for n, size in enumerate([1, 4096, 300_000])}


@pytest.fixture
def governed(tmp_path: Path) -> Governed:
    """Six members, raid6 (4+2), three images, probed once."""
    array = SmallArray(tmp_path / "array")
    array.put(DATA)
    array.probe()
    return Governed(array, tmp_path)


def test_the_shape_is_that_of_the_contract(governed: Governed) -> None:
    """operator.md, `raidctl status --json`: keys may be added, none may be missing or renamed."""
    shown = governed.status().model_dump(mode="json")
    assert {"array", "members", "spares", "images", "inbox", "activities", "scrub", "alerts", "codec"} <= shown.keys()
    assert {"name", "id", "level", "k", "m", "state", "failures_tolerated"} <= shown["array"].keys()
    member_keys = "slot state path uuid bay size_bytes used_bytes errors since reason model serial"
    assert set(member_keys.split()) <= shown["members"][0].keys()
    assert {"count", "studies", "bytes", "raw_bytes", "unprotected"} <= shown["images"].keys()
    assert {"waiting", "rejected", "last_stored_at"} <= shown["inbox"].keys()
    activity_keys = "kind slot progress bytes_done bytes_total rate_mib_s eta_s"
    assert set(activity_keys.split()) <= api.Activity.model_fields.keys()
    assert shown["codec"] in ("zfec", "isa-l")


def test_a_healthy_array(governed: Governed) -> None:
    status = governed.status()
    assert (status.array.state, status.array.failures_tolerated, status.array.reason) == ("healthy", 2, "")
    assert (status.array.level, status.array.k, status.array.m) == ("raid6", 4, 2)
    assert [(row.slot, row.state) for row in status.members] == [(slot, "online") for slot in range(6)]
    assert status.images.count == 3
    assert status.images.bytes == sum(map(len, DATA.values()))
    assert status.images.raw_bytes > status.images.bytes
    assert status.next == ""
    assert status.activities == status.spares == []


def test_failures_tolerated_is_the_least_over_all_segments_and_never_below_zero(governed: Governed) -> None:
    array = governed.array
    seen = [governed.status().array.failures_tolerated]
    for slot in (0, 1, 2, 3):
        array.lose(slot)
        seen.append(governed.status().array.failures_tolerated)
    assert seen == [2, 1, 0, 0, 0]
    assert governed.status().array.state == "failed"


def test_failures_tolerated_of_an_empty_array_is_m_less_the_members_away(tmp_path: Path) -> None:
    governed = Governed(SmallArray(tmp_path / "array"), tmp_path)
    assert governed.status().array.failures_tolerated == 2
    governed.array.lose(0)
    assert governed.status().array.failures_tolerated == 1
    for slot in (1, 2):
        governed.array.lose(slot)
    assert governed.status().array.failures_tolerated == 0


def test_one_narrow_segment_bounds_what_is_tolerated(governed: Governed) -> None:
    """As the segments are, whatever the level says."""
    for slot in (0, 1, 2, 3):
        governed.array.lose(slot)
    governed.array.put({"9.9": b"x"})  # 1+1 on the two that are left
    for slot in (0, 1, 2, 3):
        governed.array.bring_back(slot)
    assert governed.status().array.failures_tolerated == 1


@pytest.mark.parametrize(("lost", "state"), [(1, "degraded"), (2, "critical"), (3, "failed")])
def test_the_array_states_words(governed: Governed, lost: int, state: str) -> None:
    for slot in range(lost):
        governed.array.lose(slot)
    assert governed.status().array.state == state


def test_a_member_that_is_away_says_since_when_and_why(governed: Governed) -> None:
    before = datetime.now(UTC)
    governed.array.lose(2, "fsync returned EIO")
    row = governed.row(2)
    assert (row.state, row.reason, row.used_bytes) == ("missing", "fsync returned EIO", None)
    assert row.size_bytes, "its size is known from before"
    assert row.since is not None
    assert before.replace(microsecond=0) <= datetime.fromisoformat(row.since) <= datetime.now(UTC)


def test_since_is_of_the_present_state_also_when_only_the_verdict_changed(governed: Governed) -> None:
    membership, long_ago = governed.array.membership, datetime(2020, 1, 1, tzinfo=UTC)
    member = membership.member(governed.array.uuid(2))
    assert member is not None
    member.since = long_ago
    membership.set_roster(apply(membership.roster, member.uuid, RosterEvent.SUSPECT))
    assert governed.row(2).state == "suspect"
    assert governed.row(2).since != rfc3339(long_ago)
    member.since = long_ago
    membership.set_roster(membership.roster.successor(contact="nothing about members"))
    assert governed.row(2).since == rfc3339(long_ago)


def test_errors_count_failed_operations_and_bad_blocks(governed: Governed) -> None:
    row = governed.array.row("1.2.2")
    segment = governed.array.catalog.segment(row.parts[0].segment)
    assert segment is not None
    slot = next(s for s in range(6) if governed.array.uuid(s) == segment.placement.members[0])
    governed.array.disk(slot).corrupt("read*", "segments/*")
    assert governed.array.read("1.2.2") == DATA["1.2.2"]
    assert governed.row(slot).errors > 0
    assert governed.row(slot).state == "online", "a bad block is counted; what it means is judged elsewhere"


def test_used_and_size_are_what_the_probe_saw(governed: Governed) -> None:
    member = governed.array.membership.member(governed.array.uuid(0))
    assert member is not None
    member.space = Space(size_bytes=1000, free_bytes=400, free_inodes=1000, read_only=False)
    assert (governed.row(0).size_bytes, governed.row(0).used_bytes) == (1000, 600)


def test_status_asks_no_disk(governed: Governed) -> None:
    """It must answer while any disk hangs."""
    calls = [len(disk.log) for disk in governed.array.disks.values()]
    governed.status()
    assert [len(disk.log) for disk in governed.array.disks.values()] == calls


def test_a_rebuild_is_an_activity_with_progress(governed: Governed) -> None:
    array = governed.array
    for number in range(5):
        array.put({f"3.{number}": b"x" * 100_000})
    array.lose(2)
    array.replace(2)
    array.repair(1)
    (activity,) = [one for one in governed.status().activities if one.kind == "rebuild"]
    assert activity.slot == 2
    assert 0 < activity.bytes_done <= activity.bytes_total
    assert 0 < activity.progress <= 1
    assert governed.view.rebuild().activities == governed.status().activities
    array.repair_all()
    assert governed.status().activities == []


def test_a_paused_rebuild_says_so(governed: Governed) -> None:
    governed.array.lose(2)
    governed.array.parts.repairs.control("pause", None)
    governed.array.replace(2)
    assert governed.view.rebuild().paused
    assert governed.status().next == "repairs are paused: raidctl rebuild resume"


def test_capacity_never_counts_the_reserve_or_members_that_are_away(tmp_path: Path) -> None:
    array = SmallArray(tmp_path / "array", 3, Level("raid5"))
    governed = Governed(array, tmp_path)
    for slot in range(3):
        member = array.membership.member(array.uuid(slot))
        assert member is not None
        member.space = Space(size_bytes=10_000, free_bytes=1_100, free_inodes=1000, read_only=False)
    assert governed.status().capacity.free_bytes == 2 * (1_100 - 100)
    assert governed.status().capacity.images_left is None, "nothing is known of how large images are"
    for slot in range(3):
        array.lose(slot)
    assert governed.status().capacity.free_bytes is None


def test_while_the_catalog_is_being_made_again_nobody_is_told_that_all_is_well(tmp_path: Path) -> None:
    beginning = Beginning(reindexing=True)
    governed = Governed(SmallArray(tmp_path / "array"), tmp_path, beginning=beginning)
    beginning.progress(3, 4)
    status = governed.status()
    assert status.array.state == "degraded"
    assert status.array.reason.startswith("the catalog is being made again")
    assert [(one.kind, one.progress) for one in status.activities] == [("reindex", 0.75)]
    assert not governed.view.is_healthy()
    beginning.ended()
    assert governed.status().array.state == "healthy"
    assert governed.view.is_healthy()


def test_a_member_found_at_a_mount_that_is_no_text_can_still_be_shown(governed: Governed) -> None:
    """The probe finds a disk wherever it is mounted; status must go over the socket all the same."""
    governed.array.memory[0]._path = "/m/\udcff"
    assert governed.row(0).path == "/m/\ufffd"
    governed.status().model_dump_json()


def test_times_are_utc_with_milliseconds() -> None:
    assert rfc3339(datetime(2026, 11, 24, 4, 34, 0, 123_456, tzinfo=UTC)) == "2026-11-24T04:34:00.123Z"
