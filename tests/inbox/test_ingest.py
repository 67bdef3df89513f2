"""Files dropped into a real folder come out of the (in-memory) array byte for byte, and leave the inbox."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.inbox_yard import Yard, dicom


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path / "srv")


def test_a_dropped_image_is_stored_and_taken_away(yard: Yard) -> None:
    data = dicom("1.2.3")
    yard.drop("a.dcm", data)
    yard.settle()
    assert yard.sink.content("1.2.3") == data
    assert yard.left() == []
    assert yard.ingest.counters().stored == 1
    assert yard.ingest.idle_once()
    assert yard.sink.drafts_out == 0


def test_an_image_is_left_alone_until_it_has_settled(yard: Yard) -> None:
    path = yard.drop("a.dcm", dicom("1.2.3"))
    yard.settle(1.0)
    assert yard.sink.commits == []
    path.write_bytes(dicom("1.2.3", patient="Longer^Name^Than^Before"))
    yard.settle(1.5)
    assert yard.sink.commits == []
    assert not yard.ingest.idle_once()
    yard.settle(1.0)
    assert yard.sink.content("1.2.3") == dicom("1.2.3", patient="Longer^Name^Than^Before")


def test_many_small_images_share_one_commit(yard: Yard) -> None:
    for number in range(50):
        yard.drop(f"study/{number}.dcm", dicom(f"1.2.{number}"))
    yard.settle()
    assert len(yard.sink.commits) == 1
    assert yard.ingest.counters().stored == 50
    assert yard.left() == []
