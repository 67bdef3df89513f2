"""Segments, parts, copies and images coming into the catalog and leaving it, within one transaction.

A manifest's image id ties the parts of one *copy* together; a copy whose parts tile 0…size is complete, and the image
(SOP Instance UID, SHA-256) is listed while it has a complete copy. Which images are listed depends only on which
segments, replacements and tombstones are known, not on the order in which they came: what is touched is taken off
the books, rows are changed, completeness is judged anew, and what is listed then goes on the books again.

Version numbers: the manifest's where it is free, else the next; a number is never given to other bytes, also when its
image is gone. Numbers that a manifest does not tell (`Outcome.versions`) belong in the journal.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, delete

from raidd.array.catalog_bars import SeenSegments
from raidd.array.catalog_counts import Groups, Ledger, group_of, next_row
from raidd.array.catalog_database import Row, add, change_many, put, remove_in, rows_in
from raidd.array.catalog_rows import NewSegment
from raidd.array.catalog_schema import COPIES, EXCEPTIONS, IMAGES, PARTS, PINS, SEGMENTS
from raidd.array.catalog_subjects import Subjects, search_columns
from raidd.codec.geometry import BLOCK_SIZE
from raidd.codec.manifest import ManifestImage
from raidd.errors import ShardDamaged

VERSION_LIMIT = 1 << 31

Version = tuple[str, str, int]


@dataclass(slots=True)
class Outcome:
    """What a change did: images (row ids) that got a complete copy; (UID, SHA-256) of those no longer listed; version
    numbers that no manifest tells; segments that the new one replaced."""

    completed: list[int] = field(default_factory=list)
    replaced: set[bytes] = field(default_factory=set)
    unlisted: list[tuple[str, bytes]] = field(default_factory=list)
    versions: list[Version] = field(default_factory=list)


class Intake:
    """One change of what exists. Use once: `take` or `drop`."""

    def __init__(self, connection: Connection, groups: Groups) -> None:
        self._connection = connection
        self._ledger = Ledger(connection, groups)
        self._seen = SeenSegments(connection)
        self._outcome = Outcome()

    def take(self, new: NewSegment, images: Sequence[ManifestImage]) -> Outcome:
        """Take a segment in, with these of its images; what it replaces leaves. ShardDamaged: it contradicts itself."""
        manifest = new.manifest
        self._seen.record(manifest.segment, manifest.replaces)
        leaving = self._outcome.replaced = self._seen.replaced_by([manifest.segment])
        copies = self._copies_in(leaving) | {copy["id"] for copy in self._known_copies(images)}
        books = self._off_the_books(copies, images)
        self._remove_segments(leaving)
        self._add_segment(new)
        copies |= self._add_parts(manifest.segment, images)
        self._on_the_books(books, copies)
        return self._outcome

    def drop(self, segments: Collection[bytes]) -> Outcome:
        """Forget segments and what depends on them."""
        copies = self._copies_in(segments)
        books = self._off_the_books(copies, ())
        self._remove_segments(segments)
        self._on_the_books(books, copies)
        return self._outcome

    def drop_parts(self, parts: Collection[Row]) -> Outcome:
        """Forget single parts (of images that were purged) of segments that stay."""
        copies = {part["copy"] for part in parts}
        books = self._off_the_books(copies, ())
        for part in parts:
            key = [column == part[column.name] for column in PARTS.primary_key.columns]
            self._connection.execute(delete(PARTS).where(*key))
        self._on_the_books(books, copies)
        return self._outcome

    # -- books ------------------------------------------------------------------------------------------

    def _off_the_books(self, copies: Collection[int], images: Sequence[ManifestImage]) -> set[int]:
        """Take off every listed image that may change: of these copies, or of the same bytes as one of them."""
        touched = rows_in(self._connection, COPIES, "id", copies)
        listed = {copy["image_row"] for copy in touched} - {None}
        keys = {(copy["uid"], copy["sha256"]) for copy in touched}
        keys |= {(image.sop_instance_uid, _digest(image.sha256)) for image in images}
        same_uid = rows_in(self._connection, IMAGES, "uid", {uid for uid, _sha256 in keys})
        listed |= {image["id"] for image in same_uid if (image["uid"], image["sha256"]) in keys}
        self._ledger.count_images(listed, -1)
        return listed

    def _on_the_books(self, books: set[int], copies: Collection[int]) -> None:
        judged = self._judge(copies)
        books |= self._list(judged)
        gone = self._unlist(books)
        self._ledger.count_images(books - gone, 1)
        self._ledger.flush()

    # -- segments ---------------------------------------------------------------------------------------

    def _remove_segments(self, segments: Collection[bytes]) -> None:
        for segment in rows_in(self._connection, SEGMENTS, "segment", segments):
            self._ledger.count_segment(segment, -1)
        for table in (PARTS, EXCEPTIONS, SEGMENTS):
            remove_in(self._connection, table, "segment", segments)

    def _add_segment(self, new: NewSegment) -> None:
        manifest = new.manifest
        mask = sum(1 << index for index in new.absent)
        segment: Row = {
            "segment": manifest.segment.bytes,
            "group_id": group_of(self._connection, new.placement, mask),
            "payload_length": manifest.payload_length,
            "body_offset": new.body_offset,
            "block_size": BLOCK_SIZE,
            "written_at": manifest.written_at,
            "journal_sequence": manifest.journal_sequence,
            "sole_images": 0,
            "sole_bytes": 0,
            "shared_images": 0,
        }
        add(self._connection, SEGMENTS, [segment])
        missing = [
            {"segment": manifest.segment.bytes, "shard": index, "kind": "missing"} for index in sorted(new.absent)
        ]
        add(self._connection, EXCEPTIONS, missing)
        self._ledger.count_segment(segment, 1)

    # -- copies and parts -------------------------------------------------------------------------------

    def _copies_in(self, segments: Collection[bytes]) -> set[int]:
        return {part["copy"] for part in rows_in(self._connection, PARTS, "segment", segments)}

    def _known_copies(self, images: Sequence[ManifestImage]) -> list[Row]:
        uids = {(image.image.bytes, image.sop_instance_uid) for image in images}
        found = rows_in(self._connection, COPIES, "image", {image for image, _uid in uids})
        return [copy for copy in found if (copy["image"], copy["uid"]) in uids]

    def _add_parts(self, segment: UUID, images: Sequence[ManifestImage]) -> set[int]:
        """Insert the parts, and the copies they are the first of. Returns the copies."""
        known = {(copy["image"], copy["uid"]): dict(copy) for copy in self._known_copies(images)}
        before = {key: dict(copy) for key, copy in known.items()}
        following = next_row(self._connection, COPIES)
        parts: dict[tuple[int, int], Row] = {}
        for image in images:
            key = (image.image.bytes, image.sop_instance_uid)
            copy = known.setdefault(key, _new_copy(following, image))
            following = max(following, copy["id"] + 1)
            _merge(copy, image)
            parts.setdefault((copy["id"], image.image_offset), _new_part(copy["id"], segment, image))
        add(self._connection, COPIES, [copy for key, copy in known.items() if key not in before])
        change_many(self._connection, COPIES, [known[key] for key, old in before.items() if known[key] != old])
        add(self._connection, PARTS, parts.values())
        return {copy["id"] for copy in known.values()}

    def _judge(self, copies: Collection[int]) -> list[tuple[Row, bool]]:
        """Each copy with whether it is complete; its live parts are marked, copies without parts are gone."""
        parts: defaultdict[int, list[Row]] = defaultdict(list)
        for part in rows_in(self._connection, PARTS, "copy", copies):
            parts[part["copy"]].append(part)
        remove_in(self._connection, COPIES, "id", set(copies) - parts.keys())
        judged, changed = [], []
        for copy in rows_in(self._connection, COPIES, "id", copies):
            chain = tile(parts[copy["id"]], copy["size"]) if copy["sha256"] is not None else None
            live = {(part["image_offset"], part["segment"]) for part in chain or ()}
            for part in parts[copy["id"]]:
                is_live = int((part["image_offset"], part["segment"]) in live)
                if part["live"] != is_live:
                    changed.append({**part, "live": is_live})
            judged.append((copy, chain is not None))
        change_many(self._connection, PARTS, changed)
        return judged

    # -- listed images ----------------------------------------------------------------------------------

    def _list(self, judged: Iterable[tuple[Row, bool]]) -> set[int]:
        """Tie complete copies to their image, made when new; untie the others. Returns the images tied anew."""
        judged = list(judged)
        uids = {copy["uid"] for copy, complete in judged if complete and copy["image_row"] is None}
        known = {
            (image["uid"], image["sha256"]): image["id"] for image in rows_in(self._connection, IMAGES, "uid", uids)
        }
        numbers = _Numbers(self._connection, uids)
        subjects = Subjects(self._connection)
        following = next_row(self._connection, IMAGES)
        new: list[Row] = []
        retied: list[Row] = []
        tied: set[int] = set()
        for copy, complete in judged:
            if complete and copy["image_row"] is None:
                key = (copy["uid"], copy["sha256"])
                if key not in known:
                    new.append(self._new_image(following, copy, numbers, subjects))
                    known[key], following = following, following + 1
                retied.append({**copy, "image_row": known[key]})
                tied.add(known[key])
                self._outcome.completed.append(known[key])
            elif not complete and copy["image_row"] is not None:
                retied.append({**copy, "image_row": None})
        change_many(self._connection, COPIES, retied)
        add(self._connection, IMAGES, new)
        return tied

    def _new_image(self, following: int, copy: Row, numbers: _Numbers, subjects: Subjects) -> Row:
        version = numbers.give(copy)
        if version != copy["version"]:
            self._pin(copy["uid"], copy["sha256"], version)
        columns, subject = search_columns(copy["identity"])
        return {
            "id": following,
            "uid": copy["uid"],
            "version": version,
            "sha256": copy["sha256"],
            "size": copy["size"],
            "received_at": copy["received_at"],
            **columns,
            "subject": subjects.id_of(subject),
        }

    def _unlist(self, images: Collection[int]) -> set[int]:
        """Take images without a complete copy off the list; their numbers stay theirs."""
        kept = {copy["image_row"] for copy in rows_in(self._connection, COPIES, "image_row", images)}
        gone = set(images) - kept
        for image in rows_in(self._connection, IMAGES, "id", gone):
            self._pin(image["uid"], image["sha256"], image["version"])
            self._outcome.unlisted.append((image["uid"], image["sha256"]))
        remove_in(self._connection, IMAGES, "id", gone)
        return gone

    def _pin(self, uid: str, sha256: bytes, version: int) -> None:
        pin_versions(self._connection, [(uid, sha256.hex(), version)])
        self._outcome.versions.append((uid, sha256.hex(), version))


def pin_versions(connection: Connection, versions: Iterable[Version]) -> None:
    """Keep numbers for ever: a journal entry told them."""
    put(connection, PINS, [{"uid": uid, "sha256": bytes.fromhex(sha256), "version": v} for uid, sha256, v in versions])


class _Numbers:
    """Version numbers in use under some UIDs."""

    def __init__(self, connection: Connection, uids: Collection[str]) -> None:
        self._taken: defaultdict[str, set[int]] = defaultdict(set)
        self._pins: dict[tuple[str, bytes], int] = {}
        for image in rows_in(connection, IMAGES, "uid", uids):
            self._taken[image["uid"]].add(image["version"])
        for pin in rows_in(connection, PINS, "uid", uids):
            self._taken[pin["uid"]].add(pin["version"])
            self._pins[pin["uid"], pin["sha256"]] = pin["version"]

    def give(self, copy: Row) -> int:
        """The number for a copy's image: its own of old, the one wished, or the next."""
        taken, wished = self._taken[copy["uid"]], copy["version"]
        number = self._pins.get((copy["uid"], copy["sha256"]))
        if number is None:
            number = wished if wished not in taken and 0 < wished < VERSION_LIMIT else max(taken, default=0) + 1
        taken.add(number)
        return number


