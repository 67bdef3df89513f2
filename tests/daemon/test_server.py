"""The Unix socket: who may connect, what is replaced, how it ends."""

from __future__ import annotations

import grp
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from raidd import api
from raidd.daemon.control import build_app
from raidd.daemon.server import answers, serve
from raidd.errors import ArrayLocked, ConfigInvalid
from tests.support.control_socket import client, serving, socket_folder
from tests.support.fake_services import FakeServices

LISTENER = """
import os, signal, socket, sys, threading
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(1)
print("listening", flush=True)
"""


@pytest.fixture
def path() -> Iterator[Path]:
    with socket_folder() as folder:
        yield folder / "raidd.sock"


def status_code(path: Path) -> int:
    with client(path) as asking:
        return asking.get(api.STATUS).status_code


def listener(path: Path, then: str) -> subprocess.Popen[str]:
    """Another process that listens on `path` and never accepts."""
    process = subprocess.Popen([sys.executable, "-c", LISTENER + then, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "listening\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_start_returns_when_it_answers(path: Path) -> None:
    server = serve(path, build_app(FakeServices()))
    server.start()
    assert status_code(path) == 200
    assert server.stop()


def test_without_the_group_only_the_owner_may_connect(path: Path) -> None:
    with serving(FakeServices(), path, group="no-such-group"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to a group")
def test_the_group_may_connect_when_it_exists(path: Path) -> None:
    with serving(FakeServices(), path, group="games"):
        found = path.stat()
        assert (stat.S_IMODE(found.st_mode), grp.getgrgid(found.st_gid).gr_name) == (0o660, "games")


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")
@pytest.mark.parametrize(("user", "may"), [("games", True), ("man", True), ("mail", False)])
def test_the_group_and_the_admins_may_connect_and_nobody_else(path: Path, user: str, may: bool) -> None:
    """Group `games` stands for raidd, `man` for raidd-admin (the same names are users with that primary group)."""
    server = serve(path, build_app(FakeServices()), group="games", admin_group="man")
    server.start()
    try:
        if "system.posix_acl_access" not in os.listxattr(path):
            pytest.skip("no ACLs on this file system")
        try_it = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "/usr/bin/env", "python3"]
        done = subprocess.run([*command, "-c", try_it, str(path)], capture_output=True, text=True, check=False)
        assert (done.returncode == 0) is may, done.stderr
    finally:
        assert server.stop()


def test_a_stale_socket_is_replaced(path: Path) -> None:
    end(listener(path, "os._exit(0)"))
    assert path.is_socket()
    with serving(FakeServices(), path):
        assert status_code(path) == 200


def test_a_socket_that_answers_is_left_alone(path: Path) -> None:
    with serving(FakeServices(), path):
        with pytest.raises(ArrayLocked):
            serve(path, build_app(FakeServices())).start()
        assert status_code(path) == 200


def test_a_listener_that_never_replies_does_not_answer(path: Path) -> None:
    process = listener(path, "threading.Event().wait()")
    try:
        assert not answers(path, patience_s=0.3)
        with pytest.raises(BlockingIOError):  # fill its queue: connecting is refused now
            [_knock(path) for _ in range(10)]
        assert not answers(path, patience_s=0.3)
    finally:
        end(process)
        for one in _KNOCKING:
            one.close()


_KNOCKING: list[socket.socket] = []


def _knock(path: Path) -> None:
    one = socket.socket(socket.AF_UNIX)
    _KNOCKING.append(one)
    one.setblocking(False)
    one.connect(str(path))


def test_the_socket_of_a_zombie_is_known_without_waiting(path: Path) -> None:
    """A leader that has ended while one of its threads lives: as after SIGKILL with a hung disk."""
    process = listener(
        path,
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "import ctypes\n"
        "ctypes.CDLL(None).syscall(60, 0)\n",  # exit, of this thread only (x86-64)
    )
    try:
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            assert process.poll() is None
        assert not answers(path, patience_s=250)
        with serving(FakeServices(), path):
            assert status_code(path) == 200
    finally:
        end(process)


def test_a_file_in_the_way_is_left_as_it_is(path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(ConfigInvalid, match="not a socket"):
        serve(path, build_app(FakeServices())).start()
    assert path.read_text() == "mine"


def test_a_folder_that_is_not_there_is_a_fault_of_the_settings(path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="run_dir"):
        serve(path.parent / "none" / "raidd.sock", build_app(FakeServices())).start()


def test_release_frees_the_path_for_another_while_an_answer_is_under_way(path: Path) -> None:
    services = FakeServices(hold=threading.Event())
    first = serve(path, build_app(services))
    first.start()
    with client(path) as asking:
        replies: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: replies.append(asking.get(api.REBUILD)))
        thread.start()
        while not services.calls:
            thread.join(0.01)
        first.release()
        assert not path.exists()
        with serving(FakeServices(), path):
            services.hold.set()  # type: ignore[union-attr]
            thread.join()
            assert replies[0].status_code == 200
            assert first.stop()
            assert status_code(path) == 200  # the second's path was not taken away with the first's


def test_stop_cuts_what_hangs(path: Path) -> None:
    services = FakeServices(hold=threading.Event())
    server = serve(path, build_app(services))
    server.start()
    failures: list[Exception] = []

    def ask() -> None:
        try:
            with client(path, timeout_s=60) as asking:
                asking.get(api.REBUILD).raise_for_status()
        except httpx.HTTPError as error:
            failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not services.calls:
        thread.join(0.01)
    assert server.stop(timeout_s=30)  # though the call never returned
    thread.join()
    assert failures
    services.hold.set()  # type: ignore[union-attr]


def test_signal_handlers_are_not_touched(path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with serving(FakeServices(), path):
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
