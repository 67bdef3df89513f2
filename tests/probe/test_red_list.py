"""The red list: what has cost other storage systems their users' data, each as a test of its own.

In memory where that is the whole truth (SmallArray: the real store on disks that fail, hang and lose power), on real
folders where the start is what is asked (labels), on a loop device where only a real kernel lies that way.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import pytest
from crc32c import crc32c

from raidd.array.host import create_member_folder
from raidd.array.label import Label, label_for
from raidd.array.local_disk import LocalDisk
from raidd.array.roster import RosterEvent, apply, canonical_json
from raidd.codec.shard import HEAD_SIZE, damaged_blocks, parse_prefix, shard_path
from raidd.daemon import graph
from raidd.daemon.opening import now_text
from raidd.errors import ArrayUnwritable, LabelForked, MemberFaulty
from tests.support.arrays import SmallArray
from tests.support.crash_world import CrashWorld
from tests.support.faulty_disk import Call, FaultyDisk
from tests.support.inbox_yard import dicom
from tests.support.loop_disks import loop_disks, requires_disks
from tests.support.memory_disk import MemoryDisk
from tests.support.real_folders import RealFolders, real_folders

OLD = {f"1.1.{n}": Random(f"old {n}").randbytes(50_000 + n) for n in range(3)}
NEW = {f"1.2.{n}": Random(f"new {n}").randbytes(90_000 + n) for n in range(3)}


PATIENT_S, HASTY_S = 60.0, 3.0
"""Members' deadlines: where nothing hangs a busy machine must not look like a sick disk; where something does, the
test waits for it."""


@pytest.fixture
def array(tmp_path: Path) -> SmallArray:
    return SmallArray(tmp_path, deadline_s=PATIENT_S)


@pytest.fixture
def hasty(tmp_path: Path) -> SmallArray:
    return SmallArray(tmp_path, deadline_s=HASTY_S)


def check(array: SmallArray, images: dict[str, bytes]) -> None:
    for uid, data in images.items():
        assert array.read(uid) == data


def check_any_two_away(array: SmallArray, images: dict[str, bytes]) -> None:
    for pair in combinations(range(6), 2):
        for slot in pair:
            array.lose(slot)
        check(array, images)
        for slot in pair:
            array.bring_back(slot)


def whole(array: SmallArray) -> bool:
    """Nothing is missing, nothing is left over, and the books are right."""
    assert array.catalog.check() == []
    assert array.catalog.counts().absent_shards == 0
    for disk in array.memory:
        for path in disk.files():
            assert not path.startswith("tmp/"), path
            if path.startswith("segments/"):
                assert array.catalog.segment(UUID(Path(path).name[:36])) is not None, f"{path} is unknown"
    return True


def shard_on(array: SmallArray, segment: UUID, slot: int) -> tuple[MemoryDisk, str, int]:
    """The segment's shard on that slot: disk, path, index."""
    row = array.catalog.segment(segment)
    assert row is not None
    index = row.placement.members.index(array.uuid(slot))
    return next(d for d in array.memory if d.uuid == array.uuid(slot)), shard_path(segment, index), index


# -- power, and what is left at exactly k -----------------------------------------------------------------------


@pytest.mark.parametrize("gone", range(1, 6))
def test_power_cut_with_exactly_k_plus_1_shards_one_disk_away_and_the_catalog_lost(tmp_path: Path, gone: int) -> None:
    """1. One member fails in the write: the image is acknowledged on k+1 = 5. 2. Power cut everywhere. 3. A second
    disk does not come back, and the catalog is lost. 4. Everything is readable, nothing is tidied away. 5. It comes
    back: everything is protected again."""
    array = SmallArray(tmp_path, seed=gone, deadline_s=PATIENT_S)
    array.put(OLD)
    array.disk(0).fail("file.write", "tmp/*")
    assert array.put(NEW).protected
    assert array.catalog.counts().absent_shards == 1
    array.gate.die()
    array.lost.add(array.uuid(gone))
    array.crash(seed=gone)
    array.lose_catalog()
    check(array, OLD | NEW)
    assert array.row("1.2.0").state in ("stored", "protected")  # slot 0 is back: its shard may be mended already
    assert not any(path.startswith("quarantine/") for disk in array.memory for path in disk.files())
    array.bring_back(gone)
    array.repair_all()
    assert whole(array)
    check_any_two_away(array, OLD | NEW)


