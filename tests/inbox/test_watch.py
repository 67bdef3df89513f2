"""Real inotify on real folders, with both loops in threads as the daemon runs them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
import pytest

from raidd.inbox.batch import Ingest
from raidd.inbox.custody import Custody
from raidd.inbox.folders import Root, inbox_root
from raidd.inbox.mounts import filesystem_of, network_mount
from raidd.inbox.notices import Notices
from raidd.inbox.watch import Watcher
from tests.support.inbox_yard import Yard, dicom
from tests.support.memory_sink import MemorySink

PATIENT_S = 20.0


def eventually(claim: Callable[[], bool]) -> bool:
    until = time.monotonic() + PATIENT_S
    while time.monotonic() < until:
        if claim():
            return True
        time.sleep(0.02)
    return False


@dataclass
class Running:
    """Ingest with its two threads and real notices; ``settle_s`` so long that only a rename can be quick."""

    inbox: Path
    settle_s: float
    is_network: bool = False
    sink: MemorySink = field(default_factory=MemorySink)

    def __enter__(self) -> Running:
        roots = (inbox_root(self.inbox),)
        self.watcher = Watcher(roots, self.settle_s)
        if self.is_network:
            self.watcher.notices = Notices(roots, self.watcher.hint, is_network=lambda _: True)
        self.ingest = Ingest(self.sink, self.watcher, Custody(roots), image_max_bytes=1 << 34)
        self.stop = threading.Event()
        self.threads = [
            threading.Thread(target=self._loop, args=(once,))
            for once in (self.ingest.prepare_once, self.ingest.commit_once)
        ]
        for thread in self.threads:
            thread.start()
        return self

    def _loop(self, once: Callable[[float], bool]) -> None:
        while not self.stop.is_set():
            once(0.1)

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()
        self.watcher.stop()
        self.ingest.close()

    def stored(self, uid: str) -> bool:
        return bool(self.sink.versions(uid))


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


@pytest.fixture
def scanned_once(inbox: Path) -> Iterator[Running]:
    """A running inbox whose first scan is behind it: what follows is seen by notices, or in a minute."""
    with Running(inbox, settle_s=600.0) as running:
        assert eventually(lambda: running.ingest._rounds.due_in_s() > 1)
        yield running


def test_a_rename_into_place_from_outside_the_tree_is_ready_at_once(scanned_once: Running) -> None:
    outside = scanned_once.inbox.parent / "a.dcm"
    outside.write_bytes(dicom("1.2.3"))
    outside.rename(scanned_once.inbox / "a.dcm")
    assert eventually(lambda: scanned_once.stored("1.2.3"))
    assert eventually(lambda: not list(scanned_once.inbox.iterdir()))


def test_a_rename_from_a_partial_name_is_ready_at_once(scanned_once: Running) -> None:
    part = scanned_once.inbox / "a.dcm.part"
    part.write_bytes(dicom("1.2.3"))
    part.rename(scanned_once.inbox / "a.dcm")
    assert eventually(lambda: scanned_once.stored("1.2.3"))


def test_a_rename_into_a_subfolder_made_a_moment_ago_is_seen(scanned_once: Running) -> None:
    for number in range(5):
        folder = scanned_once.inbox / f"study{number}" / "series"
        folder.mkdir(parents=True)
        time.sleep(0.3)  # watchdog needs a moment to watch it
        part = folder / ".a"
        part.write_bytes(dicom(f"1.2.{number}"))
        part.rename(folder / "a.dcm")
    assert eventually(lambda: all(scanned_once.stored(f"1.2.{number}") for number in range(5)))


def test_a_plain_copy_is_taken_after_it_has_settled(inbox: Path) -> None:
    with Running(inbox, settle_s=0.3) as running:
        assert eventually(lambda: running.ingest._rounds.due_in_s() > 1)
        (inbox / "sub").mkdir()
        for number in range(20):
            (inbox / "sub" / f"{number}.dcm").write_bytes(dicom(f"1.2.{number}"))
        assert eventually(running.ingest.idle_once)
        assert running.ingest.counters().stored == 20
        assert running.sink.drafts_out == 0


def test_a_folder_moved_in_whole_is_taken_in(inbox: Path) -> None:
    with Running(inbox, settle_s=0.2) as running:
        assert eventually(lambda: running.ingest._rounds.due_in_s() > 1)
        study = inbox.parent / "study"
        (study / "series").mkdir(parents=True)
        (study / "series" / "a.dcm").write_bytes(dicom("1.2.3"))
        study.rename(inbox / "study")
        assert eventually(lambda: running.stored("1.2.3"))


def test_a_file_that_a_writer_holds_open_waits_for_its_close(inbox: Path) -> None:
    with (inbox / "a.dcm").open("wb") as file:
        file.write(dicom("1.2.3"))
        file.flush()
        with Running(inbox, settle_s=0.2) as running:
            assert eventually(lambda: running.watcher.dropped == 1)
            time.sleep(0.5)
            assert not running.stored("1.2.3")
            assert not running.ingest.idle_once()
            file.close()
            assert eventually(lambda: running.stored("1.2.3"))


def test_a_network_mount_is_polled(inbox: Path) -> None:
    with Running(inbox, settle_s=0.2, is_network=True) as running:
        assert eventually(lambda: running.ingest._rounds.due_in_s() > 1)
        (inbox / "link").symlink_to("/")
        (inbox / "a.dcm").write_bytes(dicom("1.2.3"))
        assert eventually(lambda: running.stored("1.2.3"))
        assert running.watcher.notices.degraded == {}


def test_every_file_of_pydicom_has_its_end(inbox: Path) -> None:
    """The whole test set at once; the 30 s rules are not waited for, files that look unfinished are aged by hand."""
    files = pydicom_files()
    assert len(files) > 200
    yard = Yard(inbox.parent / "srv")
    for number, file in enumerate(files):
        folder = yard.inbox / f"{number:03}"
        folder.mkdir()
        shutil.copy(file, folder / file.name)
    before = {f"{n:03}/{f.name}": f.read_bytes() for n, f in enumerate(files)}
    for _ in range(3):
        yard.settle(31)
    counts = yard.ingest.counters()
    ignored = set(yard.left())
    assert all(name.rpartition("/")[2].startswith(".") for name in ignored)
    assert counts.dropped == counts.stored + counts.duplicates + counts.rejected_total == len(files) - len(ignored)
    for row in yard.sink.images():
        data = yard.sink.content(row.sop_instance_uid, row.version)
        assert data == before[row.source.removeprefix("inbox:")]
    _no_image_was_refused(yard)


def pydicom_files() -> list[Path]:
    """What the installed packages bring along (pydicom's own finder would reach for the network)."""
    tops = [Path(pydicom.__file__).parent / "data" / "test_files"]
    found = importlib.util.find_spec("data_store")
    tops += [Path(place) for place in (found.submodule_search_locations or ())] if found else []
    return sorted(path for top in tops for path in top.rglob("*") if path.is_file() and path.suffix != ".py")


def _no_image_was_refused(yard: Yard) -> None:
    for path in yard.rejected.rglob("*"):
        if path.is_file() and not path.name.endswith(".reason.txt"):
            try:
                uid = pydicom.dcmread(path, stop_before_pixels=True, force=True).get("SOPInstanceUID")
            except Exception:
                continue
            assert not uid, f"{path} was refused although pydicom opens it"


def test_without_a_watch_scans_go_on(inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_watch(*_: object, **__: object) -> None:
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr("raidd.inbox.notices.InotifyObserver", no_watch)
    monkeypatch.setattr("raidd.inbox.rounds.RESCAN_DEGRADED_S", 0.2)
    with Running(inbox, settle_s=0.2) as running:
        assert eventually(lambda: running.sink.codes() == ["inbox-unwatched"])
        assert running.watcher.notices.degraded == {"inbox": "inotify watch limit reached"}
        (inbox / "a.dcm").write_bytes(dicom("1.2.3"))
        assert eventually(lambda: running.stored("1.2.3"))


def test_an_inbox_that_is_replaced_is_watched_again(inbox: Path) -> None:
    hints: list[bytes] = []
    root = inbox_root(inbox)
    notices = Notices((root,), lambda _root, path, _placed: hints.append(path))
    notices.keep_alive()
    try:
        inbox.rmdir()
        assert eventually(lambda: not all(e.is_alive() for o in notices._observers.values() for e in o.emitters))
        notices.keep_alive()
        assert list(notices.degraded) == ["inbox"]
        inbox.mkdir()
        notices.keep_alive()
        (inbox / "a.dcm").write_bytes(b"x")
        assert eventually(lambda: b"a.dcm" in hints)
    finally:
        notices.stop()


def test_too_many_hints_become_a_scan(inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raidd.inbox.watch.HINTS_LIMIT", 3)
    root = inbox_root(inbox)
    watcher = Watcher((root,), 1.0)
    watcher.scan_once()
    for number in range(10):
        watcher.hint(root, b"%d.dcm" % number, False)
    assert watcher.scan_wanted


def test_files_beyond_the_table_are_counted_and_taken_later(tmp_path: Path) -> None:
    yard = Yard(tmp_path / "srv")
    yard.watcher._limit = 10
    for number in range(35):
        yard.drop(f"{number}.dcm", dicom(f"1.2.{number}"))
    yard.ingest.idle_once()
    assert yard.ingest.waiting == 35
    for _ in range(8):
        yard.clock.seconds += 3
        yard.run()
    assert yard.ingest.counters().stored == 35
    assert yard.left() == []


def test_a_file_put_back_while_a_scan_passed_by_is_not_forgotten(inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (inbox / "a.dcm").write_bytes(dicom())
    watcher = Watcher((inbox_root(inbox),), 0.0)
    watcher.scan_once()
    offer = watcher.take()
    assert offer is not None

    def sees_it_under_its_dot_name_only(*_: object) -> Iterator[object]:
        watcher.again(offer)
        return iter(())

    monkeypatch.setattr("raidd.inbox.watch.walk", sees_it_under_its_dot_name_only)
    assert watcher.scan_once().waiting == 1
    assert watcher.take() is not None


def test_hints_about_what_is_not_ours_to_take_are_dropped(inbox: Path) -> None:
    root: Root = inbox_root(inbox)
    watcher = Watcher((root,), 1.0)
    for path in (b".raidd-0123456789abcdef", b"a.part", b".hidden/a.dcm", b"lost+found/x"):
        watcher.hint(root, path, True)
    assert not watcher._hints


def test_the_file_system_of_a_path_is_that_of_its_longest_mount() -> None:
    lines = [
        "21 1 0:20 / / rw - overlay overlay rw",
        "30 21 0:50 / /srv/in\\040box rw - nfs4 server:/x rw",
        "31 30 0:51 / /srv/in\\040box/local rw shared:1 - ext4 /dev/sda rw",
        "garbage",
    ]
    assert filesystem_of(Path("/srv/in box/a"), lines) == "nfs4"
    assert filesystem_of(Path("/srv/in box/local"), lines) == "ext4"
    assert filesystem_of(Path("/srv/in boxes"), lines) == "overlay"


def test_a_network_mount_is_known_by_its_type(tmp_path: Path) -> None:
    info = tmp_path / "mountinfo"
    for kind, network in (("cifs", True), ("fuse.sshfs", True), ("ext4", False), ("xfs", False)):
        info.write_text(f"1 0 0:1 / {tmp_path} rw - {kind} x rw\n")
        assert network_mount(tmp_path, info) is network
    assert not network_mount(tmp_path, tmp_path / "absent")


def test_emptied_subfolders_go_after_an_hour_and_the_first_level_stays(tmp_path: Path) -> None:
    yard = Yard(tmp_path / "srv")
    yard.drop("ct/study/a.dcm", dicom("1.2.3"))
    yard.settle()
    (yard.inbox / "mr" / ".hidden").mkdir(parents=True)
    (yard.inbox / "mr" / "busy").mkdir()
    (yard.inbox / "mr" / "busy" / ".x").write_bytes(b"x")
    yard.settle(3500)
    assert (yard.inbox / "ct" / "study").is_dir()
    yard.settle(200)
    yard.settle(200)
    assert (yard.inbox / "ct").is_dir()
    assert not (yard.inbox / "ct" / "study").exists()
    assert (yard.inbox / "mr" / "busy").is_dir()


def test_a_folder_used_within_the_hour_starts_it_anew(tmp_path: Path) -> None:
    yard = Yard(tmp_path / "srv")
    folder = yard.inbox / "ct" / "study"
    folder.mkdir(parents=True)
    yard.settle(3500)
    os.utime(folder)
    yard.settle(1000)
    yard.settle(1000)
    assert folder.is_dir()
