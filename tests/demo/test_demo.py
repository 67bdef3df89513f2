"""`make demo` itself: it ends well, says what it must say, leaves raidd running, and its folder alone if it is not its.

The whole story runs once, in real processes; it takes a minute.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.demo import demo
from tests.demo.images import real_images, relatives
from tests.demo.screen import Failed
from tests.demo.stage import Stage

pytestmark = pytest.mark.timeout(600)
ROOT = Path(demo.__file__).parents[2]


def make_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.demo.demo", *arguments]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=540)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("d") / "demo"
    yield folder
    Stage(folder, "demo").stop()


@pytest.fixture(scope="module")
def story(folder: Path) -> subprocess.CompletedProcess[str]:
    return make_demo("--folder", str(folder), "--kill", "0 3")


def test_the_demo_ends_well(story: subprocess.CompletedProcess[str]) -> None:
    assert story.returncode == 0, story.stdout[-3000:] + story.stderr
    assert story.stderr == ""


def test_it_says_that_it_protects_nothing(story: subprocess.CompletedProcess[str]) -> None:
    assert "all six folders are on one disk: this protects nothing, it only shows how" in story.stdout


def test_it_shows_the_status_at_each_step_and_what_to_look_at(story: subprocess.CompletedProcess[str]) -> None:
    assert story.stdout.count("$ raidctl status") >= 6
    assert story.stdout.count("look at:") >= 6
    for state in ("HEALTHY", "CRITICAL", "DEGRADED", "rebuilding", "demo is healthy"):
        assert state in story.stdout


def test_it_shows_digests_side_by_side(story: subprocess.CompletedProcess[str], folder: Path) -> None:
    lines = [line.split(maxsplit=2) for line in (folder / "digests.txt").read_text().splitlines()]
    assert len(lines) > 200
    assert all(before == after for before, after, _name in lines)
    assert story.stdout.count("…  = ") == demo.SHOWN_ROWS


def test_there_are_no_colours_in_a_pipe(story: subprocess.CompletedProcess[str]) -> None:
    assert "\x1b" not in story.stdout


def test_what_was_recovered_without_raidd_is_what_was_dropped(
    story: subprocess.CompletedProcess[str], folder: Path
) -> None:
    assert story.returncode == 0
    dropped = {picture.sha256 for picture in real_images()}
    found = {hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / "recovered").rglob("*.dcm")}
    assert dropped <= found


def test_it_leaves_raidd_running_and_demo_stop_ends_it(story: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert story.returncode == 0
    stage = Stage(folder, "demo")
    assert stage.status().array.state == "healthy"
    assert "raidd is stopped" in make_demo("--folder", str(folder), "stop").stdout
    assert "no demo is running" in make_demo("--folder", str(folder), "stop").stdout


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "letter.txt").write_text("mine")
    done = make_demo("--folder", str(tmp_path / "demo"))
    assert done.returncode == 1
    assert "move it away" in done.stderr
    assert (tmp_path / "demo" / "letter.txt").read_text() == "mine"


@pytest.mark.parametrize("text", ["", "1", "1 1", "1 6", "1 2 3", "a b", "-1 2"])
def test_only_two_different_disks_can_be_named(text: str) -> None:
    with pytest.raises(Failed, match="name two different disks"):
        demo.slots_to_kill(text)


def test_disks_are_named_with_a_space_or_a_comma() -> None:
    assert demo.slots_to_kill("4 1") == demo.slots_to_kill("1,4") == [1, 4]


def test_a_relative_is_another_image_of_the_same_length() -> None:
    pictures = real_images()
    others = relatives(pictures, 1)
    assert len(others) > 200
    assert not {picture.sha256 for picture in others} & {picture.sha256 for picture in pictures}
    assert not {picture.uid for picture in others} & {picture.uid for picture in pictures}