@pytest.mark.parametrize("gone", range(1, 6))
def test_exactly_k_shards_after_a_power_cut_are_served_and_not_called_protected(tmp_path: Path, gone: int) -> None:
    """The same, and the member that failed stays away: k shards are left."""
    array = SmallArray(tmp_path, seed=gone, deadline_s=PATIENT_S)
    array.disk(0).fail("file.write", "tmp/*")
    assert array.put(NEW).protected
    array.lost |= {array.uuid(0), array.uuid(gone)}
    array.crash(seed=None)
    array.lose_catalog()
    check(array, NEW)
    assert array.row("1.2.0").state == "stored"
    assert array.store.standing().failures_tolerated == 0
    for slot in (0, gone):
        array.bring_back(slot)
    array.repair_all()
    assert whole(array)


def test_a_rename_lost_by_a_dying_disk_whose_folder_fsync_succeeds_does_not_count(array: SmallArray) -> None:
    """In memory: the disk dies after the fdatasync; the folder's fsync says yes; the name reads EIO."""
    array.put(OLD)
    array.disk(3).lie("sync_folder")
    array.disk(3).fail("length", "segments/*", error=MemberFaulty("EIO"))
    receipt = array.put(NEW)
    disk, path, index = shard_on(array, receipt.segment, 3)
    assert receipt.protected
    assert index in array.catalog.absent(receipt.segment)
    disk.power_cut()
    assert path not in disk.files()  # what the fsync had promised
    array.disk(3).heal()
    array.bring_back(3)
    array.repair_all()
    assert whole(array)
    check_any_two_away(array, NEW)


@pytest.mark.disks
@requires_disks("xfs")
@pytest.mark.parametrize("renamed_durably", [True, False])
def test_a_rename_lost_by_a_dying_xfs_whose_folder_fsync_succeeds_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed_durably: bool
) -> None:
    """The real one: 1. Slot 3 is a real XFS. 2. It is shut down without a log flush between the shard's fdatasync
    (which takes the rename along; or one that did nothing) and the fsync of its folder. 3. The kernel answers that
    fsync with success. 4. The shard does not count; the array goes on. 5. The disk is mounted again, and mended."""
    with loop_disks(1, "xfs") as [xfs]:
        array = SmallArray(tmp_path, deadline_s=20)
        uuid = array.uuid(3)
        label = label_for(uuid, array.membership.roster).pack()
        create_member_folder(str(xfs.folder), uuid, None, {"label.json": label})
        real = FaultyDisk(LocalDisk(str(xfs.folder), uuid))
        member = array.membership.member(uuid)
        assert member is not None
        member.disk = array.disks[uuid] = real
        array.put(OLD)
        answers: list[str] = []
        fsync = os.fsync

        def die_first(descriptor: int) -> None:
            status = os.fstat(descriptor)
            if status.st_dev == xfs_device and stat.S_ISDIR(status.st_mode) and not answers:
                xfs.shutdown()  # after the open, before the fsync
                answers.append("none")
                fsync(descriptor)
                answers[0] = "success"
            else:
                fsync(descriptor)

        if not renamed_durably:
            real.lie("file.sync")
        xfs_device = xfs.folder.stat().st_dev
        monkeypatch.setattr(os, "fsync", die_first)
        receipt = array.put(NEW)
        monkeypatch.setattr(os, "fsync", fsync)
        assert answers == ["success"], "this kernel tells the truth: then there is nothing to prove"
        assert receipt.protected
        row = array.catalog.segment(receipt.segment)
        assert row is not None
        index = row.placement.members.index(uuid)
        assert array.catalog.absent(receipt.segment) == {index}
        assert not member.present
        real.heal()
        xfs.umount()
        xfs.mount()
        assert (xfs.folder / f"raidd-{uuid}" / shard_path(receipt.segment, index)).exists() == renamed_durably
        member.arrive()
        array.welcome_all()
        array.repair_all()
        assert array.catalog.counts().absent_shards == 0
        for pair in combinations((0, 1, 2, 4, 5), 2):
            for slot in pair:
                array.lose(slot)
            check(array, OLD | NEW)
            for slot in pair:
                array.bring_back(slot)


# -- disks that hang ---------------------------------------------------------------------------------------------


