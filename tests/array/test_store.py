"""The array end to end in memory: in, back, with members that fail, and what is left behind."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from uuid import UUID

import pytest

from raidd.array import commit
from raidd.array.commit import Receipt
from raidd.array.members import Member
from raidd.array.roster import ArrayState, RosterEvent, apply
from raidd.array.store import Store
from raidd.codec.geometry import Geometry
from raidd.errors import ArrayFull, ArrayUnwritable, ImageUnreadable, MemberFull, StateDirFaulty
from tests.support.arrays import SmallArray

DATA = {f"1.2.{n}": Random(n).randbytes(size) for n, size in enumerate([1, 100, 4096, 65536, 65537, 300_000])}


@pytest.fixture
def array(tmp_path: Path) -> SmallArray:
    return SmallArray(tmp_path, deadline_s=60.0)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not look like a slow disk."""
    monkeypatch.setattr(commit, "LAGGARD_S", 60.0)


def check_all(array: SmallArray) -> None:
    for uid, data in DATA.items():
        assert array.read(uid) == data


def test_what_goes_in_comes_back(array: SmallArray) -> None:
    receipt = array.put(DATA)
    assert receipt.protected
    check_all(array)
    assert array.store.standing().state == ArrayState.HEALTHY
    assert array.store.standing().failures_tolerated == 2


def test_survives_any_two_members(array: SmallArray) -> None:
    array.put(DATA)
    for first in range(6):
        for second in range(first + 1, 6):
            array.lose(first)
            array.lose(second)
            check_all(array)
            array.bring_back(first)
            array.bring_back(second)


def test_three_lost_members_are_an_error_not_wrong_bytes(array: SmallArray) -> None:
    array.put(DATA)
    for slot in (0, 1, 2):
        array.lose(slot)
    with pytest.raises(ImageUnreadable):
        array.read("1.2.5")
    assert array.store.standing().state == ArrayState.FAILED
    array.bring_back(1)
    check_all(array)


def test_new_images_keep_full_parity_while_degraded(array: SmallArray) -> None:
    array.lose(3)
    receipt = array.put(DATA)
    row = array.catalog.segment(receipt.segment)
    assert row is not None
    assert row.placement.geometry == Geometry(3, 2)
    assert receipt.protected
    check_all(array)


def test_a_member_that_fails_during_the_write_leaves_and_its_shard_is_mended(array: SmallArray) -> None:
    array.disk(2).fail("file.sync", "tmp/*")
    receipt = array.put(DATA)
    assert receipt.protected
    assert array.membership.present_members() != 6
    assert array.membership.member(array.uuid(2)) is not None
    assert not array.membership.member(array.uuid(2)).present  # type: ignore[union-attr]
    assert array.catalog.counts().absent_shards == 1
    array.disk(2).heal()
    array.bring_back(2)
    array.repair_all()
    assert array.catalog.counts().absent_shards == 0
    check_all(array)


def test_two_failing_members_give_a_narrower_second_attempt_and_no_debris(array: SmallArray) -> None:
    for slot in (1, 4):
        array.disk(slot).fail("file.write", "tmp/*")
    receipt = array.put(DATA)
    row = array.catalog.segment(receipt.segment)
    assert row is not None
    assert row.placement.geometry == Geometry(2, 2)
    assert len(row.replaces) == 1
    assert receipt.protected
    check_all(array)
    until = time.monotonic() + 20
    while time.monotonic() < until and _strangers(array, receipt):
        time.sleep(0.01)  # the first attempt's shards are taken away behind the answer
    assert not _strangers(array, receipt)


def _strangers(array: SmallArray, receipt: Receipt) -> list[str]:
    files = [name for disk in array.memory for name in disk.files() if name.startswith(("segments/", "tmp/"))]
    return [name for name in files if str(receipt.segment) not in name]


def test_a_hung_member_costs_its_deadline_once(tmp_path: Path) -> None:
    array = SmallArray(tmp_path, deadline_s=2.0)
    hang = array.disk(0).hang("create", "tmp/*")
    receipt = array.put(DATA)
    assert receipt.protected
    check_all(array)
    again = array.put({"9.9": b"x" * 10})
    assert again.protected
    hang.release()


