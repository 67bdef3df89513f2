"""An image above 32 MiB on its way through in parts of 32 MiB, read once, in bounded memory.

Each part is a batch of its own (the last may share one), so the digest of the whole, known only at the end, stands in
the last part alone. A part that could not be stored is read again: position and digest go back to what is durable.
A daemon that is killed meanwhile starts the image anew; the last part names the segments of unfinished attempts in
``replaces``.

Threads: the preparing thread owns it, except ``segments`` and ``protected``, which the committing thread keeps.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from raidd.codec.geometry import PAYLOAD_TARGET
from raidd.codec.manifest import ManifestImage
from raidd.dicom.header import Header
from raidd.inbox.intake import Offer, OpenImage

if TYPE_CHECKING:
    from raidd.array.catalog_rows import ImageRow

PART_SIZE = PAYLOAD_TARGET


@dataclass(slots=True)
class LargeImage:
    """One attempt. ``position`` is the next byte to read, ``safe_position`` what is durable."""

    source: OpenImage
    header: Header
    image: UUID
    version: int
    conflict: ImageRow | None
    received_at: str
    part_size: int = PART_SIZE
    position: int = 0
    safe_position: int = 0
    alone: bool = False
    """Its last part failed in company: it goes by itself next time, to see whose fault it was."""
    segments: list[UUID] = field(default_factory=list)
    protected: bool = True
    _digests: dict[int, Any] = field(default_factory=lambda: {0: hashlib.sha256()})
    """Position -> digest of everything before it, from `safe_position` on: two or three."""

    @property
    def offer(self) -> Offer:
        return self.source.offer

    @property
    def next_length(self) -> int:
        return min(self.part_size, self.source.size - self.position)

    @property
    def at_end(self) -> bool:
        """Has the last byte been read?"""
        return self.position == self.source.size

    def read_part(self, buffer: memoryview, offset: int) -> ManifestImage:
        """Read the next part into ``buffer``, which lies at ``offset`` of the payload. Raises NotTaken."""
        start = self.position
        self.source.read_into(buffer, start)
        digest = self._digests[start].copy()
        digest.update(buffer)
        self.position += len(buffer)
        self._digests[self.position] = digest
        if self.at_end:
            self.source.confirm()
        return ManifestImage(
            image=self.image,
            sop_instance_uid=self.header.sop_instance_uid,
            version=self.version,
            offset=offset,
            length=len(buffer),
            image_offset=start,
            part_sha256=hashlib.sha256(buffer).hexdigest(),
            size=self.source.size if self.at_end else None,
            sha256=digest.hexdigest() if self.at_end else None,
            received_at=self.received_at,
            source=self.offer.source,
            identity=self.header.identity.to_json(),
        )

    def secure(self, position: int) -> None:
        """Everything before ``position`` is durable now."""
        self.safe_position = position
        self._digests = {at: digest for at, digest in self._digests.items() if at >= position}

    def rewind(self) -> None:
        """Read again from what is durable on."""
        self.position = self.safe_position
