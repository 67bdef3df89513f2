"""Who is at the other end of the socket, and what they may do.

The kernel says it (SO_PEERCRED: pid, uid, gid of the process that connected); nothing the caller sends counts.
uvicorn does not pass it on, so its HTTP/1.1 protocol is extended by one line: the peer goes into the connection's
`state`, which ASGI copies into each request's scope (`request.state.peer`).

Roles (design, section 9): *admin* is root, the user raidd itself runs as, and the members of group `raidd-admin`,
asked of the user database at each request (getgrouplist: the groups that count now, not those of the caller's
login). The gateway's user is never admin, whatever groups it is in. Everybody else who can connect may *look*.
"""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import socket
import struct
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

ADMIN_GROUP: Final = "raidd-admin"
GATEWAY_USER: Final = "raidd-gateway"
_UCRED: Final = struct.Struct("=iII")  # struct ucred: pid_t, uid_t, gid_t


class Role(StrEnum):
    LOOK = "look"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected, as it was when it did."""

    pid: int
    uid: int
    gid: int

    @property
    def name(self) -> str:
        """The user's name, or `uid 1234`: what the journal records as the actor."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return f"uid {self.uid}"


@dataclass(frozen=True, slots=True)
class Roles:
    """Answers from the user database, which may be slow (LDAP): not for the event loop's thread."""

    own_uid: int = field(default_factory=os.geteuid)
    admin_group: str = ADMIN_GROUP
    gateway_user: str = GATEWAY_USER

    def role(self, peer: Peer) -> Role:
        if peer.uid == _uid_of(self.gateway_user):
            return Role.LOOK
        if peer.uid in (0, self.own_uid) or _belongs(peer.uid, self.admin_group):
            return Role.ADMIN
        return Role.LOOK


class PeerProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 over a Unix socket, with `Peer` in each request's state."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self.app_state = {**self.app_state, "peer": credentials(transport.get_extra_info("socket"))}


def credentials(connection: socket.socket) -> Peer:
    """From a connected Unix socket; at the listening end the client, at the client's end the listener."""
    return Peer(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def _uid_of(user: str) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def _belongs(uid: int, group: str) -> bool:
    try:
        user, wanted = pwd.getpwuid(uid), grp.getgrnam(group).gr_gid
    except KeyError:
        return False
    return wanted in os.getgrouplist(user.pw_name, user.pw_gid)
