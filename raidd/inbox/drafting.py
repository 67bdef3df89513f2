"""A batch while it is being filled: bytes in a leased buffer, and what the manifest will say of them.

It closes at 32 MiB, `BATCH_IMAGES_LIMIT` images, or before its manifest could break a limit of the format; the bounds
here are on the text before compression, which zlib can only make some bytes longer. One thread fills it, then it is
handed to the one that commits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raidd.codec.geometry import MANIFEST_LIMIT, PAYLOAD_TARGET
from raidd.codec.manifest import ManifestImage
from raidd.inbox.intake import Offer
from raidd.inbox.sink import Draft

if TYPE_CHECKING:
    from raidd.array.catalog_rows import ImageRow
    from raidd.inbox.large import LargeImage

BATCH_IMAGES_LIMIT = 2000
MANIFEST_TEXT_LIMIT = MANIFEST_LIMIT - MANIFEST_LIMIT // 8
MANIFEST_MARKS_LIMIT = 400_000
"""Commas and brackets: the manifest's reader refuses more than 2^19 (raidd.codec.manifest)."""
_OVERHEAD_BYTES, _OVERHEAD_MARKS = 640, 16


@dataclass(frozen=True, slots=True)
class Entry:
    """One image (or one part of a large one) in a batch."""

    offer: Offer
    image: ManifestImage
    conflict: ImageRow | None = None
    truncated: bool = False
    large: LargeImage | None = None


@dataclass(slots=True)
class Batch:
    """``confined``: it holds the suspects of a batch that failed, and nothing else is added."""

    draft: Draft
    capacity: int = PAYLOAD_TARGET
    confined: bool = False
    full: bool = False
    used: int = 0
    entries: list[Entry] = field(default_factory=list)
    text_bytes: int = 0
    marks: int = 0

    @property
    def urgent(self) -> bool:
        """Somebody waits for one of its images."""
        return any(entry.offer.root.urgent for entry in self.entries)

    @property
    def large(self) -> LargeImage | None:
        return next((entry.large for entry in self.entries if entry.large is not None), None)

    def fits(self, size: int) -> bool:
        return not self.full and self.used + size <= self.capacity

    def room(self, size: int) -> memoryview:
        """Where the next ``size`` bytes go; they count once `add` is called."""
        return self.draft.buffer[self.used : self.used + size]

    def holds_text(self, image: ManifestImage) -> bool:
        """Would the manifest still be within its limits with this image?"""
        text, marks = _weight(image)
        return self.text_bytes + text <= MANIFEST_TEXT_LIMIT and self.marks + marks <= MANIFEST_MARKS_LIMIT

    def add(self, entry: Entry) -> None:
        text, marks = _weight(entry.image)
        self.entries.append(entry)
        self.used += entry.image.length
        self.text_bytes += text
        self.marks += marks
        self.full = self.full or self.used >= self.capacity or len(self.entries) >= BATCH_IMAGES_LIMIT


def _weight(image: ManifestImage) -> tuple[int, int]:
    """(bytes, marks) that one image adds to the manifest's text, rounded up."""
    said: Mapping[str, Any] = {"i": image.identity, "s": image.source, "u": image.sop_instance_uid, "x": image.extra}
    text = json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    marks = text.count(b",") + text.count(b"[") + text.count(b"{")
    return len(text) + _OVERHEAD_BYTES, marks + _OVERHEAD_MARKS
