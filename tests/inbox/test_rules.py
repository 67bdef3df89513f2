"""The small rules by themselves: names, readiness, leases, refusals, claims, folders."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raidd.inbox.folders import FileSeen, FolderDenied, inbox_root, opened, rename_new, source_of, spool_root, walk
from raidd.inbox.intake import Offer, still_offered
from raidd.inbox.lease import Writers, read_lease, writers_of
from raidd.inbox.names import NameKind, name_kind, numbered, shortened, source_path, source_text
from raidd.inbox.readiness import PATIENCE_S, History, Observation, due_at, observe
from raidd.inbox.refusals import RefusalCode, reason_text, refusal_code
from tests.support.inbox_yard import dicom

SEEN = Observation(1, 2, 100, 3, 4, True)


@given(st.binary(max_size=40))
def test_any_path_becomes_printable_text_and_comes_back(path: bytes) -> None:
    text = source_text(path)
    assert text.isprintable() or not text
    assert source_path(text) == path
    assert text.encode("utf-8").decode("utf-8") == text


@given(st.text(max_size=20))
def test_any_unicode_name_comes_back(name: str) -> None:
    path = name.encode("utf-8", "surrogatepass")
    assert source_path(source_text(path)) == path


@given(st.binary(min_size=1, max_size=255), st.integers(2, 10**6))
def test_a_numbered_name_fits_and_differs(name: bytes, number: int) -> None:
    made = numbered(name, number)
    assert len(made) <= 255
    assert made != name or len(name) >= 240
    assert len(shortened(name, b".reason.txt")) <= 255


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (b"a.dcm", NameKind.ORDINARY),
        (b"1.2.840.1", NameKind.ORDINARY),
        (b"thumbs.DB", NameKind.JUNK),
        (b".DS_Store", NameKind.JUNK),
        (b"._a.dcm", NameKind.JUNK),
        (b"DICOMDIR", NameKind.JUNK),
        (b"x.EXE", NameKind.JUNK),
        (b".a", NameKind.NOT_YET),
        (b"a.PART", NameKind.NOT_YET),
        (b".raidd-0123456789abcdef", NameKind.OWN),
        (b".raidd-0123456789abcdeg", NameKind.NOT_YET),
        (b".raidd-0123456789abcdef0", NameKind.NOT_YET),
        (b".raidd-0123456789abcdef\n", NameKind.NOT_YET),
    ],
)
def test_names_are_judged(name: bytes, kind: NameKind) -> None:
    assert name_kind(name) is kind


def test_a_file_is_due_when_unchanged_for_settle_s() -> None:
    history = observe(None, SEEN, 10.0)
    assert due_at(history, 2.0) == 12.0
    assert due_at(observe(history, SEEN, 11.5), 2.0) == 12.0
    for change in ({"size": 101}, {"mtime_ns": 9}, {"inode": 9}, {"ctime_ns": 9}, {"device": 9}):
        assert due_at(observe(history, replace(SEEN, **change), 11.5), 2.0) == 13.5


def test_a_file_renamed_into_place_is_due_at_once_unless_it_changes_afterwards() -> None:
    placed = observe(None, SEEN, 10.0, placed=True)
    assert due_at(placed, 2.0) == 10.0
    assert due_at(observe(placed, SEEN, 11.0), 2.0) == 10.0
    assert due_at(observe(placed, replace(SEEN, size=101), 11.0), 2.0) == 13.0


def test_an_empty_file_is_due_after_the_thirty_seconds_even_when_renamed() -> None:
    empty = replace(SEEN, size=0)
    assert due_at(observe(None, empty, 10.0, placed=True), 2.0) == 10.0 + PATIENCE_S
    assert due_at(observe(None, replace(empty, regular=False), 10.0), 2.0) == 12.0


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 2)), min_size=1))
def test_due_is_never_before_settle_s_after_the_last_change(looks: list[tuple[float, int]]) -> None:
    now, history, last_change, size = 0.0, None, 0.0, -1
    for wait, new_size in looks:
        now += wait
        if new_size + 1 != size:
            last_change, size = now, new_size + 1
        history = observe(history, replace(SEEN, size=size), now)
    assert isinstance(history, History)
    assert due_at(history, 2.0) == last_change + 2.0


def test_a_lease_tells_of_writers_and_only_of_writers(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x")
    with path.open("rb") as reader, path.open("rb"):
        assert writers_of(reader.fileno()) is Writers.NONE
        with path.open("r+b"):
            assert writers_of(reader.fileno()) is Writers.SOME
        assert writers_of(reader.fileno()) is Writers.NONE
    assert writers_of(-1) is Writers.UNKNOWN


def test_where_leases_do_not_exist_nothing_is_known(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:  # folders have none (EINVAL)
        assert writers_of(folder) is Writers.UNKNOWN


def test_a_writer_that_breaks_a_lease_held_by_another_thread_does_not_kill_the_process(tmp_path: Path) -> None:
    """In a process of its own, with SIGIO's default left alone."""
    path = tmp_path / "a"
    path.write_bytes(b"x")
    program = f"""
import os, threading
from raidd.inbox.lease import read_lease, Writers
held, broken = threading.Event(), threading.Event()
def hold():
    fd = os.open({str(path)!r}, os.O_RDONLY)
    with read_lease(fd) as writers:
        assert writers is Writers.NONE
        held.set()
        broken.wait(10)
    os.close(fd)
thread = threading.Thread(target=hold); thread.start(); held.wait(10)
try:
    os.open({str(path)!r}, os.O_WRONLY | os.O_NONBLOCK)
except BlockingIOError:
    print("was leased")
broken.set(); thread.join()
os.close(os.open({str(path)!r}, os.O_WRONLY | os.O_NONBLOCK))
print("alive")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.split("\n")[:2] == ["was leased", "alive"], done.stderr


def test_a_lease_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x")
    with path.open("rb") as reader:
        with read_lease(reader.fileno()):
            assert fcntl.fcntl(reader.fileno(), fcntl.F_GETLEASE) == fcntl.F_RDLCK
        assert fcntl.fcntl(reader.fileno(), fcntl.F_GETLEASE) == fcntl.F_UNLCK


def test_every_refusal_has_a_sentence_and_unknown_words_mean_not_dicom() -> None:
    for code in RefusalCode:
        assert code.sentence.endswith(".")
        assert refusal_code(code.value) is code
        assert reason_text(code, "why", "inbox:a", "now").splitlines()[0] == f"code: {code.value}"
    assert refusal_code("something else") is RefusalCode.NOT_DICOM


def test_rename_new_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    with opened(tmp_path) as folder:
        with pytest.raises(FileExistsError):
            rename_new(folder, b"a", folder, b"b")
        rename_new(folder, b"a", folder, b"c")
    assert (tmp_path / "b").read_bytes() == b"b"
    assert (tmp_path / "c").read_bytes() == b"a"


def test_a_walk_ends_in_deep_trees_and_says_where_it_stopped(tmp_path: Path) -> None:
    deep = tmp_path / "/".join("d" * 70)
    deep.mkdir(parents=True)
    (deep / "a.dcm").write_bytes(b"x")
    (tmp_path / "b.dcm").write_bytes(b"x")
    seen = list(walk(tmp_path))
    assert [s.name for s in seen if isinstance(s, FileSeen)] == [b"b.dcm"]
    assert len([s for s in seen if isinstance(s, FolderDenied)]) == 1


def test_a_missing_inbox_is_reported_not_raised(tmp_path: Path) -> None:
    (denied,) = walk(tmp_path / "absent")
    assert isinstance(denied, FolderDenied)


def test_still_offered_knows_a_file_by_source_and_digest(tmp_path: Path) -> None:
    import hashlib

    inbox = tmp_path / "inbox"
    (inbox / "sub").mkdir(parents=True)
    (tmp_path / "spool").mkdir()
    roots = (inbox_root(inbox), spool_root(tmp_path / "spool", inbox))
    name = b"a\n\xff.dcm"
    Path(os.fsdecode(os.path.join(os.fsencode(inbox), b"sub", name))).write_bytes(dicom())
    digest = hashlib.sha256(dicom()).hexdigest()
    source = source_of(roots[0], b"sub", name)
    assert still_offered(roots, source, digest)
    assert not still_offered(roots, source, "0" * 64)
    assert not still_offered(roots, source.replace("inbox:", "spool:"), digest)
    assert not still_offered(roots, "elsewhere:sub/a", digest)
    assert not still_offered(roots, "inbox:sub/../sub/a", digest)
    assert not still_offered(roots, "inbox:a\0b", digest)
    assert not still_offered(roots, "", digest)


def test_an_offer_names_its_source(tmp_path: Path) -> None:
    offer = Offer(inbox_root(tmp_path / "inbox"), b"ct/1", b"a.dcm", SEEN, 0.0)
    assert offer.source == "inbox:ct/1/a.dcm"
    assert offer.key == ("inbox", b"ct/1/a.dcm")


AS_A_USER = """
import os, sys
from pathlib import Path
from tests.support.inbox_yard import Yard, dicom
dicom()
os.setgroups([]); os.setgid(65534); os.setuid(65534)
yard = Yard(Path(sys.argv[1]) / "srv")
yard.drop("a.dcm", dicom("1.2.1")).chmod(0)
yard.drop("b.dcm", dicom("1.2.2")).chmod(0)
yard.drop("closed/c.dcm", dicom("1.2.3"))
(yard.inbox / "closed").chmod(0)
yard.drop("good.dcm", dicom("1.2.4"))
for _ in range(5):
    yard.settle(70)