def test_a_late_write_of_a_hung_disk_takes_its_own_bytes_though_its_buffer_was_wanted_again(hasty: SmallArray) -> None:
    """1. A write hangs before it has taken its bytes. 2. The batch is acknowledged without it, and many more batches
    come and go. 3. The disk wakes up. 4. What it writes now are still its own shard's bytes, and it renames nothing."""
    array = hasty
    disk = array.disk(2)
    hang = disk.hang("file.write", "tmp/*")
    first = array.put(NEW)
    assert hang.entered.is_set()
    assert first.protected
    for number in range(12):
        array.put({f"3.{number}": bytes([number]) * 200_000})
    written: list[bytes] = []

    def before_the_unlink(call: Call) -> None:
        files = disk.inner.files()  # type: ignore[attr-defined]
        if call.operation == "unlink" and call.path in files and call.path.startswith("tmp/"):
            written.append(files[call.path])

    disk.on_call = before_the_unlink
    hang.release()
    _ended(array, 2)
    (late,) = written
    prefix = parse_prefix(late)
    assert prefix.head.segment == first.segment
    assert damaged_blocks(prefix, late[prefix.head.body_offset :]) == []
    assert not [path for path in disk.inner.files() if path.startswith("segments/")]  # type: ignore[attr-defined]
    disk.heal()
    array.bring_back(2)
    array.repair_all()
    assert whole(array)
    check_any_two_away(array, NEW)


def test_a_rename_that_goes_through_late_is_found_good_or_taken_away(hasty: SmallArray) -> None:
    """Two disks hang in their renames: the batch is written again under a new id. The renames then go through: shards
    of an attempt that nobody was told of appear, and are taken away."""
    array = hasty
    hangs = [array.disk(slot).hang("rename_new", "segments/*", call=1) for slot in (1, 4)]
    receipt = array.put(NEW)
    row = array.catalog.segment(receipt.segment)
    assert row is not None
    (first,) = row.replaces
    assert first != receipt.segment
    for hang in hangs:
        hang.release()
    for slot in (1, 4):
        _ended(array, slot)
        array.bring_back(slot)
    array.repair_all()
    assert whole(array)
    assert array.catalog.segment(first) is None
    check_any_two_away(array, NEW)


def test_a_laggards_late_shard_is_taken_as_its_repair(hasty: SmallArray) -> None:
    """One disk hangs in its rename; it goes through after the commit: the shard is good, and is kept."""
    array = hasty
    hang = array.disk(1).hang("rename_new", "segments/*", call=1)
    receipt = array.put(NEW)
    disk, path, index = shard_on(array, receipt.segment, 1)
    assert index in array.catalog.absent(receipt.segment)
    hang.release()
    _ended(array, 1)
    there = disk.files().get(path)
    array.bring_back(1)
    array.repair_all()
    assert disk.files()[path] == (there or disk.files()[path])
    assert whole(array)
    check_any_two_away(array, NEW)


def test_killed_while_a_disk_hangs_and_started_while_it_still_hangs(hasty: SmallArray) -> None:
    """1. A disk hangs in a write. 2. kill -9. 3. The start finds the disk hanging still: it does without. 4. Images
    come in and go out. 5. The disk wakes up, the dead process's last call takes effect. 6. It comes back."""
    array = hasty
    array.put(OLD)
    slot = 2
    hang = array.disk(slot).hang("rename_new", "segments/*")
    array.put(NEW)
    still = array.disk(slot)
    array.lost.add(array.uuid(slot))  # discovery.each_in_time: a place that does not answer is left out
    array.crash(power=False)
    assert array.membership.member(array.uuid(slot)).present is False  # type: ignore[union-attr]
    later = {"4.1": b"while it hung"}
    assert array.put(later).protected
    check(array, OLD | NEW | later)
    hang.release()
    for thread in list(still.hanging):
        thread.join(10)
    array.bring_back(slot)
    array.repair_all()
    assert whole(array)
    check_any_two_away(array, OLD | NEW | later)


def test_a_disk_that_begins_to_hang_in_the_start_costs_its_deadline(hasty: SmallArray) -> None:
    """Its label could still be read; looking for leftovers on it hangs."""
    array = hasty
    array.put(OLD)
    array.stop()
    original = array._faulty

    def hanging(disk: MemoryDisk) -> FaultyDisk:
        faulty = original(disk)
        if disk is array.memory[5]:
            hangs.append(faulty.hang("sync_all"))
        return faulty

    hangs: list[object] = []
    array._faulty = hanging  # type: ignore[method-assign]
    array.start()
    assert not array.membership.member(array.memory[5].uuid).present  # type: ignore[union-attr]
    assert array.put(NEW).protected
    check(array, OLD | NEW)
    for hang in hangs:
        hang.release()  # type: ignore[attr-defined]


