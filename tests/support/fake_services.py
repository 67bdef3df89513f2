"""`Services` over a dict of images, for the daemon's server: what it does can be set by a test."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from raidd import api
from raidd.daemon.streams import ImageContent
from raidd.errors import ImageNotFound, RequestRefused

ARRAY = api.ArrayInfo(name="clinic-1", id="a" * 8, level="raid6", k=4, m=2, state="healthy", failures_tolerated=2)
AT = "2026-11-24T04:34:00.000Z"


def status(**changed: object) -> api.Status:
    return api.Status(array=ARRAY, codec="zfec", at=AT).model_copy(update=changed)


def member(slot: int | None, state: api.MemberWord = "online", **changed: object) -> api.MemberInfo:
    row = api.MemberInfo(slot=slot, state=state, path=f"/srv/{slot}", uuid=f"u{slot}", size_bytes=1000, used_bytes=10)
    return row.model_copy(update=changed)


def image_info(uid: str, data: bytes, version: int = 1) -> api.ImageInfo:
    return api.ImageInfo(
        sop_instance_uid=uid,
        version=version,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        state="protected",
        received_at=AT,
        source="inbox:a.dcm",
    )


def in_chunks(data: bytes, length: int) -> Iterator[bytes | memoryview]:
    for at in range(0, len(data), length):
        yield data[at : at + length]


@dataclass
class FakeServices:
    """`calls` is what was asked, `fault` is raised by every call, `chunks` and `steps` make the streams."""

    contents: dict[str, bytes] = field(default_factory=dict)
    calls: list[tuple[object, ...]] = field(default_factory=list)
    fault: Exception | None = None
    chunks: Callable[[bytes], Iterator[bytes | memoryview]] = lambda data: in_chunks(data, 1000)
    steps: Callable[[], Iterator[api.Reply]] = lambda: iter([api.WaitProgress(waiting=1), api.WaitResult()])
    hold: threading.Event | None = None

    def _call(self, *call: object) -> None:
        self.calls.append(call)
        if self.hold is not None and call[0] != "status":
            self.hold.wait()
        if self.fault is not None:
            raise self.fault

    def _found(self, uid: str) -> bytes:
        if uid not in self.contents:
            raise ImageNotFound(f"No image {uid}.")
        return self.contents[uid]

    def status(self) -> api.Status:
        self._call("status")
        return status()

    def images(self, search: api.ImageSearch) -> api.ImageList:
        self._call("images", search)
        return api.ImageList(images=[image_info(uid, data) for uid, data in self.contents.items()])

    def image(self, uid: str, version: int | None) -> api.ImageInfo:
        self._call("image", uid, version)
        return image_info(uid, self._found(uid), version or 1)

    def content(self, uid: str, version: int | None) -> ImageContent:
        self._call("content", uid, version)
        data = self._found(uid)
        return ImageContent(image_info(uid, data, version or 1), self.chunks(data))

    def study_images(self, uid: str) -> api.ImageList:
        self._call("study_images", uid)
        return api.ImageList()

    def verify(self, request: api.VerifyRequest) -> Iterator[api.VerifyProgress | api.VerifyResult]:
        self._call("verify", request)
        return self.steps()  # type: ignore[return-value]

    def wait(self, request: api.WaitRequest) -> Iterator[api.WaitProgress | api.WaitResult]:
        self._call("wait", request)
        return self.steps()  # type: ignore[return-value]

    def add(self, request: api.AddRequest, *, actor: str) -> api.MemberReply:
        self._call("add", request, actor)
        return api.MemberReply(member=member(None, "spare") if request.spare else member(6))

    def replace(self, slot: int, request: api.ReplaceRequest, *, actor: str) -> api.ReplaceReply:
        self._call("replace", slot, request, actor)
        return api.ReplaceReply(slot=slot, started=not request.dry_run, old=member(slot, "failed"), new=member(slot))

    def offline(self, slot: int, *, actor: str) -> api.MemberReply:
        self._call("offline", slot, actor)
        return api.MemberReply(member=member(slot, "offline"))

    def online(self, slot: int, *, actor: str) -> api.MemberReply:
        self._call("online", slot, actor)
        return api.MemberReply(member=member(slot))

    def remove(self, slot: int, *, actor: str) -> api.MemberReply:
        self._call("remove", slot, actor)
        raise RequestRefused("Slot 1 still holds what nothing else holds.")

    def can_remove(self, slot: int) -> api.CanRemove:
        self._call("can_remove", slot)
        return api.CanRemove(slot=slot, answer="no", reason="rebuild first")

    def rebuild(self) -> api.RebuildStatus:
        self._call("rebuild")
        return api.RebuildStatus(priority="normal")

    def set_rebuild(self, request: api.RebuildRequest, *, actor: str) -> api.RebuildStatus:
        self._call("set_rebuild", request, actor)
        return api.RebuildStatus(priority=request.priority or "normal", paused=request.action == "pause")

    def check_catalog(self) -> Iterator[api.CheckProgress | api.CheckResult]:
        self._call("check_catalog")
        return self.steps()  # type: ignore[return-value]