def test_a_full_member_takes_nothing_more_and_serves_on(tmp_path: Path) -> None:
    array = SmallArray(tmp_path, deadline_s=60.0)
    array.put(DATA)
    array.disk(5).fail("create", "tmp/*", error=MemberFull("full"))
    receipt = array.put({"5.5": b"y" * 50_000})
    assert receipt.protected
    third = array.put({"5.6": b"z" * 50_000})
    row = array.catalog.segment(third.segment)
    assert row is not None
    assert row.placement.geometry == Geometry(3, 2)
    assert array.membership.readable(array.uuid(5)) is not None
    check_all(array)


def test_all_full_means_images_wait(array: SmallArray) -> None:
    for slot in range(6):
        array.disk(slot).fail("create", "tmp/*", error=MemberFull("full"))
    with pytest.raises(ArrayFull):
        array.put(DATA)
    assert "full" in array.store.writable()


def test_nobody_up_means_images_wait(array: SmallArray) -> None:
    for slot in range(6):
        array.lose(slot)
    with pytest.raises(ArrayUnwritable):
        array.put(DATA)
    assert array.store.writable()


def test_one_member_left_stores_without_protecting_and_repair_protects(tmp_path: Path) -> None:
    array = SmallArray(tmp_path, members=2, deadline_s=60.0)
    array.lose(1)
    receipt = array.put(DATA)
    assert not receipt.protected
    check_all(array)
    assert array.store.standing().state == ArrayState.CRITICAL
    assert array.row("1.2.0").state == "stored"
    array.bring_back(1)
    array.repair_all()
    assert array.row("1.2.0").state == "protected"
    array.lose(0)
    check_all(array)


def test_silent_damage_is_found_decoded_and_mended(array: SmallArray) -> None:
    receipt = array.put(DATA)
    row = array.catalog.segment(receipt.segment)
    assert row is not None
    for index in (0, 1):
        disk = next(d for d in array.memory if d.uuid == row.placement.members[index])
        path = next(name for name in disk.files() if name.startswith("segments/"))
        disk.flip(path, row.body_offset + 10)
    check_all(array)
    array.repair_all()
    assert array.catalog.counts().absent_shards == 0
    assert {code for code, _s, _m in array.events} >= {"shard-damaged"}
    array.lose(2)
    array.lose(3)
    check_all(array)


def test_a_damaged_head_is_found_and_mended(array: SmallArray) -> None:
    receipt = array.put(DATA)
    row = array.catalog.segment(receipt.segment)
    assert row is not None
    disk = next(d for d in array.memory if d.uuid == row.placement.members[0])
    path = next(name for name in disk.files() if name.startswith("segments/"))
    disk.flip(path, 3)
    disk.flip(path, row.body_offset)
    check_all(array)
    array.repair_all()
    assert array.catalog.counts().absent_shards == 0
    assert any(name.startswith("quarantine/") for name in disk.files())


@pytest.mark.parametrize("loss", ["restart", "crash", "lose_catalog"])
def test_everything_survives(array: SmallArray, loss: str) -> None:
    array.put(DATA)
    getattr(array, loss)()
    check_all(array)
    assert array.store.standing().state == ArrayState.HEALTHY
    array.put({"7.7": b"after"})
    assert array.read("7.7") == b"after"


def test_a_catalog_from_a_backup_is_set_aside_and_made_again(array: SmallArray) -> None:
    array.put({"1.1": b"old"})
    backup = array.save_catalog()
    for number in range(3):
        array.put({f"2.{number}": bytes([number]) * 100})
    while array.parts.replicator.replicate_once():
        pass
    array.put_back_catalog(backup)
    assert array.read("1.1") == b"old"
    for number in range(3):
        assert array.read(f"2.{number}") == bytes([number]) * 100
    assert list(array.state_dir.glob("*.aside"))


def test_scattered_damage_in_every_shard_is_still_decoded_after_the_catalog_is_lost(array: SmallArray) -> None:
    """Each shard has one bad block, each in another column: no shard is whole, yet of every block five are good."""
    big = {"6.6.6": Random(6).randbytes(6 * 4 * 65536)}
    receipt = array.put(big)
    row = array.catalog.segment(receipt.segment)
    assert row is not None
    for index, uuid in enumerate(row.placement.members):
        disk = next(d for d in array.memory if d.uuid == uuid)
        path = next(name for name in disk.files() if str(receipt.segment) in name)
        disk.flip(path, row.body_offset + index * 65536 + 7)
    array.lose_catalog()
    assert array.read("6.6.6") == big["6.6.6"]
    array.repair_all()
    assert array.catalog.counts().absent_shards == 0
    assert array.read("6.6.6") == big["6.6.6"]


