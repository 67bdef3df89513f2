"""A UID meets again: duplicates are acknowledged only on proof, conflicts are versions, nothing is overwritten."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raidd.inbox.duplicates import _equal, same_origin
from tests.support.inbox_yard import Yard, dicom


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    yard = Yard(tmp_path / "srv")
    yard.drop("a.dcm", dicom("1.2.3"))
    yard.settle()
    return yard


def counts(yard: Yard) -> tuple[int, int]:
    assert yard.balanced()
    return yard.ingest.counters().stored, yard.ingest.counters().duplicates


def test_equal_bytes_are_read_back_and_acknowledged_without_storing(yard: Yard) -> None:
    yard.drop("again.dcm", dicom("1.2.3"))
    yard.settle()
    assert counts(yard) == (1, 1)
    assert yard.sink.reads == 1
    assert len(yard.sink.commits) == 1
    assert yard.left() == []


def test_the_same_data_set_under_another_file_meta_header_is_a_duplicate(yard: Yard) -> None:
    resent = dicom("1.2.3", maker="PYNETDICOM_3")
    assert len(resent) != len(dicom("1.2.3"))
    yard.drop("again.dcm", resent)
    yard.settle()
    assert counts(yard) == (1, 1)
    assert yard.sink.codes() == []


def test_another_data_set_is_the_next_version_and_both_stay(yard: Yard) -> None:
    other = dicom("1.2.3", patient="Other^Pet")
    yard.drop("b.dcm", other)
    yard.settle()
    assert [yard.sink.content("1.2.3", v) for v in (1, 2)] == [dicom("1.2.3"), other]
    assert [event[:2] for event in yard.sink.events] == [("image-conflict", "warning")]
    assert counts(yard) == (2, 0)


def test_a_correction_from_the_same_source_is_only_information(yard: Yard) -> None:
    yard.drop("a.dcm", dicom("1.2.3", patient="Other^Pet"))
    yard.settle()
    assert [event[:2] for event in yard.sink.events] == [("image-conflict", "info")]


def test_an_older_version_sent_again_is_a_duplicate_of_that_version(yard: Yard) -> None:
    yard.drop("a.dcm", dicom("1.2.3", patient="Other^Pet"))
    yard.settle()
    yard.drop("a.dcm", dicom("1.2.3"))
    yard.settle()
    assert counts(yard) == (2, 1)
    assert len(yard.sink.images()) == 2


def test_the_same_data_set_under_another_transfer_syntax_is_another_version(yard: Yard) -> None:
    first = dicom("1.2.3")
    relabelled = first.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")
    yard.drop("b.dcm", relabelled)
    yard.settle()
    assert counts(yard) == (2, 0)


def test_a_duplicate_whose_stored_copy_is_damaged_is_stored_again_as_the_same_version(yard: Yard) -> None:
    yard.sink.damaged.add(yard.sink.images()[0].image)
    yard.drop("again.dcm", dicom("1.2.3"))
    yard.settle()
    assert yard.sink.content("1.2.3") == dicom("1.2.3")
    assert [row.version for row in yard.sink.images()] == [1]
    assert len(yard.sink.commits) == 2
    assert counts(yard) == (2, 0)


def test_a_duplicate_whose_stored_copy_reads_back_differently_is_stored_again(yard: Yard) -> None:
    lying = yard.sink.commits[0]
    yard.sink.commits[0] = replace(lying, payload=lying.payload[:-1] + b"?")
    yard.drop("again.dcm", dicom("1.2.3"))
    yard.settle()
    assert len(yard.sink.commits) == 2
    assert counts(yard) == (2, 0)


def test_a_duplicate_whose_stored_copy_is_not_protected_is_repaired_and_acknowledged(yard: Yard) -> None:
    yard.sink.unprotected.add(yard.sink.commits[0].segment)
    yard.drop("again.dcm", dicom("1.2.3"))
    yard.settle()
    assert counts(yard) == (1, 1)
    assert not yard.sink.unprotected


def test_a_duplicate_whose_stored_copy_cannot_be_protected_is_stored_again(yard: Yard) -> None:
    yard.sink.unprotected.add(yard.sink.commits[0].segment)
    yard.sink.repairable = False
    yard.drop("again.dcm", dicom("1.2.3"))
    yard.settle()
    assert len(yard.sink.commits) == 2
    assert yard.sink.images()[0].state == "protected"
    assert yard.left() == []


def test_an_equal_data_set_whose_stored_copy_cannot_be_protected_becomes_the_next_version(yard: Yard) -> None:
    yard.sink.unprotected.add(yard.sink.commits[0].segment)
    yard.sink.repairable = False
    yard.drop("again.dcm", dicom("1.2.3", maker="OTHER"))
    yard.settle()
    assert sorted(row.version for row in yard.sink.images()) == [1, 2]
    assert yard.sink.codes() == []


def test_an_array_that_cannot_protect_makes_duplicates_wait_and_stores_no_copies(tmp_path: Path) -> None:
    yard = Yard(tmp_path / "srv")
    yard.sink.protecting = False
    yard.drop("a.dcm", dicom("1.2.3"))
    yard.settle()
    for _ in range(8):
        yard.settle(70)
    assert len(yard.sink.commits) == 1
    assert yard.left() == ["a.dcm"]
    assert yard.ingest.counters().stored == 0
    yard.restart()
    for _ in range(8):
        yard.settle(70)
    assert len(yard.sink.commits) == 1, "a restart stores no copy either"
    assert not yard.ingest.idle_once()
    yard.sink.protecting = True
    yard.settle(70)
    assert yard.left() == []
    assert len(yard.sink.commits) == 1
    assert yard.balanced()


def test_an_unprotected_image_counts_as_stored_once_it_is_protected(tmp_path: Path) -> None:
    yard = Yard(tmp_path / "srv")
    yard.sink.protecting = False
    yard.drop("a.dcm", dicom("1.2.3"))
    yard.settle()
    yard.sink.protecting = True
    yard.settle(70)
    assert counts(yard) == (1, 0)
    assert yard.left() == []


def test_files_of_one_uid_dropped_together_do_not_race(tmp_path: Path) -> None:
    yard = Yard(tmp_path / "srv")
    for number in range(6):
        yard.drop(f"{number}.dcm", dicom("1.2.3", patient=f"Pet{number % 3}"))
    yard.drop("z.dcm", dicom("1.2.4"))
    yard.settle()
    assert sorted(row.version for row in yard.sink.versions("1.2.3")) == [1, 2, 3]
    assert counts(yard) == (4, 3)
    assert yard.left() == []


@given(st.lists(st.binary(max_size=5)), st.lists(st.binary(max_size=5)), st.booleans())
def test_streams_are_compared_however_they_are_cut(one: list[bytes], other: list[bytes], same: bool) -> None:
    if same:
        joined = b"".join(one)
        other = [joined[i : i + 3] for i in range(0, len(joined), 3)]
    assert _equal(one, other) == (b"".join(one) == b"".join(other))


def test_one_sender_is_one_file_or_one_subfolder() -> None:
    assert same_origin("inbox:ct/a", "inbox:ct/b")
    assert same_origin("inbox:a", "inbox:a")
    assert not same_origin("inbox:a", "inbox:b")
    assert not same_origin("inbox:ct/a", "inbox:mr/a")
    assert not same_origin("inbox:a", "spool:a")
