"""No disk holds up a start for longer than LOOK_S, however long its deadline is: the socket has to answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raidd.array.label import Label
from raidd.array.members import Member
from raidd.daemon import opening
from raidd.daemon.opening import _behind, ask_in_time
from raidd.errors import ArrayLocked, MemberFaulty, RaiddError
from tests.support.arrays import SmallArray

LOOK_S = 0.3
DEADLINE_S = 3600.0


@pytest.fixture
def array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallArray]:
    monkeypatch.setattr(opening, "LOOK_S", LOOK_S)
    array = SmallArray(tmp_path, deadline_s=DEADLINE_S)
    array.put({"1.2": b"image"})
    yield array
    for disk in array.disks.values():
        disk.release_all()
    array.stop()


def member(array: SmallArray, slot: int) -> Member:
    found = array.membership.member(array.uuid(slot))
    assert found is not None
    return found


def test_who_hangs_or_fails_has_left_and_the_others_answer(array: SmallArray) -> None:
    hang = array.disk(1).hang("list")
    array.disk(2).fail("list", error=MemberFaulty("EIO"))
    array.disk(3).fail("list", error=RaiddError("EMFILE"))
    answers = ask_in_time(array.membership.members(), lambda disk, _cancel: disk.list("segments"))
    assert {asked.uuid for asked, _names in answers} == {array.uuid(slot) for slot in (0, 4, 5)}
    assert hang.entered.is_set()
    assert "did not answer" in member(array, 1).presence.reason
    assert "EIO" in member(array, 2).presence.reason
    assert not member(array, 3).present


def test_a_lock_of_another_process_is_not_a_disks_fault(array: SmallArray) -> None:
    array.disk(1).fail("list", error=ArrayLocked("in use by process 1"))
    with pytest.raises(ArrayLocked):
        ask_in_time(array.membership.members(), lambda disk, _cancel: disk.list("segments"))


def test_all_hang_together_not_one_after_the_other(array: SmallArray) -> None:
    for slot in range(5):
        array.disk(slot).hang("list", "segments")
    assert _behind(array.catalog, array.membership.members()) == ""
    assert [member(array, slot).present for slot in range(6)] == [False] * 5 + [True]


def test_a_label_that_cannot_be_written_in_time_takes_its_member_out(array: SmallArray) -> None:
    hang = array.disk(2).hang("replace", "label.json")
    roster = array.membership.roster.successor(contact="new")
    array.membership.set_roster(roster, within_s=LOOK_S)
    assert not member(array, 2).present
    assert "label" in member(array, 2).presence.reason
    assert Label.parse(array.memory[3].read("label.json")).roster == roster
    array.disk(2).heal()
    hang.release()
    deadline = time.monotonic() + 60
    while not member(array, 2).present:
        assert time.monotonic() < deadline
        array.probe()
    assert Label.parse(array.memory[2].read("label.json")).roster == roster


def test_a_damaged_journal_does_not_make_the_catalog_behind(array: SmallArray) -> None:
    while array.parts.replicator.replicate_once():
        pass
    disk = array.memory[2]
    day = next(name for name in disk.list("journal"))
    disk.put("journal/2000-01-01.jsonl", b"not an entry\n")
    disk.put(f"journal/{day}", b"")
    assert _behind(array.catalog, array.membership.members()) == ""
    assert member(array, 2).present, "it is written anew by the replication"
    while array.parts.replicator.replicate_once():
        pass
    assert member(array, 2).present
