"""Long answers: images' bytes and JSON Lines, made of blocking iterators.

`ContentResponse` keeps the promise that a complete answer is a correct one (design, section 4, 2): an image's last
chunk is sent only after its iterator has ended, which is after its SHA-256 was found equal. If it raises instead, the
answer ends short of its Content-Length and the connection is closed: any HTTP client reports an error.

`LinesResponse` ends with the result or with an `ErrorReply`; a stream that was cut has neither.

An iterator is stepped in worker threads, one at a time. When the client goes away the step under way is left behind
and the iterator is closed after it, in a thread that nobody waits for: a hung disk never holds up the event loop.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import anyio
import anyio.to_thread
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raidd import api
from raidd.daemon.logs import EventLog
from raidd.errors import ImageUnreadable, RaiddError, RequestRefused

PIECE_BYTES: Final = 1 << 20  # written to the socket at one time; a slow client holds two chunks and one of these

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ImageContent:
    """An image to stream. ``chunks`` raises if the image cannot be read or its digest differs, at its end at last."""

    info: api.ImageInfo
    chunks: Iterator[bytes | memoryview]


class Steps(Generic[T]):
    """A blocking iterator, for the event loop's thread. `close` is safe at any time, also amid a step."""

    def __init__(self, items: Iterator[T], limiter: anyio.CapacityLimiter) -> None:
        self._items = items
        self._limiter = limiter
        self._stepping = threading.Lock()
        self._ahead: list[T | None] = []
        self._over = False  # ended or closed

    async def look_ahead(self) -> None:
        """Get the first item now: what goes wrong with it is raised here."""
        try:
            self._ahead.append(await self.step())
        except BaseException:
            self.close()
            raise

    async def step(self) -> T | None:
        """The next item; None at the end."""
        if self._ahead:
            return self._ahead.pop()
        return await anyio.to_thread.run_sync(self._step, abandon_on_cancel=True, limiter=self._limiter)

    def close(self) -> None:
        if not self._over:
            self._over = True
            threading.Thread(target=self._close, name="stream-close", daemon=True).start()

    def _step(self) -> T | None:
        with self._stepping:
            try:
                return next(self._items)
            except StopIteration:
                self._over = True
                return None

    def _close(self) -> None:
        with self._stepping:
            _close(self._items)


def content_steps(content: ImageContent, limiter: anyio.CapacityLimiter) -> Steps[bytes]:
    """The image's chunks, the last one held back until all was good."""
    return Steps(held_back(content.chunks, content.info.size), limiter)


def held_back(chunks: Iterable[bytes | memoryview], size: int) -> Iterator[bytes]:
    """One chunk behind `chunks`, which must make `size` bytes: nothing is complete before `chunks` has ended well."""
    held, total = b"", 0
    try:
        for chunk in filter(len, chunks):  # an empty one must not push out the last
            total += len(chunk)
            if total > size:
                break
            if held:
                yield held
            held = bytes(chunk)  # a view may be of a buffer that the next step fills again
        if total != size:
            raise ImageUnreadable(f"The image reads back as {total} bytes or more, but has {size}.")
        if held:
            yield held
    finally:
        _close(chunks)


class StepsResponse(StreamingResponse, Generic[T]):
    """Streams what `steps` gives, and closes it whichever way the answer ends."""

    def __init__(self, steps: Steps[T], *, log: EventLog, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(self._body(), headers=headers)
        self._steps = steps
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._steps.close()  # not in `_body`: cancelled amid a send, that is left suspended

    def _body(self) -> AsyncIterator[bytes]:
        raise NotImplementedError


class ContentResponse(StepsResponse[bytes]):
    """An image's bytes, cut off before the end if they turn out not to be the image's."""

    media_type = "application/dicom"

    def __init__(self, info: api.ImageInfo, steps: Steps[bytes], *, log: EventLog) -> None:
        headers = {
            "Content-Length": str(info.size),
            api.HEADER_SHA256: info.sha256,
            api.HEADER_VERSION: str(info.version),
        }
        super().__init__(steps, log=log, headers=headers)
        self._info = info

    async def _body(self) -> AsyncIterator[bytes]:
        while (chunk := await self._steps.step()) is not None:
            for at in range(0, len(chunk), PIECE_BYTES):
                yield chunk[at : at + PIECE_BYTES]

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for piece in self.body_iterator:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except Exception as error:
            # No end is sent: the server closes the connection, and the client finds bytes missing.
            uid, version = self._info.sop_instance_uid, self._info.version
            self._log.error("content-cut", sop_instance_uid=uid, version=version, error=error)
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class LinesResponse(StepsResponse[BaseModel]):
    """One JSON object a line; an error on the way is the last line."""

    media_type = api.LINES_TYPE

    async def _body(self) -> AsyncIterator[bytes]:
        try:
            while (item := await self._steps.step()) is not None:
                yield _line(item)
        except RaiddError as error:
            yield _line(api.error_reply(error))
        except Exception as error:
            self._log.error("stream-failed", error=error)
            yield _line(api.error_reply(RaiddError(f"Internal error: {type(error).__name__}: {error}")))


class BodyLimit:
    """Refuses a request whose body is longer than `limit_bytes` before it takes memory."""

    def __init__(self, app: ASGIApp, *, limit_bytes: int) -> None:
        self._app = app
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        got = 0

        async def counted() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > self._limit_bytes:
                raise _TooLong
            return message

        try:
            await self._app(scope, counted, send)
        except _TooLong:
            error = RequestRefused(f"The request is longer than {self._limit_bytes} bytes.")
            reply = api.error_reply(error).model_dump(mode="json")
            await JSONResponse(reply, status_code=413, headers={"Connection": "close"})(scope, receive, send)


class _TooLong(BaseException):
    """Not an Exception, so that nothing between the body and `BodyLimit` makes something else of it."""


def _line(item: BaseModel) -> bytes:
    return item.model_dump_json().encode() + b"\n"


def _close(items: Iterable[Any]) -> None:
    close = getattr(items, "close", None)
    if close is not None:
        close()
