"""Roles by the kernel's word: real processes of other users ask a real server."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from raidd import api
from raidd.daemon.control import build_app
from raidd.daemon.peer import Peer, Role, Roles, credentials
from tests.support.control_socket import client, serving, socket_folder
from tests.support.fake_services import FakeServices

ASK = """
import http.client, json, socket, sys
connection = http.client.HTTPConnection("raidd")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(sys.argv[1])
connection.request(sys.argv[2], sys.argv[3], headers={"X-User": "root", "Authorization": "root"})
reply = connection.getresponse()
print(json.dumps([reply.status, json.loads(reply.read())]))
"""

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")


@pytest.fixture
def services() -> FakeServices:
    return FakeServices()


@pytest.fixture
def path(services: FakeServices) -> Iterator[Path]:
    """A socket that everybody may connect to; group `man` stands for raidd-admin, user `news` for the gateway."""
    with socket_folder() as folder:
        roles = Roles(own_uid=pwd.getpwnam("games").pw_uid, admin_group="man", gateway_user="news")
        with serving(services, folder / "s", roles=roles):
            (folder / "s").chmod(0o666)
            yield folder / "s"


def ask_as(user: str, groups: Sequence[str], path: Path, method: str, target: str) -> tuple[int, dict[str, object]]:
    command = ["setpriv", f"--reuid={user}", *groups, shutil.which("python3", path="/usr/bin:/bin") or sys.executable]
    done = subprocess.run(
        [*command, "-c", ASK, str(path), method, target], capture_output=True, text=True, check=True, cwd="/"
    )
    status, reply = json.loads(done.stdout)
    return status, reply


@root_only
@pytest.mark.parametrize(
    ("user", "may_change"),
    [("root", True), ("games", True), ("man", True), ("mail", False), ("news", False)],
)
def test_root_the_daemons_user_and_admins_change_and_others_look(
    path: Path, services: FakeServices, user: str, may_change: bool
) -> None:
    assert ask_as(user, ["--regid=nogroup", "--clear-groups"], path, "GET", api.STATUS)[0] == 200
    status, reply = ask_as(user, ["--regid=nogroup", "--clear-groups"], path, "POST", "/v1/slots/1/offline")
    changes = [call for call in services.calls if call[0] == "offline"]
    if may_change:
        assert (status, changes) == (200, [("offline", 1, user)])
    else:
        assert (status, reply["error"], changes) == (403, "PermissionRefused", [])


@root_only
def test_a_group_that_the_process_has_but_its_user_has_not_counts_for_nothing(path: Path) -> None:
    """setgid programs and `newgrp` give a process groups; what counts is the user database."""
    groups = ["--regid=man", "--groups=man"]
    assert ask_as("mail", groups, path, "POST", "/v1/slots/1/offline")[0] == 403


@root_only
def test_a_user_without_a_name_may_look(path: Path) -> None:
    groups = ["--regid=nogroup", "--clear-groups"]
    assert ask_as("61234", groups, path, "GET", api.STATUS)[0] == 200
    status, reply = ask_as("61234", groups, path, "POST", "/v1/slots/1/offline")
    assert status == 403
    assert "uid 61234" in str(reply["message"])


@root_only
def test_a_supplementary_group_makes_an_admin_and_never_the_gateway(tmp_path: Path) -> None:
    """The real names, in a user database of its own: a mount namespace of this child only."""
    passwd, group = tmp_path / "passwd", tmp_path / "group"
    passwd.write_text(Path("/etc/passwd").read_text() + "ann:x:7001:7001::/:/bin/sh\nraidd-gateway:x:7002:7002::/:/x\n")
    group.write_text(Path("/etc/group").read_text() + "raidd-admin:x:7100:ann,raidd-gateway\n")
    judge = (
        "from raidd.daemon.peer import Peer, Roles\n"
        "print(*[Roles(own_uid=1).role(Peer(1, uid, 1)) for uid in (7001, 7002, 7003, 0, 1)])"
    )
    mount = (
        f"mount --bind {passwd} /etc/passwd && mount --bind {group} /etc/group && exec {sys.executable} -c '{judge}'"
    )
    done = subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["admin", "look", "look", "admin", "admin"], done.stderr


def test_changes_are_refused_where_the_peer_is_not_known(services: FakeServices) -> None:
    async def ask() -> int:
        transport = httpx.ASGITransport(build_app(services))
        async with httpx.AsyncClient(transport=transport, base_url="http://raidd") as asking:
            return (await asking.post("/v1/slots/1/offline")).status_code

    assert asyncio.run(ask()) == 403
    assert services.calls == []


def test_the_peer_is_whoever_connected_also_for_later_requests(path: Path) -> None:
    with client(path) as asking:
        replies = [asking.post("/v1/slots/1/offline").status_code for _ in range(3)]
    expected = Roles(own_uid=-1).role(Peer(0, os.geteuid(), 0)) is Role.ADMIN
    assert replies == [200 if expected else 403] * 3


def test_credentials_are_those_of_the_other_end() -> None:
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        assert credentials(here) == Peer(os.getpid(), os.geteuid(), os.getegid())
