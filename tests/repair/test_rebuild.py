"""One repair: byte for byte what was lost, proved and durable before it counts, whatever fails on the way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from raidd.array import commit
from raidd.array.catalog import SegmentRow
from raidd.codec.geometry import Level
from raidd.codec.shard import shard_path
from raidd.errors import (
    CatalogUnusable,
    ImageUnreadable,
    MemberFaulty,
    MemberFull,
    RaiddError,
    RequestRefused,
    StateDirFaulty,
)
from raidd.repair.rebuild import Outcome, try_repair
from tests.support.arrays import SmallArray
from tests.support.faulty_disk import FaultyDisk, SimulatedCrash
from tests.support.memory_disk import MemoryDisk

A_WHILE_S = 60.0
DATA = Random(5).randbytes(300_001)
Make = Callable[..., SmallArray]


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not look like a slow disk."""
    monkeypatch.setattr(commit, "LAGGARD_S", A_WHILE_S)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[SmallArray] = []

    def make(**options: object) -> SmallArray:
        made.append(SmallArray(tmp_path / str(len(made)), **{"deadline_s": A_WHILE_S, **options}))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for array in made:
        for disk in array.disks.values():
            disk.release_all()
        array.stop()


@pytest.fixture
def array(make: Make) -> SmallArray:
    return make()


def stored(array: SmallArray, uid: str = "1.2", data: bytes = DATA) -> SegmentRow:
    row = array.catalog.segment(array.put({uid: data}).segment)
    assert row is not None
    return row


def memory(array: SmallArray, row: SegmentRow, index: int) -> MemoryDisk:
    return next(disk for disk in array.memory if disk.uuid == row.placement.members[index])


def faulty(array: SmallArray, row: SegmentRow, index: int) -> FaultyDisk:
    return array.disks[row.placement.members[index]]


def path(row: SegmentRow, index: int) -> str:
    return shard_path(row.segment, index)


def lose(array: SmallArray, row: SegmentRow, indexes: Sequence[int]) -> list[bytes]:
    """These shards' files are gone, and the catalog knows; returns what they were."""
    were = []
    for index in indexes:
        were.append(memory(array, row, index).read(path(row, index)))
        memory(array, row, index).unlink(path(row, index))
        array.catalog.mark(row.segment, index, "missing")
    return were


def found(array: SmallArray, row: SegmentRow, indexes: Sequence[int]) -> list[bytes]:
    return [memory(array, row, index).read(path(row, index)) for index in indexes]


def quarantined(disk: MemoryDisk) -> dict[str, bytes]:
    return {name: data for name, data in disk.files().items() if name.startswith("quarantine/")}


def repair(array: SmallArray, row: SegmentRow) -> Outcome:
    return array.parts.rebuilder.repair(row.segment)


# -- what is re-created ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4096, 300_001])
@pytest.mark.parametrize(
    ("members", "level", "lost"),
    [
        (2, Level("mirror"), [0]),
        (3, Level("mirror", copies=3), [0, 2]),
        (3, Level("raid5"), [2]),
        (6, Level("raid6"), [0, 5]),
        (6, Level("raid6"), [1, 2]),
        (6, Level("custom", data=2, parity=2), [0, 1]),
    ],
)
def test_what_is_re_created_is_byte_for_byte_what_was_lost(
    make: Make, members: int, level: Level, lost: list[int], size: int
) -> None:
    array = make(members=members, level=level)
    row = stored(array, data=DATA[:size])
    were = lose(array, row, lost)
    outcome = repair(array, row)
    assert (outcome.written, outcome.whole) == (len(lost), True)
    assert found(array, row, lost) == were
    assert array.catalog.excepted(row.segment) == {}


def test_a_repair_is_durable_before_the_catalog_believes_it(array: SmallArray) -> None:
    row = stored(array)
    were = lose(array, row, [3])
    repair(array, row)
    array.crash()
    assert found(array, row, [3]) == were
    assert array.catalog.excepted(row.segment) == {}


def test_a_shard_that_is_there_and_good_is_adopted_without_a_write(array: SmallArray) -> None:
    row = stored(array)
    array.catalog.mark(row.segment, 3, "missing")
    faulty(array, row, 3).log.clear()
    outcome = repair(array, row)
    assert (outcome.written, outcome.bytes, outcome.whole) == (1, 0, True)
    operations = faulty(array, row, 3).operations()
    assert "sync_all" in operations, "its writer may have died before it was durable"
    assert not {"create", "replace", "rename_new"} & set(operations)


