"""The way in: what a commit costs, what it does when members fail or dawdle, and what an attempt leaves behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from uuid import UUID

import pytest

from raidd.array import commit
from raidd.codec.geometry import Geometry, Level
from raidd.codec.shard import shard_path
from raidd.daemon.graph import stale_ids
from raidd.errors import (
    ArrayFull,
    ArrayUnwritable,
    MemberFaulty,
    MemberFull,
    RaiddError,
    RequestRefused,
    StateDirFaulty,
)
from tests.support.arrays import SmallArray

IMAGES = {f"1.2.{n}": Random(n).randbytes(size) for n, size in enumerate([1, 4096, 70_000])}
ONE = {"1.3": b"one image"}
PATIENT_S = 60.0
"""A member deadline that is never reached here."""

Make = Callable[..., SmallArray]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[SmallArray] = []

    def make(**options: object) -> SmallArray:
        made.append(SmallArray(tmp_path, **{"deadline_s": PATIENT_S, **options}))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for array in made:
        for disk in array.disks.values():
            disk.release_all()
        array.stop()


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not look like a slow disk."""
    monkeypatch.setattr(commit, "LAGGARD_S", PATIENT_S)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Laggards are given up soon."""
    monkeypatch.setattr(commit, "LAGGARD_S", 0.3)


def wait_for(true: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENT_S
    while not true():
        assert time.monotonic() < until
        time.sleep(0.002)


def shards(array: SmallArray) -> set[str]:
    """Names of all shard files on all disks, those under way too."""
    names = (name for disk in array.memory for name in disk.files())
    return {name for name in names if name.startswith(("segments/", "tmp/"))}


def placed(array: SmallArray, segment: UUID) -> Geometry:
    row = array.catalog.segment(segment)
    assert row is not None
    return row.placement.geometry


def at_rest(array: SmallArray) -> bool:
    """Nothing in flight, no buffer held, no id reserved but those still to be handed out."""
    busy = array.parts.committer.in_flight()
    return not busy and not array.store._pool.in_use() and set(array.catalog.reserved()) == array.catalog.unused()


# -- what it costs ----------------------------------------------------------------------------------------------


def test_a_batch_costs_two_flushes_on_each_member_whatever_it_holds(make: Make) -> None:
    array = make()
    array.put(ONE)
    for disk in array.disks.values():
        disk.log.clear()
    array.put({f"1.9.{n}": bytes([n]) * 500 for n in range(100)})
    for disk in array.disks.values():
        flushes = [name for name in disk.operations() if "sync" in name or name in ("replace", "append", "overwrite")]
        assert flushes == ["file.sync", "sync_folder"]


def test_a_commit_gives_its_buffer_back(make: Make) -> None:
    array = make()
    array.put(IMAGES)
    assert at_rest(array)


# -- laggards ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hasty")
def test_a_laggard_is_given_up_and_its_shard_becomes_a_repair(make: Make) -> None:
    array = make()
    hang = array.disk(2).hang("file.write", "tmp/*")
    receipt = array.put(IMAGES)
    assert receipt.protected
    assert [segment for segment, _index, _kind in array.catalog.exceptions(array.uuid(2))] == [receipt.segment]
    assert array.parts.repairs.due() == [receipt.segment]
    array.disk(2).heal()
    hang.release()
    wait_for(lambda: at_rest(array))
    assert not any(name.startswith(("segments/", "tmp/")) for name in array.memory[2].files()), "it renames nothing"
    array.repair_all()
    assert array.catalog.counts().absent_shards == 0


@pytest.mark.usefixtures("hasty")
def test_a_hanging_disk_keeps_one_buffer_however_many_batches_pass_it(make: Make) -> None:
    array = make()
    hang = array.disk(0).hang("create", "tmp/*")
    for number in range(2 * array.store._pool.count):
        assert array.put({f"1.4.{number}": bytes([number])}).protected
    wait_for(lambda: array.store._pool.in_use() == 1)
    assert hang.entered.is_set()


def test_what_stood_behind_a_hung_write_gives_its_buffer_back_when_the_deadline_passes(make: Make) -> None:
    array = make(deadline_s=2.0)
    array.disk(0).hang("create", "tmp/*")
    for number in range(4):
        assert array.put({f"1.4.{number}": bytes([number])}).protected
    wait_for(lambda: array.store._pool.in_use() == 1)


@pytest.mark.usefixtures("hasty")
def test_with_exactly_k_plus_one_durable_the_batch_is_protected_and_not_written_again(make: Make) -> None:
    array = make()
    array.disk(3).hang("file.sync", "tmp/*")
    receipt = array.put(IMAGES)
    assert receipt.protected
    assert placed(array, receipt.segment) == Geometry(4, 2)
    array.lose(0)
    assert all(array.read(uid) == data for uid, data in IMAGES.items())


# -- second attempts --------------------------------------------------------------------------------------------


def test_a_second_attempt_has_a_new_id_names_the_first_and_the_first_stays_gone_after_a_power_cut(make: Make) -> None:
    array = make()
    for slot in (1, 4):
        array.disk(slot).fail("file.sync", "tmp/*")
    receipt = array.put(IMAGES)
    row = array.catalog.segment(receipt.segment)
    assert row is not None
    assert len(row.replaces) == 1
    assert row.replaces[0] != receipt.segment
    array.disk(1).heal()
    array.disk(4).heal()
    wait_for(lambda: not array.parts.committer.in_flight())
    array.crash()
    first = str(row.replaces[0])
    assert not [name for name in shards(array) if first in name]


def test_an_id_whose_shards_could_not_be_taken_away_is_looked_for_until_they_are(make: Make) -> None:
    array = make()
    for slot in (1, 4):
        array.disk(slot).delay("file.sync", 0.3, "tmp/*")  # the others are done by then
        array.disk(slot).fail("file.sync", "tmp/*")
    array.disk(0).fail("unlink", "segments/*")
    receipt = array.put(IMAGES)
    row = array.catalog.segment(receipt.segment)
    assert row is not None
    wait_for(lambda: not array.parts.committer.in_flight())
    member = array.membership.member(array.uuid(0))
    assert member is not None
    assert not member.present, "a failed unlink says something of the disk"
    assert row.replaces[0] in array.catalog.reserved()
    for slot in (0, 1, 4):
        array.disk(slot).heal()
        array.bring_back(slot)
    assert row.replaces[0] not in array.catalog.reserved()
    assert not [name for name in shards(array) if str(row.replaces[0]) in name]


def test_a_disk_that_hangs_in_a_given_up_attempt_leaves_nothing_when_it_wakes_up(make: Make) -> None:
    array = make(deadline_s=2.0)
    hangs = [array.disk(slot).hang("create", "tmp/*") for slot in (1, 4)]
    receipt = array.put(IMAGES)
    row = array.catalog.segment(receipt.segment)
    assert row is not None
    first = row.replaces[0]
    for slot in (1, 4):
        array.disk(slot).heal()
    for hang in hangs:
        hang.release()
    wait_for(lambda: not array.parts.committer.in_flight())
    wait_for(lambda: not any(member.stuck() for member in array.membership.members()))
    for slot in (1, 4):
        array.bring_back(slot)
    assert first not in array.catalog.reserved()
    assert not [name for name in shards(array) if str(first) in name]


def test_each_attempt_is_bounded_when_the_host_is_short_and_no_disk_is_blamed(make: Make) -> None:
    array = make()
    for disk in array.disks.values():
        disk.fail("create", "tmp/*", error=RaiddError("out of descriptors [EMFILE]"))
    with pytest.raises(ArrayUnwritable):
        array.put(IMAGES)
    assert len(array.membership.present_members()) == 6
    wait_for(lambda: at_rest(array))
    assert not shards(array)


def test_a_host_that_is_short_for_a_moment_costs_one_more_attempt(make: Make) -> None:
    array = make()
    for slot in (0, 1):
        array.disk(slot).fail("create", "tmp/*", error=RaiddError("out of descriptors [EMFILE]"), call=1)
    receipt = array.put(IMAGES)
    assert receipt.protected
    assert placed(array, receipt.segment) == Geometry(4, 2)
    assert len(array.membership.present_members()) == 6


# -- how wide ---------------------------------------------------------------------------------------------------


def test_a_member_that_leaves_before_the_write_does_not_make_the_other_the_only_one_left(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror of two copies on four disks: two others are up, so the batch goes there and is protected."""
    array = make(members=4, level=Level("mirror"))
    sealed, left = commit.seal, list[UUID]()

    def seal(manifest, bodies):  # type: ignore[no-untyped-def]
        if not left:
            left.append(manifest.members[0])
            member = array.membership.member(left[0])
            assert member is not None
            member.leave("pulled just now")
        return sealed(manifest, bodies)

    monkeypatch.setattr(commit, "seal", seal)
    receipt = array.put(IMAGES)
    assert receipt.protected
    assert array.row("1.2.0").state == "protected"


