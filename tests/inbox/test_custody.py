"""Taking away, killed and disturbed at every step, on one file system and over two: nothing is lost or doubled."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raidd.inbox.readiness import PATIENCE_S
from tests.support.inbox_yard import Yard, dicom

STEPS = ["away:renamed", "away:checked", "away:unlinked"]
JUNK = b"no image " * 30


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path / "srv")


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    if folder.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is on the same file system")
    yield folder
    shutil.rmtree(folder)


def at_step(yard: Yard, wanted: str, do: Callable[[], None]) -> None:
    """Do something, once, when `wanted` is reached."""
    done: list[str] = []

    def step(name: str) -> None:
        if name == wanted and not done:
            done.append(name)
            do()

    yard.step = step
    yard.restart()


def kill() -> None:
    raise Killed


@pytest.mark.parametrize("step", STEPS)
def test_killed_while_taking_away_nothing_is_lost_or_stored_twice(yard: Yard, step: str) -> None:
    data = dicom("1.2.3")
    yard.drop("sub/a.dcm", data)
    at_step(yard, step, kill)
    with pytest.raises(Killed):
        yard.settle()
    yard.step = lambda _: None
    yard.restart()
    yard.settle()
    yard.settle()
    assert yard.left() == []
    assert yard.sink.content("1.2.3") == data
    assert len(yard.sink.commits) == 1
    assert yard.ingest.idle_once()


@pytest.mark.parametrize("step", ["away:renamed", "away:checked", "away:brought", "away:unlinked"])
def test_killed_while_refusing_the_file_is_refused_once(yard: Yard, step: str) -> None:
    yard.drop("sub/a.txt", JUNK)
    at_step(yard, step, kill)
    with pytest.raises(Killed):
        yard.settle(PATIENCE_S + 1)
    yard.step = lambda _: None
    yard.restart()
    yard.settle()
    yard.settle(PATIENCE_S + 1)
    assert yard.left() == []
    found = sorted(p.read_bytes() for p in yard.rejected.rglob("*") if p.is_file() and "reason" not in p.name)
    assert found == [JUNK]
    assert len(list(yard.rejected.rglob("*.reason.txt"))) == 1


@pytest.mark.parametrize("step", ["away:renamed", "away:checked", "away:brought"])
def test_killed_while_keeping_an_original_it_is_kept_and_gone_from_the_inbox(yard: Yard, step: str) -> None:
    yard.keep_days = 3
    yard.drop("a.dcm", dicom("1.2.3"))
    at_step(yard, step, kill)
    with pytest.raises(Killed):
        yard.settle()
    yard.step = lambda _: None
    yard.restart()
    yard.settle()
    yard.settle()
    assert yard.left() == []
    assert {p.read_bytes() for p in yard.stored.rglob("*") if p.is_file()} == {dicom("1.2.3")}


def test_a_file_replaced_between_read_and_unlink_is_taken_in_as_the_next_version(yard: Yard) -> None:
    old, new = dicom("1.2.3"), dicom("1.2.3", patient="Corrected^Name")
    path = yard.drop("a.dcm", old)

    def replace() -> None:
        path.with_name(".new").write_bytes(new)
        path.with_name(".new").rename(path)

    commit = yard.sink.commit

    def commit_then_replace(*arguments: object) -> object:
        receipt = commit(*arguments)  # type: ignore[arg-type]
        if len(yard.sink.commits) == 1:
            replace()
        return receipt

    yard.ingest._sink = _Wrapped(yard.sink, commit_then_replace)  # type: ignore[assignment]
    yard.settle()
    yard.settle()
    assert [yard.sink.content("1.2.3", v) for v in (1, 2)] == [old, new]
    assert yard.left() == []
    assert yard.ingest.counters().dropped == 2
    assert yard.balanced()


class _Wrapped:
    def __init__(self, sink: object, commit: object) -> None:
        self._sink = sink
        self.commit = commit

    def __getattr__(self, name: str) -> object:
        return getattr(self._sink, name)


def test_a_file_written_on_after_the_dot_name_is_put_back_and_taken_in_again(yard: Yard) -> None:
    first = dicom("1.2.3")
    yard.drop("a.dcm", first)
    at_step(yard, "away:renamed", lambda: _append(yard, b"\0\0"))
    yard.settle()
    yard.settle(PATIENCE_S + 1)
    assert yard.sink.content("1.2.3", 1) == first
    assert yard.sink.content("1.2.3", 2) == first + b"\0\0"
    assert yard.left() == []
    assert yard.balanced()


def _append(yard: Yard, data: bytes) -> None:
    (held,) = yard.inbox.glob(".raidd-*")
    with held.open("ab") as file:
        file.write(data)


def test_a_writer_that_still_has_it_open_keeps_the_original_in_place(yard: Yard) -> None:
    path = yard.drop("a.dcm", dicom("1.2.3"))
    writers = []
    at_step(yard, "away:renamed", lambda: writers.append(next(yard.inbox.glob(".raidd-*")).open("r+b")))
    yard.settle()
    assert path.read_bytes() == dicom("1.2.3")
    writers[0].close()
    yard.settle(70)
    assert yard.left() == []
    assert len(yard.sink.commits) == 1


def test_what_is_put_back_never_overwrites_a_newcomer_of_that_name(yard: Yard) -> None:
    path = yard.drop("a.dcm", dicom("1.2.3"))

    def newcomer() -> None:
        _append(yard, b"\0\0")
        path.write_bytes(dicom("1.2.99"))

    at_step(yard, "away:renamed", newcomer)
    yard.settle()
    for _ in range(3):
        yard.settle(PATIENCE_S + 1)
    assert yard.sink.content("1.2.99") == dicom("1.2.99")
    assert yard.sink.content("1.2.3", 2) == dicom("1.2.3") + b"\0\0"
    assert yard.left() == []
    assert yard.balanced()


def test_an_original_that_its_sender_took_back_after_the_read_is_stored_all_the_same(yard: Yard) -> None:
    path = yard.drop("a.dcm", dicom("1.2.3"))
    commit = yard.sink.commit
    yard.ingest._sink = _Wrapped(yard.sink, lambda *a: (path.unlink(), commit(*a))[1])  # type: ignore[assignment]
    yard.settle()
    assert yard.sink.content("1.2.3") == dicom("1.2.3")
    assert yard.ingest.counters().stored == 1
    assert yard.balanced()
    assert yard.ingest.idle_once()


def test_originals_are_kept_by_day_and_expire(yard: Yard) -> None:
    yard.keep_days = 2
    yard.restart()
    yard.drop("sub/a.dcm", dicom("1.2.3"))
    yard.settle()
    kept = yard.stored / "2026-11-24" / "sub" / "a.dcm"
    assert kept.read_bytes() == dicom("1.2.3")
    assert yard.left() == []
    yard.clock.seconds += 2 * 86400
    yard.settle()
    assert kept.exists()
    yard.clock.seconds += 86400
    yard.settle()
    assert not kept.exists()


def test_kept_originals_of_one_name_are_all_kept(yard: Yard) -> None:
    yard.keep_days = 2
    yard.restart()
    for number in range(3):
        yard.drop("a.dcm", dicom(f"1.2.{number}"))
        yard.settle()
    day = yard.stored / "2026-11-24"
    assert {p.read_bytes() for p in day.iterdir()} == {dicom(f"1.2.{n}") for n in range(3)}


def test_files_reach_another_file_system_whole_and_no_copy_is_left_half_done(yard: Yard, other_disk: Path) -> None:
    yard.rejected.symlink_to(other_disk)
    yard.drop("sub/a.txt", JUNK)
    os.mkfifo(yard.inbox / "pipe")
    (yard.inbox / "link").symlink_to("nowhere")
    yard.settle(PATIENCE_S + 1)
    assert (other_disk / "sub" / "a.txt").read_bytes() == JUNK
    assert (other_disk / "pipe").is_fifo()
    assert os.readlink(other_disk / "link") == "nowhere"
    assert yard.left() == []
    assert not list(other_disk.rglob(".raidd-*"))


def test_a_half_done_copy_of_a_crash_is_cleared(yard: Yard, other_disk: Path) -> None:
    yard.rejected.symlink_to(other_disk)
    (other_disk / ".raidd-0123456789abcdef.copy").write_bytes(b"half")
    (other_disk / ".raidd-notes.copy").write_bytes(b"somebody's own")
    yard.drop(".raidd-0123456789abcdef", JUNK)
    yard.settle()
    assert [p.name for p in other_disk.iterdir()] == [".raidd-notes.copy"]


def test_when_the_rejected_folder_cannot_be_made_the_file_stays_and_one_event_says_so(yard: Yard) -> None:
    yard.rejected.write_bytes(b"a file is in the way")
    yard.drop("a.txt", JUNK)
    yard.settle(PATIENCE_S + 1)
    for _ in range(4):
        yard.settle(70)
    assert yard.left() == ["a.txt"]
    assert yard.sink.codes() == ["inbox-not-writable"]
    assert not yard.ingest.idle_once()
    yard.rejected.unlink()
    yard.settle(70)
    assert yard.left() == []
    assert yard.sink.codes() == ["inbox-not-writable", "image-rejected", "inbox-not-writable"]
    assert yard.balanced()


def test_an_original_that_cannot_be_removed_is_acknowledged_once_and_removed_later(yard: Yard) -> None:
    yard.keep_days = 1
    yard.restart()
    yard.stored.write_bytes(b"in the way")
    yard.drop("a.dcm", dicom("1.2.3"))
    yard.settle()
    for _ in range(4):
        yard.settle(70)
    assert yard.left() == ["a.dcm"]
    assert (yard.ingest.counters().stored, yard.ingest.counters().dropped) == (1, 1)
    reads_before = yard.sink.reads
    yard.stored.unlink()
    yard.settle(70)
    assert yard.left() == []
    assert (yard.ingest.counters().stored, yard.ingest.counters().duplicates) == (1, 0)
    assert yard.sink.reads == reads_before
    assert yard.balanced()
