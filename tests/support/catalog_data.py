"""Small segments for tests of the catalog: manifests with made-up images, without any bytes behind them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import Any
from uuid import UUID

from raidd.array.catalog import Catalog, NewSegment
from raidd.array.placement import Placement
from raidd.codec.geometry import Geometry
from raidd.codec.ids import next_id
from raidd.codec.manifest import Manifest, ManifestImage

ARRAY = UUID("00000000-0000-4000-8000-0000000000aa")
NOW = "2026-11-24T10:00:00.000Z"
SMALL = Geometry(2, 1)
NOW_MS = 1_795_514_400_000


def member(number: int) -> UUID:
    """The uuid of member ``number``."""
    return UUID(int=0xB000_0000_0000_4000_8000_0000_0000_0000 | number)


def members(count: int) -> tuple[UUID, ...]:
    """The first ``count`` members."""
    return tuple(member(number) for number in range(count))


def some_id(seed: int, now_ms: int = NOW_MS) -> UUID:
    """A UUIDv7 that depends on the seed alone."""
    return next_id(now_ms + seed, None, Random(seed).getrandbits(74))


def digest(text: str) -> str:
    """A SHA-256 for made-up bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def image(
    uid: str = "1.2.3",
    content: str = "a",
    *,
    copy: int | None = None,
    version: int = 1,
    size: int = 100,
    part: tuple[int, int] | None = None,
    told: bool = True,
    identity: Mapping[str, Any] | None = None,
    source: str = "inbox:x",
    received_at: str = NOW,
    offset: int = 0,
) -> ManifestImage:
    """A part (offset in the image, length) of an image, the whole unless given; ``told``: it knows size and digest."""
    start, length = part or (0, size)
    number = copy if copy is not None else int(digest(f"{uid}/{content}")[:6], 16)
    return ManifestImage(
        image=some_id(number),
        sop_instance_uid=uid,
        version=version,
        offset=offset,
        length=length,
        image_offset=start,
        part_sha256=digest(f"{content}/{start}/{length}"),
        size=size if told else None,
        sha256=digest(content) if told else None,
        received_at=received_at,
        source=source,
        identity=identity or {},
    )


def segment(
    identifier: UUID,
    images: Iterable[ManifestImage],
    *,
    geometry: Geometry = SMALL,
    on: Sequence[UUID] | None = None,
    absent: Iterable[int] = (),
    replaces: Iterable[UUID] = (),
    sequence: int = 0,
) -> NewSegment:
    """A segment of these images, one after the other, on ``on`` (the first members unless given)."""
    placed, offset = [], 0
    for one in images:
        placed.append(_at(one, offset))
        offset += one.length
    where = tuple(on) if on is not None else members(geometry.n)
    manifest = Manifest(
        array=ARRAY,
        segment=identifier,
        written_at=NOW,
        geometry=geometry,
        payload_length=max(offset, 1),
        members=where,
        replaces=tuple(replaces),
        journal_sequence=sequence,
        journal_hash="0" * 64,
        tables=("0" * 64,) * geometry.n,
        images=tuple(placed),
    )
    return NewSegment(manifest, 4096, Placement(geometry, where), frozenset(absent))


def _at(one: ManifestImage, offset: int) -> ManifestImage:
    from dataclasses import replace

    return replace(one, offset=offset)


def store(catalog: Catalog, images: Iterable[ManifestImage], **options: Any) -> UUID:
    """Commit a segment of these images as the store does; its id."""
    identifier = take(catalog)
    options.setdefault("sequence", catalog.journal_head()[0])
    catalog.commit(segment(identifier, images, **options), now=NOW, now_ms=NOW_MS, random=Random(identifier.int))
    return identifier


def take(catalog: Catalog) -> UUID:
    """A reserved id."""
    identifier = catalog.take_id()
    if identifier is None:
        catalog.reserve(NOW_MS, Random(1))
        identifier = catalog.take_id()
    assert identifier is not None
    return identifier
