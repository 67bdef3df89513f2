"""What differs before a terminal, and what happens when the reader or the operator goes away."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from raidd import api
from tests.cli import statuses
from tests.cli.conftest import RAIDCTL, environment
from tests.support.fake_daemon import FakeDaemon, stored_image


def on_terminal(settings: Path, *arguments: str, typed: bytes = b"", **more: str) -> tuple[int, str]:
    """Run raidctl with all three streams on a pseudo-terminal; exit code and what appeared."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [RAIDCTL, "--config", settings, *arguments],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment(TERM="xterm", **more),
        start_new_session=True,
    ) as child:
        os.close(follower)
        os.write(leader, typed)
        seen = _read_all(leader)
    os.close(leader)
    return child.returncode, seen.decode()


def _read_all(leader: int) -> bytes:
    seen = b""
    while select.select([leader], [], [], 30)[0]:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # Linux says EIO when the last writer has closed
            break
        if not piece:
            break
        seen += piece
    return seen


def started(settings: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [RAIDCTL, "--config", settings, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )


def test_colours_are_for_terminals_and_no_color_is_honoured(settings: Path, daemon: FakeDaemon) -> None:
    daemon.status = statuses.degraded()
    assert "\x1b[1;33mDEGRADED" in on_terminal(settings, "status")[1]
    assert "\x1b[" not in on_terminal(settings, "status", NO_COLOR="1")[1]
    with started(settings, "status") as child:
        assert b"\x1b" not in child.communicate()[0]


def test_forced_colours_of_other_programs_do_not_reach_a_pipe(settings: Path, daemon: FakeDaemon) -> None:
    daemon.status = statuses.degraded()
    done = subprocess.run(
        [RAIDCTL, "--config", settings, "status"], capture_output=True, env=environment(FORCE_COLOR="1"), timeout=60
    )
    assert b"\x1b" not in done.stdout


def replaceable(daemon: FakeDaemon) -> None:
    old, new = statuses.member(2, "c3d4", "", state="failed"), statuses.member(2, "77aa", "")
    daemon.replies["/v1/slots/2/replace"] = api.ReplaceReply(slot=2, started=True, old=old, new=new)


@pytest.mark.parametrize(("typed", "code", "asked"), [(b"y\n", 0, 2), (b"n\n", 1, 1), (b"\n", 1, 1)])
def test_replace_asks_on_a_terminal(typed: bytes, code: int, asked: int, settings: Path, daemon: FakeDaemon) -> None:
    replaceable(daemon)
    ended, seen = on_terminal(settings, "replace", "2", "/x", typed=typed)
    assert "Go on?" in seen
    assert (ended, len(daemon.asked)) == (code, asked)


def test_replace_yes_does_not_ask(settings: Path, daemon: FakeDaemon) -> None:
    replaceable(daemon)
    ended, seen = on_terminal(settings, "replace", "2", "/x", "--yes")
    assert ended == 0
    assert "Go on?" not in seen


def test_image_is_not_poured_into_a_terminal(settings: Path, daemon: FakeDaemon) -> None:
    daemon.images = [stored_image("1.2", b"\x1b[2J")]
    ended, seen = on_terminal(settings, "get", "1.2")
    assert ended == 64
    assert "-o FILE" in seen
    assert daemon.asked == []


def test_reader_that_goes_away_is_no_traceback(settings: Path, daemon: FakeDaemon) -> None:
    daemon.images = [stored_image(f"1.2.{number}", b"x") for number in range(3000)]
    with started(settings, "list") as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(30) == 141


def test_reader_of_an_image_that_goes_away_is_no_traceback(settings: Path, daemon: FakeDaemon) -> None:
    daemon.images = [stored_image("1.2", bytes(3_000_000))]
    with started(settings, "get", "1.2", "-o", "-") as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.read(10)
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(30) == 141


def test_ctrl_c_ends_quietly_with_130(settings: Path, daemon: FakeDaemon) -> None:
    daemon.delay_s = 3.0
    with started(settings, "wait") as child:
        _until(lambda: daemon.asked)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
    assert (child.returncode, out, err) == (130, b"", b"")


def test_watch_looks_again_until_ctrl_c_and_ends_with_the_last_verdict(settings: Path, daemon: FakeDaemon) -> None:
    daemon.status = statuses.degraded()
    with started(settings, "status", "--watch", "--json") as child:
        assert child.stdout is not None
        looks = [json.loads(child.stdout.readline()) for _ in range(2)]
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 1
    assert [look["array"]["state"] for look in looks] == ["degraded", "degraded"]


def _until(condition: object) -> None:
    deadline = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)
