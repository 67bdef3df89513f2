"""A real control server on a real Unix socket, and its clients."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx

from raidd.daemon.control import build_app
from raidd.daemon.peer import Roles
from raidd.daemon.server import serve
from tests.support.fake_services import FakeServices


@contextlib.contextmanager
def socket_folder() -> Iterator[Path]:
    """Short, since a socket's path has 107 bytes at most; open to other users."""
    with tempfile.TemporaryDirectory(prefix="raidd-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextlib.contextmanager
def serving(services: FakeServices, path: Path, *, roles: Roles | None = None, group: str = "raidd") -> Iterator[None]:
    server = serve(path, build_app(services, roles=roles), group=group)
    server.start()
    try:
        yield
    finally:
        assert server.stop(timeout_s=20)


def client(path: Path, timeout_s: float = 20.0) -> httpx.Client:
    return httpx.Client(
        transport=httpx.HTTPTransport(uds=str(path), limits=httpx.Limits(max_connections=None)),
        base_url="http://raidd",
        timeout=timeout_s,
    )
