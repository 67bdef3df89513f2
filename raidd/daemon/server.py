"""uvicorn on a Unix socket, in a thread of its own.

- The socket is made under another name, given its mode and group, and renamed into place: nobody meets it half done,
  and a stale one is replaced in the same step, only if nobody answers on it.
- Who may connect: group `raidd` (mode 0660), and `raidd-admin` by an ACL entry, since being admin should not take two
  groups. Without a group `raidd` only the daemon's own user and root (0600): images are patients' data.
- `start` returns when it listens. `release` makes the path and the socket free at once; `stop` does so first, lets
  answers under way end for `GRACE_S`, cuts the rest and never takes longer than it is told. uvicorn installs no
  signal handler: it is not in the main thread, and the supervisor's are the only ones.

Answering means HTTP: a process whose leader is a zombie (a thread stuck on a hung disk) keeps a listening socket that
takes connections and never replies (faults.md).
"""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import stat
import struct
import threading
import time
from pathlib import Path
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from raidd.daemon.logs import EventLog
from raidd.daemon.peer import ADMIN_GROUP, PeerProtocol, credentials
from raidd.errors import ArrayLocked, ConfigInvalid, RaiddError

LOOK_GROUP: Final = "raidd"
GRACE_S: Final = 3
PATIENCE_S: Final = 5.0  # for another daemon's first byte
CONNECTIONS: Final = 256
_ACL: Final = "system.posix_acl_access"


def serve(path: Path, app: ASGIApp, *, group: str = LOOK_GROUP, admin_group: str = ADMIN_GROUP) -> ControlServer:
    """A server of `app` on the Unix socket `path`; call its `start`."""
    return ControlServer(path, app, group=group, admin_group=admin_group)


class ControlServer:
    """`start` and `stop`, once each, from any thread. A crash of its own thread is left to threading.excepthook."""

    def __init__(self, path: Path, app: ASGIApp, *, group: str, admin_group: str) -> None:
        self._path = path
        self._groups = (group, admin_group)
        self._server = _Server(_config(app))
        self._thread: threading.Thread | None = None
        self._inode: int | None = None

    def start(self) -> None:
        """ArrayLocked: another daemon answers there. ConfigInvalid: no socket can be made there."""
        if answers(self._path):
            raise ArrayLocked(f"Another raidd answers on {self._path}.")
        listener = self._bind()
        self._thread = threading.Thread(target=self._run, args=(listener,), name="daemon/control", daemon=True)
        self._thread.start()
        self._server.listening.wait()
        if self._server.failure is not None:
            raise self._server.failure

    def release(self) -> None:
        """No new connection from here on; the path is free for another daemon. Does not block."""
        self._server.should_exit = True  # within a tick (0.1 s) uvicorn closes the listening socket
        with contextlib.suppress(OSError):
            if self._inode is not None and self._path.stat().st_ino == self._inode:
                self._path.unlink()

    def stop(self, timeout_s: float = 2 * GRACE_S) -> bool:
        """True if every answer under way has ended or was cut in time."""
        self.release()
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _bind(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made = self._path.with_name(f".new-{os.getpid()}")
            made.unlink(missing_ok=True)
            os.fchmod(listener.fileno(), 0o600)  # Linux gives the bound name the mode of the unbound socket
            listener.bind(str(made))
            _open_to(made, *self._groups)
            listener.listen(CONNECTIONS)
            made.replace(self._path)
            self._inode = self._path.stat().st_ino
        except OSError as error:
            listener.close()
            raise ConfigInvalid([f"raidd.run_dir: no socket can be made at {self._path}: {error}"]) from error
        return listener

    def _run(self, listener: socket.socket) -> None:
        try:
            self._server.run(sockets=[listener])
        except BaseException as error:
            started = self._server.listening.is_set()
            self._server.failure = RaiddError(f"The control socket failed: {type(error).__name__}: {error}")
            if started:
                raise  # to threading.excepthook: the supervisor ends the process
        finally:
            self._server.listening.set()
            listener.close()


def answers(path: Path, patience_s: float = PATIENCE_S) -> bool:
    """Does a process reply on this socket? ConfigInvalid if `path` is something else, which is left as it is."""
    if os.path.lexists(path) and not stat.S_ISSOCK(path.lstat().st_mode):
        raise ConfigInvalid([f"raidd.run_dir: {path} is in the way and is not a socket"])
    deadline = time.monotonic() + patience_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(patience_s)
        try:
            _connect(asking, path, deadline)
            if _ended(credentials(asking).pid):
                return False
            asking.sendall(b"HEAD / HTTP/1.1\r\nHost: raidd\r\nConnection: close\r\n\r\n")
            return bool(asking.recv(1))
        except OSError:  # nobody there, nobody listening, no answer in time
            return False


def _connect(asking: socket.socket, path: Path, deadline: float) -> None:
    """A full queue (EAGAIN) is either a moment's rush or a process that will never accept again."""
    while True:
        try:
            return asking.connect(str(path))
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


class _Server(uvicorn.Server):
    """uvicorn's server, which says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = threading.Event()
        self.failure: RaiddError | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.listening.set()


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=PeerProtocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE_S,
    )


def _open_to(path: Path, group: str, admin_group: str) -> None:
    """Where a group does not exist, or may not be given by this user, the socket stays the owner's."""
    log = EventLog("control")
    with contextlib.suppress(KeyError):
        try:
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
            path.chmod(0o660)
        except PermissionError as error:
            log.warning("socket-private", group=group, error=error)
    with contextlib.suppress(KeyError):
        try:
            os.setxattr(path, _ACL, _acl(grp.getgrnam(admin_group).gr_gid, path.stat().st_mode))
        except OSError as error:  # a file system without ACLs: admins need the group `raidd` too
            log.warning("socket-without-acl", group=admin_group, error=error)


def _acl(gid: int, mode: int) -> bytes:
    """acl(5) as the kernel stores it: version 2, then (tag, permissions, id) of user, group, `gid`, mask, others."""
    read_write, nobody = 6, 0xFFFFFFFF
    entries = [
        (0x01, read_write, nobody),
        (0x04, (mode >> 3) & 7, nobody),
        (0x08, read_write, gid),
        (0x10, read_write, nobody),
        (0x20, 0, nobody),
    ]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _ended(pid: int) -> bool:
    """Is the process that listens gone, or a zombie? Unknown (another pid namespace gives 0) counts as alive."""
    if pid == 0:
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"