def _ended(array: SmallArray, slot: int) -> None:
    """Every operation of the member that was under way has really ended."""
    member = array.membership.member(array.uuid(slot))
    assert member is not None
    for worker in member._workers.values():
        with worker.changed:
            assert worker.changed.wait_for(lambda w=worker: w._current is None and not w._queue, 20)  # type: ignore[misc]


# -- a second attempt ----------------------------------------------------------------------------------------------


def test_a_retry_has_a_new_id_and_the_first_attempt_never_comes_back(array: SmallArray) -> None:
    """1. Two members fail: the batch is written again, narrower. 2. Copies of the first attempt's shards, enough of
    them to make it exist, come back from the dead. 3. Neither a restart nor a lost catalog takes it in beside the
    second."""
    kept: dict[int, tuple[str, bytes]] = {}
    all_kept = threading.Event()
    for slot in range(6):
        array.disk(slot).on_call = _keeper(array.disk(slot), slot, kept, all_kept)
    for slot in (1, 4):
        array.disk(slot).fail("sync_folder", "segments/*", after=True, call=1)
    receipt = array.put(NEW)
    row = array.catalog.segment(receipt.segment)
    assert row is not None
    (first,) = row.replaces
    for slot in (1, 4):
        _ended(array, slot)
        array.bring_back(slot)
    array.repair_all()
    mine = {slot: found for slot, found in kept.items() if str(first) in found[0]}
    assert len(mine) == 6
    for loss in ("restart", "lose_catalog"):
        for slot, (path, data) in mine.items():
            array.memory[slot].put(path, data)
        array.catalog.keep_reserved([first])
        getattr(array, loss)()
        assert array.catalog.segment(first) is None
        assert whole(array)
        check(array, NEW)
        assert len(array.catalog.copies("1.2.0", 1, frozenset())) == 1


def _keeper(
    disk: FaultyDisk, slot: int, kept: dict[int, tuple[str, bytes]], all_kept: threading.Event
) -> Callable[[Call], None]:
    """Keeps a copy of the first shard that comes to be; nobody goes on before there is one of each slot."""

    def keep(call: Call) -> None:
        if call.operation == "sync_folder" and slot not in kept:
            files = disk.inner.files()  # type: ignore[attr-defined]
            kept[slot] = next((path, data) for path, data in files.items() if path.startswith("segments/"))
            if len(kept) == 6:
                all_kept.set()
            all_kept.wait(PATIENT_S / 2)

    return keep


def test_ids_are_never_given_twice_whatever_fails(array: SmallArray) -> None:
    seen: set[UUID] = set()
    for number in range(20):
        slots = Random(number).sample(range(6), 2)
        for slot in slots:
            array.disk(slot).fail("file.sync", "tmp/*", call=1)
        receipt = array.put({f"5.{number}": bytes([number]) * 3000})
        row = array.catalog.segment(receipt.segment)
        assert row is not None
        ids = {receipt.segment, *row.replaces}
        assert not ids & seen
        seen |= ids
        for slot in slots:
            array.disk(slot).heal()
            array.bring_back(slot)
        if number % 5 == 4:
            array.crash(seed=number)
    array.repair_all()
    assert whole(array)


def test_a_segment_that_was_refused_leaves_nothing(array: SmallArray) -> None:
    """What would replace the only copy of an image is refused after its shards were written."""
    receipt = array.put(OLD)
    with pytest.raises(ArrayUnwritable):
        array.put(NEW, replaces=[receipt.segment])
    for slot in range(6):
        _ended(array, slot)
    check(array, OLD)
    assert whole(array)
    array.restart()
    check(array, OLD)
    assert whole(array)


# -- the way in, with the real inbox -------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> Iterator[CrashWorld]:
    world = CrashWorld.new(tmp_path / "world")
    yield world
    world.bury()


@pytest.mark.parametrize("moment", ["catalog begin", "catalog committed", "away:renamed", "away:checked"])
def test_a_file_that_its_sender_replaces_between_read_and_unlink_is_taken_in_too(
    world: CrashWorld, moment: str
) -> None:
    old, new = dicom("1.2.3"), dicom("1.2.3", patient="Corrected^Name")
    path = world.drop("a.dcm", old)
    step, replaced = world.gate.step, []

    def replace_then(name: str) -> None:
        if name == moment and not replaced and not world.originals.get("b.dcm"):
            replaced.append(name)
            path.with_name(".new").write_bytes(new)
            path.with_name(".new").rename(path)
            world.expected[new] += 1
        step(name)

    world.gate.step = replace_then  # type: ignore[method-assign]
    world.custody._step = replace_then
    assert world.run()
    assert replaced
    assert world.faults_when_idle() == []
    assert {row.version for row in world.rows()} == {1, 2}


