"""The daemon's HTTP interface: `raidd.api`'s paths over a `Services` object.

Nothing is decided here: each path checks the role, calls one method of `Services` in a worker thread and turns its
answer, or its `RaiddError`, into what `api.py` says. The event loop never waits for a disk, a hung call costs
a thread of its own kind only: status, looking, changing and streaming have separate limits, so that `status` answers
while everything else hangs. A call whose client has gone is abandoned, its iterator closed as soon as it comes back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Annotated, Any, Final, Protocol, TypeVar

import anyio
import anyio.to_thread
from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException

import raidd
from raidd import api
from raidd.daemon.logs import EventLog
from raidd.daemon.peer import ADMIN_GROUP, Peer, Role, Roles
from raidd.daemon.streams import BodyLimit, ContentResponse, ImageContent, LinesResponse, Steps, content_steps
from raidd.errors import PermissionRefused, RaiddError, RequestRefused, RequestUnknown

STATUSES: Final = 4  # calls in threads at one time
LOOKS: Final = 24
CHANGES: Final = 4
STREAMS: Final = 64
BODY_LIMIT: Final = 16 << 20  # the longest request: verify with 200,000 UIDs

T = TypeVar("T")
Call = Callable[..., Awaitable[Any]]


class Services(Protocol):
    """What the daemon can do, one method an endpoint. Called from many threads at once.

    Failures are `RaiddError`s. Iterators are stepped one thread at a time, and closed when the client goes away: a
    step should take a second at most (give a progress line). `actor` is a user's name for the journal.
    """

    def status(self) -> api.Status: ...
    def images(self, search: api.ImageSearch) -> api.ImageList: ...
    def image(self, uid: str, version: int | None) -> api.ImageInfo: ...
    def content(self, uid: str, version: int | None) -> ImageContent: ...
    def study_images(self, uid: str) -> api.ImageList: ...
    def verify(self, request: api.VerifyRequest) -> Iterator[api.VerifyProgress | api.VerifyResult]: ...
    def wait(self, request: api.WaitRequest) -> Iterator[api.WaitProgress | api.WaitResult]: ...
    def add(self, request: api.AddRequest, *, actor: str) -> api.MemberReply: ...
    def replace(self, slot: int, request: api.ReplaceRequest, *, actor: str) -> api.ReplaceReply: ...
    def offline(self, slot: int, *, actor: str) -> api.MemberReply: ...
    def online(self, slot: int, *, actor: str) -> api.MemberReply: ...
    def remove(self, slot: int, *, actor: str) -> api.MemberReply: ...
    def can_remove(self, slot: int) -> api.CanRemove: ...
    def rebuild(self) -> api.RebuildStatus: ...
    def set_rebuild(self, request: api.RebuildRequest, *, actor: str) -> api.RebuildStatus: ...
    def check_catalog(self) -> Iterator[api.CheckProgress | api.CheckResult]: ...


def build_app(services: Services, *, roles: Roles | None = None, log: EventLog | None = None) -> FastAPI:
    """The ASGI application; serve it with `server.serve`, which puts the peer into each request's state."""
    log = log or EventLog("control")
    app = FastAPI(
        title="raidd",
        version=raidd.__version__,
        openapi_url=api.OPENAPI,
        docs_url=None,
        redoc_url=None,
        responses={"default": {"model": api.ErrorReply, "description": "An error of raidd"}},
    )
    app.add_middleware(BodyLimit, limit_bytes=BODY_LIMIT)
    _answer_errors(app)
    looking = _caller(LOOKS)
    _add_looking(app, services, _caller(STATUSES), looking)
    _add_streams(app, services, looking, log)
    _add_changing(app, services, _actor_of(roles or Roles(), _caller(CHANGES), log))
    return app


# --- looking ----------------------------------------------------------------------------------------------------------


def _add_looking(app: FastAPI, services: Services, status_call: Call, call: Call) -> None:
    @app.get(api.STATUS)
    async def status() -> api.Status:
        return await status_call(services.status)  # type: ignore[no-any-return]

    @app.get(api.IMAGES)
    async def images(search: Annotated[api.ImageSearch, Query()]) -> api.ImageList:
        return await call(services.images, search)  # type: ignore[no-any-return]

    @app.get(_with_any_uid(api.STUDY_IMAGES))
    async def study_images(uid: str) -> api.ImageList:
        return await call(services.study_images, uid)  # type: ignore[no-any-return]

    @app.get(api.SLOT_CAN_REMOVE)
    async def can_remove(slot: int) -> api.CanRemove:
        return await call(services.can_remove, slot)  # type: ignore[no-any-return]

    @app.get(api.REBUILD)
    async def rebuild() -> api.RebuildStatus:
        return await call(services.rebuild)  # type: ignore[no-any-return]


def _add_streams(app: FastAPI, services: Services, call: Call, log: EventLog) -> None:
    limiter = anyio.CapacityLimiter(STREAMS)

    def lines(items: Iterator[BaseModel]) -> Response:
        return LinesResponse(Steps(items, limiter), log=log)

    # Before IMAGE, whose {uid} would swallow it.
    @app.get(_with_any_uid(api.IMAGE_CONTENT), status_code=200, response_class=ContentResponse)
    async def content(uid: str, version: int | None = None) -> Response:
        found = await call(services.content, uid, version)
        steps = content_steps(found, limiter)
        await steps.look_ahead()  # what cannot be read at all is still a proper error
        return ContentResponse(found.info, steps, log=log)

    @app.get(_with_any_uid(api.IMAGE))
    async def image(uid: str, version: int | None = None) -> api.ImageInfo:
        return await call(services.image, uid, version)  # type: ignore[no-any-return]

    @app.post(api.VERIFY, **_lines_of(api.VerifyProgress | api.VerifyResult))
    async def verify(request: api.VerifyRequest) -> Response:
        if request.all == bool(request.uids):
            raise RequestRefused("Verify takes either UIDs or all, one of the two.")
        return lines(await call(services.verify, request))

    @app.post(api.WAIT, **_lines_of(api.WaitProgress | api.WaitResult))
    async def wait(request: api.WaitRequest) -> Response:
        return lines(await call(services.wait, request))

    @app.get(api.CATALOG_CHECK, **_lines_of(api.CheckProgress | api.CheckResult))
    async def check_catalog() -> Response:
        return lines(await call(services.check_catalog))