def test_one_member_up_of_many_stores_and_does_not_protect(make: Make) -> None:
    array = make(members=4, level=Level("mirror", copies=3))
    for slot in (0, 1, 2):
        array.lose(slot)
    receipt = array.put(IMAGES)
    assert not receipt.protected
    assert placed(array, receipt.segment) == Geometry(1, 1)
    assert array.row("1.2.0").state == "stored"


def test_three_copies_with_one_disk_away_are_written_twice(make: Make) -> None:
    array = make(members=3, level=Level("mirror", copies=3))
    array.lose(0)
    receipt = array.put(IMAGES)
    assert receipt.protected
    assert placed(array, receipt.segment) == Geometry(1, 1)


def test_nothing_is_narrowed_while_a_full_width_is_up(make: Make) -> None:
    array = make(members=6, level=Level("custom", data=2, parity=1))
    for slot in (0, 1, 2):
        array.lose(slot)
    assert placed(array, array.put(IMAGES).segment) == Geometry(2, 1)


def test_fullness_lowers_k_and_never_m(make: Make) -> None:
    array = make()
    for slot in (0, 1, 2):
        array.disk(slot).fail("create", "tmp/*", error=MemberFull("no room"))
    array.put({"9.9": b"an attempt is given up before the third has said that it is full"})
    receipt = array.put(IMAGES)
    assert placed(array, receipt.segment) == Geometry(1, 2)
    assert receipt.protected


