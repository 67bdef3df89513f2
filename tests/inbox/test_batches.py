"""Batches: what fails waits, is halved, or is refused; large images pass in parts; everything stays bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from raidd.errors import ArrayFull, ArrayUnwritable, CatalogUnusable, MemberTimeout, RequestRefused, StateDirFaulty
from raidd.inbox import drafting
from raidd.inbox.readiness import PATIENCE_S
from tests.support.inbox_yard import Yard, dicom

PART = 4096


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path / "srv")


@pytest.fixture
def small(tmp_path: Path) -> Yard:
    """Batches and parts of 4 KiB, so that small data crosses every border."""
    return Yard(tmp_path / "srv", part_size=PART)


def large(uid: str, parts: float) -> bytes:
    """An image of about so many parts, no two parts alike."""
    pixels = b"".join(bytes([i % 251, i // 251 % 256]) for i in range(int(parts * PART) // 2))
    return dicom(uid, pixels=pixels)


@pytest.mark.parametrize("error", [ArrayFull("full"), ArrayUnwritable("away"), MemberTimeout("hung"), MemoryError()])
def test_images_wait_while_the_array_cannot_take_them(yard: Yard, error: Exception) -> None:
    yard.sink.fail_with = [error] * 3
    yard.drop("a.dcm", dicom("1.2.3"))
    yard.settle()
    assert len(yard.sink.attempts) == 1, "no busy loop"
    assert yard.left() == ["a.dcm"]
    assert not yard.ingest.idle_once()
    for _ in range(10):
        yard.settle(5)
    assert yard.sink.content("1.2.3") == dicom("1.2.3")
    assert yard.sink.codes() == ["images-waiting", "images-waiting"]
    assert yard.balanced()


def test_attempts_become_rarer_while_the_array_stays_full(yard: Yard) -> None:
    yard.sink.fail_with = [ArrayFull("full")] * 100
    yard.drop("a.dcm", dicom("1.2.3"))
    for _ in range(120):
        yard.settle(1)
    assert 4 <= len(yard.sink.attempts) <= 10


def test_nothing_is_read_while_the_sink_says_that_images_have_to_wait(yard: Yard) -> None:
    yard.sink.why_not = "the system disk is full"
    yard.drop("a.dcm", dicom("1.2.3"))
    for _ in range(5):
        yard.settle(10)
    assert yard.sink.attempts == []
    assert yard.sink.drafts == []
    yard.sink.why_not = ""
    yard.settle(10)
    assert yard.left() == []


@pytest.mark.parametrize("error", [StateDirFaulty("fsync"), CatalogUnusable("corrupt")])
def test_a_fault_of_the_state_folder_stops_raidd_and_touches_no_original(yard: Yard, error: Exception) -> None:
    yard.sink.fail_with = [error]
    yard.drop("a.dcm", dicom("1.2.3"))
    with pytest.raises(type(error)):
        yard.settle()
    assert yard.left() == ["a.dcm"]
    assert yard.sink.drafts_out == 0


@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_one_image_that_breaks_its_batch_is_found_and_refused_alone(yard: Yard, count: int) -> None:
    yard.sink.poisoned = {"1.2.0"}
    for number in range(count):
        yard.drop(f"{number}.dcm", dicom(f"1.2.{number}"))
    yard.settle()
    assert {row.sop_instance_uid for row in yard.sink.images()} == {f"1.2.{n}" for n in range(1, count)}
    assert (yard.rejected / "0.dcm.reason.txt").read_text().startswith("code: unstorable\n")
    assert (yard.rejected / "0.dcm").read_bytes() == dicom("1.2.0")
    assert yard.left() == []
    assert yard.balanced()
    assert len(yard.sink.attempts) <= 2 + 2 * count.bit_length()


@pytest.mark.parametrize("error", [TypeError("a list"), OverflowError("too large for SQLite"), KeyError("gone")])
def test_whatever_an_image_breaks_with_it_is_refused_alone_and_raidd_goes_on(yard: Yard, error: Exception) -> None:
    yard.sink.poison, yard.sink.poisoned = error, {"1.2.0"}
    for number in range(5):
        yard.drop(f"{number}.dcm", dicom(f"1.2.{number}"))
    yard.settle()
    assert yard.ingest.counters().stored == 4
    assert yard.ingest.counters().rejected == {"unstorable": 1}
    assert yard.balanced()


def test_two_poisoned_images_cost_only_themselves(yard: Yard) -> None:
    yard.sink.poisoned = {"1.2.3", "1.2.11"}
    for number in range(16):
        yard.drop(f"{number}.dcm", dicom(f"1.2.{number}"))
    yard.settle()
    assert yard.ingest.counters().stored == 14
    assert yard.ingest.counters().rejected == {"unstorable": 2}


def test_an_error_of_any_other_kind_halves_too(yard: Yard) -> None:
    yard.sink.fail_with = [RequestRefused("odd")]
    for number in range(4):
        yard.drop(f"{number}.dcm", dicom(f"1.2.{number}"))
    yard.settle()
    assert [len(attempt) for attempt in yard.sink.attempts] == [4, 2, 2]
    assert yard.ingest.counters().stored == 4


def test_a_batch_closes_when_it_is_full(small: Yard) -> None:
    for number in range(40):
        small.drop(f"{number}.dcm", dicom(f"1.2.{number}"))
    small.settle()
    assert small.ingest.counters().stored == 40
    assert all(len(commit.payload) <= PART for commit in small.sink.commits)
    assert len(small.sink.commits) <= 40 * len(dicom("1.2.11")) // PART + 8


def test_a_batch_closes_at_its_images_limit(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafting, "BATCH_IMAGES_LIMIT", 3)
    for number in range(7):
        yard.drop(f"{number}.dcm", dicom(f"1.2.{number}"))
    yard.settle()
    assert [len(commit.images) for commit in yard.sink.commits] == [3, 3, 1]


def test_a_batch_closes_before_its_manifest_grows_too_long(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafting, "MANIFEST_TEXT_LIMIT", 3000)
    for number in range(9):
        yard.drop(f"{number}.dcm", dicom(f"1.2.{number}"))
    yard.settle()
    assert yard.ingest.counters().stored == 9
    assert len(yard.sink.commits) > 2


def test_the_next_batch_is_filled_while_one_is_in_flight_and_only_one_is(yard: Yard) -> None:
    yard.drop("a.dcm", dicom("1.2.3"))
    yard.ingest.idle_once()
    yard.clock.seconds += 3
    yard.ingest.prepare_once(0)  # a's batch is handed over, and stays in flight
    yard.drop("b.dcm", dicom("1.2.4"))
    yard.drop("c.dcm", dicom("1.2.5"))
    yard.ingest.idle_once()
    yard.clock.seconds += 3
    for _ in range(5):
        yard.ingest.prepare_once(0)
    assert yard.sink.attempts == []
    assert yard.sink.drafts_out == 2
    yard.run()
    assert [len(commit.images) for commit in yard.sink.commits] == [1, 2]


def test_images_that_nobody_waits_for_are_gathered_and_those_of_the_spool_are_not(yard: Yard) -> None:
    def drop_now(uid: str, root: Path) -> None:
        yard.drop(f"{uid}.dcm", dicom(uid), root)
        roots = {root.path: root for root in yard.watcher.roots}
        yard.watcher.hint(roots[root], f"{uid}.dcm".encode(), True)

    def turn() -> int:
        yard.ingest.prepare_once(0)
        yard.ingest.commit_once(0)
        return len(yard.sink.commits)

    turn()
    drop_now("1.2.1", yard.inbox)
    assert turn() == 1, "an idle inbox commits at once"
    drop_now("1.2.2", yard.inbox)
    assert turn() == 1, "the next is gathered"
    yard.clock.seconds += 0.03
    drop_now("1.2.3", yard.inbox)
    assert turn() == 1
    yard.clock.seconds += 0.03
    assert turn() == 2
    drop_now("1.2.4", yard.spool)
    assert turn() == 3, "somebody waits for what is in the spool"
    assert [len(commit.images) for commit in yard.sink.commits] == [1, 2, 1]


def test_a_large_image_goes_through_in_parts_and_its_digest_is_in_the_last(small: Yard) -> None:
    data = large("1.2.3", 5.5)
    small.drop("big.dcm", data)
    small.settle()
    assert small.sink.content("1.2.3") == data
    parts = [image for commit in small.sink.commits for image in commit.images]
    assert [part.sha256 is None for part in parts] == [True] * (len(parts) - 1) + [False]
    assert len({part.image for part in parts}) == 1
    assert small.left() == []
    assert small.ingest.counters().stored == 1
    assert small.balanced()


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_sizes_around_whole_parts_pass(small: Yard, extra: int) -> None:
    header = len(dicom("1.2.3", pixels=b""))
    for parts in (1, 2, 3):
        data = dicom("1.2.3", pixels=b"\x05" * (parts * PART - header))
        data = data + b"\0" * extra if extra > 0 else data[: len(data) + extra]
        small.drop("big.dcm", data)
        small.settle(PATIENCE_S + 1)
        assert small.sink.content("1.2.3") == data
    assert small.left() == []


def test_a_large_image_gets_every_second_batch_at_most_while_others_wait(small: Yard) -> None:
    small.drop("big.dcm", large("1.2.3", 6))
    small.ingest.idle_once()
    small.clock.seconds += 1
    for number in range(60):
        small.drop(f"{number}.dcm", dicom(f"1.2.3.{number}"))
    small.settle()
    kinds = [
        "L" if commit.images[0].image_offset or not commit.images[0].sha256 else "s" for commit in small.sink.commits
    ]
    assert "LL" not in "".join(kinds[: len("".join(kinds).rstrip("L"))])
    assert "L" in kinds[:3], "and is not starved either"
    assert small.sink.content("1.2.3") == large("1.2.3", 6)


def test_a_part_that_fails_is_read_again_and_nothing_before_it(small: Yard) -> None:
    data = large("1.2.3", 5)
    small.sink.fail_with = [None, None, ArrayFull("full"), None, MemberTimeout("hung")]
    small.drop("big.dcm", data)
    for _ in range(10):
        small.settle(5)
    assert small.sink.content("1.2.3") == data
    offsets = [image.image_offset for commit in small.sink.commits for image in commit.images]
    assert offsets == sorted(set(offsets))
    assert small.balanced()


def test_a_large_image_that_changes_on_its_way_is_begun_anew_and_replaces_the_attempt(small: Yard) -> None:
    path = small.drop("big.dcm", large("1.2.3", 5))
    small.ingest.idle_once()
    small.clock.seconds += 3
    for _ in range(3):
        small.ingest.prepare_once(0)
        small.ingest.commit_once(0)
        small.clock.seconds += 1
    begun = [commit.segment for commit in small.sink.commits]
    assert begun
    path.write_bytes(large("1.2.3", 7))
    small.settle()
    small.settle()
    assert small.sink.content("1.2.3") == large("1.2.3", 7)
    assert set(begun) <= set(small.sink.commits[-1].replaces)
    own = {part.segment for part in small.sink.images()[0].parts}
    assert not own & set(small.sink.commits[-1].replaces)
    assert small.left() == []


def test_a_killed_large_image_is_begun_anew_after_the_restart(small: Yard) -> None:
    data = large("1.2.3", 5)
    small.drop("big.dcm", data)
    small.ingest.idle_once()
    small.clock.seconds += 3
    for _ in range(3):
        small.ingest.prepare_once(0)
        small.ingest.commit_once(0)
        small.clock.seconds += 1
    begun = {commit.segment for commit in small.sink.commits}
    small.restart()
    small.settle()
    assert small.sink.content("1.2.3") == data
    assert set(small.sink.commits[-1].replaces) == begun
    assert small.sink.incomplete("1.2.3") == sorted(begun)


def test_a_large_duplicate_is_recognised_and_a_changed_one_is_a_version(small: Yard) -> None:
    small.drop("big.dcm", large("1.2.3", 3))
    small.settle()
    commits = len(small.sink.commits)
    small.drop("again.dcm", large("1.2.3", 3))
    small.settle()
    assert (len(small.sink.commits), small.ingest.counters().duplicates) == (commits, 1)
    small.drop("big.dcm", large("1.2.3", 4))
    small.settle()
    assert small.sink.content("1.2.3", 2) == large("1.2.3", 4)
    assert small.left() == []


def test_a_large_image_with_an_unprotected_part_is_not_acknowledged(small: Yard) -> None:
    small.drop("big.dcm", large("1.2.3", 4))
    small.ingest.idle_once()
    small.clock.seconds += 3
    small.sink.protecting = False
    while not small.sink.commits:
        small.ingest.prepare_once(0)
        small.ingest.commit_once(0)
    small.sink.protecting, small.sink.repairable = True, False
    small.run()
    assert small.left() == ["big.dcm"]
    small.sink.repairable = True
    small.settle(70)
    assert small.left() == []
    assert small.ingest.counters().stored == 1


def test_a_poisoned_large_image_is_refused_and_costs_nobody_else(small: Yard) -> None:
    small.sink.poisoned = {"1.2.3"}
    small.drop("big.dcm", large("1.2.3", 2.5))
    for number in range(8):
        small.drop(f"{number}.dcm", dicom(f"1.2.4.{number}"))
    small.settle()
    assert (small.rejected / "big.dcm").read_bytes() == large("1.2.3", 2.5)
    assert small.ingest.counters().stored == 8
    assert small.left() == []
    assert small.balanced()


def test_small_images_poisoned_beside_a_last_part_do_not_cost_the_large_one(small: Yard) -> None:
    small.drop("big.dcm", large("1.2.3", 2.2))
    small.sink.poisoned = {"1.2.4"}
    small.drop("bad.dcm", dicom("1.2.4"))
    small.settle()
    small.settle()
    assert small.sink.content("1.2.3") == large("1.2.3", 2.2)
    assert (small.rejected / "bad.dcm").exists()
    assert small.left() == []


def test_two_large_images_of_one_uid_become_two_versions(small: Yard) -> None:
    small.drop("a.dcm", large("1.2.3", 2))
    small.drop("b.dcm", large("1.2.3", 3))
    small.settle()
    assert sorted(row.size for row in small.sink.images()) == sorted([len(large("1.2.3", 2)), len(large("1.2.3", 3))])
    assert small.left() == []
    assert small.sink.drafts_out == 0