def tile(parts: Iterable[Row], size: int) -> list[Row] | None:
    """The parts, in order, that make 0…size without gap or overlap; None when they do not. Newer segments first."""
    chain: dict[int, Row] = {}
    for part in sorted(parts, key=lambda part: (-part["image_offset"], part["segment"])):
        end = part["image_offset"] + part["length"]
        if part["length"] > 0 and (end == size or end in chain):
            chain[part["image_offset"]] = part
    found, offset = [], 0
    while offset < size and offset in chain:
        found.append(chain[offset])
        offset += chain[offset]["length"]
    return found if offset == size and found else None


def _new_copy(number: int, image: ManifestImage) -> dict[str, Any]:
    return {
        "id": number,
        "image": image.image.bytes,
        "uid": image.sop_instance_uid,
        "image_row": None,
        "version": image.version,
        "size": image.size,
        "sha256": _digest(image.sha256),
        "received_at": image.received_at,
        "source": storable(image.source),
        "identity": json.dumps(dict(image.identity), sort_keys=True, separators=(",", ":")),
    }


def _merge(copy: dict[str, Any], image: ManifestImage) -> None:
    """What a part says of its whole image, added to what others said."""
    for name, said in (("size", image.size), ("sha256", _digest(image.sha256))):
        if said is not None and copy[name] not in (None, said):
            raise ShardDamaged(f"image {image.image} ({image.sop_instance_uid}): its parts disagree about its {name}")
        copy[name] = copy[name] if said is None else said


def _new_part(copy: int, segment: UUID, image: ManifestImage) -> Row:
    return {
        "copy": copy,
        "image_offset": image.image_offset,
        "segment": segment.bytes,
        "offset": image.offset,
        "length": image.length,
        "part_sha256": bytes.fromhex(image.part_sha256),
        "live": int(image.image_offset == 0 and image.length == image.size),
    }


def _digest(sha256: str | None) -> bytes | None:
    return None if sha256 is None else bytes.fromhex(sha256)


def storable(text: str) -> str:
    """Text that SQLite can keep: what is no Unicode becomes U+FFFD, as in the manifest."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
