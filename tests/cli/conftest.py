"""The real `raidctl` as a process, and a daemon for it to talk to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.statuses import healthy
from tests.support.fake_daemon import FakeDaemon

RAIDCTL = Path(sys.executable).with_name("raidctl")


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str
    raw: bytes


Raidctl = Callable[..., Ended]


def environment(**more: str) -> dict[str, str]:
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
    return {**kept, "TZ": "UTC", "COLUMNS": "100", **more}


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """A settings file whose socket is in a folder of its own (a socket's path has 107 characters at most)."""
    path = tmp_path / "raidd.toml"
    path.write_text(f"[raidd]\nrun_dir = '{tmp_path}'\n")
    return path


@pytest.fixture
def raidctl(settings: Path) -> Raidctl:
    """Run `raidctl --config … ARGUMENTS` to its end."""

    def run(*arguments: str, cwd: Path | None = None, **more: str) -> Ended:
        done = subprocess.run(
            [RAIDCTL, "--config", settings, *arguments],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env=environment(**more),
            cwd=cwd,
            timeout=60,
        )
        return Ended(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(), done.stdout)

    return run


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path, healthy()) as running:
        yield running
