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
from collections.abc import AsyncIterator, Iterable, Iterator
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
    """A blocking iterator, for the event loop. `close` is safe at any time, also amid a step."""

    def __init__(self, items: Iterator[T], limiter: anyio.CapacityLimiter) -> None:
        self._items = items
        self._limiter = limiter
        self._stepping = threading.Lock()
        self._ended = False

    async def __aiter__(self) -> AsyncIterator[T]:
        try:
            while (item := await self.step()) is not None:
                yield item
        finally:
            self.close()

    async def step(self) -> T | None:
        """The next item; None at the end."""
        return await anyio.to_thread.run_sync(self._step, abandon_on_cancel=True, limiter=self._limiter)

    def close(self) -> None:
        if not self._ended:
            threading.Thread(target=self._close, name="stream-close", daemon=True).start()

    def _step(self) -> T | None:
        with self._stepping:
            try:
                return next(self._items)
            except StopIteration:
                self._ended = True
                return None
            except BaseException:
                self._ended = True
                raise

    def _close(self) -> None:
        with self._stepping:
            _close(self._items)


async def first_chunk(content: ImageContent, limiter: anyio.CapacityLimiter) -> AsyncIterator[bytes]:
    """The image's chunks, the last one held back, after the first was got: its error is raised here."""
    steps = Steps(held_back(content.chunks, content.info.size), limiter)
    try:
        first = await steps.step()
    except BaseException:
        steps.close()
        raise
    return _chain(first, steps)


async def _chain(first: bytes | None, steps: Steps[bytes]) -> AsyncIterator[bytes]:
    try:
        while first is not None:
            yield first
            first = await steps.step()
    finally:
        steps.close()


def held_back(chunks: Iterable[bytes | memoryview], size: int) -> Iterator[bytes]:
    """One chunk behind `chunks`, which must make `size` bytes: nothing is complete before `chunks` has ended well."""
    held, total = b"", 0
    try:
        for chunk in chunks:
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


class ContentResponse(StreamingResponse):
    """An image's bytes, cut off before the end if they turn out not to be the image's."""

    media_type = "application/dicom"

    def __init__(self, info: api.ImageInfo, chunks: AsyncIterator[bytes], *, log: EventLog) -> None:
        headers = {
            "Content-Length": str(info.size),
            api.HEADER_SHA256: info.sha256,
            api.HEADER_VERSION: str(info.version),
        }
        super().__init__(chunks, headers=headers)
        self._info = info
        self._log = log

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for chunk in self.body_iterator:
                for piece in _pieces(chunk):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        except Exception as error:
            # No end is sent: the server closes the connection, and the client finds bytes missing.
            uid, version = self._info.sop_instance_uid, self._info.version
            self._log.error("content-cut", sop_instance_uid=uid, version=version, error=error)
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class LinesResponse(StreamingResponse):
    """One JSON object a line; an error on the way is the last line."""

    media_type = api.LINES_TYPE

    def __init__(self, items: Iterator[BaseModel], *, limiter: anyio.CapacityLimiter, log: EventLog) -> None:
        super().__init__(self._lines(Steps(items, limiter)))
        self._log = log

    async def _lines(self, steps: Steps[BaseModel]) -> AsyncIterator[bytes]:
        try:
            while (item := await steps.step()) is not None:
                yield _line(item)
        except RaiddError as error:
            yield _line(api.error_reply(error))
        except Exception as error:
            self._log.error("stream-failed", error=error)
            yield _line(api.error_reply(RaiddError(f"Internal error: {type(error).__name__}: {error}")))
        finally:
            steps.close()


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


def _pieces(chunk: Any) -> Iterator[memoryview]:
    view = memoryview(chunk)
    return (view[at : at + PIECE_BYTES] for at in range(0, len(view), PIECE_BYTES))


def _line(item: BaseModel) -> bytes:
    return item.model_dump_json().encode() + b"\n"


def _close(items: Iterable[Any]) -> None:
    close = getattr(items, "close", None)
    if close is not None:
        close()
