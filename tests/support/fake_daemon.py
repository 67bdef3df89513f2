"""A small daemon for raidctl's tests: a real HTTP server on a real Unix socket that serves `raidd.api`'s models.

It keeps no array; a test puts in what it shall say (``status``, ``images``, ``errors``, …) and looks at what it was
asked (``asked``). Faults are those that a daemon can show: an error reply, silence, a stream cut off.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from raidd import api
from raidd.errors import ImageNotFound, RaiddError


@dataclass
class StoredImage:
    """One version, and how its transfer shall fail: ``cut`` after so many bytes, or a ``lie`` in the digest."""

    info: api.ImageInfo
    content: bytes
    cut: int | None = None


def stored_image(uid: str, content: bytes, version: int = 1, **identity: Any) -> StoredImage:
    info = api.ImageInfo(
        sop_instance_uid=uid,
        version=version,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        state="protected",
        received_at="2026-11-24T13:00:00.000Z",
        source="inbox:x",
        **identity,
    )
    return StoredImage(info, content)


@dataclass
class FakeDaemon:
    """``errors``: what to raise, by path. ``lines``: what the long requests answer. Not thread-safe, need not be."""

    run_dir: Path
    status: api.Status
    images: list[StoredImage] = field(default_factory=list)
    errors: dict[str, RaiddError] = field(default_factory=dict)
    lines: dict[str, Sequence[api.Reply]] = field(default_factory=dict)
    replies: dict[str, api.Reply] = field(default_factory=dict)
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    delay_s: float = 0.0
    more: bool = False

    def __enter__(self) -> FakeDaemon:
        settings = uvicorn.Config(self._app(), uds=str(self.run_dir / api.SOCKET_NAME), log_level="critical")
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()

    def _app(self) -> FastAPI:
        app = FastAPI()
        app.add_api_route("/{path:path}", self._answer, methods=["GET", "POST"])
        return app

    async def _answer(self, request: Request) -> Response:
        path = request.url.path
        body = await request.body()
        query = {key: request.query_params.getlist(key) for key in request.query_params}
        self.asked.append((request.method, path, json.loads(body) if body else query))
        try:
            return self._reply(path, request)
        except RaiddError as error:
            return JSONResponse(api.error_reply(error).model_dump(), api.http_status(error))

    def _reply(self, path: str, request: Request) -> Response:
        time.sleep(self.delay_s)
        if path in self.errors:
            raise self.errors[path]
        if path in self.lines:
            return StreamingResponse(self._lines(path), media_type=api.LINES_TYPE)
        if path in self.replies:
            return _json(self.replies[path])
        if path == api.STATUS:
            return _json(self.status)
        if path == api.IMAGES or path.startswith("/v1/studies/"):
            return _json(api.ImageList(images=[image.info for image in self.images], more=self.more))
        if path.endswith("/content"):
            return self._content(path.split("/")[3], request.query_params.get("version"))
        return Response("no such page", 404)

    def _lines(self, path: str) -> Iterator[str]:
        for line in self.lines[path]:
            yield line.model_dump_json() + "\n"

    def _content(self, uid: str, version: str | None) -> Response:
        versions = [image for image in self.images if image.info.sop_instance_uid == uid]
        if version is not None:
            versions = [image for image in versions if image.info.version == int(version)]
        if not versions:
            raise ImageNotFound(f"no image {uid}")
        found = max(versions, key=lambda image: image.info.version)
        headers = {
            api.HEADER_SHA256: found.info.sha256,
            api.HEADER_VERSION: str(found.info.version),
            "Content-Length": str(found.info.size),
        }
        return StreamingResponse(_pieces(found), headers=headers, media_type="application/dicom")


def _pieces(image: StoredImage) -> Iterator[bytes]:
    for begin in range(0, len(image.content), 1000):
        if image.cut is not None and begin >= image.cut:
            raise RuntimeError("the test wants this transfer cut")
        yield image.content[begin : begin + 1000]


def _json(reply: api.Reply) -> Response:
    return Response(reply.model_dump_json(), media_type="application/json")
