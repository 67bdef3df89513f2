"""Everything that may be dropped into an inbox has a defined end (issue: "Bad input")."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pydicom
import pytest

from raidd.inbox.names import source_path
from raidd.inbox.readiness import PATIENCE_S
from tests.support.inbox_yard import Yard, dicom


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path / "srv")


def reason(yard: Yard, name: str) -> str:
    return (yard.rejected / f"{name}.reason.txt").read_text().splitlines()[0]


def test_a_fifo_is_refused_without_opening_it(yard: Yard) -> None:
    os.mkfifo(yard.inbox / "image.dcm")
    yard.settle()
    assert yard.left() == []
    assert reason(yard, "image.dcm") == "code: not-a-file"
    assert (yard.rejected / "image.dcm").is_fifo()


def test_a_socket_is_refused(yard: Yard) -> None:
    os.chdir(yard.inbox)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s.dcm")
    yard.settle()
    assert yard.left() == []
    assert reason(yard, "s.dcm") == "code: not-a-file"


def test_a_link_to_a_file_is_refused_and_its_target_neither_read_nor_touched(yard: Yard) -> None:
    outside = yard.top / "secret.dcm"
    outside.write_bytes(dicom("1.2.3"))
    (yard.inbox / "link.dcm").symlink_to(outside)
    yard.settle()
    assert yard.left() == []
    assert reason(yard, "link.dcm") == "code: not-a-file"
    assert yard.sink.commits == []
    assert outside.read_bytes() == dicom("1.2.3")


def test_a_linked_subfolder_is_refused_and_not_walked(yard: Yard) -> None:
    outside = yard.top / "elsewhere"
    outside.mkdir()
    (outside / "a.dcm").write_bytes(dicom("1.2.3"))
    (yard.inbox / "share").symlink_to(outside)
    yard.settle()
    assert yard.left() == []
    assert reason(yard, "share") == "code: not-a-file"
    assert (outside / "a.dcm").exists()
    assert yard.sink.commits == []


def test_a_subfolder_swapped_for_a_link_after_it_was_seen_leads_nowhere(yard: Yard) -> None:
    path = yard.drop("sub/a.dcm", dicom("1.2.3"))
    yard.ingest.idle_once()
    outside = yard.top / "elsewhere"
    path.parent.rename(outside)
    (yard.inbox / "sub").symlink_to(outside)
    yard.clock.seconds += 3
    yard.run()
    assert (outside / "a.dcm").exists()
    assert yard.sink.commits == []


def test_a_folder_named_like_an_image_is_a_folder(yard: Yard) -> None:
    yard.drop("scan.dcm/real.dcm", dicom("1.2.3"))
    yard.settle()
    assert yard.sink.content("1.2.3") == dicom("1.2.3")
    assert (yard.inbox / "scan.dcm").is_dir()
    assert not yard.rejected.exists()


def test_an_empty_file_waits_thirty_seconds_and_is_then_refused(yard: Yard) -> None:
    yard.drop("finder.dcm", b"")
    yard.settle(PATIENCE_S - 1)
    assert yard.left() == ["finder.dcm"]
    yard.settle(2)
    assert yard.left() == []
    assert reason(yard, "finder.dcm") == "code: empty"
    assert yard.sink.codes() == ["image-rejected"]


def test_an_empty_file_that_is_written_meanwhile_is_stored(yard: Yard) -> None:
    path = yard.drop("finder.dcm", b"")
    yard.settle(20)
    path.write_bytes(dicom("1.2.3"))
    yard.settle()
    assert yard.sink.content("1.2.3") == dicom("1.2.3")
    assert yard.balanced()


def test_a_file_without_uid_waits_thirty_seconds_and_is_then_refused(yard: Yard) -> None:
    yard.drop("letter.txt", b"Dear colleague, please find enclosed " * 20)
    yard.settle(PATIENCE_S - 1)
    assert yard.left() == ["letter.txt"]
    yard.settle(2)
    assert yard.left() == []
    assert reason(yard, "letter.txt") == "code: not-dicom"


def test_a_stalled_copy_that_goes_on_within_thirty_seconds_is_not_refused(yard: Yard) -> None:
    data = dicom("1.2.3", pixels=b"\x07" * 4000)
    path = yard.drop("a.dcm", data[:140])
    yard.settle(20)
    path.write_bytes(data[:1000])
    yard.settle(20)
    path.write_bytes(data)
    yard.settle()
    assert yard.sink.content("1.2.3") == data
    assert yard.sink.codes() == []


def test_a_truncated_image_waits_thirty_seconds_and_is_stored_as_it_is(yard: Yard) -> None:
    data = dicom("1.2.3", pixels=b"\x07" * 4000)[:-1000]
    yard.drop("a.dcm", data)
    yard.settle(PATIENCE_S - 1)
    assert yard.sink.commits == []
    yard.settle(2)
    assert yard.sink.content("1.2.3") == data
    assert yard.sink.codes() == ["image-truncated"]


def test_names_with_newlines_and_undecodable_bytes_are_stored_with_a_reversible_source(yard: Yard) -> None:
    name = b"scan\n\xff\xfe\\x \xe2\x80\xae.dcm"
    yard.drop(name, dicom("1.2.3"))
    yard.settle()
    source = yard.sink.images()[0].source
    assert source.isprintable()
    source.encode("utf-8")
    assert source_path(source.removeprefix("inbox:")) == name
    assert yard.left() == []


def test_an_undecodable_name_is_refused_under_its_own_bytes(yard: Yard) -> None:
    yard.drop(b"no\n\xff.txt", b"no image " * 30)
    yard.settle(PATIENCE_S + 1)
    assert sorted(os.listdir(os.fsencode(yard.rejected))) == [b"no\n\xff.txt", b"no\n\xff.txt.reason.txt"]


def test_a_name_of_255_bytes_can_be_refused(yard: Yard) -> None:
    yard.drop("n" * 255, b"no image " * 30)
    yard.settle(PATIENCE_S + 1)
    assert len(os.listdir(yard.rejected)) == 2
    assert yard.left() == []


def test_a_file_that_vanishes_before_it_is_read_is_forgotten(yard: Yard) -> None:
    path = yard.drop("a.dcm", dicom("1.2.3"))
    yard.ingest.idle_once()
    path.unlink()
    yard.clock.seconds += 3
    yard.run()
    assert yard.ingest.idle_once()
    assert yard.balanced()
    assert yard.ingest.counters().withdrawn == 1


def test_a_file_that_grows_after_it_was_found_ready_waits_again(yard: Yard) -> None:
    path = yard.drop("a.dcm", dicom("1.2.3"))
    yard.ingest.idle_once()
    yard.clock.seconds += 3
    path.write_bytes(dicom("1.2.3", pixels=b"\x01" * 900))
    yard.run()
    assert yard.sink.commits == []
    yard.settle()
    assert yard.sink.content("1.2.3") == dicom("1.2.3", pixels=b"\x01" * 900)
    assert yard.ingest.counters().dropped == 1
    assert yard.balanced()


def test_an_image_above_the_limit_is_refused(yard: Yard) -> None:
    yard.image_max_bytes = 100
    yard.restart()
    yard.drop("big.dcm", dicom("1.2.3"))
    yard.settle()
    assert reason(yard, "big.dcm") == "code: too-large"


@pytest.mark.parametrize("name", ["Thumbs.db", "desktop.ini", ".DS_Store", "._scan.dcm", "AUTORUN.INF", "viewer.exe"])
def test_junk_goes_aside_silently(yard: Yard, name: str) -> None:
    yard.drop(name, b"\0\1\2junk" * 40)
    yard.settle()
    assert yard.left() == []
    assert (yard.rejected / name).exists()
    assert reason(yard, name) == "code: not-an-image"
    assert yard.sink.codes() == []
    assert yard.balanced()


def test_a_program_with_any_name_is_junk(yard: Yard) -> None:
    yard.drop("setup", b"MZ\x90\0" + b"\0" * 500)
    yard.settle()
    assert reason(yard, "setup") == "code: not-an-image"
    assert yard.sink.codes() == []


def test_an_image_with_a_junk_name_is_an_image(yard: Yard) -> None:
    yard.drop("Thumbs.db", dicom("1.2.3"))
    yard.drop("1.2.840.com", dicom("1.2.4"))
    yard.settle()
    assert {row.sop_instance_uid for row in yard.sink.images()} == {"1.2.3", "1.2.4"}


@pytest.mark.parametrize("name", [".hidden.dcm", "a.dcm.part", "a.tmp", "a.filepart", "a.CRDOWNLOAD"])
def test_names_that_are_not_images_yet_are_left_and_do_not_count_as_waiting(yard: Yard, name: str) -> None:
    path = yard.drop(name, dicom("1.2.3"))
    yard.settle(100)
    assert yard.ingest.idle_once()
    assert yard.left() == [name]
    path.rename(yard.inbox / "done.dcm")
    yard.settle()
    assert yard.sink.content("1.2.3") == dicom("1.2.3")


def test_a_dicomdir_goes_aside_silently_under_any_name(yard: Yard) -> None:
    source = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests" / "DICOMDIR"
    for name in ("DICOMDIR", "index"):
        shutil.copy(source, yard.inbox / name)
    yard.settle()
    assert yard.left() == []
    assert reason(yard, "DICOMDIR") == "code: dicomdir"
    assert reason(yard, "index") == "code: dicomdir"
    assert yard.sink.codes() == []


def test_a_uid_that_climbs_out_of_folders_is_just_a_uid(yard: Yard) -> None:
    uid = "1.2/../../../etc/passwd"
    data = dicom("1.2.333333333333333333333333333").replace(
        b"1.2.333333333333333333333333333", uid.encode().ljust(31, b"\0")
    )
    yard.drop("a.dcm", data)
    yard.settle()
    assert yard.sink.images()[0].sop_instance_uid == uid
    assert yard.sink.content(uid) == data


def test_values_with_nul_and_lone_surrogates_do_not_stop_an_image(yard: Yard) -> None:
    data = dicom("1.2.3", patient="AAAA^BBBBBBBB").replace(b"AAAA^BBBBBBBB", b"A\0A\xed\xa0\x80\xff^\xed\xbf\xbfB\0")
    yard.drop("a.dcm", data)
    yard.settle()
    assert yard.sink.content("1.2.3") == data
    yard.sink.images()[0].identity["patient_name"].encode("utf-8")


def test_refused_files_of_one_name_never_overwrite_each_other(yard: Yard) -> None:
    for number in range(12):
        yard.drop("sub/x.txt", b"no image %d " % number * 30)
        yard.settle(PATIENCE_S + 1)
    contents = {p.read_bytes() for p in (yard.rejected / "sub").glob("x*.txt") if not p.name.endswith("reason.txt")}
    reasons = list((yard.rejected / "sub").glob("*.reason.txt"))
    assert (len(contents), len(reasons)) == (12, 12)
    assert yard.ingest.counters().rejected == {"not-dicom": 12}
    assert yard.balanced()
