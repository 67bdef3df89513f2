"""raidctl's end of the socket: asks raidd over HTTP and raises what went wrong there as the same class here.

One `Daemon` a command; not for several threads. No failure of the transport leaves this module as anything but a
class of `raidd.errors`: no socket, nobody listening or no answer in time is `DaemonUnreachable`, a socket that may
not be opened `PermissionRefused`, an image cut off before its end `ImageUnreadable`.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from raidd import api
from raidd.errors import (
    DaemonUnreachable,
    ImageUnreadable,
    PermissionRefused,
    RaiddError,
    TimedOut,
)

ANSWER_S: Final = 15.0  # looking is answered from memory: a raidd that needs longer does not answer
CHANGE_S: Final = 300.0  # adding a member looks at a disk, and may meet a hung one first
LATE_S: Final = 15.0  # how much later than it promised the daemon may end a wait
PIECE_BYTES: Final = 1 << 20

_Reply = TypeVar("_Reply", bound=BaseModel)
_Progress = TypeVar("_Progress", bound=api.Reply)


@dataclass(frozen=True, slots=True)
class Content:
    """An image on its way: what the daemon says of it, and its pieces. ``size`` in bytes, ``sha256`` in hex."""

    sha256: str
    version: int
    size: int
    pieces: Iterator[bytes]


class Daemon:
    """The endpoints of `raidd.api`, a method each. Opens no connection before the first question."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        # trust_env off: a proxy in the environment has no business between raidctl and its socket.
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://raidd", timeout=ANSWER_S, trust_env=False
        )

    def __enter__(self) -> Daemon:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    # --- looking ---

    def status(self) -> api.Status:
        return self._ask("GET", api.STATUS, api.Status)

    def images(self, search: api.ImageSearch) -> api.ImageList:
        return self._ask("GET", api.IMAGES, api.ImageList, params=search.model_dump(exclude_none=True))

    def study_images(self, study_uid: str) -> api.ImageList:
        return self._ask("GET", _path(api.STUDY_IMAGES, uid=study_uid), api.ImageList)

    def can_remove(self, slot: int) -> api.CanRemove:
        return self._ask("GET", _path(api.SLOT_CAN_REMOVE, slot=slot), api.CanRemove)

    def rebuild(self) -> api.RebuildStatus:
        return self._ask("GET", api.REBUILD, api.RebuildStatus)

    @contextmanager
    def content(self, uid: str, version: int | None) -> Iterator[Content]:
        """The exact bytes of an image; the newest version unless told. Whoever takes them checks the digest."""
        params = {} if version is None else {"version": version}
        with (
            self._transport(),
            self._http.stream("GET", _path(api.IMAGE_CONTENT, uid=uid), params=params, timeout=_patient()) as answer,
        ):
            _raise_error(answer)
            try:
                head = answer.headers
                found = Content(
                    sha256=head[api.HEADER_SHA256].lower(),
                    version=int(head[api.HEADER_VERSION]),
                    size=int(head["content-length"]),
                    pieces=_pieces(answer, uid),
                )
            except (KeyError, ValueError) as error:
                raise _not_understood(f"the image {uid} came without its digest, version or length") from error
            yield found

    # --- long requests ---

    def verify(self, request: api.VerifyRequest, tell: Callable[[api.VerifyProgress], None]) -> api.VerifyResult:
        return self._follow("POST", api.VERIFY, request, api.VerifyProgress, api.VerifyResult, tell)

    def wait(self, request: api.WaitRequest, tell: Callable[[api.WaitProgress], None]) -> None:
        """Raises TimedOut also when it is the daemon that has fallen silent."""
        silence_s = None if request.timeout_s is None else request.timeout_s + LATE_S
        try:
            self._follow("POST", api.WAIT, request, api.WaitProgress, api.WaitResult, tell, silence_s)
        except _Silent as error:
            raise TimedOut(f"not reached within {request.timeout_s:g} s, and raidd has fallen silent") from error

    def check_catalog(self, tell: Callable[[api.CheckProgress], None]) -> api.CheckResult:
        return self._follow("GET", api.CATALOG_CHECK, None, api.CheckProgress, api.CheckResult, tell)

    # --- changing ---

    def add(self, request: api.AddRequest) -> api.MemberReply:
        return self._change(api.MEMBERS, request, api.MemberReply)

    def replace(self, slot: int, request: api.ReplaceRequest) -> api.ReplaceReply:
        return self._change(_path(api.SLOT_REPLACE, slot=slot), request, api.ReplaceReply)

    def offline(self, slot: int) -> api.MemberReply:
        return self._change(_path(api.SLOT_OFFLINE, slot=slot), None, api.MemberReply)

    def online(self, slot: int) -> api.MemberReply:
        return self._change(_path(api.SLOT_ONLINE, slot=slot), None, api.MemberReply)

    def remove(self, slot: int) -> api.MemberReply:
        return self._change(_path(api.SLOT_REMOVE, slot=slot), None, api.MemberReply)

    def set_rebuild(self, request: api.RebuildRequest) -> api.RebuildStatus:
        return self._change(api.REBUILD, request, api.RebuildStatus)

    # --- how ---

    def _change(self, path: str, request: api.Request | None, reply: type[_Reply]) -> _Reply:
        return self._ask("POST", path, reply, json=_body(request), timeout=CHANGE_S)

    def _ask(self, method: str, path: str, reply: type[_Reply], **options: Any) -> _Reply:
        with self._transport():
            answer = self._http.request(method, path, **options)
            _raise_error(answer)
        return _parsed(reply, answer.content)

    def _follow(
        self,
        method: str,
        path: str,
        request: api.Request | None,
        progress: type[_Progress],
        result: type[_Reply],
        tell: Callable[[_Progress], None],
        silence_s: float | None = None,
    ) -> _Reply:
        """Read JSON Lines until the last one. ``silence_s``: the longest pause between two lines; None: any."""
        timeout = httpx.Timeout(ANSWER_S, read=silence_s)
        with (
            self._transport(),
            self._http.stream(method, path, json=_body(request), timeout=timeout) as answer,
        ):
            _raise_error(answer)
            for line in filter(None, answer.iter_lines()):
                if (last := _last_line(line, result)) is not None:
                    return last
                tell(_parsed(progress, line))
        raise DaemonUnreachable("raidd ended the conversation before its answer was complete")

    @contextmanager
    def _transport(self) -> Iterator[None]:
        try:
            yield
        except UnicodeEncodeError as error:
            raise _NotText(f"{error.object!r} is not valid text (UTF-8), and cannot be asked for") from error
        except httpx.ReadTimeout as error:
            raise _Silent(f"raidd does not answer on {self._socket}") from error
        except (httpx.ConnectError, httpx.TimeoutException) as error:
            raise self._unreachable(error) from error
        except httpx.TransportError as error:
            raise DaemonUnreachable(f"the connection to raidd broke ({error})") from error

    def _unreachable(self, error: Exception) -> RaiddError:
        if _errno_of(error) in (errno.EACCES, errno.EPERM):
            return PermissionRefused(
                f"you may not open {self._socket}",
                next_step="Use sudo, or ask root to add you (then log in again): usermod -aG raidd USER",
            )
        return DaemonUnreachable(f"no daemon answers on {self._socket}")


