"""Errors on raidd's socket: the same class on both sides, with message, next step and exit code.

A part of `raidd.api`, which everybody imports; split off only for its length. The promise: `to_error(error_reply(e))`
is an error of e's own class (or of its nearest public base), and says the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from raidd import errors
from raidd.errors import ConfigInvalid, ImageRefused, MemberError, RaiddError


class ErrorReply(BaseModel):
    """A failure on the wire. ``error`` is a class of raidd.errors, ``detail`` what that class carries besides."""

    model_config = ConfigDict(frozen=True, extra="allow")

    error: str
    message: str
    next_step: str
    exit_code: int = 1
    detail: dict[str, Any] = {}


_HTTP_STATUS: Final[Mapping[type[RaiddError], int]] = {
    errors.ImageNotFound: 404,
    errors.RequestUnknown: 404,
    errors.PermissionRefused: 403,
    errors.RequestRefused: 409,
    errors.ConfigInvalid: 422,
    errors.OperatorError: 400,
    errors.TimedOut: 408,
    errors.ImageUnreadable: 503,
    errors.MemberError: 503,
    errors.ArrayFull: 507,
    errors.ArrayError: 503,
    RaiddError: 500,
}


def http_status(error: RaiddError) -> int:
    """The status of the nearest class that has one."""
    return next(_HTTP_STATUS[cls] for cls in type(error).__mro__ if cls in _HTTP_STATUS)


def error_reply(error: RaiddError) -> ErrorReply:
    """`error` as it goes over the socket; a class private to a package travels as its public base."""
    name = next(cls.__name__ for cls in type(error).__mro__ if cls.__module__ == errors.__name__)
    detail: dict[str, Any] = {}
    if isinstance(error, ConfigInvalid):
        detail["faults"] = list(error.faults)
    elif isinstance(error, ImageRefused):
        detail["code"] = error.code
    elif isinstance(error, MemberError):
        detail["member"] = error.member
    return ErrorReply(
        error=name, message=error.message, next_step=error.next_step, exit_code=error.exit_code, detail=detail
    )


def to_error(reply: ErrorReply) -> RaiddError:
    """The same error on this side; a class that this program does not know is a plain `RaiddError`."""
    cls = next((c for c in _tree(RaiddError) if c.__name__ == reply.error), RaiddError)
    error: RaiddError
    if issubclass(cls, ConfigInvalid):
        error = cls(reply.detail.get("faults") or [reply.message], next_step=reply.next_step)
    elif issubclass(cls, ImageRefused):
        error = cls(str(reply.detail.get("code", "")), reply.message, next_step=reply.next_step)
    elif issubclass(cls, MemberError):
        error = cls(reply.message, member=str(reply.detail.get("member", "")), next_step=reply.next_step)
    else:
        error = cls(reply.message, next_step=reply.next_step)
    error.exit_code = reply.exit_code
    return error


def _tree(cls: type[RaiddError]) -> Iterator[type[RaiddError]]:
    yield cls
    for below in cls.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from _tree(below)
