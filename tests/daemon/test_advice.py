"""The clause and the next step of `status`: what is worst comes first, and commands work when pasted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from raidd import api
from raidd.array.catalog import Counts
from raidd.array.roster import ArrayState
from raidd.array.store import Standing
from raidd.daemon.advice import next_step, one_line, quantity, reason_clause
from tests.support.fake_services import member

DEGRADED, CRITICAL, FAILED, HEALTHY = ArrayState.DEGRADED, ArrayState.CRITICAL, ArrayState.FAILED, ArrayState.HEALTHY


def standing(state: ArrayState, *, unprotected: int = 0, unreadable: int = 0, absent: int = 0) -> Standing:
    counts = Counts(
        images=10,
        studies=1,
        bytes=10,
        raw_bytes=15,
        unprotected_images=unprotected,
        unreadable_images=unreadable,
        least_spare=1,
        absent_shards=absent,
        segments=2,
    )
    return Standing(state, 1, counts)


def step(state: ArrayState, members: Sequence[api.MemberInfo], *, paused: bool = False, waiting: str = "") -> str:
    return next_step(state, members, paused=paused, waiting=waiting)


def test_a_healthy_array_needs_nothing() -> None:
    assert reason_clause(standing(HEALTHY), [member(0)]) == ""
    assert step(HEALTHY, [member(0)]) == ""


@pytest.mark.parametrize(
    ("given", "rows", "said"),
    [
        (standing(FAILED, unreadable=1, unprotected=3), ["missing"], "1 image cannot be read until disks come back"),
        (standing(CRITICAL, unprotected=3), ["missing"], "3 images would be lost with the next disk"),
        (standing(DEGRADED, absent=4), ["missing", "offline"], "slot 0 is missing, slot 1 is offline"),
        (standing(DEGRADED, absent=1), ["online"], "1 shard is to be re-created"),
        (standing(DEGRADED), ["online", "suspect"], "slot 1 is suspect"),
        (standing(DEGRADED, absent=2), ["rebuilding"], "slot 0 is rebuilding"),
    ],
)
def test_the_clause_names_the_worst(given: Standing, rows: list[api.MemberWord], said: str) -> None:
    assert reason_clause(given, [member(slot, state) for slot, state in enumerate(rows)]) == said


def test_a_missing_disk_is_named_by_what_can_be_seen_of_it() -> None:
    row = member(2, "missing", path="/srv/d2", bay="second", serial="ZA1")
    said = step(DEGRADED, [member(0), row])
    assert said.startswith("check cable, power and mount of /srv/d2 (bay second, serial ZA1)")
    assert said.endswith("raidctl replace 2 MOUNT")


def test_while_images_cannot_be_read_nobody_is_told_to_replace() -> None:
    """A new disk in the place of the one that holds what is missing would not help."""
    rows = [member(2, "failed"), member(2, "rebuilding")]
    assert "do not erase it" in step(FAILED, rows)
    assert "replace" not in step(FAILED, rows)


def test_a_failed_disk_is_to_be_replaced() -> None:
    assert step(DEGRADED, [member(2, "failed")]) == "replace /srv/2 by a new disk: raidctl replace 2 MOUNT"


def test_a_disk_whose_place_was_never_known_is_named_all_the_same() -> None:
    assert "its disk" in step(DEGRADED, [member(2, "missing", path="")])


def test_a_slot_that_is_being_rebuilt_needs_nobody() -> None:
    assert step(DEGRADED, [member(2, "failed"), member(2, "rebuilding")]).startswith("nothing now: the rebuild")


def test_paused_repairs_are_to_be_resumed_also_when_no_rebuild_has_begun() -> None:
    assert step(DEGRADED, [member(0)], paused=True) == "repairs are paused: raidctl rebuild resume"
    assert step(HEALTHY, [member(0)], paused=True) == ""


def test_an_offline_disk_is_to_be_put_online() -> None:
    assert step(DEGRADED, [member(3, "offline")]).endswith("raidctl online 3")


def test_waiting_images_are_told_after_what_is_wrong_with_disks() -> None:
    full = "the array is full: add a disk"
    assert step(HEALTHY, [member(0)], waiting=full) == f"images wait in the inbox: {full}"
    assert "slot" not in step(DEGRADED, [member(1, "missing")], waiting=full)
    assert step(DEGRADED, [member(1, "missing")], waiting=full).startswith("check cable")


def test_one_thing_is_not_things() -> None:
    assert [quantity(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]


def test_a_path_cannot_steer_the_terminal() -> None:
    assert one_line("/srv/a\n\x1b[31mb\udcff ü") == "/srv/a\ufffd\ufffd[31mb\ufffd ü"