def test_a_damaged_shard_is_replaced_in_one_step_and_a_copy_is_kept_with_the_reason(array: SmallArray) -> None:
    row = stored(array)
    (good,) = found(array, row, [2])
    memory(array, row, 2).flip(path(row, 2), row.body_offset + 9)
    (bad,) = found(array, row, [2])
    array.catalog.mark(row.segment, 2, "damaged")
    faulty(array, row, 2).log.clear()
    assert repair(array, row).whole
    assert found(array, row, [2]) == [good]
    kept = quarantined(memory(array, row, 2))
    assert bad in kept.values()
    assert any(name.endswith(".reason.txt") and b"checksums" in text for name, text in kept.items())
    assert "unlink" not in [c.operation for c in faulty(array, row, 2).log if c.path == path(row, 2)]


def test_a_shard_that_lands_while_it_is_re_created_is_kept_and_not_quarantined(array: SmallArray) -> None:
    """The laggard's write goes through between the look and the rename."""
    row = stored(array)
    (good,) = lose(array, row, [1])
    disk = memory(array, row, 1)

    def land(call):  # type: ignore[no-untyped-def]
        if call.operation == "rename_new" and path(row, 1) not in disk.files():
            disk.put(path(row, 1), good)

    faulty(array, row, 1).on_call = land
    assert repair(array, row).whole
    assert found(array, row, [1]) == [good]
    assert quarantined(disk) == {}
    assert not [name for name in disk.files() if name.startswith("tmp/")]