def test_one_image_that_breaks_its_batch_costs_nobody_else(world: CrashWorld) -> None:
    commit = world.array.store.commit

    def refuse_one(draft: Any, used: int, images: Any, replaces: Any = ()) -> Any:
        if any(image.sop_instance_uid == "1.2.5" for image in images):
            raise ValueError("this image cannot be stored")
        return commit(draft, used, images, replaces)

    world.array.store.commit = refuse_one  # type: ignore[method-assign]
    for number in range(9):
        data = dicom(f"1.2.{number}")
        world.drop(f"{number}.dcm", data, junk=number == 5)
    assert world.run()
    assert world.faults_when_idle() == []
    assert (world.rejected / "5.dcm.reason.txt").read_text().startswith("code: unstorable")


def _hurt(world: CrashWorld, uid: str, shards: int) -> None:
    """Flip a byte in the first block of that many shards of the image's segment."""
    (row,) = world.array.store.versions(uid)
    segment = world.array.catalog.segment(row.parts[0].segment)
    assert segment is not None
    for index in range(shards):
        disk = next(d for d in world.array.memory if d.uuid == segment.placement.members[index])
        disk.flip(shard_path(segment.segment, index), segment.body_offset)


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_a_duplicate_whose_stored_copy_is_damaged_is_not_acknowledged_on_its_strength(
    world: CrashWorld, shards: int
) -> None:
    """Two damaged shards are decoded around; with three the newcomer is stored as fresh parts of the same version."""
    data = dicom("1.2.3", pixels=Random(3).randbytes(40_000))
    world.drop("a.dcm", data)
    assert world.run()
    _hurt(world, "1.2.3", shards)
    world.drop("again.dcm", data, same_as=data)
    assert world.run()
    assert world.here() == []
    (row,) = world.rows()
    assert (row.version, row.state) == (1, "protected")
    assert b"".join(world.array.store.read(row)) == data
    left = world.remains()
    again = CrashWorld.revive(left, world.top, strict=True)
    assert b"".join(again.array.store.read(again.rows()[0])) == data
    again.bury()


def test_a_duplicate_whose_stored_copy_cannot_be_protected_is_stored_again_and_protected(world: CrashWorld) -> None:
    """Two disks are away: k shards are left of the stored copy, it cannot be mended now; a fresh one is protected."""
    data = dicom("1.2.3", pixels=Random(3).randbytes(40_000))
    world.drop("a.dcm", data)
    assert world.run()
    (row,) = world.rows()
    for slot in (0, 1):
        world.array.lose(slot)
    assert world.rows()[0].state == "stored"
    world.drop("again.dcm", data, same_as=data)
    assert world.run()
    (now,) = world.rows()
    assert (now.version, now.state) == (1, "protected")
    assert now.parts[0].segment != row.parts[0].segment
    for slot in (2, 3):  # it stands two more
        world.array.lose(slot)
    assert b"".join(world.array.store.read(world.rows()[0])) == data


def test_a_symlinked_subfolder_is_neither_followed_nor_removed_elsewhere(world: CrashWorld) -> None:
    outside = world.top / "outside"
    outside.mkdir()
    (outside / "secret.dcm").write_bytes(dicom("6.6.6"))
    world.drop("sub/mine.dcm", dicom("1.2.3"))
    (world.inbox / "link").symlink_to(outside)
    world.refusals += 1
    assert world.run()
    assert [row.sop_instance_uid for row in world.rows()] == ["1.2.3"]
    assert (outside / "secret.dcm").read_bytes() == dicom("6.6.6")
    assert (world.rejected / "link").is_symlink()
    assert (world.rejected / "link.reason.txt").read_text().startswith("code: not-a-file")


