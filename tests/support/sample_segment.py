"""Small, real segments for tests: a payload, its manifest and its sealed shards, all deterministic."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any
from uuid import UUID

from raidd.codec.erasure import erasure
from raidd.codec.geometry import BLOCK_SIZE, Geometry, padded_length
from raidd.codec.ids import next_id
from raidd.codec.manifest import Manifest, ManifestImage
from raidd.codec.segment import SealedShard, data_bodies, seal

ARRAY = UUID("5f0c2a6e-3f6b-4c1e-9d55-0a6b0f7c1d2e")
WRITTEN_AT = "2026-11-24T08:00:00.000Z"
WRITTEN_AT_MS = 1_795_507_200_000


@dataclass(frozen=True, slots=True)
class SampleSegment:
    """A sealed segment beside what it was made of."""

    manifest: Manifest
    payload: bytes
    shards: list[SealedShard]

    def file(self, index: int) -> bytes:
        """The bytes of a shard's file."""
        return bytes(self.shards[index].prefix) + bytes(self.shards[index].body)


def payload_bytes(length: int, seed: str = "payload") -> bytes:
    """Bytes that do not compress, the same for the same seed on every Python."""
    return hashlib.shake_256(seed.encode()).digest(length)


def segment_id(number: int, at_ms: int = WRITTEN_AT_MS) -> UUID:
    """A segment id of the sample day."""
    return next_id(at_ms, None, number)


def member_ids(count: int) -> tuple[UUID, ...]:
    """Ids for members 0…count−1."""
    random = Random(1)
    return tuple(UUID(int=random.getrandbits(128), version=4) for _ in range(count))


def sample_image(number: int, offset: int, data: bytes, **changes: Any) -> ManifestImage:
    """A whole image at ``offset`` of the payload."""
    digest = hashlib.sha256(data).hexdigest()
    fields: dict[str, Any] = {
        "image": segment_id(1000 + number),
        "sop_instance_uid": f"1.2.826.0.1.3680043.8.498.{number}",
        "version": 1,
        "offset": offset,
        "length": len(data),
        "image_offset": 0,
        "part_sha256": digest,
        "size": len(data),
        "sha256": digest,
        "received_at": WRITTEN_AT,
        "source": f"inbox:{number}.dcm",
        "identity": {"patient_name": "Müller^Bello", "species": "CANINE", "study_date": "20261124"},
    }
    return ManifestImage(**fields | changes)


def sample_segment(
    geometry: Geometry,
    images: Sequence[bytes],
    *,
    number: int = 1,
    block_size: int = BLOCK_SIZE,
    replaces: Sequence[UUID] = (),
    extra: Mapping[str, Any] | None = None,
    parts: Sequence[ManifestImage] | None = None,
) -> SampleSegment:
    """The segment that holds ``images`` one after another (or says of the same bytes what ``parts`` say)."""
    payload = b"".join(images)
    starts = [sum(len(image) for image in images[:count]) for count in range(len(images))]
    manifest = Manifest(
        array=ARRAY,
        segment=segment_id(number),
        written_at=WRITTEN_AT,
        geometry=geometry,
        payload_length=len(payload),
        members=member_ids(geometry.n),
        replaces=tuple(replaces),
        journal_sequence=41,
        journal_hash=hashlib.sha256(b"entry 41").hexdigest(),
        tables=(),
        images=tuple(parts or [sample_image(i, *pair) for i, pair in enumerate(zip(starts, images, strict=True))]),
        extra=extra or {},
    )
    buffer = bytearray(padded_length(len(payload), geometry.k))
    buffer[: len(payload)] = payload
    bodies = data_bodies(memoryview(buffer), len(payload), geometry.k)
    return SampleSegment(manifest, payload, seal(manifest, [*bodies, *erasure(geometry).encode(bodies)], block_size))
