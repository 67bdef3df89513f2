"""What the catalog takes and gives: plain values, no SQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

from raidd.array.placement import Placement
from raidd.codec.manifest import Manifest

ExceptionKind = Literal["missing", "damaged", "unsupported"]
"""``unsupported``: there, and written by a newer raidd: it cannot be read, and is never repaired over."""
ImageState = Literal["stored", "protected"]


@dataclass(frozen=True, slots=True)
class NewSegment:
    """A segment that exists on the members: shard i is on ``placement.members[i]`` unless i is in ``absent``."""

    manifest: Manifest
    body_offset: int
    placement: Placement
    absent: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """A segment the catalog knows. Lengths and offsets in bytes."""

    segment: UUID
    placement: Placement
    payload_length: int
    body_offset: int
    block_size: int
    written_at: str
    journal_sequence: int
    replaces: tuple[UUID, ...]


@dataclass(frozen=True, slots=True)
class PartRow:
    """``length`` bytes at ``offset`` of the segment's payload are the image's from ``image_offset`` on."""

    segment: UUID
    offset: int
    length: int
    image_offset: int
    part_sha256: str


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One version of an image, with the best copy's parts in order: they tile 0…size."""

    image: UUID
    sop_instance_uid: str
    version: int
    sha256: str
    size: int
    received_at: str
    source: str
    identity: Mapping[str, Any]
    parts: tuple[PartRow, ...]
    state: ImageState


@dataclass(frozen=True, slots=True)
class Endangered:
    """A segment that misses shards. ``spare``: present shards beyond k (negative: unreadable now)."""

    segment: SegmentRow
    spare: int
    missing: tuple[int, ...]

    @property
    def cursor(self) -> tuple[int, UUID]:
        """Where to go on: `Catalog.endangered(after=…)`."""
        return self.spare, self.segment.segment


@dataclass(frozen=True, slots=True)
class Counts:
    """The array in numbers. ``bytes`` are the listed images', ``raw_bytes`` what all shards take on the members.

    ``least_spare``: the least (present shards − k) over all segments, None without segments. ``absent_shards``: those
    that are away, missing or damaged.
    """

    images: int
    studies: int
    bytes: int
    raw_bytes: int
    unprotected_images: int
    unreadable_images: int
    least_spare: int | None
    absent_shards: int
    segments: int


@dataclass(frozen=True, slots=True)
class ImageQuery:
    """What to look for; all that is given must hold. Dates: YYYYMMDD or YYYY-MM-DD, both inclusive.

    ``words`` match any name field, ``patient``, ``owner``, ``species`` their own; case, accents and order are ignored.
    """

    words: tuple[str, ...] = field(default=())
    patient: str | None = None
    owner: str | None = None
    species: str | None = None
    modality: str | None = None
    date_from: str | None = None
    date_to: str | None = None
    study: str | None = None
    limit: int = 100