assert yard.sink.codes() == ["inbox-unreadable"], yard.sink.codes()
assert sorted(p.name for p in yard.inbox.iterdir()) == ["a.dcm", "b.dcm", "closed"]
assert yard.ingest.counters().stored == 1
assert not yard.ingest.idle_once()
for name in ("a.dcm", "b.dcm"):
    (yard.inbox / name).chmod(0o600)
(yard.inbox / "closed").chmod(0o700)
for _ in range(3):
    yard.settle(70)
assert yard.ingest.counters().stored == 4
assert yard.ingest.idle_once()
assert yard.sink.codes() == ["inbox-unreadable", "inbox-unreadable"]
assert yard.balanced()
yard.drop("stay/d.dcm", dicom("1.2.5"))
(yard.inbox / "stay").chmod(0o500)
for _ in range(4):
    yard.settle(70)
assert yard.sink.codes()[2:] == ["inbox-not-writable"]
assert (yard.ingest.counters().stored, yard.ingest.counters().dropped) == (5, 5)
(yard.inbox / "stay").chmod(0o700)
yard.settle(70)
assert yard.ingest.idle_once()
print("as it should be")
"""


def test_what_an_ordinary_user_may_not_read_or_remove_is_one_event_and_stays() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    with tempfile.TemporaryDirectory() as top:
        Path(top).chmod(0o777)
        done = subprocess.run(
            [sys.executable, "-c", AS_A_USER, top], capture_output=True, text=True, check=False, timeout=120
        )
    assert done.stdout.strip() == "as it should be", done.stderr


def test_claims_keep_who_waits() -> None:
    from raidd.inbox.claims import Claims

    claims, offers = Claims(), [Offer(inbox_root(Path("/x")), b"", bytes([65 + i]), SEEN, 0.0) for i in range(3)]
    assert claims.claim("1", offers[0])
    assert not claims.claim("1", offers[1])
    assert claims.claim("2", offers[2])
    assert claims.release(["1", "2", "3"]) == [offers[1]]
    assert claims.claim("1", offers[1])


def test_a_complaint_is_told_once_and_once_more_when_it_is_over() -> None:
    from raidd.inbox.complaints import Complaint

    told: list[str] = []
    complaint = Complaint(lambda _code, severity, _message, _objects: told.append(severity), "code", "over")
    threads = [threading.Thread(target=complaint.add, args=(i % 3, "trouble")) for i in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    complaint.settle((0, 1))
    complaint.settle((7,))
    assert told == ["warning"]
    complaint.settle((2,))
    assert told == ["warning", "info"]