def test_with_room_on_too_few_images_wait_though_all_are_up(make: Make) -> None:
    array = make()
    for slot in range(4):
        array.disk(slot).fail("create", "tmp/*", error=MemberFull("no room"))
    with pytest.raises(ArrayFull, match="2 of 6"):
        array.put(IMAGES)
    wait_for(lambda: at_rest(array))
    assert not shards(array)


# -- what an attempt leaves behind ------------------------------------------------------------------------------


def test_a_batch_that_cannot_be_sealed_leaves_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    array = make()

    def poisoned(*_arguments: object) -> None:
        raise ValueError("a manifest beyond its limit")

    with monkeypatch.context() as patched:
        patched.setattr(commit, "seal", poisoned)
        with pytest.raises(ValueError, match="beyond its limit"):
            array.put(IMAGES)
    assert at_rest(array)
    assert array.put(IMAGES).protected


def test_an_unforeseen_exception_in_a_write_leaves_nothing(make: Make) -> None:
    array = make()
    array.disk(3).fail("file.write", "tmp/*", error=RuntimeError("a bug"))
    with pytest.raises(RuntimeError):
        array.put(IMAGES)
    wait_for(lambda: at_rest(array))
    assert not [name for name in shards(array) if name.startswith("segments/")]


@pytest.mark.parametrize("error", [RequestRefused("overtaken by a purge"), ValueError("never reserved")])
def test_what_the_catalog_refuses_leaves_nothing(make: Make, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    array = make()

    def refuse(*_arguments: object, **_options: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(array.catalog, "commit", refuse)
        with pytest.raises(ArrayUnwritable if isinstance(error, RequestRefused) else ValueError):
            array.put(IMAGES)
    wait_for(lambda: at_rest(array))
    assert not shards(array)
    assert array.put(IMAGES).protected


def test_when_state_dir_fails_in_the_commit_the_shards_stay_for_the_next_start(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = make()

    def fail(*_arguments: object, **_options: object) -> None:
        raise StateDirFaulty("fsync: EIO")

    with monkeypatch.context() as patched:
        patched.setattr(array.catalog, "commit", fail)
        with pytest.raises(StateDirFaulty):
            array.put(IMAGES)
    assert len(shards(array)) == 6
    array.restart()
    assert all(array.read(uid) == data for uid, data in IMAGES.items())


def test_an_attempt_that_meets_nobody_gives_its_id_up(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    array = make()
    sealed = commit.seal

    def seal(manifest, bodies):  # type: ignore[no-untyped-def]
        for member in array.membership.members():
            member.leave("the bus died")
        return sealed(manifest, bodies)

    monkeypatch.setattr(commit, "seal", seal)
    with pytest.raises(ArrayUnwritable):
        array.put(IMAGES)
    assert at_rest(array)


def test_an_id_is_in_flight_before_its_first_shard_so_that_a_returning_member_does_not_settle_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = make()
    sealed = commit.seal

    def seal(manifest, bodies):  # type: ignore[no-untyped-def]
        array.parts.adoption.settle(stale_ids(array.parts))  # what a welcome does meanwhile
        return sealed(manifest, bodies)

    monkeypatch.setattr(commit, "seal", seal)
    assert array.put(IMAGES).protected


def test_a_replaced_segment_is_not_given_up_by_a_welcome_amid_the_commit(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One holder of the replaced segment is away: its shard has to be looked for when it returns."""
    array = make()
    old = array.put(ONE)
    array.lose(5)
    sealed = commit.seal

    def seal(manifest, bodies):  # type: ignore[no-untyped-def]
        array.parts.adoption.settle(stale_ids(array.parts))
        return sealed(manifest, bodies)

    monkeypatch.setattr(commit, "seal", seal)
    array.put(ONE, replaces=[old.segment])
    wait_for(lambda: not array.parts.committer.in_flight())
    assert old.segment in array.catalog.reserved()
    array.bring_back(5)
    assert old.segment not in array.catalog.reserved()
    assert not [name for name in shards(array) if str(old.segment) in name]


def test_a_failed_replacement_leaves_what_it_would_have_replaced_as_it_was(make: Make) -> None:
    array = make()
    old = array.put(ONE)
    for disk in array.disks.values():
        disk.fail("create", "tmp/*", error=MemberFaulty("EIO"))
    with pytest.raises(ArrayUnwritable):
        array.put(ONE, replaces=[old.segment])
    for slot, disk in enumerate(list(array.disks.values())):
        disk.heal()
        array.bring_back(slot)
    wait_for(lambda: not array.parts.committer.in_flight())
    assert array.read("1.3") == b"one image"
    assert array.catalog.known([old.segment]) == {old.segment}


def test_a_shard_that_lands_late_under_its_final_name_is_taken_by_the_repair(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "LAGGARD_S", 1.0)
    array = make()
    hang = array.disk(1).hang("sync_folder", "segments/*")
    receipt = array.put(IMAGES)
    row = array.catalog.segment(receipt.segment)
    assert row is not None
    index = row.placement.members.index(array.uuid(1))
    assert array.catalog.absent(receipt.segment) == {index}
    array.disk(1).heal()
    hang.release()
    wait_for(lambda: at_rest(array))
    assert shard_path(receipt.segment, index) in array.memory[1].files()
    array.repair_all()
    assert array.catalog.counts().absent_shards == 0
    assert not [name for name in array.memory[1].files() if name.startswith("quarantine/")]