def test_unfinished_parts_that_lie_beside_other_images_are_not_replaced(tmp_path: Path) -> None:
    """1. A large image's last part shares a segment with a small image. 2. Its first part is lost. 3. It is sent
    again: the new attempt must not take the small image's segment away, nor wait for ever because it may not."""
    world = CrashWorld.new(tmp_path / "world", part_size=4096)
    large, small = dicom("1.5", pixels=Random(5).randbytes(5000)), dicom("1.6", pixels=Random(6).randbytes(600))
    first = _commit_part(world, large, 0, b"")
    _commit_part(world, large, 4096, small)
    assert {row.sop_instance_uid for row in world.rows()} == {"1.5", "1.6"}
    world.array.catalog.forget([first], now_text(), "test: more disks died than parity can stand")
    world.expected[small] += 1
    world.drop("again.dcm", large)
    assert world.run()
    assert world.stored() == world.expected
    assert world.array.catalog.check() == []
    world.bury()


def _commit_part(world: CrashWorld, large: bytes, start: int, small: bytes) -> UUID:
    """One part of ``large`` (UID 1.5), and with the last one ``small`` (UID 1.6), as one segment."""
    part, array = large[start : start + 4096], world.array
    last = start + len(part) == len(large)
    entry = replace(
        array.entry("1.5", part, 0),
        image=UUID("01a20c19-0000-7a64-8683-9eb905b6e6e3"),
        image_offset=start,
        size=len(large) if last else None,
        sha256=sha256(large).hexdigest() if last else None,
    )
    draft = array.store.draft(5.0)
    assert draft is not None
    draft.buffer[: len(part) + len(small)] = part + small
    entries = [entry, array.entry("1.6", small, len(part))] if small else [entry]
    receipt = array.store.commit(draft, len(part) + len(small), entries)
    draft.discard()
    return receipt.segment


# -- the catalog and the clock --------------------------------------------------------------------------------------


@pytest.mark.parametrize("replicated", [True, False], ids=["journal-replicated", "journal-behind"])
@pytest.mark.parametrize("count", [3, 100], ids=["within-the-reserve", "beyond-it"])
def test_a_catalog_from_a_hot_backup_loses_nothing_and_gives_no_id_twice(
    array: SmallArray, replicated: bool, count: int
) -> None:
    """The backup was made while raidd ran: the ids of what came later may be among those it has reserved."""
    array.put(OLD)
    backup = array.folder / "backup"
    shutil.copytree(array.state_dir, backup)
    later = {f"7.{number}": bytes([number]) * 500 for number in range(count)}
    for uid, data in later.items():
        array.put({uid: data})
    while replicated and array.parts.replicator.replicate_once():
        pass
    array.put_back_catalog(backup)
    check(array, OLD | later)
    assert whole(array)
    known = {row.segment for row in array.all_segments()}
    for number in range(70):
        assert array.put({f"8.{number}": b"after"}).segment not in known
    array.crash(seed=1)
    check(array, OLD | later)
    assert whole(array)


def test_a_catalog_from_a_backup_and_a_disk_away(array: SmallArray) -> None:
    """What the disk that is away holds besides is taken in when it comes back."""
    array.put(OLD)
    backup = array.save_catalog()
    array.put(NEW)
    array.lose(1)
    array.put_back_catalog(backup)
    check(array, OLD | NEW)
    array.bring_back(1)
    array.repair_all()
    assert whole(array)
    check_any_two_away(array, OLD | NEW)