# -- may images come in now? -------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


def store_of(
    array: SmallArray, clock: Clock, *, reserve_bytes: int = 0, awaited: frozenset[UUID] = frozenset()
) -> Store:
    """A store as a start makes it; ``awaited``: who was up at the last stop."""
    array.membership._up_at_stop = awaited
    return Store(
        array.catalog,
        array.membership,
        array.parts.committer,
        array.parts.reader,
        state_dir=array.state_dir,
        state_reserve_bytes=reserve_bytes,
        now_ms=lambda: 1_795_507_200_000,
        random=Random(1),
        repair_now=lambda segment: array.parts.rebuilder.repair(segment).whole,
        event=lambda *_: None,
        clock=clock,
    )


def member(array: SmallArray, slot: int) -> Member:
    found = array.membership.member(array.uuid(slot))
    assert found is not None
    return found


def test_a_start_waits_for_who_was_up_at_the_last_stop_and_goes_on_as_soon_as_they_are_here(array: SmallArray) -> None:
    clock = Clock()
    for slot in (1, 4):
        member(array, slot).leave("not found at the start")
    store = store_of(array, clock, awaited=frozenset(array.uuid(slot) for slot in range(6)))
    assert store.writable().startswith("2 members")
    clock.now += 30
    member(array, 1).arrive()
    assert "waiting 30 s more" in store.writable()
    member(array, 4).arrive()
    assert store.writable() == ""


def test_a_start_waits_a_minute_and_not_longer_and_never_again(array: SmallArray) -> None:
    clock = Clock()
    member(array, 1).leave("not found at the start")
    store = store_of(array, clock, awaited=frozenset(array.uuid(slot) for slot in range(6)))
    clock.now += 59.9
    assert store.writable()
    clock.now += 0.2
    assert store.writable() == ""
    clock.now -= 30
    assert store.writable() == "", "it has waited once"


def test_the_minute_begins_when_the_start_is_over(array: SmallArray) -> None:
    clock = Clock()
    store = store_of(array, clock, awaited=frozenset(array.uuid(slot) for slot in range(6)))
    array.lose(2)
    clock.now += 600  # the catalog was made again meanwhile
    store.may_begin()
    assert store.writable() != ""
    clock.now += 61
    assert store.writable() == ""


def test_a_member_that_leaves_after_everyone_was_here_is_not_waited_for(array: SmallArray) -> None:
    store = store_of(array, Clock(), awaited=frozenset(array.uuid(slot) for slot in range(6)))
    assert store.writable() == ""
    member(array, 2).leave("pulled")
    assert store.writable() == ""


def test_who_was_away_at_the_last_stop_or_is_given_up_is_not_waited_for(array: SmallArray) -> None:
    for slot in (1, 2):
        member(array, slot).leave("not found at the start")
    roster = apply(array.membership.roster, array.uuid(2), RosterEvent.FAIL)
    array.membership.set_roster(roster)
    awaited = frozenset(array.uuid(slot) for slot in range(6)) - {array.uuid(1)}
    assert store_of(array, Clock(), awaited=awaited).writable() == ""


def test_a_system_disk_that_runs_full_stops_ingest_with_its_name_and_lets_it_go_on(array: SmallArray) -> None:
    clock = Clock()
    store = store_of(array, clock, reserve_bytes=1 << 60)
    assert str(array.state_dir) in store.writable()
    assert array.put(DATA).protected, "reads and what is under way go on"
    check_all(array)
    store.state_reserve_bytes = 0
    clock.now += 2
    assert store.writable() == ""


def test_a_state_dir_that_is_gone_ends_the_process(array: SmallArray) -> None:
    store = store_of(array, Clock(), reserve_bytes=1)
    store._state_dir = array.state_dir / "gone"
    with pytest.raises(StateDirFaulty):
        store.writable()


