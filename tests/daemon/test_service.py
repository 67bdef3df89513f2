"""What the socket offers, over the real parts: looking, images, waiting, and who is recorded for a change."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from raidd import api
from raidd.daemon.beginning import Beginning
from raidd.errors import ImageNotFound, ImageUnreadable, TimedOut
from tests.support.arrays import SmallArray
from tests.support.dicom_files import data_set, file_meta, text
from tests.support.governed import Governed


@pytest.fixture
def governed(tmp_path: Path) -> Governed:
    return Governed(SmallArray(tmp_path / "array"), tmp_path)


def dicom(uid: str, patient: str = "Müller^Rex", study: str = "1.9") -> bytes:
    elements = [text(0x00100010, "PN", patient), text(0x0020000D, "UI", study)]
    return file_meta(uid=uid) + data_set(elements, uid=uid)


def drop(governed: Governed, name: str, data: bytes) -> None:
    (governed.array.config.raidd.inbox / name).write_bytes(data)


def test_what_is_dropped_is_counted_until_it_has_an_end(governed: Governed) -> None:
    assert governed.service.inbox().last_stored_at is None
    drop(governed, "a.dcm", dicom("1.2.1"))
    drop(governed, "b.txt", b"not an image, and too long to be waited for" * 100)
    governed.ingest.idle_once()
    assert governed.service.inbox().waiting == 2
    governed.take_in()
    inbox = governed.service.inbox()
    assert inbox.last_stored_at is not None
    assert inbox.waiting + inbox.rejected == 1, "the text is refused, or still given time"


def test_last_stored_survives_a_restart(governed: Governed) -> None:
    """The counters begin anew; when something was stored last is still known."""
    governed.array.put({"1.2.1": b"x"})
    again = Governed(governed.array, governed.home)
    assert again.ingest.last_stored_at is None
    assert again.service.inbox().last_stored_at is not None


def test_images_are_listed_with_every_version_and_the_limit_is_told(governed: Governed) -> None:
    drop(governed, "a.dcm", dicom("1.2.1"))
    governed.take_in()
    drop(governed, "a.dcm", dicom("1.2.1", "Müller^Bello"))
    drop(governed, "b.dcm", dicom("1.2.2", "Schmidt^Mia"))
    governed.take_in()
    found = governed.service.images(api.ImageSearch(words=["muller"]))
    assert sorted((one.sop_instance_uid, one.version) for one in found.images) == [("1.2.1", 1), ("1.2.1", 2)]
    assert {one.state for one in found.images} == {"protected"}
    assert not found.more
    assert governed.service.images(api.ImageSearch(limit=2)).more


def test_an_image_comes_back_byte_for_byte_in_the_version_asked_for(governed: Governed) -> None:
    versions = [dicom("1.2.1"), dicom("1.2.1", "Müller^Bello")]
    for data in versions:
        drop(governed, "a.dcm", data)
        governed.take_in()
    for number, data in [(1, versions[0]), (2, versions[1]), (None, versions[1])]:
        content = governed.service.content("1.2.1", number)
        assert b"".join(content.chunks) == data
        assert content.info.sha256 == hashlib.sha256(data).hexdigest()
    assert governed.service.image("1.2.1", None).version == 2


@pytest.mark.parametrize("uid", ["9.9.9", "", "../../etc/passwd", "1.2\n3", "a\x00b", "' OR 1=1 --"])
def test_an_unknown_image_is_named(governed: Governed, uid: str) -> None:
    for ask in (governed.service.image, governed.service.content):
        with pytest.raises(ImageNotFound, match="no image has the SOP Instance UID"):
            ask(uid, None)
    with pytest.raises(ImageNotFound, match="no study has the UID"):
        governed.service.study_images(uid)


def test_an_unknown_version_is_named(governed: Governed) -> None:
    governed.array.put({"1.2.1": b"x"})
    with pytest.raises(ImageNotFound, match=r"1\.2\.1, version 7"):
        governed.service.image("1.2.1", 7)


def test_while_the_catalog_is_made_again_an_unknown_image_may_exist(tmp_path: Path) -> None:
    governed = Governed(SmallArray(tmp_path / "array"), tmp_path, beginning=Beginning(reindexing=True))
    with pytest.raises(ImageNotFound, match="so far: the catalog is being made again") as refused:
        governed.service.image("1.2.1", None)
    assert refused.value.next_step.startswith("Try again")


def test_all_of_a_study_is_given(governed: Governed) -> None:
    for number in (1, 2):
        drop(governed, f"{number}.dcm", dicom(f"1.2.{number}", study="1.7"))
    drop(governed, "3.dcm", dicom("1.2.3", study="1.8"))
    governed.take_in()
    found = governed.service.study_images("1.7").images
    assert sorted(one.sop_instance_uid for one in found) == ["1.2.1", "1.2.2"]


def test_an_unreadable_image_is_an_error_and_no_bytes(governed: Governed) -> None:
    governed.array.put({"1.2.1": b"x" * 300_000})
    for slot in (0, 1, 2):
        governed.array.lose(slot)
    content = governed.service.content("1.2.1", None)
    with pytest.raises(ImageUnreadable):
        list(content.chunks)


# -- wait ------------------------------------------------------------------------------------------------------------


def test_wait_idle_begins_with_its_own_look(governed: Governed) -> None:
    """Nobody has told the watcher of this file."""
    drop(governed, "a.dcm", dicom("1.2.1"))
    with pytest.raises(TimedOut, match="1 image waits"):
        list(governed.service.wait(api.WaitRequest(idle=True, timeout_s=0)))
    governed.take_in()
    assert list(governed.service.wait(api.WaitRequest(idle=True, timeout_s=0))) == [api.WaitResult()]
    assert not (governed.array.config.raidd.inbox / "a.dcm").exists()


def test_wait_tells_why_images_wait(governed: Governed) -> None:
    drop(governed, "a.dcm", dicom("1.2.1"))
    governed.array.store.state_reserve_bytes = 1 << 60
    with pytest.raises(TimedOut, match=r"the system disk has .* make room there"):
        list(governed.service.wait(api.WaitRequest(idle=True, timeout_s=0)))


def test_wait_healthy_ends_when_nothing_is_to_be_repaired(governed: Governed) -> None:
    governed.array.put({"1.2.1": b"x"})
    governed.array.lose(1)
    with pytest.raises(TimedOut):
        list(governed.service.wait(api.WaitRequest(healthy=True, timeout_s=0)))
    governed.array.bring_back(1)
    governed.array.repair_all()
    assert list(governed.service.wait(api.WaitRequest(healthy=True, timeout_s=0))) == [api.WaitResult()]


def test_nothing_is_idle_or_healthy_before_the_start_is_over(tmp_path: Path) -> None:
    governed = Governed(SmallArray(tmp_path / "array"), tmp_path, beginning=Beginning(reindexing=False))
    for request in (api.WaitRequest(idle=True, timeout_s=0), api.WaitRequest(healthy=True, timeout_s=0)):
        with pytest.raises(TimedOut, match="what the last run left behind"):
            list(governed.service.wait(request))
    assert governed.service.inbox().reason


# -- full, and a system disk that is ---------------------------------------------------------------------------------


def test_a_system_disk_below_its_reserve_stops_ingest_and_not_reads(governed: Governed) -> None:
    governed.array.put({"1.2.1": b"kept"})
    governed.array.store.state_reserve_bytes = 1 << 60
    drop(governed, "a.dcm", dicom("1.2.2"))
    governed.take_in()
    assert (governed.array.config.raidd.inbox / "a.dcm").exists()
    assert "make room there" in governed.status().inbox.reason
    assert governed.status().next.startswith("images wait in the inbox: the system disk has")
    assert b"".join(governed.service.content("1.2.1", None).chunks) == b"kept"


def test_an_inbox_that_is_not_there_is_told_and_nothing_counts_as_idle(governed: Governed) -> None:
    """The share is not mounted: nobody knows what waits there."""
    inbox = governed.array.config.raidd.inbox
    inbox.rmdir()
    with pytest.raises(TimedOut, match=f"1 image waits.*{inbox}: No such file or directory"):
        list(governed.service.wait(api.WaitRequest(idle=True, timeout_s=0)))
    shown = governed.service.inbox()
    assert (shown.waiting, shown.reason) == (1, f"a folder cannot be read: {inbox}: No such file or directory")
    inbox.mkdir()
    governed.ingest.idle_once()
    assert (governed.service.inbox().waiting, governed.service.inbox().reason) == (0, "")


# -- changes ---------------------------------------------------------------------------------------------------------


def test_who_paused_a_rebuild_is_journaled(governed: Governed) -> None:
    status = governed.service.set_rebuild(api.RebuildRequest(action="pause"), actor="anna")
    assert status.paused
    status = governed.service.set_rebuild(api.RebuildRequest(priority="high"), actor="bert")
    assert (status.paused, status.priority) == (False, "high")
    assert governed.journal == [
        ("anna", "rebuild", (), {"action": "pause"}),
        ("bert", "rebuild", (), {"priority": "high"}),
    ]


def test_changes_carry_the_actor_on(governed: Governed) -> None:
    governed.service.offline(1, actor="anna")
    governed.service.online(1, actor="bert")
    governed.service.offline(1, actor="carl")
    governed.service.remove(1, actor="dora")
    assert [entry[:2] for entry in governed.journal] == [
        ("anna", "offline"),
        ("bert", "online"),
        ("carl", "offline"),
        ("dora", "remove"),
    ]
