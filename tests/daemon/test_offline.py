"""The child process behind init, assemble and catalog reindex: its words, its errors, its exit codes."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from raidd.daemon import birth, offline, recovery
from raidd.errors import ArrayLocked, ConfigInvalid, RaiddError
from tests.support.real_daemon import RAIDCTL
from tests.support.trial_array import TrialArray


def test_understands_exactly_what_raidctl_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """cli/offline_child.py lists the argument vectors."""
    got: list[argparse.Namespace] = []
    monkeypatch.setattr(birth, "init", got.append)
    monkeypatch.setattr(recovery, "assemble", got.append)
    monkeypatch.setattr(recovery, "reindex", got.append)
    options = ["--name=-n", "--level=custom", "--data=2", "--parity=1", "--width=3", "--copies=2"]
    flags = ["--allow-same-device", "--allow-filesystem"]
    assert offline.main(["init", *options, *flags, "--config", "/f", "/a", "/b"]) == 0
    assert offline.main(["assemble", "--config", "/f"]) == 0
    assert offline.main(["assemble", "--config", "/f", "/a"]) == 0
    assert offline.main(["catalog", "reindex", "--config", "/f"]) == 0
    init, bare, named, reindex = got
    assert (init.name, init.level, init.data, init.parity, init.width, init.copies) == ("-n", "custom", 2, 1, 3, 2)
    assert (init.allow_same_device, init.allow_filesystem, init.mounts) == (True, True, ["/a", "/b"])
    assert (bare.mounts, named.mounts) == ([], ["/a"])
    assert {one.config for one in got} == {Path("/f")}
    assert reindex is not None


@pytest.mark.parametrize(
    ("error", "code"),
    [(ArrayLocked("locked"), 1), (ConfigInvalid(["one", "two"]), 64), (RaiddError("a\n\x1b[31mb"), 1)],
)
def test_an_error_is_its_lines_a_next_step_and_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: RaiddError, code: int
) -> None:
    def failing(_given: object) -> None:
        raise error

    monkeypatch.setattr(recovery, "reindex", failing)
    assert offline.main(["catalog", "reindex", "--config", "/f"]) == code
    *lines, last = capsys.readouterr().err.splitlines()
    assert all(line.startswith("raidctl: ") for line in lines)
    assert len(lines) == len(error.message.splitlines())
    assert last == f"next: {error.next_step}"
    assert not any("\x1b" in line for line in lines)


def test_a_wrong_command_line_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["init", "--name=x"], ["bogus"], [], ["assemble"]):
        with pytest.raises(SystemExit) as ended:
            offline.main(words)
        assert ended.value.code == 64
        assert capsys.readouterr().err.splitlines()[-1] == "next: raidctl --help"


def test_the_whole_way_from_raidctl(tmp_path: Path) -> None:
    """raidctl → child → array, and back: exit codes and both streams pass through."""
    array = TrialArray(tmp_path, 2)
    command = [*RAIDCTL, "--config", str(array.config_file)]
    init = [*command, "init", "--name", "x", "--allow-same-device", *map(str, array.mounts)]
    made = subprocess.run(init, capture_output=True, text=True, check=False, timeout=120)
    assert made.returncode == 0, made.stderr
    assert "Array x (mirror, 1+1) is made" in made.stdout
    again = subprocess.run(init, capture_output=True, text=True, check=False, timeout=120)
    assert again.returncode == 1
    assert again.stderr.count("is a member already") == 2
    assert "Traceback" not in again.stderr
    reindexed = subprocess.run(
        [*command, "catalog", "reindex"], capture_output=True, text=True, check=False, timeout=120
    )
    assert reindexed.returncode == 0, reindexed.stderr
    assert "0 images in 0 segments" in reindexed.stdout


def test_the_module_runs_by_its_name() -> None:
    """As raidctl starts it: -P, so that the current folder is no place to find raidd."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "raidd.daemon.offline", "bogus"], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 64
