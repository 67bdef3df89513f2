"""Who is there and who is waited for: what a start after a crash finds in array.json."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from raidd.array.membership import Membership
from raidd.array.state_file import Remembered, StateFile
from tests.support.arrays import SmallArray


@pytest.fixture
def array(tmp_path: Path) -> SmallArray:
    return SmallArray(tmp_path)


def began_with_all_up(array: SmallArray) -> Membership:
    """A membership as a start makes it when everyone was up at the last stop."""
    everyone = frozenset(array.uuid(slot) for slot in range(6))
    file = StateFile(array.state_dir)
    file.save(Remembered(array.roster, {}, everyone))
    return Membership(
        array.catalog, file, array.roster, array.membership.members(), reserve_percent=1, up_at_stop=everyone
    )


def awaited_after_a_crash(array: SmallArray) -> frozenset[UUID]:
    remembered = StateFile(array.state_dir).load()
    assert remembered is not None
    return remembered.up_at_stop


def slots(array: SmallArray, *numbers: int) -> frozenset[UUID]:
    return frozenset(array.uuid(slot) for slot in numbers)


def test_a_start_after_a_crash_does_not_wait_for_members_that_were_away_before_it(array: SmallArray) -> None:
    membership = began_with_all_up(array)
    array.membership.member(array.uuid(1)).leave("pulled")  # type: ignore[union-attr]
    array.membership.member(array.uuid(4)).leave("pulled")  # type: ignore[union-attr]
    membership.remember_up()
    assert awaited_after_a_crash(array) == slots(array, 0, 2, 3, 5)


def test_a_member_that_came_back_is_waited_for_again(array: SmallArray) -> None:
    membership = began_with_all_up(array)
    member = array.membership.member(array.uuid(1))
    assert member is not None
    member.leave("pulled")
    membership.remember_up()
    member.arrive()
    membership.remember_up()
    assert awaited_after_a_crash(array) == slots(array, 0, 1, 2, 3, 4, 5)


def test_a_member_that_has_not_come_yet_since_the_start_is_still_waited_for_after_a_crash(tmp_path: Path) -> None:
    array = SmallArray(tmp_path)
    member = array.membership.member(array.uuid(3))
    assert member is not None
    member.leave("not found at the start")
    membership = began_with_all_up(array)
    array.membership.member(array.uuid(0)).leave("pulled")  # type: ignore[union-attr]
    membership.remember_up()
    assert awaited_after_a_crash(array) == slots(array, 1, 2, 3, 4, 5)


def test_nothing_is_written_while_nobody_comes_or_goes(array: SmallArray) -> None:
    membership = began_with_all_up(array)
    path = array.state_dir / "array.json"
    before = path.stat().st_ino
    membership.remember_up()
    assert path.stat().st_ino == before
