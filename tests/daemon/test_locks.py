"""A member's lock goes with the member: to another mount, to a new disk at the same path, and away with it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from raidd.array.local_disk import LocalDisk, member_folder
from raidd.array.lock import ArrayLock
from raidd.array.worker import Cancel, Cancelled
from raidd.daemon.locks import Locks
from raidd.errors import ArrayLocked, MemberAway

MEMBER = uuid4()


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    return new_mount(tmp_path / "mount")


@pytest.fixture
def locks() -> Locks:
    return Locks()


def new_mount(folder: Path, member: UUID = MEMBER) -> Path:
    Path(member_folder(str(folder), member)).mkdir(parents=True)
    return folder


def disk(mount: Path) -> LocalDisk:
    return LocalDisk(str(mount), MEMBER)


def taken(mount: Path) -> bool:
    """Whether somebody holds the lock there."""
    try:
        lock = ArrayLock.acquire(member_folder(str(mount), MEMBER), member=str(MEMBER))
    except ArrayLocked:
        return True
    lock.release()
    return False


def open_below(folder: Path) -> list[str]:
    names = [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if _is_open(number)]
    return [name for name in names if name.startswith(str(folder))]


def _is_open(number: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{number}")


def wait_until_closed(folder: Path) -> None:
    deadline = time.monotonic() + 30
    while open_below(folder):
        assert time.monotonic() < deadline, open_below(folder)
        time.sleep(0.01)


def test_who_takes_again_holds_it_once(mount: Path, locks: Locks, tmp_path: Path) -> None:
    for _ in range(3):
        locks.take(disk(mount))
    assert taken(mount)
    locks.drop(MEMBER)
    assert not taken(mount)
    wait_until_closed(tmp_path)


def test_a_new_disk_at_the_same_path_is_locked_too(mount: Path, locks: Locks, tmp_path: Path) -> None:
    locks.take(disk(mount))
    mount.rename(tmp_path / "old")
    new_mount(mount)
    locks.take(disk(mount))
    assert taken(mount)
    assert not taken(tmp_path / "old")
    locks.drop(MEMBER)


def test_the_same_disk_at_another_path_is_no_conflict_with_ourselves(mount: Path, locks: Locks, tmp_path: Path) -> None:
    locks.take(disk(mount))
    elsewhere = mount.rename(tmp_path / "elsewhere")
    locks.take(disk(elsewhere))
    assert taken(elsewhere)
    locks.drop(MEMBER)
    wait_until_closed(tmp_path)


def test_a_take_that_fails_leaves_nothing(mount: Path, locks: Locks, tmp_path: Path) -> None:
    locks.take(disk(mount))
    mount.rename(tmp_path / "gone")
    with pytest.raises(MemberAway):
        locks.take(disk(mount))
    assert locks.members() == frozenset()
    wait_until_closed(tmp_path)


def test_giving_up_never_waits_for_the_disk(mount: Path, locks: Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    """close() on a disk that hangs: it happens elsewhere, and the lock is free at once."""
    locks.take(disk(mount))
    woken, release = threading.Event(), ArrayLock.release

    def hang(lock: ArrayLock) -> None:
        woken.wait()
        release(lock)

    monkeypatch.setattr(ArrayLock, "release", hang)
    locks.drop(MEMBER)
    monkeypatch.undo()
    assert not taken(mount)
    locks.take(disk(mount))
    assert taken(mount)
    woken.set()
    locks.drop(MEMBER)


@pytest.mark.parametrize("moment", ["before", "as it was got"])
def test_who_was_given_up_meanwhile_keeps_nothing(
    mount: Path, locks: Locks, monkeypatch: pytest.MonkeyPatch, moment: str, tmp_path: Path
) -> None:
    cancel, acquire = Cancel(), ArrayLock.acquire

    def give_up() -> None:
        cancel.cancel()
        locks.drop(MEMBER)

    def late(folder: str, **_how: object) -> ArrayLock:
        got = acquire(folder, member=str(MEMBER))
        give_up()
        return got

    if moment == "before":
        give_up()
    else:
        monkeypatch.setattr(ArrayLock, "acquire", late)
    with pytest.raises(Cancelled):
        locks.take(disk(mount), cancel)
    monkeypatch.undo()
    assert locks.members() == frozenset()
    assert not taken(mount)
    wait_until_closed(tmp_path)


def test_at_the_end_everything_is_unlocked(mount: Path, locks: Locks, tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    locks.take_folder(str(state_dir))
    locks.take(disk(mount))
    with pytest.raises(ArrayLocked):
        ArrayLock.acquire(str(state_dir))
    locks.unlock_all()
    assert not taken(mount)
    ArrayLock.acquire(str(state_dir)).release()
    locks.release_all()
    assert open_below(tmp_path) == []


def test_a_catalog_that_was_not_closed_keeps_its_folder_locked_to_the_end(
    mount: Path, locks: Locks, tmp_path: Path
) -> None:
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    locks.take_folder(str(state_dir))
    locks.take(disk(mount))
    locks.unlock_all(keep_folders=True)
    assert not taken(mount)
    with pytest.raises(ArrayLocked):
        ArrayLock.acquire(str(state_dir))
    locks.release_all()
