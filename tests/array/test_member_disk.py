"""One contract over every member disk, and the commit rule of one shard (C1) against crashes at each of its steps."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raidd.array import syscalls
from raidd.array.host import create_member_folder
from raidd.array.local_disk import LocalDisk
from raidd.array.member_disk import (
    CANARY_SIZE,
    Buffer,
    FileNotThere,
    MemberDisk,
    member_error,
    parent_folder,
    quarantine,
    write_durable,
)
from raidd.array.worker import Cancel, Cancelled
from raidd.errors import (
    MemberAway,
    MemberConflict,
    MemberError,
    MemberFaulty,
    MemberFull,
    MemberReadOnly,
    RaiddError,
)
from tests.support.faulty_disk import FaultyDisk, SimulatedCrash
from tests.support.memory_disk import MemoryDisk

TMP, TARGET = "tmp/one", "segments/2026/11/24/one-00.shard"


def local(folder: Path) -> LocalDisk:
    uuid = uuid4()
    create_member_folder(str(folder), uuid)
    return LocalDisk(str(folder), uuid)


def no_openat2(*_: object) -> int:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.fixture(params=["local", "local without openat2", "memory", "faulty"])
def disk(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemberDisk:
    if request.param == "local without openat2":
        monkeypatch.setattr(syscalls, "openat2", no_openat2)
    if request.param.startswith("local"):
        return local(tmp_path)
    return MemoryDisk() if request.param == "memory" else FaultyDisk(MemoryDisk())


# -- the contract ------------------------------------------------------------------------------------------------------


def test_a_new_member_has_its_folders_lock_and_canary(disk: MemberDisk) -> None:
    assert disk.list("") == ["canary", "config/", "journal/", "lock", "quarantine/", "segments/", "tmp/"]
    assert disk.length("canary") == CANARY_SIZE
    disk.check()


def test_what_was_written_in_pieces_reads_back_as_one(disk: MemberDisk) -> None:
    pieces: list[Buffer] = [
        b"",
        b"head",
        bytearray(b"-"),
        memoryview(b"xbodyx")[1:5],
        *[b"%d" % n for n in range(3000)],
    ]
    file = disk.create("tmp/a", 20000)
    file.write(pieces[:2])
    file.write(pieces[2:])
    whole = b"".join(bytes(piece) for piece in pieces)
    assert file.length() == len(whole)
    file.sync()
    file.close()
    file.close()
    assert disk.read("tmp/a") == whole
    assert disk.length("tmp/a") == len(whole)


@pytest.mark.parametrize("uncached", [False, True])
def test_reads_are_exact_at_every_border(disk: MemberDisk, uncached: bool) -> None:
    data = os.urandom(10000)
    disk.replace("config/data", data)
    for offset in (0, 1, 4095, 4096, 8192, 9999, 10000, 20000):
        for length in (-1, 0, 1, 4096, 5000, 1 << 40):
            expected = data[offset:] if length < 0 else data[offset : offset + length]
            assert disk.read("config/data", offset, length, uncached=uncached) == expected


def test_read_into_fills_the_buffer_and_says_how_much_there_was(disk: MemberDisk) -> None:
    disk.replace("config/data", b"0123456789")
    buffer = bytearray(b"." * 8)
    assert disk.read_into("config/data", 4, memoryview(buffer)) == 6
    assert buffer == b"456789.."
    assert disk.read_into("config/data", 1, memoryview(buffer)[:3]) == 3
    assert buffer == b"123789.."


def test_create_refuses_a_name_that_is_taken_and_leaves_it_alone(disk: MemberDisk) -> None:
    disk.replace("config/a", b"old")
    with pytest.raises(MemberConflict):
        disk.create("config/a", 3)
    assert disk.read("config/a") == b"old"


def test_rename_never_replaces(disk: MemberDisk) -> None:
    disk.replace("config/a", b"a")
    disk.replace("config/b", b"b")
    with pytest.raises(MemberConflict):
        disk.rename_new("config/a", "config/b")
    assert (disk.read("config/a"), disk.read("config/b")) == (b"a", b"b")
    disk.rename_new("config/a", "quarantine/a")
    assert disk.list("config") == ["b"]
    assert disk.read("quarantine/a") == b"a"


def test_a_missing_file_is_not_a_missing_member(disk: MemberDisk) -> None:
    actions: list[Callable[[], object]] = [
        lambda: disk.read("segments/none"),
        lambda: disk.read("no/such/folder"),
        lambda: disk.read_into("none", 0, memoryview(bytearray(1))),
        lambda: disk.length("none"),
        lambda: disk.overwrite("none", 0, b"x"),
        lambda: disk.rename_new("none", "other"),
        lambda: disk.create("no/such/folder", 1),
        lambda: disk.sync_folder("none"),
    ]
    for action in actions:
        with pytest.raises(FileNotThere):
            action()
    disk.unlink("none")
    disk.unlink("no/such/folder")
    assert disk.list("none") == []


def test_a_folder_is_not_a_file(disk: MemberDisk) -> None:
    for action in (disk.read, disk.length):
        with pytest.raises(MemberFaulty):
            action("segments")


def test_replace_puts_new_bytes_in_place_and_leaves_nothing_behind(disk: MemberDisk) -> None:
    disk.replace("label.json", b"one")
    disk.replace("label.json", b"two and more")
    disk.replace("config/deep/er/raidd.toml", b"x")
    assert disk.read("label.json") == b"two and more"
    assert disk.read("config/deep/er/raidd.toml") == b"x"
    assert disk.list("tmp") == []


def test_append_makes_what_is_missing_and_adds_at_the_end(disk: MemberDisk) -> None:
    disk.append("journal/more/2026-11-24.jsonl", b"one\n")
    disk.append("journal/more/2026-11-24.jsonl", b"two\n")
    assert disk.read("journal/more/2026-11-24.jsonl") == b"one\ntwo\n"


def test_overwrite_changes_bytes_in_place(disk: MemberDisk) -> None:
    disk.overwrite("canary", 16, b"tweet")
    assert disk.length("canary") == CANARY_SIZE
    assert disk.read("canary", 15, 7, uncached=True) == b"\0tweet\0"


def test_new_folders_are_reported_from_the_top_until_they_are_durable(disk: MemberDisk) -> None:
    every = ["segments/2026", "segments/2026/11", "segments/2026/11/24"]
    assert disk.make_folders("segments/2026/11/24")[-3:] == every
    assert disk.make_folders("segments/2026/11/24")[-3:] == every, "made, but never synced"
    for folder in ("", "segments", "segments/2026", "segments/2026/11"):
        disk.sync_folder(folder)
    assert disk.make_folders("segments/2026/11/24") == []
    assert disk.make_folders("segments/2026/12")[-1:] == ["segments/2026/12"]
    disk.sync_all()
    assert disk.make_folders("segments/2026/12") == []
    assert disk.make_folders("") == []


def test_listing_is_sorted_and_marks_folders(disk: MemberDisk) -> None:
    disk.make_folders("config/sub")
    disk.replace("config/b", b"")
    disk.replace("config/a", b"")
    assert disk.list("config") == ["a", "b", "sub/"]


def test_space_is_plausible(disk: MemberDisk) -> None:
    space = disk.space()
    assert 0 < space.free_bytes <= space.size_bytes
    assert space.free_inodes > 0
    assert not space.read_only


@pytest.mark.parametrize("path", ["../etc/passwd", "a/../../b", ""])
def test_a_path_that_leads_outside_is_a_bug(disk: MemberDisk, path: str) -> None:
    with pytest.raises(ValueError, match="not a path inside"):
        disk.create(path, 1)


# -- C1 ----------------------------------------------------------------------------------------------------------------


def whole() -> list[bytes]:
    body = bytes(range(256)) * 20
    return [zlib.crc32(body).to_bytes(4, "little"), body]


def looks_good(data: bytes) -> bool:
    """What any reader asks before it believes a shard: do the bytes agree with their checksum?"""
    return len(data) > 4 and zlib.crc32(data[4:]) == int.from_bytes(data[:4], "little")


def write(disk: MemberDisk, name: str = "one", cancel: Cancel | None = None) -> None:
    write_durable(disk, f"tmp/{name}", f"segments/2026/11/24/{name}-00.shard", whole(), cancel or Cancel())


def found(disk: MemberDisk, path: str = TARGET) -> bytes | None:
    try:
        return disk.read(path)
    except FileNotThere:
        return None


def test_c1_takes_its_steps_in_the_order_of_the_format() -> None:
    disk = FaultyDisk(MemoryDisk())
    write(disk)
    assert [(call.operation, call.path) for call in disk.log if call.operation != "file.close"] == [
        ("create", TMP),
        ("file.write", TMP),
        ("file.length", TMP),
        ("make_folders", "segments/2026/11/24"),
        ("rename_new", TARGET),
        ("file.sync", TMP),
        ("sync_folder", "segments"),
        ("sync_folder", "segments/2026"),
        ("sync_folder", "segments/2026/11"),
        ("sync_folder", "segments/2026/11/24"),
        ("length", TARGET),
    ]


def test_c1_in_a_warm_folder_costs_two_syncs() -> None:
    disk = FaultyDisk(MemoryDisk())
    write(disk, "one")
    before = len(disk.log)
    write(disk, "two")
    assert [operation for operation in disk.operations()[before:] if "sync" in operation] == [
        "file.sync",
        "sync_folder",
    ]


def test_c1_on_a_real_folder_leaves_one_whole_file(tmp_path: Path) -> None:
    disk = local(tmp_path)
    write(disk)
    assert disk.read(TARGET) == b"".join(whole())
    assert disk.list("tmp") == []


def steps_of_c1() -> int:
    disk = FaultyDisk(MemoryDisk())
    write(disk)
    return len(disk.log)


def test_c1_survives_every_power_cut_once_it_has_returned() -> None:
    disk = MemoryDisk()
    write(disk)
    for seed in (None, *range(50)):
        assert found(disk.copy().power_cut(seed)) == b"".join(whole())


@pytest.mark.parametrize("step", range(1, steps_of_c1() + 1))
def test_c1_cut_at_any_step_shows_nothing_wrong(step: int) -> None:
    memory = MemoryDisk()
    disk = FaultyDisk(memory)
    disk.crash(step)
    with pytest.raises(SimulatedCrash):
        write(disk)
    for seed in (None, *range(50)):
        data = found(memory.copy().power_cut(seed))
        assert data is None or not looks_good(data) or data == b"".join(whole())


def test_the_power_cuts_of_these_tests_do_tear_files() -> None:
    memory = MemoryDisk()
    disk = FaultyDisk(memory)
    disk.crash(disk_step(disk, "file.sync"))
    with pytest.raises(SimulatedCrash):
        write(disk)
    outcomes = [found(memory.copy().power_cut(seed)) for seed in range(50)]
    assert None in outcomes, "the rename can be lost"
    assert any(data is not None and not looks_good(data) for data in outcomes), "a torn file under the final name"
    assert b"".join(whole()) in outcomes, "or all of it has made it"


def disk_step(disk: FaultyDisk, operation: str) -> int:
    trial = FaultyDisk(MemoryDisk())
    write(trial)
    return trial.operations().index(operation) + 1 + len(disk.log)


@pytest.mark.parametrize("lie", ["file.sync", "sync_folder"])
def test_a_disk_that_lies_about_syncing_loses_the_shard(lie: str) -> None:
    memory = MemoryDisk()
    disk = FaultyDisk(memory)
    disk.lie(lie)
    write(disk)
    assert found(memory.power_cut()) != b"".join(whole())


@pytest.mark.parametrize("step", range(1, steps_of_c1() + 1))
def test_a_folder_left_unsynced_by_a_killed_process_does_not_take_the_next_shard_with_it(step: int) -> None:
    memory = MemoryDisk()
    killed = FaultyDisk(memory)
    killed.crash(step)
    with pytest.raises(SimulatedCrash):
        write(killed, "one")
    write(FaultyDisk(memory), "two")
    assert found(memory.power_cut(), "segments/2026/11/24/two-00.shard") == b"".join(whole())


def test_the_same_on_a_real_folder_is_asked_of_the_disk(tmp_path: Path) -> None:
    first = local(tmp_path)
    first.make_folders("segments/2026/11/24")  # and then the process dies
    second = FaultyDisk(LocalDisk(str(tmp_path), first.uuid))
    write(second)
    synced = [call.path for call in second.log if call.operation == "sync_folder"]
    assert synced == ["", "segments", "segments/2026", "segments/2026/11", "segments/2026/11/24"]


@pytest.mark.parametrize("step", range(1, steps_of_c1() + 1))
def test_an_error_at_any_step_is_raised_and_is_the_first_one(step: int) -> None:
    disk = FaultyDisk(MemoryDisk())
    trial = FaultyDisk(MemoryDisk())
    write(trial)
    operation = trial.operations()[step - 1]
    error = MemberFull("injected")
    disk.fail(operation, error=error, call=trial.operations()[:step].count(operation))
    with pytest.raises(MemberFull) as raised:
        write(disk)
    assert raised.value is error
    assert disk.inner.list("tmp") == [] or operation == "file.close", "the room it took is given back"


def test_a_failed_sync_is_never_repeated() -> None:
    disk = FaultyDisk(MemoryDisk())
    disk.fail("file.sync", call=1)
    with pytest.raises(MemberFaulty):
        write(disk)
    assert disk.operations().count("file.sync") == 1


def test_an_existing_final_name_is_never_replaced() -> None:
    disk = MemoryDisk()
    disk.put(TARGET, b"the first")
    with pytest.raises(MemberConflict):
        write(disk)
    assert disk.read(TARGET) == b"the first"
    assert disk.list("tmp") == []


def test_a_temporary_of_somebody_else_is_left_alone() -> None:
    disk = MemoryDisk()
    disk.put(TMP, b"not mine")
    with pytest.raises(MemberConflict):
        write(disk)
    assert disk.read(TMP) == b"not mine"


def test_a_write_that_lost_bytes_is_not_renamed() -> None:
    class Short(MemoryDisk):
        def grow(self, node, offset, data):  # type: ignore[no-untyped-def]
            super().grow(node, offset, data[:-1])

    disk = Short()
    with pytest.raises(MemberFaulty, match="bytes after"):
        write(disk)
    assert found(disk) is None


def test_a_name_that_vanished_after_its_folder_was_synced_is_noticed() -> None:
    disk = FaultyDisk(MemoryDisk())
    disk.on_call = lambda call: disk.inner.unlink(TARGET) if call.operation == "length" else None
    with pytest.raises(MemberFaulty, match="vanished"):
        write(disk)


@pytest.mark.parametrize("step", range(1, steps_of_c1() + 1))
def test_a_cancelled_write_stops_before_its_next_step_and_renames_nothing(step: int) -> None:
    disk, cancel = FaultyDisk(MemoryDisk()), Cancel()
    disk.on_call = lambda call: cancel.cancel() if call.step == step else None
    operations_left = ["unlink", "file.close"]
    try:
        write(disk, cancel=cancel)
    except Cancelled:
        assert all(operation in operations_left for operation in disk.operations()[step:])
        renamed = "rename_new" in disk.operations()[:step]
        assert (found(disk.inner) is not None) == renamed
    else:
        assert disk.operations()[step - 1] == "length", "only the last step has none after it"


# -- power cuts in general ---------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["write", "append", "replace", "torn", "unlink", "folder"]), max_size=12), st.integers()
)
def test_what_was_made_durable_is_there_after_any_power_cut(actions: list[str], seed: int) -> None:
    disk, expected = MemoryDisk(), dict[str, bytes]()
    for number, action in enumerate(actions):
        name = f"{number % 4}"
        if action == "write":
            write(disk, f"{number}")
            expected[f"segments/2026/11/24/{number}-00.shard"] = b"".join(whole())
        elif action == "append":
            disk.append(f"journal/{name}", b"%d\n" % number)
            expected[f"journal/{name}"] = expected.get(f"journal/{name}", b"") + b"%d\n" % number
        elif action == "replace":
            disk.replace(f"config/{name}", b"%d" % number)
            expected[f"config/{name}"] = b"%d" % number
        elif action == "torn":
            disk.create(f"tmp/{number}", 5000).write([os.urandom(5000)])
        elif action == "unlink":
            disk.unlink(f"config/{name}")
            disk.sync_folder("config")
            expected.pop(f"config/{name}", None)
        else:
            disk.make_folders(f"segments/2027/{number}")
    disk.power_cut(seed)
    files = disk.files()
    assert {path: files.get(path) for path in expected} == expected
    assert set(files) - set(expected) <= {"lock", "canary", *(f"tmp/{number}" for number in range(12))}


# -- quarantine --------------------------------------------------------------------------------------------------------


def test_quarantine_keeps_the_bytes_says_why_and_survives_a_power_cut() -> None:
    disk = MemoryDisk()
    write(disk)
    moved = quarantine(disk, TARGET, "two groups", "2026-11-24T04:00:00.000Z")
    disk.power_cut()
    assert found(disk) is None
    assert disk.read(moved) == b"".join(whole())
    reason = disk.read(f"{moved}.reason.txt").decode()
    assert reason.splitlines() == ["2026-11-24T04:00:00.000Z", TARGET, "two groups"]


def test_quarantine_overwrites_nothing(disk: MemberDisk) -> None:
    kept = []
    for content in (b"first", b"second", b"third"):
        disk.replace("tmp/same", content)
        kept.append(quarantine(disk, "tmp/same", "why", "now"))
    assert [disk.read(path) for path in kept] == [b"first", b"second", b"third"]
    assert len(disk.list("quarantine")) == 6


def test_quarantine_of_what_is_gone_says_so(disk: MemberDisk) -> None:
    with pytest.raises(FileNotThere):
        quarantine(disk, "tmp/none", "why", "now")
    assert disk.list("quarantine") == []


# -- errno -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EIO, MemberFaulty),
        (errno.ESHUTDOWN, MemberFaulty),
        (errno.EUCLEAN, MemberFaulty),
        (errno.EROFS, MemberReadOnly),
        (errno.ENOSPC, MemberFull),
        (errno.EDQUOT, MemberFull),
        (errno.EEXIST, MemberConflict),
        (errno.ENOENT, FileNotThere),
        (errno.ENODEV, MemberAway),
        (errno.ENOTCONN, MemberAway),
        (errno.ESTALE, MemberAway),
        (errno.ELOOP, MemberFaulty),
        (errno.EXDEV, MemberFaulty),
        (errno.EACCES, MemberFaulty),
        (99999, MemberFaulty),
    ],
)
def test_every_errno_has_a_meaning_for_the_member(code: int, kind: type[MemberError]) -> None:
    error = member_error(OSError(code, "x"), "read a", "the-uuid")
    assert type(error) is kind
    assert isinstance(error, MemberError)
    assert error.member == "the-uuid"
    assert error.next_step


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_host_short_of_resources_condemns_no_disk(code: int) -> None:
    error = member_error(OSError(code, "x"), "read a", "the-uuid")
    assert isinstance(error, RaiddError)
    assert not isinstance(error, MemberError)


def test_parent_folder() -> None:
    assert [parent_folder(path) for path in ("a/b/c", "a", "")] == ["a/b", "", ""]


# -- the tools of other tests ------------------------------------------------------------------------------------------


def test_a_faulty_disk_does_what_its_rules_say() -> None:
    disk = FaultyDisk(MemoryDisk(UUID(int=1)))
    disk.replace("config/a", b"abc")
    disk.corrupt("read", "config/*")
    disk.fail("read", "config/b", error=MemberAway("x"), call=2)
    assert disk.read("config/a") == bytes([ord("a") ^ 0xFF]) + b"bc"
    disk.inner.replace("config/b", b"abc")
    disk.read("config/b")
    with pytest.raises(MemberAway):
        disk.read("config/b")
    disk.heal()
    assert disk.read("config/b") == b"abc"
    disk.fail("rename_new", after=True)
    with pytest.raises(MemberFaulty):
        disk.rename_new("config/b", "config/c")
    assert disk.inner.list("config") == ["a", "c"]
    disk.tear("tmp/*", 2)
    file = disk.create("tmp/x", 4)
    file.write([b"abcd"])
    assert disk.inner.read("tmp/x") == b"ab\0\0"


def test_after_a_simulated_crash_nothing_gets_through() -> None:
    disk = FaultyDisk(MemoryDisk())
    disk.crash(2)
    disk.make_folders("segments/a")
    for _ in range(2):
        with pytest.raises(SimulatedCrash):
            disk.unlink("canary")
    assert "canary" in disk.inner.list("")


def test_a_memory_disk_is_full_when_it_is_full() -> None:
    disk = MemoryDisk(capacity_bytes=CANARY_SIZE + 100)
    with pytest.raises(MemberFull):
        disk.create("tmp/a", 101)
    file = disk.create("tmp/b", 10)
    with pytest.raises(MemberFull):
        file.write([bytes(101)])
    assert disk.space().free_bytes == 100


def test_a_handle_from_before_the_power_cut_is_dead() -> None:
    disk = MemoryDisk()
    file = disk.create("tmp/a", 1)
    disk.power_cut()
    with pytest.raises(MemberFaulty):
        file.write([b"x"])


def test_a_copy_of_a_memory_disk_is_a_world_of_its_own() -> None:
    disk = MemoryDisk()
    disk.create("tmp/a", 1).write([b"x"])
    twin = disk.copy()
    twin.append("journal/j", b"y")
    twin.sync_all()
    assert found(disk, "journal/j") is None
    assert found(twin.power_cut(), "tmp/a") == b"x"
    assert found(disk.power_cut(), "tmp/a") is None


@pytest.fixture(autouse=True)
def no_descriptor_is_left_open() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    left = {number for number in os.listdir("/proc/self/fd") if number not in before}
    open_files = {
        number: os.readlink(f"/proc/self/fd/{number}") for number in left if os.path.exists(f"/proc/self/fd/{number}")
    }
    assert not {target for target in open_files.values() if "raidd-" in target}