class _NotText(RaiddError):
    """A word of the command line holds bytes that no message can."""

    exit_code = 64
    next_step = "Give images by their UIDs, and disks by a mount whose name is text."


class _Silent(DaemonUnreachable):
    """Connected, but no answer came in time."""


def _body(request: api.Request | None) -> Any:
    return None if request is None else request.model_dump(exclude_none=True)


def _path(pattern: str, **values: object) -> str:
    """`pattern` with `values` put in; whatever a hostile UID holds stays one segment of the path."""
    return pattern.format(**{name: quote(str(value), safe="") for name, value in values.items()})


def _patient() -> httpx.Timeout:
    return httpx.Timeout(ANSWER_S, read=CHANGE_S)


def _pieces(answer: httpx.Response, uid: str) -> Iterator[bytes]:
    try:
        yield from answer.iter_bytes(PIECE_BYTES)
    except httpx.TransportError as error:
        raise ImageUnreadable(
            f"image {uid} was cut off: what raidd read was not the image, or raidd stopped"
        ) from error


def _last_line(line: str, result: type[_Reply]) -> _Reply | None:
    """The result, if `line` is it; an error line is raised; None for progress."""
    try:
        told = json.loads(line)
    except ValueError as error:
        raise _not_understood("a line of its answer is not JSON") from error
    if not isinstance(told, dict):
        raise _not_understood("a line of its answer is not an object")
    if "error" in told and "done" not in told:
        raise api.to_error(_parsed(api.ErrorReply, line))
    return _parsed(result, line) if told.get("done") is True else None


def _error_in(body: str | bytes) -> api.ErrorReply | None:
    try:
        return api.ErrorReply.model_validate_json(body)
    except ValidationError:
        return None


def _raise_error(answer: httpx.Response) -> None:
    if answer.is_success:
        return
    answer.read()
    reply = _error_in(answer.content)
    if reply is not None:
        raise api.to_error(reply)
    raise _not_understood(f"it answers {answer.status_code} to {answer.request.method} {answer.request.url.path}")


def _parsed(model: type[_Reply], body: str | bytes) -> _Reply:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _not_understood(f"its answer is not a {model.__name__}") from error


def _not_understood(what: str) -> RaiddError:
    return RaiddError(
        f"raidd and raidctl do not understand each other: {what}",
        next_step="Are both of the same version? Restart raidd after an upgrade: systemctl restart raidd",
    )


def _errno_of(error: BaseException | None) -> int | None:
    """The operating system's reason, however deep below."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        error = error.__cause__ or error.__context__
    return None
