"""`raidctl get`: the exact bytes, or an error and nothing in their place."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from pathlib import Path

import pytest

from raidd.cli.download import file_name
from tests.cli.conftest import RAIDCTL, Raidctl, environment
from tests.support.fake_daemon import FakeDaemon, StoredImage, stored_image

CONTENT = os.urandom(70_001)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


@pytest.fixture(autouse=True)
def images(daemon: FakeDaemon) -> list[StoredImage]:
    daemon.images = [stored_image("1.2", b"old", 1), stored_image("1.2", CONTENT, 2), stored_image("1.3", b"three")]
    return daemon.images


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_file_holds_the_newest_version_and_nothing_else_is_left(raidctl: Raidctl, folder: Path) -> None:
    ended = raidctl("get", "1.2", "-o", str(folder / "a.dcm"))
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    assert (folder / "a.dcm").read_bytes() == CONTENT
    assert names(folder) == ["a.dcm"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((folder / "a.dcm").stat().st_mode) == 0o666 & ~mask


def test_older_version_on_request(raidctl: Raidctl, folder: Path) -> None:
    assert raidctl("get", "1.2", "--version", "1", "-o", str(folder / "a.dcm")).code == 0
    assert (folder / "a.dcm").read_bytes() == b"old"


def test_folder_gets_a_file_named_by_the_uid(raidctl: Raidctl, folder: Path) -> None:
    assert raidctl("get", "1.2", "-o", str(folder)).code == 0
    assert names(folder) == ["1.2.dcm"]


@pytest.mark.parametrize("arguments", [["-o", "-"], []])
def test_pipe_gets_the_bytes(arguments: list[str], raidctl: Raidctl) -> None:
    ended = raidctl("get", "1.2", *arguments)
    assert (ended.code, ended.raw) == (0, CONTENT)


def test_existing_file_is_overwritten_only_by_force(raidctl: Raidctl, folder: Path, daemon: FakeDaemon) -> None:
    target = folder / "a.dcm"
    target.write_bytes(b"mine")
    ended = raidctl("get", "1.2", "-o", str(target))
    assert ended.code == 1
    assert "--force" in ended.err
    assert target.read_bytes() == b"mine"
    assert daemon.asked == []
    assert raidctl("get", "1.2", "--force", "-o", str(target)).code == 0
    assert target.read_bytes() == CONTENT


def test_dangling_link_is_in_the_way_too(raidctl: Raidctl, folder: Path) -> None:
    (folder / "a.dcm").symlink_to(folder / "elsewhere")
    assert raidctl("get", "1.2", "-o", str(folder / "a.dcm")).code == 1
    assert names(folder) == ["a.dcm"]


def lie(image: StoredImage) -> None:
    wrong = hashlib.sha256(b"other").hexdigest()
    image.info = image.info.model_copy(update={"sha256": wrong})


def test_wrong_bytes_never_appear_under_the_name(raidctl: Raidctl, folder: Path, images: list[StoredImage]) -> None:
    lie(images[1])
    (folder / "b.dcm").write_bytes(b"mine")
    assert raidctl("get", "1.2", "-o", str(folder / "a.dcm")).code == 1
    ended = raidctl("get", "1.2", "--force", "-o", str(folder / "b.dcm"))
    assert ended.code == 1
    assert "what arrived is not the image" in ended.err
    assert names(folder) == ["b.dcm"]
    assert (folder / "b.dcm").read_bytes() == b"mine"


def test_wrong_bytes_in_a_pipe_end_in_an_error(raidctl: Raidctl, images: list[StoredImage]) -> None:
    lie(images[1])
    ended = raidctl("get", "1.2", "-o", "-")
    assert ended.code == 1
    assert "what arrived is not the image" in ended.err


def test_transfer_cut_off_leaves_nothing(raidctl: Raidctl, folder: Path, images: list[StoredImage]) -> None:
    images[1].cut = 40_000
    ended = raidctl("get", "1.2", "-o", str(folder / "a.dcm"))
    assert ended.code == 1
    assert "was cut off" in ended.err
    assert names(folder) == []
    assert raidctl("get", "1.2", "-o", "-").code == 1


def test_unknown_image_makes_no_file(raidctl: Raidctl, folder: Path) -> None:
    ended = raidctl("get", "9.9", "-o", str(folder / "a.dcm"))
    assert ended.code == 1
    assert ended.err == "raidctl: no image 9.9\nnext: Look it up with: raidctl list WORDS\n"
    assert names(folder) == []


def test_folder_that_is_not_there_is_named(raidctl: Raidctl, folder: Path) -> None:
    ended = raidctl("get", "1.2", "-o", str(folder / "no" / "a.dcm"))
    assert ended.code == 1
    assert f"cannot write {folder}/no/a.dcm: No such file or directory" in ended.err


def test_device_is_written_to_and_never_replaced(raidctl: Raidctl, folder: Path) -> None:
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        assert raidctl("get", "1.2", "--force", "-o", str(pipe)).code == 0
        assert reader.communicate()[0] == CONTENT
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_full_disk_is_said_so(settings: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [RAIDCTL, "--config", settings, "get", "1.2", "-o", "-"],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(),
        )
    assert ended.returncode == 1
    assert b"No space left on device" in ended.stderr
    assert b"Traceback" not in ended.stderr


def test_study_gets_the_newest_version_of_each_image(raidctl: Raidctl, folder: Path) -> None:
    ended = raidctl("get", "--study", "7.7", "-o", str(folder / "new" / "study"))
    assert ended.code == 0
    assert names(folder / "new" / "study") == ["1.2.dcm", "1.3.dcm"]
    assert (folder / "new" / "study" / "1.2.dcm").read_bytes() == CONTENT


def test_interrupted_study_goes_on_and_a_foreign_file_stops_it(
    raidctl: Raidctl, folder: Path, daemon: FakeDaemon
) -> None:
    (folder / "1.2.dcm").write_bytes(CONTENT)
    assert raidctl("get", "--study", "7.7", "-o", str(folder)).code == 0
    assert [path for _, path, _ in daemon.asked if path.endswith("content")] == ["/v1/images/1.3/content"]
    (folder / "1.3.dcm").write_bytes(b"mine")
    assert raidctl("get", "--study", "7.7", "-o", str(folder)).code == 1
    assert (folder / "1.3.dcm").read_bytes() == b"mine"


def test_empty_study_is_an_error(raidctl: Raidctl, folder: Path, daemon: FakeDaemon) -> None:
    daemon.images = []
    assert raidctl("get", "--study", "7.7", "-o", str(folder)).code == 1


@pytest.mark.parametrize("uid", ["../../etc/passwd", "a/b", "", "..", ".hidden", "1.2\n", "x" * 500, "1.2\x00"])
def test_name_made_of_a_hostile_uid_stays_in_its_folder(uid: str) -> None:
    name = file_name(uid)
    assert "/" not in name
    assert not name.startswith(".")
    assert len(name) < 255
    assert name.isprintable()
    assert name != file_name(uid + "x")