@pytest.mark.parametrize(("roomless", "says"), [(3, ""), (4, "2 of 6 members have room, 3 are needed"), (6, "0 of 6")])
def test_room_on_m_plus_one_members_is_enough(array: SmallArray, roomless: int, says: str) -> None:
    for slot in range(roomless):
        member(array, slot).full = True
    said = array.store.writable()
    assert says in said
    assert bool(said) is bool(says)


def test_what_writable_says_is_what_a_commit_finds(tmp_path: Path) -> None:
    """For every number of members that are up, and of those that have room."""
    array = SmallArray(tmp_path, members=4, deadline_s=60.0)
    for up in range(5):
        for roomy in range(up + 1):
            for slot in range(4):
                one = member(array, slot)
                one.arrive() if slot < up else one.leave("away")
                one.full = slot >= roomy
            try:
                array.put({f"{up}.{roomy}": b"x"})
                stored = True
            except (ArrayFull, ArrayUnwritable):
                stored = False
            assert stored is (array.store.writable() == ""), (up, roomy)


def test_one_member_up_takes_images_in_and_does_not_protect(tmp_path: Path) -> None:
    array = SmallArray(tmp_path, members=3, deadline_s=60.0)
    assert array.store.protects()
    array.lose(0)
    assert array.store.protects()
    array.lose(1)
    assert not array.store.protects()
    assert array.store.writable() == ""


# -- how safe is it? -----------------------------------------------------------------------------------------------


def test_an_empty_array_tolerates_its_parity_less_who_is_away(array: SmallArray) -> None:
    tolerated = []
    for slot in range(6):
        tolerated.append(array.store.standing().failures_tolerated)
        array.lose(slot)
    assert tolerated == [2, 1, 0, 0, 0, 0]
    assert array.store.standing().state == ArrayState.CRITICAL


def test_the_weakest_segment_says_what_is_tolerated(array: SmallArray) -> None:
    array.put({"1.1": b"full width"})
    array.lose(0)
    array.put({"1.2": b"narrower"})
    assert array.store.standing().failures_tolerated == 1, "the first has lost a shard"
    array.bring_back(0)
    assert array.store.standing().failures_tolerated == 2
    assert array.store.standing().state == ArrayState.HEALTHY


def test_the_state_word_follows_what_is_left(array: SmallArray) -> None:
    array.put(DATA)
    words = []
    for slot in range(3):
        words.append(array.store.standing().state)
        array.lose(slot)
    words.append(array.store.standing().state)
    assert words == [ArrayState.HEALTHY, ArrayState.DEGRADED, ArrayState.CRITICAL, ArrayState.FAILED]


def test_a_missing_shard_is_degraded_though_every_member_is_online(array: SmallArray) -> None:
    receipt = array.put(DATA)
    array.catalog.mark(receipt.segment, 0, "missing")
    assert array.store.standing().state == ArrayState.DEGRADED
    assert array.store.protect(array.row("1.2.0"))
    assert array.store.standing().state == ArrayState.HEALTHY


# -- drafts and ids ------------------------------------------------------------------------------------------------


def test_buffers_are_bounded_and_given_back_once(array: SmallArray) -> None:
    drafts = [array.store.draft(5.0) for _ in range(array.store._pool.count)]
    assert None not in drafts
    assert array.store.draft(0.01) is None
    first = drafts[0]
    assert first is not None
    first.discard()
    first.discard()
    again = array.store.draft(0.01)
    assert again is not None
    assert array.store.draft(0.01) is None
    for draft in [again, *drafts]:
        if draft is not None:
            draft.discard()
    assert array.store._pool.in_use() == 0


def test_image_ids_rise_and_differ_whoever_asks_while_the_clock_stands_still(array: SmallArray) -> None:
    store = store_of(array, Clock())
    with ThreadPoolExecutor(8) as threads:
        ids = list(threads.map(lambda _number: store.new_image_id(), range(2000)))
    assert len(set(ids)) == 2000
    assert store.new_image_id() > max(ids)


def test_busy_means_a_commit_lately_also_one_that_failed(array: SmallArray) -> None:
    clock = Clock()
    store = store_of(array, clock)
    assert not store.busy(2.0)
    for slot in range(6):
        array.lose(slot)
    draft = store.draft(5.0)
    assert draft is not None
    with pytest.raises(ArrayUnwritable):
        store.commit(draft, 1, [])
    draft.discard()
    assert store.busy(2.0)
    clock.now += 2.1
    assert not store.busy(2.0)
