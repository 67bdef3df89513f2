"""An honest array in memory for the inbox's tests: it stores what it is given, and lies about nothing.

Faults are switched on by the test: `fail_with` (the next commits raise), `poisoned` (a batch holding this UID raises),
`protecting` (False: commits are stored, not protected, beyond repair), `damaged` (stored copies that are unreadable).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from raidd.array.catalog_rows import ImageRow, PartRow
from raidd.codec.geometry import PAYLOAD_TARGET
from raidd.codec.manifest import ManifestImage
from raidd.errors import ImageUnreadable


@dataclass(slots=True)
class MemoryDraft:
    memory: bytearray
    given_back: int = 0

    @property
    def buffer(self) -> memoryview:
        assert not self.given_back, "used after it was given back"
        return memoryview(self.memory)

    def discard(self) -> None:
        assert not self.given_back, "given back twice"
        self.given_back += 1
        self.memory = bytearray()


@dataclass(frozen=True, slots=True)
class MemoryReceipt:
    segment: UUID
    protected: bool


@dataclass(frozen=True, slots=True)
class Commit:
    """One call of `commit` that succeeded."""

    segment: UUID
    images: tuple[ManifestImage, ...]
    payload: bytes
    replaces: tuple[UUID, ...]


@dataclass(slots=True)
class MemorySink:
    capacity: int = PAYLOAD_TARGET
    protecting: bool = True
    repairable: bool = True
    why_not: str = ""
    fail_with: list[Exception | None] = field(default_factory=list)
    poison: Exception = field(default_factory=lambda: ValueError("poisoned"))
    poisoned: set[str] = field(default_factory=set)
    commits: list[Commit] = field(default_factory=list)
    attempts: list[tuple[str, ...]] = field(default_factory=list)
    events: list[tuple[str, str, str, tuple[str, ...]]] = field(default_factory=list)
    damaged: set[UUID] = field(default_factory=set)
    unprotected: set[UUID] = field(default_factory=set)
    drafts: list[MemoryDraft] = field(default_factory=list)
    reads: int = 0
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _ids: int = 0

    def draft(self, timeout_s: float) -> MemoryDraft | None:  # noqa: ARG002
        with self._lock:
            draft = MemoryDraft(bytearray(self.capacity))
            self.drafts.append(draft)
            return draft

    @property
    def drafts_out(self) -> int:
        return sum(not draft.given_back for draft in self.drafts)

    def commit(
        self, draft: MemoryDraft, used: int, images: Sequence[ManifestImage], replaces: Sequence[UUID] = ()
    ) -> MemoryReceipt:
        with self._lock:
            self.attempts.append(tuple(image.sop_instance_uid for image in images))
            error = self.fail_with.pop(0) if self.fail_with else None
            if error is not None:
                raise error
            if any(image.sop_instance_uid in self.poisoned for image in images):
                raise self.poison
            payload = bytes(draft.buffer[:used])
            for image in images:
                piece = payload[image.offset : image.offset + image.length]
                assert hashlib.sha256(piece).hexdigest() == image.part_sha256
            assert sum(image.length for image in images) == used
            segment = self.new_image_id()
            self.commits.append(Commit(segment, tuple(images), payload, tuple(replaces)))
            if not self.protecting:
                self.unprotected.add(segment)
            return MemoryReceipt(segment, self.protecting)

    def versions(self, uid: str) -> list[ImageRow]:
        with self._lock:
            rows = [row for held in self._held(uid) if (row := self._row(held)) is not None]
            best: dict[tuple[int, str], ImageRow] = {}
            for row in sorted(rows, key=self._goodness):
                best[row.version, row.sha256] = row
            return sorted(best.values(), key=lambda row: row.version, reverse=True)

    def _held(self, uid: str) -> list[list[tuple[UUID, ManifestImage]]]:
        parts: dict[UUID, list[tuple[UUID, ManifestImage]]] = {}
        for commit in self.commits:
            for image in commit.images:
                if image.sop_instance_uid == uid:
                    parts.setdefault(image.image, []).append((commit.segment, image))
        return list(parts.values())

    def _goodness(self, row: ImageRow) -> tuple[bool, bool]:
        return row.image not in self.damaged, row.state == "protected"

    def _row(self, held: list[tuple[UUID, ManifestImage]]) -> ImageRow | None:
        held = sorted(held, key=lambda part: part[1].image_offset)
        last = held[-1][1]
        if last.sha256 is None or sum(image.length for _, image in held) != last.size:
            return None
        return ImageRow(
            image=last.image,
            sop_instance_uid=last.sop_instance_uid,
            version=last.version,
            sha256=last.sha256,
            size=last.size or 0,
            received_at=last.received_at,
            source=last.source,
            identity=last.identity,
            parts=tuple(PartRow(s, i.offset, i.length, i.image_offset, i.part_sha256) for s, i in held),
            state="stored" if any(segment in self.unprotected for segment, _ in held) else "protected",
        )

    def read(self, image: ImageRow) -> Iterator[bytes]:
        self.reads += 1
        payloads = {commit.segment: commit.payload for commit in self.commits}
        for part in image.parts:
            if image.image in self.damaged:
                raise ImageUnreadable(f"{image.sop_instance_uid} is damaged")
            yield payloads[part.segment][part.offset : part.offset + part.length]

    def content(self, uid: str, version: int | None = None) -> bytes:
        """What a reader gets."""
        rows = [row for row in self.versions(uid) if version in (None, row.version)]
        return b"".join(self.read(rows[0]))

    def images(self) -> list[ImageRow]:
        """Every image listed, all versions."""
        uids = {image.sop_instance_uid for commit in self.commits for image in commit.images}
        return [row for uid in sorted(uids) for row in self.versions(uid)]

    def protect(self, image: ImageRow) -> bool:
        if self.repairable and self.protecting:
            self.unprotected.difference_update(part.segment for part in image.parts)
        return all(part.segment not in self.unprotected for part in image.parts)

    def protects(self) -> bool:
        return self.protecting

    def writable(self) -> str:
        return self.why_not

    def incomplete(self, uid: str) -> list[UUID]:
        return [segment for held in self._held(uid) if self._row(held) is None for segment, _ in held]

    def new_image_id(self) -> UUID:
        with self._lock:
            self._ids += 1
            return _identifier(self._ids)

    def event(self, code: str, severity: str, message: str, objects: Sequence[str]) -> None:
        self.events.append((code, severity, message, tuple(objects)))

    def codes(self) -> list[str]:
        return [code for code, *_ in self.events]


def _identifier(number: int) -> UUID:
    return UUID(int=(7 << 76) | (2 << 62) | number)