def test_nothing_is_written_when_what_was_decoded_is_not_what_was_written(
    array: SmallArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = stored(array)
    lose(array, row, [1])
    true = array.parts.reader.verified_bodies

    def wrong(*arguments, **options):  # type: ignore[no-untyped-def]
        return {index: memoryview(bytes(len(body))) for index, body in true(*arguments, **options).items()}

    monkeypatch.setattr(array.parts.reader, "verified_bodies", wrong)
    assert try_repair(array.parts.rebuilder, row.segment) is None
    assert path(row, 1) not in memory(array, row, 1).files()
    assert array.catalog.excepted(row.segment) == {1: "missing"}


# -- failures on the way -----------------------------------------------------------------------------------------


def test_one_target_that_fails_does_not_undo_the_other(array: SmallArray) -> None:
    row = stored(array)
    were = lose(array, row, [1, 4])
    faulty(array, row, 4).fail("file.sync", error=MemberFaulty("EIO"))
    outcome = repair(array, row)
    assert (outcome.written, outcome.whole) == (1, False)
    assert array.catalog.excepted(row.segment) == {4: "missing"}
    assert found(array, row, [1]) == were[:1]
    faulty(array, row, 4).heal()
    array.bring_back(next(slot for slot in range(6) if array.uuid(slot) == row.placement.members[4]))
    assert repair(array, row).whole
    assert found(array, row, [1, 4]) == were


def test_a_shard_that_cannot_be_proved_does_not_undo_one_that_was_written(
    array: SmallArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = stored(array)
    lose(array, row, [1, 4])
    true = array.parts.reader.verified_bodies

    def half_wrong(*arguments, **options):  # type: ignore[no-untyped-def]
        bodies = true(*arguments, **options)
        return {**bodies, 4: memoryview(bytes(len(bodies[4])))}

    monkeypatch.setattr(array.parts.reader, "verified_bodies", half_wrong)
    assert try_repair(array.parts.rebuilder, row.segment) is None
    assert array.catalog.excepted(row.segment) == {4: "missing"}


def test_a_torn_write_that_said_all_is_well_is_found_by_reading_back(array: SmallArray) -> None:
    row = stored(array)
    lose(array, row, [1])
    faulty(array, row, 1).tear("tmp/*", 100)
    assert not repair(array, row).whole
    assert array.catalog.excepted(row.segment) == {1: "missing"}
    member = array.membership.member(row.placement.members[1])
    assert member is not None
    assert not member.present


def test_a_full_target_is_spared_until_it_has_room(array: SmallArray) -> None:
    row = stored(array)
    lose(array, row, [1])
    member = array.membership.member(row.placement.members[1])
    assert member is not None
    faulty(array, row, 1).fail("create", "tmp/*", error=MemberFull("ENOSPC"))
    assert not repair(array, row).whole
    faulty(array, row, 1).log.clear()
    assert not repair(array, row).whole
    assert "create" not in faulty(array, row, 1).operations()
    assert member.present
    faulty(array, row, 1).heal()
    member.full = False
    assert repair(array, row).whole


def test_a_host_short_of_descriptors_is_no_disks_fault_and_no_end(array: SmallArray) -> None:
    row = stored(array)
    lose(array, row, [1])
    for disk in array.disks.values():
        disk.fail("*", error=RaiddError("EMFILE"))
    outcome = try_repair(array.parts.rebuilder, row.segment)
    assert outcome is None or not outcome.whole
    assert len(array.membership.present_members()) == 6
    for disk in array.disks.values():
        disk.heal()
    assert repair(array, row).whole


def test_too_few_shards_are_an_error_of_this_segment_alone(array: SmallArray) -> None:
    row, other = stored(array), stored(array, "1.3")
    lose(array, row, [0])
    for index in (1, 2):  # gone without anybody knowing
        memory(array, row, index).unlink(path(row, index))
    lose(array, other, [0])
    with pytest.raises(ImageUnreadable):
        repair(array, row)
    assert not repair(array, row).whole, "now it is known what is missing"
    assert repair(array, other).whole


@pytest.mark.parametrize(
    ("error", "ends"),
    [(StateDirFaulty("EIO"), True), (CatalogUnusable("corrupt"), True), (RequestRefused("holds another"), False)],
)
def test_only_a_state_dir_that_fails_ends_the_process(
    array: SmallArray, monkeypatch: pytest.MonkeyPatch, error: RaiddError, ends: bool
) -> None:
    row = stored(array)
    lose(array, row, [1])

    def fail(_moves: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(array.catalog, "move_many", fail)
        if ends:
            with pytest.raises(type(error)):
                try_repair(array.parts.rebuilder, row.segment)
        else:
            assert try_repair(array.parts.rebuilder, row.segment) is None
    assert repair(array, row).whole, "the segment is free again"


def test_what_is_not_known_any_more_needs_no_repair(array: SmallArray) -> None:
    row = stored(array)
    stored_again = array.put({"1.2": DATA}, replaces=[row.segment])
    assert stored_again.protected
    assert repair(array, row) == Outcome(0, 0, True)


def test_a_lost_segment_whose_images_are_protected_elsewhere_is_forgotten(array: SmallArray) -> None:
    row = stored(array)
    array.put({"1.2": DATA})
    lose(array, row, [0, 1, 2])
    assert repair(array, row).whole
    assert array.catalog.segment(row.segment) is None
    assert row.segment in array.catalog.reserved(), "what is left of it is looked for"
    assert array.read("1.2") == DATA


def test_a_lost_segment_with_the_only_copy_of_an_image_is_never_forgotten(array: SmallArray) -> None:
    row = stored(array)
    lose(array, row, [0, 1, 2])
    assert not repair(array, row).whole
    assert array.catalog.segment(row.segment) is not None


# -- two at once -------------------------------------------------------------------------------------------------


def in_thread(work: Callable[[], Outcome]) -> tuple[threading.Thread, list[Outcome]]:
    results: list[Outcome] = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    return thread, results


def test_repairs_of_one_segment_follow_each_other_and_the_second_finds_nothing_to_do(make: Make) -> None:
    array = make()
    row, other = stored(array), stored(array, "1.3")
    lose(array, row, [1])
    hang = faulty(array, row, 1).hang("create", "tmp/*", call=1)
    first, one = in_thread(lambda: repair(array, row))
    assert hang.entered.wait(A_WHILE_S)
    second, two = in_thread(lambda: repair(array, row))
    assert repair(array, other).whole, "another segment is not held up"
    assert second.is_alive()
    hang.release()
    first.join(A_WHILE_S)
    second.join(A_WHILE_S)
    assert (one[0].written, two[0].written) == (1, 0)
    assert len([c for c in faulty(array, row, 1).log if c.operation == "file.write" and ".repair" in c.path]) == 1


# -- death -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(1, 30, 2))
def test_a_death_at_any_step_of_a_repair_is_mended_by_the_next_start(make: Make, step: int) -> None:
    array = make()
    row = stored(array)
    were = lose(array, row, [1, 4])
    memory(array, row, 1).sync_all()
    memory(array, row, 4).sync_all()
    array.gate.die_in(step)
    with suppress(SimulatedCrash):
        repair(array, row)
    array.crash(seed=step)
    array.repair_all()
    assert array.read("1.2") == DATA
    assert found(array, row, [1, 4]) == were
    assert array.catalog.excepted(row.segment) == {}
    assert not [name for index in (1, 4) for name in memory(array, row, index).files() if name.startswith("tmp/")]
