"""Bad input from the inbox to the array and back: each kind has its defined end, and none spoils another's.

The inbox's own tests (tests/inbox/test_bad_input.py) take each kind apart, with an array that stores what it is given.
Here all of them meet the real one at once: manifests, catalog, a catalog made again from the members, recover.py.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

import raidd.recover
from raidd.inbox import intake
from raidd.inbox.names import source_path
from tests.support.crash_world import CrashWorld
from tests.support.inbox_yard import dicom

CLIMBING = "1.2/../../../../etc/passwd"
SPOILT_NAME = b"scan\n\xff\xfe\\x \xe2\x80\xae.dcm"
REFUSED = {
    "pipe.dcm": "not-a-file",
    "link.dcm": "not-a-file",
    "dangling.dcm": "not-a-file",
    "linked": "not-a-file",
    "empty.dcm": "empty",
    "letter.dcm": "not-dicom",
    "DICOMDIR": "dicomdir",
    "Thumbs.db": "not-an-image",
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[CrashWorld]:
    world = CrashWorld.new(tmp_path / "world")
    yield world
    world.bury()


def climbing() -> bytes:
    """An image whose SOP Instance UID is a path out of every folder."""
    room = "1." + "2" * (len(CLIMBING) - 2)
    return dicom(room).replace(room.encode(), CLIMBING.encode())


def spoilt_values() -> bytes:
    """Element values with NUL, bytes of no charset, and the UTF-8 of lone surrogates."""
    return dicom("1.2.5", patient="AAAA^BBBBBBBB").replace(b"AAAA^BBBBBBBB", b"A\0A\xed\xa0\x80\xff^\xed\xbf\xbfB\0")


def drop_everything(world: CrashWorld) -> dict[str, bytes]:
    """What is to be stored, by UID; what is to be refused lies beside it."""
    outside = world.top / "outside"
    outside.mkdir()
    (outside / "secret.dcm").write_bytes(dicom("6.6.6"))
    images = {
        "1.2.1": dicom("1.2.1"),
        "1.2.2": dicom("1.2.2"),
        "1.2.3": dicom("1.2.3", pixels=b"\x07" * 4000)[:-1000],
        CLIMBING: climbing(),
        "1.2.5": spoilt_values(),
    }
    world.drop("folder.dcm/image.dcm", images["1.2.1"])
    (world.inbox / os.fsdecode(SPOILT_NAME)).write_bytes(images["1.2.2"])
    world.drop("truncated.dcm", images["1.2.3"])
    world.drop("climbing.dcm", images[CLIMBING])
    world.drop("spoilt.dcm", images["1.2.5"])
    os.mkfifo(world.inbox / "pipe.dcm")
    (world.inbox / "link.dcm").symlink_to(outside / "secret.dcm")
    (world.inbox / "dangling.dcm").symlink_to("nowhere")
    (world.inbox / "linked").symlink_to(outside)
    (world.inbox / "empty.dcm").touch()
    (world.inbox / "letter.dcm").write_bytes(b"Dear colleague, please find enclosed " * 20)
    shutil.copy(str(get_testdata_file("DICOMDIR")), world.inbox / "DICOMDIR")
    (world.inbox / "Thumbs.db").write_bytes(b"\0\1\2junk" * 40)
    return images


def read_back(world: CrashWorld) -> dict[str, bytes]:
    return {row.sop_instance_uid: b"".join(world.array.store.read(row)) for row in world.rows()}


def test_all_kinds_of_bad_input_at_once_each_have_their_end(world: CrashWorld) -> None:
    images = drop_everything(world)
    assert world.run()
    assert read_back(world) == images
    assert world.array.catalog.check() == []
    reasons = {
        path.name.removesuffix(".reason.txt"): path.read_text().splitlines()[0].removeprefix("code: ")
        for path in world.rejected.rglob("*.reason.txt")
    }
    assert reasons == REFUSED
    assert (world.top / "outside" / "secret.dcm").read_bytes() == dicom("6.6.6")
    counters = world.ingest.counters()
    assert counters.dropped == counters.stored + counters.duplicates + counters.rejected_total
    assert [code for code, _severity, _message in world.array.events if code == "image-truncated"] != []


def test_what_was_stored_of_it_is_found_and_comes_back_from_the_members_alone(world: CrashWorld) -> None:
    images = drop_everything(world)
    assert world.run()
    listed = {row.sop_instance_uid: (row.source, dict(row.identity), row.sha256) for row in world.rows()}
    assert source_path(listed["1.2.2"][0].removeprefix("inbox:")) == SPOILT_NAME
    for source, identity, _sha256 in listed.values():
        "".join([source, *map(str, identity.values())]).encode()  # valid Unicode, all of it
    world.array.lose_catalog()
    again = {row.sop_instance_uid: (row.source, dict(row.identity), row.sha256) for row in world.rows()}
    assert again == listed
    assert read_back(world) == images


def test_recover_gives_it_back_and_writes_nowhere_else(world: CrashWorld, tmp_path: Path) -> None:
    images = drop_everything(world)
    assert world.run()
    home = tmp_path / "disks"
    for number, disk in enumerate(world.array.memory):
        for name, data in disk.files().items():
            path = home / f"d{number}" / f"raidd-{disk.uuid}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    before = sorted(path for path in tmp_path.rglob("*") if home not in path.parents)
    out = tmp_path / "out"
    mounts = [str(mount) for mount in sorted(home.iterdir())][2:]
    command = [sys.executable, raidd.recover.__file__, "--out", str(out), *mounts]
    subprocess.run(command, check=False, capture_output=True, timeout=120)
    restored = [path for path in out.rglob("*") if path.is_file() and path.suffix == ".dcm"]
    assert sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in restored) == sorted(
        hashlib.sha256(data).hexdigest() for data in images.values()
    )
    after = sorted(path for path in tmp_path.rglob("*") if home not in path.parents and path != out)
    assert [path for path in after if out not in path.parents] == before


@pytest.mark.parametrize("how", ["grows", "shrinks", "vanishes", "is-replaced"])
def test_a_file_that_changes_while_it_is_read_is_never_stored_half(
    world: CrashWorld, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It changes between the open and the first byte. What is stored in the end is what it then is, whole."""
    data = dicom("1.2.3", pixels=b"\x07" * 9000)
    path = world.inbox / "a.dcm"
    path.write_bytes(data)
    preadv, changed = os.preadv, []

    def change_first(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if not changed:
            changed.append(how)
            if how == "grows":
                with path.open("ab") as file:
                    file.write(b"\0\0\0\0")
            elif how == "shrinks":
                os.truncate(path, len(data) - 500)
            elif how == "vanishes":
                path.unlink()
            else:
                path.with_name(".new").write_bytes(dicom("1.2.3", pixels=b"\x08" * 9000))
                path.with_name(".new").rename(path)
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(intake.os, "preadv", change_first)
    assert world.run()
    assert changed
    expected = {
        "grows": {data + b"\0\0\0\0"},
        "shrinks": {data[:-500]},
        "vanishes": set(),
        "is-replaced": {dicom("1.2.3", pixels=b"\x08" * 9000)},
    }[how]
    assert expected <= set(world.stored()) <= expected | {data}
    assert world.array.catalog.check() == []
    counters = world.ingest.counters()
    ended = counters.stored + counters.duplicates + counters.rejected_total + counters.withdrawn
    assert counters.dropped == ended
