"""Members that were away while the catalog was made again, or put back from an old copy, and what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from raidd.array.roster import ArrayState
from raidd.codec.geometry import Level
from raidd.daemon import graph
from tests.support.arrays import SmallArray


@pytest.fixture
def array(tmp_path: Path) -> SmallArray:
    return SmallArray(tmp_path)


def away(array: SmallArray, slots: Sequence[int]) -> None:
    for slot in slots:
        array.lose(slot)


def back(array: SmallArray, slots: Sequence[int]) -> None:
    for slot in slots:
        array.lost.discard(array.uuid(slot))
    array.probe()


def shards(array: SmallArray) -> list[str]:
    return [path for disk in array.memory for path in disk.files() if path.startswith("segments/")]


def test_a_segment_that_lay_only_on_members_away_at_the_reindex_is_taken_in_when_they_are_back(
    array: SmallArray,
) -> None:
    away(array, (2, 3, 4, 5))
    assert array.put({"1.1": b"written to two members"}).protected
    back(array, (2, 3, 4, 5))
    away(array, (0, 1))
    array.lose_catalog()
    assert array.store.versions("1.1") == []
    back(array, (0, 1))
    assert array.read("1.1") == b"written to two members"


def test_it_is_taken_in_also_when_the_daemon_was_restarted_before_they_were_back(array: SmallArray) -> None:
    away(array, (2, 3, 4, 5))
    array.put({"1.1": b"written to two members"})
    back(array, (2, 3, 4, 5))
    away(array, (0, 1))
    array.lose_catalog()
    array.put({"2.2": b"newer than all that the others hold"})
    array.lost.clear()
    array.restart()
    assert array.read("1.1") == b"written to two members"


def test_what_lay_only_on_members_away_when_an_old_catalog_was_put_back_is_taken_in_when_they_are_back(
    array: SmallArray,
) -> None:
    backup = array.save_catalog()
    array.restart()  # its ids are reserved from here on
    away(array, (2, 3, 4, 5))
    array.put({"1.1": b"written to two members"})
    back(array, (2, 3, 4, 5))
    away(array, (0, 1))
    array.put_back_catalog(backup)
    back(array, (0, 1))
    assert array.read("1.1") == b"written to two members"


def test_what_was_replaced_while_a_member_was_away_goes_when_it_is_back_after_a_reindex(array: SmallArray) -> None:
    array.offers["inbox:x"] = "x"
    first = array.put({"1.1": b"the image"})
    array.lose(2)
    second = array.put({"1.1": b"the image"}, replaces=[first.segment])
    array.lose_catalog()
    back(array, (2,))
    array.repair_all()
    assert all(str(second.segment) in path for path in shards(array))
    assert array.store.standing().state is ArrayState.HEALTHY


def test_leftovers_that_waited_for_a_dead_member_are_settled_when_it_is_retired(array: SmallArray) -> None:
    array.put({"1.1": b"image"})
    array.lose(3)
    array.restart()
    assert graph.stale_ids(array.parts), "the ids of the first run wait for the member that is away"
    array.replace(3)
    array.repair_all()
    array.welcome_all()
    assert graph.stale_ids(array.parts) == []


def test_a_shard_that_the_reindex_did_not_see_is_read_when_it_is_needed_and_rebuilt_from(tmp_path: Path) -> None:
    """
    1. 2+3 on five members; three are away while the catalog is made again: their shards are called missing.
    2. One of them is back; before anything could be repaired, one of the other two dies.
    3. Two good shards of 2+3 are there: the images can be read, and everything can be rebuilt.
    """
    array = SmallArray(tmp_path, 5, Level("raid7"))
    array.put({"1.1": b"x" * 50_000})
    away(array, (0, 1, 2))
    array.lose_catalog()
    back(array, (0,))
    array.lose(3)
    assert array.read("1.1") == b"x" * 50_000
    for slot in (1, 2, 3):
        array.replace(slot)
    array.repair_all()
    assert array.store.standing().state is ArrayState.HEALTHY
    array.lose(4)
    assert array.read("1.1") == b"x" * 50_000


def test_the_half_of_a_mirror_that_the_reindex_did_not_see_is_enough(tmp_path: Path) -> None:
    array = SmallArray(tmp_path, 2)
    array.put({"1.1": b"x" * 50_000})
    away(array, (0,))
    array.lose_catalog()
    back(array, (0,))
    array.lose(1)
    assert array.read("1.1") == b"x" * 50_000
    array.replace(1)
    array.repair_all()
    assert array.store.standing().state is ArrayState.HEALTHY
    assert array.row("1.1").state == "protected"
