"""init, assemble, reindex: exactly the agreed words reach `raidd.daemon.offline`, and its end is raidctl's."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import RAIDCTL, environment

# Stands where the real package would: -P keeps the current folder out, PYTHONPATH is the operator's own choice.
FAKE_OFFLINE = """
import os, signal, sys, time
print("\\n".join(sys.argv[1:]), flush=True)
print(sys.stdin.read(), file=sys.stderr, end="")
if os.environ.get("WAIT"):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(8))
    print("ready", flush=True)
    time.sleep(30)
if os.environ.get("KILLED"):
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(os.environ.get("CODE", "0")))
"""


@pytest.fixture
def fake_package(tmp_path: Path) -> Path:
    """The real raidd, but for `raidd.daemon.offline`."""
    root = tmp_path / "package"
    (root / "raidd" / "daemon").mkdir(parents=True)
    (root / "raidd" / "daemon" / "__init__.py").touch()
    (root / "raidd" / "daemon" / "offline.py").write_text(FAKE_OFFLINE)
    real = Path(__file__).parents[2] / "raidd"
    for entry in real.iterdir():
        if entry.name not in ("daemon", "__pycache__"):
            (root / "raidd" / entry.name).symlink_to(entry)
    return root


def run(package: Path, *arguments: str, typed: bytes = b"", **more: str) -> tuple[int, list[str], bytes]:
    done = subprocess.run(
        [RAIDCTL, *arguments],
        capture_output=True,
        input=typed,
        env=environment(PYTHONPATH=str(package), **more),
        cwd=package,
        timeout=60,
    )
    return done.returncode, done.stdout.decode().splitlines(), done.stderr


def test_init_passes_exactly_the_agreed_words(fake_package: Path) -> None:
    code, words, _ = run(
        fake_package,
        *("--config", "x.toml", "init", "--name", "clinic-1", "--level", "custom", "--data", "4", "--parity", "2"),
        *("--allow-same-device", "--allow-filesystem", "d1", "/d2"),
    )
    assert code == 0
    assert words == [
        *("init", "--name=clinic-1", "--level=custom", "--data=4", "--parity=2"),
        *(
            "--allow-same-device",
            "--allow-filesystem",
            "--config",
            f"{fake_package}/x.toml",
            f"{fake_package}/d1",
            "/d2",
        ),
    ]


def test_config_after_init_counts_and_what_is_not_given_is_not_passed(fake_package: Path) -> None:
    _, words, _ = run(fake_package, "--config", "x", "init", "--config", "/y.toml", "--name=-n", "/d1", "/d2")
    assert words == ["init", "--name=-n", "--config", "/y.toml", "/d1", "/d2"]


def test_assemble_and_reindex_pass_the_settings_file(fake_package: Path) -> None:
    assert run(fake_package, "assemble", RAIDD_CONFIG="/e.toml")[1] == ["assemble", "--config", "/e.toml"]
    assert run(fake_package, "--config", "/c", "assemble", "/m")[1] == ["assemble", "--config", "/c", "/m"]
    assert run(fake_package, "--config", "/c", "catalog", "reindex")[1] == ["catalog", "reindex", "--config", "/c"]


@pytest.mark.parametrize("expected", [0, 1, 64])
def test_exit_code_of_the_child_is_raidctls(expected: int, fake_package: Path) -> None:
    assert run(fake_package, "assemble", CODE=str(expected))[0] == expected


def test_killed_child_is_told_from_a_refusal(fake_package: Path) -> None:
    assert run(fake_package, "assemble", KILLED="1")[0] == 128 + signal.SIGKILL


def test_standard_streams_are_inherited(fake_package: Path) -> None:
    assert run(fake_package, "assemble", typed=b"yes")[2] == b"yes"


@pytest.mark.parametrize(("number", "group", "expected"), [(signal.SIGTERM, False, 7), (signal.SIGINT, True, 8)])
def test_signals_let_the_child_clean_up(number: int, group: bool, expected: int, fake_package: Path) -> None:
    with subprocess.Popen(
        [RAIDCTL, "assemble"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(PYTHONPATH=str(fake_package), WAIT="1"),
        start_new_session=True,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        while child.stdout.readline() != b"ready\n":
            pass
        if group:
            os.killpg(child.pid, number)
        else:
            child.send_signal(number)
        assert child.wait(30) == expected
        assert child.stderr.read() == b""


def test_module_in_the_current_folder_is_not_run(fake_package: Path) -> None:
    done = subprocess.run(
        [RAIDCTL, "assemble", "/m"], capture_output=True, env=environment(), cwd=fake_package, timeout=60
    )
    assert done.stdout.decode().splitlines()[:1] != ["assemble"]