@pytest.mark.parametrize("loss", ["restart", "crash", "lose_catalog"])
def test_a_clock_set_back_a_year_changes_no_order_and_loses_nothing(
    array: SmallArray, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    before = array.put(OLD).segment
    now = graph.now_ms()
    monkeypatch.setattr(graph, "now_ms", lambda: now - 365 * 86_400_000)
    monkeypatch.setattr(graph, "now_text", lambda: "2025-11-24T00:00:00.000Z")
    getattr(array, loss)()
    for number in range(80):  # more than were reserved before
        receipt = array.put({f"9.{number}": bytes([number]) * 100})
        assert receipt.segment > before
        before = receipt.segment
    array.put(NEW, version=2)
    getattr(array, loss)()
    check(array, OLD | NEW)
    assert array.put({"9.99": b"x"}).segment > before
    assert whole(array)


# -- members --------------------------------------------------------------------------------------------------------


def test_two_members_back_after_disjoint_absences_hold_everything_again(array: SmallArray) -> None:
    """1. A is away while X is stored, B while Y is. 2. Both are back at one start. 3. All shards are where they should
    be, and any two others may die."""
    one, two = {"1.X": b"x" * 70_000}, {"1.Y": b"y" * 70_000}
    array.lose(0)
    array.put(one)
    array.bring_back(0)
    array.lose(5)
    array.put(two)
    array.lost.clear()
    array.restart()
    array.repair_all()
    assert whole(array)
    check_any_two_away(array, one | two)


def test_labels_of_disjoint_absences_do_not_fork(array: SmallArray) -> None:
    """The roster changed in both absences: each stale label is an ancestor, the newest counts."""
    for away, changed in ((0, 3), (5, 2)):
        array.lose(away)
        for event in (RosterEvent.OFFLINE, RosterEvent.ONLINE):
            array.membership.set_roster(apply(array.membership.roster, array.uuid(changed), event))
        array.put({f"1.{away}": bytes([away]) * 60_000})
    epoch = array.membership.roster.epoch
    array.lost.clear()
    array.restart()
    assert array.membership.roster.epoch == epoch
    for disk in array.memory:
        assert Label.parse(disk.read("label.json")).roster.epoch == epoch
    array.repair_all()
    assert whole(array)


# -- a shard of a newer format --------------------------------------------------------------------------------------


def _make_newer(disk: MemoryDisk, path: str) -> bytes:
    """Another major, rightly signed, with bytes that this program cannot judge."""
    data = bytearray(disk.files()[path])
    struct.pack_into("<H", data, 8, 2)
    data[HEAD_SIZE:] = Random(0).randbytes(len(data) - HEAD_SIZE)
    struct.pack_into("<I", data, HEAD_SIZE - 4, crc32c(bytes(data[: HEAD_SIZE - 4])))
    disk.put(path, bytes(data))
    return bytes(data)


@pytest.mark.parametrize("slot", [0, 3])
def test_a_shard_of_an_unknown_major_is_never_repaired_over_nor_quarantined(array: SmallArray, slot: int) -> None:
    segment = array.put(NEW).segment
    disk, path, _index = shard_on(array, segment, slot)
    newer = _make_newer(disk, path)

    def untouched() -> None:
        check(array, NEW)
        array.scrub()
        array.repair_all()
        assert disk.files()[path] == newer
        assert not any(name.startswith("quarantine/") for name in disk.files())
        assert array.catalog.check() == []

    untouched()
    for loss in (array.restart, array.crash, array.lose_catalog):
        loss()
        untouched()
    assert array.store.standing().counts.unreadable_images == 0
    array.put({"2.1": b"other images go on"})
    untouched()


# -- labels, on real folders ----------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[RealFolders]:
    with real_folders(tmp_path / "array") as array:
        array.put(OLD)
        yield array


HURT: dict[str, Callable[[bytes], bytes | None]] = {
    "half-written": lambda label: label[: len(label) // 2],
    "bit-flipped": lambda label: label[:100] + bytes([label[100] ^ 4]) + label[101:],
    "empty": lambda _label: b"",
    "zeroed": lambda label: bytes(len(label)),
    "gone": lambda _label: None,
}


def hurt(path: Path, how: str) -> bytes:
    """Damage a label; returns what it was."""
    before = path.read_bytes()
    after = HURT[how](before)
    path.unlink() if after is None else path.write_bytes(after)
    return before


@pytest.mark.parametrize("how", HURT)
def test_a_damaged_label_is_made_again_at_the_start(folders: RealFolders, how: str) -> None:
    """From the others' roster, since a good shard of this array lies on the disk; it is a member from the start on."""
    folders.close()
    before = hurt(folders.label(2), how)
    folders.open()
    assert folders.label(2).read_bytes() == before
    assert folders.member(2).present
    for uid, data in OLD.items():
        assert folders.read(uid) == data
    assert folders.array.store.standing().failures_tolerated == 2


@pytest.mark.parametrize("how", HURT)
def test_a_label_that_is_damaged_while_raidd_runs_is_made_again(folders: RealFolders, how: str) -> None:
    """The probe notices: the disk leaves, is proved, and is back; what it missed meanwhile is mended."""
    before = hurt(folders.label(2), how)
    folders.probe()
    assert not folders.member(2).present
    folders.put(NEW)
    folders.probe()
    assert folders.member(2).present
    assert folders.label(2).read_bytes() == before
    while folders.array.repairs.work_once():
        pass
    assert folders.array.opened.catalog.counts().absent_shards == 0
    assert folders.array.opened.catalog.check() == []


@pytest.mark.parametrize("slots", [(0, 1), (0, 1, 2, 3, 4)], ids=["two", "five"])
def test_several_damaged_labels_are_made_again_from_the_rest(folders: RealFolders, slots: tuple[int, ...]) -> None:
    folders.close()
    before = {slot: hurt(folders.label(slot), "bit-flipped") for slot in slots}
    folders.open()
    assert {slot: folders.label(slot).read_bytes() for slot in slots} == before
    assert all(folders.member(slot).present for slot in range(6))


def test_a_damaged_label_on_a_disk_that_proves_nothing_is_left_alone(tmp_path: Path) -> None:
    """No shard of this array lies there: the disk stays away, nothing is written to it, and the reason says so."""
    with real_folders(tmp_path / "array") as array:
        array.close()
        hurt(array.label(2), "bit-flipped")
        before = _tree(array.mounts[2])
        array.open()
        array.probe()
        array.put(OLD)
        assert not array.member(2).present
        assert "label" in array.member(2).presence.reason
        assert _tree(array.mounts[2]) == before


def test_a_damaged_label_on_a_disk_of_another_array_is_left_alone(folders: RealFolders, tmp_path: Path) -> None:
    """Somebody renamed a member folder of another array: its shards say whose it is."""
    with real_folders(tmp_path / "other") as other:
        other.put(NEW)
        other.close()
        folders.close()
        uuid = folders.folder(2).name
        shutil.rmtree(folders.folder(2))
        shutil.copytree(other.folder(0), folders.mounts[2] / uuid)
        hurt(folders.label(2), "bit-flipped")
        before = _tree(folders.mounts[2])
        folders.open()
        folders.probe()
        assert not folders.member(2).present
        assert _tree(folders.mounts[2]) == before
        for uid, data in OLD.items():
            assert folders.read(uid) == data


@pytest.mark.parametrize("live", [False, True], ids=["at-the-start", "live"])
def test_a_label_that_is_not_understood_means_read_nothing_write_nothing(folders: RealFolders, live: bool) -> None:
    if not live:
        folders.close()
    document = json.loads(folders.label(2).read_bytes())
    document["requires"] = ["time-travel"]
    del document["crc32c"]
    document["crc32c"] = f"{crc32c(canonical_json(document)):08x}"
    folders.label(2).write_bytes(canonical_json(document))
    before = _tree(folders.mounts[2])
    if not live:
        folders.open()
    folders.probe()
    folders.put(NEW)
    folders.probe()
    assert not folders.member(2).present
    assert "time-travel" in folders.member(2).presence.reason
    assert _tree(folders.mounts[2]) == before
    for uid, data in (OLD | NEW).items():
        assert folders.read(uid) == data


def _fork(folders: RealFolders, mine: Sequence[int], theirs: Sequence[int]) -> None:
    """Two successors of one roster, each on some of the disks."""
    roster = folders.array.opened.membership.roster
    sides = [roster.successor(contact=f"side {number}") for number in range(2)]
    folders.close()
    for slots, side in zip((mine, theirs), sides, strict=True):
        for slot in slots:
            folders.label(slot).write_bytes(label_for(folders.uuid(slot), side).pack())


def test_two_forked_rosters_stop_the_start_show_both_and_change_nothing(folders: RealFolders) -> None:
    _fork(folders, (0, 1, 2), (3, 4, 5))
    before = [_tree(mount) for mount in folders.mounts]
    with pytest.raises(LabelForked) as stopped:
        folders.open()
    assert str(stopped.value).count("epoch 2, on 3 members") == 2
    assert [_tree(mount) for mount in folders.mounts] == before


def test_a_fork_that_few_disks_carry_is_outvoted(folders: RealFolders) -> None:
    """N-m = 4 members against fewer than m+1 = 3."""
    _fork(folders, (0, 1, 2, 3), (4, 5))
    folders.open()
    roster = folders.array.opened.membership.roster
    assert roster.contact == "side 0"
    for uid, data in OLD.items():
        assert folders.read(uid) == data


def test_a_disk_with_a_forked_roster_that_comes_while_raidd_runs_stays_away_untouched(folders: RealFolders) -> None:
    roster = folders.array.opened.membership.roster
    stranger = label_for(folders.uuid(4), roster.successor(contact="elsewhere")).pack()
    folders.member(4).leave("pulled")
    folders.label(4).write_bytes(stranger)
    folders.probe()
    assert not folders.member(4).present
    assert folders.label(4).read_bytes() == stranger


def _tree(folder: Path) -> dict[str, bytes]:
    """Every file below, but the locks, which say who looked."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not Path(name).name.startswith("lock")}