# --- changing ---------------------------------------------------------------------------------------------------------


def _add_changing(app: FastAPI, services: Services, actor_of: Callable[[Request], Awaitable[str]]) -> None:
    call = _caller(CHANGES)
    actor_given = Depends(actor_of)  # refuses whoever is not admin, before the body is looked at

    @app.post(api.MEMBERS)
    async def add(request: api.AddRequest, actor: str = actor_given) -> api.MemberReply:
        return await call(services.add, request, actor=actor)  # type: ignore[no-any-return]

    @app.post(api.SLOT_REPLACE)
    async def replace(slot: int, request: api.ReplaceRequest, actor: str = actor_given) -> api.ReplaceReply:
        return await call(services.replace, slot, request, actor=actor)  # type: ignore[no-any-return]

    @app.post(api.SLOT_OFFLINE)
    async def offline(slot: int, actor: str = actor_given) -> api.MemberReply:
        return await call(services.offline, slot, actor=actor)  # type: ignore[no-any-return]

    @app.post(api.SLOT_ONLINE)
    async def online(slot: int, actor: str = actor_given) -> api.MemberReply:
        return await call(services.online, slot, actor=actor)  # type: ignore[no-any-return]

    @app.post(api.SLOT_REMOVE)
    async def remove(slot: int, actor: str = actor_given) -> api.MemberReply:
        return await call(services.remove, slot, actor=actor)  # type: ignore[no-any-return]

    @app.post(api.REBUILD)
    async def set_rebuild(request: api.RebuildRequest, actor: str = actor_given) -> api.RebuildStatus:
        return await call(services.set_rebuild, request, actor=actor)  # type: ignore[no-any-return]


def _actor_of(roles: Roles, call: Call, log: EventLog) -> Callable[[Request], Awaitable[str]]:
    async def actor_of(request: Request) -> str:
        peer: Peer | None = getattr(request.state, "peer", None)
        if peer is None:
            raise PermissionRefused("The caller is not known: changes go through raidd's Unix socket only.")
        role, name = await call(lambda: (roles.role(peer), peer.name))
        fields = {"actor": name, "uid": peer.uid, "pid": peer.pid, "method": request.method, "path": request.url.path}
        if role is not Role.ADMIN:
            log.warning("change-refused", **fields)
            raise PermissionRefused(
                f"User {name} may look, but not change; that takes root, raidd's own user or group {ADMIN_GROUP}."
            )
        log.info("change-asked", **fields)
        return str(name)

    return actor_of


# --- errors -----------------------------------------------------------------------------------------------------------


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(RaiddError)
    async def raised(_: Request, error: RaiddError) -> JSONResponse:
        return _reply(api.http_status(error), api.error_reply(error))

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}" for fault in error.errors())
        return _reply(422, _usage(RequestRefused(f"The request is malformed: {faults}")))

    @app.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> JSONResponse:
        asked = f"{request.method} {request.url.path}"
        unknown = RequestUnknown(
            f"raidd {raidd.__version__} does not know {asked} ({error.detail}).",
            next_step="raidd and raidctl may be of different versions: systemctl restart raidd, then try again.",
        )
        return _reply(error.status_code, _usage(unknown))

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> JSONResponse:
        """Raised again after this answer: uvicorn logs the traceback and closes the connection."""
        reply = _reply(500, api.error_reply(RaiddError(f"Internal error: {type(error).__name__}: {error}")))
        reply.headers["Connection"] = "close"
        return reply


def _usage(error: RaiddError) -> api.ErrorReply:
    return api.error_reply(error).model_copy(update={"exit_code": 64})


def _reply(status: int, reply: api.ErrorReply) -> JSONResponse:
    return JSONResponse(reply.model_dump(mode="json"), status_code=status)


# --- threads and paths ------------------------------------------------------------------------------------------------


def _caller(limit: int) -> Call:
    """Runs a blocking call in a thread, at most `limit` of them; whoever stops waiting leaves it behind."""
    limiter = anyio.CapacityLimiter(limit)

    async def call(work: Callable[..., T], *args: Any, **named: Any) -> T:
        return await anyio.to_thread.run_sync(partial(work, *args, **named), abandon_on_cancel=True, limiter=limiter)

    return call


class _AnyUid(StringConvertor):
    """A UID may hold anything, a slash or a line end too: what was taken in is given back."""

    regex = r"[\s\S]+"


def _with_any_uid(path: str) -> str:
    register_url_convertor("uid", _AnyUid())
    return path.replace("{uid}", "{uid:uid}")


def _lines_of(models: Any) -> dict[str, Any]:
    """What the OpenAPI document says of a path that answers in lines."""
    text = "JSON Lines; the last has done = true, or is an ErrorReply"
    return {
        "status_code": 200,
        "response_class": LinesResponse,
        "responses": {200: {"model": models, "description": text}},
    }
