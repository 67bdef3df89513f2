"""Which segments and images must not come (back) into the catalog: replaced ones, and purged ones.

A segment named in the `replaces` of one that exists does not exist (format.md, C2), whichever of the two is seen
first, and also along a chain: who names whom is remembered of every segment ever offered. If the newer one is
forgotten because it was lost, an old one that is still about counts again.

A tombstone bars what it names (segments, and images wherever they lie), but only in segments whose manifest was
written before it: the same image delivered again later is stored normally.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from uuid import UUID

from sqlalchemy import Connection, select

from raidd.array.catalog_database import Row, put, rows_in
from raidd.array.catalog_schema import (
    COPIES,
    PARTS,
    REPLACEMENTS,
    SEGMENTS,
    TOMBSTONE_COPIES,
    TOMBSTONE_IMAGES,
    TOMBSTONE_SEGMENTS,
)
from raidd.array.journal import JournalEntry, tombstones
from raidd.codec.manifest import Manifest, ManifestImage


class SeenSegments:
    """Who replaces whom, of all segments ever offered."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def record(self, segment: UUID, replaces: Iterable[UUID]) -> None:
        """Remember what a manifest says."""
        new = [{"replaced": old.bytes, "successor": segment.bytes} for old in dict.fromkeys(replaces) if old != segment]
        put(self._connection, REPLACEMENTS, new)

    def older(self, segments: Iterable[bytes]) -> set[bytes]:
        """All that these replaced, and those before them."""
        return self._closure(segments, "successor", "replaced")

    def newer(self, segments: Iterable[bytes]) -> set[bytes]:
        """All that replaced these, and those after them."""
        return self._closure(segments, "replaced", "successor")

    def replaced_by(self, segments: Iterable[UUID]) -> set[bytes]:
        """Segments of the catalog that these replace."""
        return self._existing(self.older(segment.bytes for segment in segments))

    def successors(self, segment: UUID) -> set[bytes]:
        """Segments of the catalog that replace this one."""
        return self._existing(self.newer([segment.bytes]))

    def _existing(self, segments: Collection[bytes]) -> set[bytes]:
        return {found["segment"] for found in rows_in(self._connection, SEGMENTS, "segment", segments)}

    def _closure(self, start: Iterable[bytes], known: str, wanted: str) -> set[bytes]:
        seen = set(start)
        origin, edge = frozenset(seen), set(seen)
        while edge:
            edge = {found[wanted] for found in rows_in(self._connection, REPLACEMENTS, known, edge)} - seen
            seen |= edge
        return seen - origin


def bury(connection: Connection, entry: JournalEntry) -> None:
    """Keep what a purge bars. An entry that is no purge bars nothing."""
    for stone in tombstones([entry]):
        sequence = stone.sequence
        segments = [{"segment": segment.bytes, "sequence": sequence} for segment in stone.segments]
        put(connection, TOMBSTONE_SEGMENTS, segments)
        images = [{"uid": uid, "sha256": bytes.fromhex(sha256), "sequence": sequence} for uid, sha256 in stone.images]
        put(connection, TOMBSTONE_IMAGES, images)
        put(connection, TOMBSTONE_COPIES, [{"image": image, "sequence": sequence} for image in _ids(entry.objects)])


def buried(connection: Connection, entries: Sequence[JournalEntry]) -> tuple[set[bytes], list[Row]]:
    """What the catalog still has of what these purges bar: whole segments, and single parts of others."""
    stones = tombstones(entries)
    named = {segment.bytes: stone.sequence for stone in stones for segment in stone.segments}
    older = rows_in(connection, SEGMENTS, "segment", named)
    segments = {one["segment"] for one in older if one["journal_sequence"] < named[one["segment"]]}
    keys = {(uid, bytes.fromhex(sha256)): stone.sequence for stone in stones for uid, sha256 in stone.images}
    copies = rows_in(connection, COPIES, "uid", {uid for uid, _sha256 in keys})
    barring = {
        copy["id"]: keys[copy["uid"], copy["sha256"]] for copy in copies if (copy["uid"], copy["sha256"]) in keys
    }
    parts = rows_in(connection, PARTS, "copy", barring)
    written = rows_in(connection, SEGMENTS, "segment", {part["segment"] for part in parts} - segments)
    at = {one["segment"]: one["journal_sequence"] for one in written}
    return segments, [part for part in parts if at.get(part["segment"], barring[part["copy"]]) < barring[part["copy"]]]


def _ids(texts: Iterable[str]) -> list[bytes]:
    found = []
    for text in texts:
        try:
            found.append(UUID(text).bytes)
        except ValueError:
            continue
    return found


def barred(connection: Connection, manifest: Manifest) -> str:
    """Why a segment must not be taken in, or ""."""
    if _purged_segment(connection, manifest):
        return "it was purged"
    if successors := SeenSegments(connection).successors(manifest.segment):
        return f"segment {UUID(bytes=max(successors))} replaced it"
    if manifest.images and len(purged_images(connection, manifest)) == len(manifest.images):
        return "all its images were purged"
    return ""


def _purged_segment(connection: Connection, manifest: Manifest) -> bool:
    """Whether a tombstone that is younger than the manifest names the segment."""
    wanted = select(TOMBSTONE_SEGMENTS.c.sequence).where(TOMBSTONE_SEGMENTS.c.segment == manifest.segment.bytes)
    sequence = connection.execute(wanted).scalar()
    return sequence is not None and int(sequence) > manifest.journal_sequence


def purged_images(connection: Connection, manifest: Manifest) -> list[ManifestImage]:
    """Those of the manifest's images that a younger tombstone names."""
    uids = {image.sop_instance_uid for image in manifest.images}
    stones = rows_in(connection, TOMBSTONE_IMAGES, "uid", uids)
    bytes_barred = {(stone["uid"], stone["sha256"].hex()): stone["sequence"] for stone in stones}
    copies = rows_in(connection, TOMBSTONE_COPIES, "image", {image.image.bytes for image in manifest.images})
    copies_barred = {stone["image"]: stone["sequence"] for stone in copies}

    def stone_of(image: ManifestImage) -> int:
        by_bytes = bytes_barred.get((image.sop_instance_uid, image.sha256 or ""), -1)
        return int(max(by_bytes, copies_barred.get(image.image.bytes, -1)))

    return [image for image in manifest.images if stone_of(image) > manifest.journal_sequence]


def all_purged(connection: Connection, images: Collection[tuple[str, bytes]]) -> bool:
    """Whether tombstones name all of these (UID, SHA-256)."""
    stones = rows_in(connection, TOMBSTONE_IMAGES, "uid", {uid for uid, _sha256 in images})
    return {(stone["uid"], stone["sha256"]) for stone in stones}.issuperset(images)
