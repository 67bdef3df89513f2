"""Counters kept as rows change, so that no count ever scans segments or images.

Every segment is in a group (placement, mask of shards that are missing or damaged); every listed image is in a class:
the groups it needs. Most images lie in one segment alone ("12"); a large one needs several groups at once ("3,12"),
one with two copies either of them ("3|12"). What is protected or readable with some members away follows from the
groups' and classes' counters alone.

A `Ledger` lives for one transaction: it gathers differences and `flush` writes them. Images whose parts are about to
change are taken off the books before, and put on them again after.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Table, delete, select

from raidd.array.catalog_database import Row, add, change, read_meta, row, rows, rows_in, write_meta
from raidd.array.catalog_rows import Counts
from raidd.array.catalog_schema import CLASSES, COPIES, GROUPS, IMAGES, PARTS, PLACEMENTS, SEGMENTS, STUDIES
from raidd.array.placement import Placement
from raidd.codec.geometry import Geometry, shard_length

STUDIES_KEY = "catalog.studies"

_COUNTERS: dict[Table, tuple[str, ...]] = {  # each table's key and its counters, in the ledger's order
    GROUPS: ("id", "segments", "shard_bytes"),
    CLASSES: ("key", "images", "bytes"),
    SEGMENTS: ("segment", "sole_images", "sole_bytes", "shared_images"),
    STUDIES: ("uid", "images"),
}


@dataclass(frozen=True, slots=True)
class Group:
    """What a group's id stands for; never changes. Bit i of ``mask``: shard i is missing or damaged."""

    id: int
    placement: Placement
    mask: int

    def lost(self, away: Collection[UUID]) -> int:
        """The mask with the shards on members that are away added."""
        gone = (1 << index for index, member in enumerate(self.placement.members) if member in away)
        return self.mask | sum(bit for bit in gone if not self.mask & bit)

    def spare(self, away: Collection[UUID]) -> int:
        """Present shards beyond k: 0 is unprotected, below 0 unreadable."""
        return self.placement.geometry.m - self.lost(away).bit_count()


class Groups:
    """The groups by id: read once, as their meaning never changes."""

    def __init__(self) -> None:
        self._known: dict[int, Group] = {}

    def get(self, connection: Connection, ids: Iterable[int]) -> dict[int, Group]:
        """The groups of these ids."""
        wanted, known = set(ids), self._known
        missing = wanted - known.keys()
        learned = self._learn(connection, rows_in(connection, GROUPS, "id", missing)) if missing else {}
        return {group: known[group] if group in known else learned[group] for group in wanted}

    def all(self, connection: Connection) -> list[tuple[Group, Row]]:
        """Every group that has segments, with its counters."""
        found = rows(connection, GROUPS, select(GROUPS).where(GROUPS.c.segments > 0))
        known = self.get(connection, (one["id"] for one in found))
        return [(known[one["id"]], one) for one in found]

    def forget(self) -> None:
        """After a rollback: an id that was learned in it may come to mean something else."""
        self._known = {}

    def _learn(self, connection: Connection, found: Sequence[Row]) -> dict[int, Group]:
        placed = rows_in(connection, PLACEMENTS, "id", {group["placement"] for group in found})
        placements = {one["id"]: _placement(one) for one in placed}
        learned = {g["id"]: Group(g["id"], placements[g["placement"]], g["mask"]) for g in found}
        self._known |= learned
        return learned


def _placement(found: Row) -> Placement:
    members = found["members"]
    return Placement(
        Geometry(found["k"], found["m"]), tuple(UUID(bytes=members[i : i + 16]) for i in range(0, len(members), 16))
    )


def group_of(connection: Connection, placement: Placement, mask: int) -> int:
    """The id of a group, made when new."""
    geometry = placement.geometry
    key: dict[str, Any] = {"k": geometry.k, "m": geometry.m, "members": b"".join(m.bytes for m in placement.members)}
    placed = _id_of(connection, PLACEMENTS, key)
    return _id_of(connection, GROUPS, {"placement": placed, "mask": mask}, segments=0, shard_bytes=0)


def _id_of(connection: Connection, table: Table, key: Mapping[str, Any], **rest: Any) -> int:
    found = row(connection, table, **key)
    if found is None:
        new = next_row(connection, table)
        add(connection, table, [{"id": new, **key, **rest}])
        return new
    return int(found["id"])


def next_row(connection: Connection, table: Table) -> int:
    """The next free integer key (there is one writer)."""
    return int(connection.execute(select(table.c.id).order_by(table.c.id.desc()).limit(1)).scalar() or 0) + 1


def shard_file_bytes(segment: Row, k: int) -> int:
    """The length of one shard's file."""
    return int(segment["body_offset"]) + shard_length(segment["payload_length"], k)


class Ledger:
    """The differences of one transaction."""

    def __init__(self, connection: Connection, groups: Groups) -> None:
        self._connection = connection
        self._known = groups
        self._groups: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0])
        self._classes: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        self._segments: defaultdict[bytes, list[int]] = defaultdict(lambda: [0, 0, 0])
        self._studies: defaultdict[str, int] = defaultdict(int)

    # -- segments ---------------------------------------------------------------------------------------

    def count_segment(self, segment: Row, sign: int) -> None:
        """One segment more (sign 1) or less (−1) in its group, with nothing of its images."""
        group = self._known.get(self._connection, [segment["group_id"]])[segment["group_id"]]
        _add(self._groups[group.id], sign, sign * shard_file_bytes(segment, group.placement.geometry.k))

    def regroup(self, segment: Row, group_id: int) -> None:
        """Move a segment, and the images that need it, to another group."""
        if segment["group_id"] == group_id:
            return
        shared = self._shared_images(segment) if segment["shared_images"] else []
        self.count_images(shared, -1)
        self.count_segment(segment, -1)
        _add(self._classes[str(segment["group_id"])], -segment["sole_images"], -segment["sole_bytes"])
        change(self._connection, SEGMENTS, segment, group_id=group_id)
        self.count_segment({**segment, "group_id": group_id}, 1)
        _add(self._classes[str(group_id)], segment["sole_images"], segment["sole_bytes"])
        self.count_images(shared, 1)

    def _shared_images(self, segment: Row) -> list[int]:
        """Listed images that need more than this segment, or have another copy."""
        copies = {part["copy"] for part in rows_in(self._connection, PARTS, "segment", [segment["segment"]])}
        images = {copy["image_row"] for copy in rows_in(self._connection, COPIES, "id", copies)} - {None}
        needs = self._needs(images)
        return [image for image in images if _sole(needs[image]) is None]

    # -- images -----------------------------------------------------------------------------------------

    def count_images(self, images: Collection[int], sign: int) -> None:
        """Listed images (row ids) on the books (1) or off them (−1), by their parts and groups as they are now."""
        if not images:
            return
        needs = self._needs(images)
        involved = {segment for copies in needs.values() for copy in copies for segment in copy}
        groups = {s["segment"]: s["group_id"] for s in rows_in(self._connection, SEGMENTS, "segment", involved)}
        for image in rows_in(self._connection, IMAGES, "id", images):
            self._count_image(image, needs[image["id"]], groups, sign)

    def _count_image(self, image: Row, copies: list[frozenset[bytes]], groups: Mapping[bytes, int], sign: int) -> None:
        sole = _sole(copies)
        if sole is not None:
            _add(self._segments[sole], sign, sign * image["size"], 0)
        else:
            for segment in frozenset().union(*copies):
                _add(self._segments[segment], 0, 0, sign)
        _add(self._classes[_class_key(copies, groups)], sign, sign * image["size"])
        if image["study_uid"]:
            self._studies[image["study_uid"]] += sign

    def _needs(self, images: Collection[int]) -> dict[int, list[frozenset[bytes]]]:
        """image → for each of its complete copies the segments that hold it."""
        copies = {copy["id"]: copy["image_row"] for copy in rows_in(self._connection, COPIES, "image_row", images)}
        segments: defaultdict[int, set[bytes]] = defaultdict(set)
        for part in rows_in(self._connection, PARTS, "copy", copies):
            if part["live"]:
                segments[part["copy"]].add(part["segment"])
        needs: dict[int, list[frozenset[bytes]]] = {image: [] for image in images}
        for copy, image in sorted(copies.items()):
            needs[image].append(frozenset(segments[copy]))
        return needs

    def differences(self, kept: Mapping[Table, Iterable[Row]]) -> Iterator[str]:
        """Where the kept counters are not what this ledger counted from nothing."""
        counted: dict[Table, Mapping[Any, Sequence[int]]] = {
            GROUPS: self._groups,
            CLASSES: self._classes,
            SEGMENTS: self._segments,
            STUDIES: {uid: [images] for uid, images in self._studies.items()},
        }
        for table, found in kept.items():
            key, *counters = _COUNTERS[table]
            rest = {name for name, values in counted[table].items() if any(values)}
            for one in found:
                rest.discard(one[key])
                wanted = counted[table].get(one[key], [0] * len(counters))
                if [one[counter] for counter in counters] != list(wanted):
                    yield f"{table.name} {one[key]!r}: its counters are not what there is"
            yield from (f"{table.name} {name!r}: not counted" for name in rest)

    # -- writing ----------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write the differences; the ledger is empty afterwards."""
        self._flush_groups()
        self._flush_classes()
        self._flush_segments()
        self._flush_studies()

    def _flush_groups(self) -> None:
        for found in rows_in(self._connection, GROUPS, "id", self._groups):
            segments, shard_bytes = self._groups[found["id"]]
            if segments or shard_bytes:
                counters = {"segments": found["segments"] + segments, "shard_bytes": found["shard_bytes"] + shard_bytes}
                change(self._connection, GROUPS, found, **counters)
        self._groups.clear()

    def _flush_classes(self) -> None:
        known = {found["key"]: found for found in rows_in(self._connection, CLASSES, "key", self._classes)}
        for key, (images, size) in self._classes.items():
            old = known.get(key, {"key": key, "images": 0, "bytes": 0})
            if old["images"] + images == 0 and key in known:
                self._connection.execute(delete(CLASSES).where(CLASSES.c.key == key))
            elif key in known:
                change(self._connection, CLASSES, old, images=old["images"] + images, bytes=old["bytes"] + size)
            elif images:
                add(self._connection, CLASSES, [{"key": key, "images": images, "bytes": size}])
        self._classes.clear()

    def _flush_segments(self) -> None:
        for found in rows_in(self._connection, SEGMENTS, "segment", self._segments):
            sole, size, shared = self._segments[found["segment"]]
            if sole or size or shared:
                counters = {
                    "sole_images": found["sole_images"] + sole,
                    "sole_bytes": found["sole_bytes"] + size,
                    "shared_images": found["shared_images"] + shared,
                }
                change(self._connection, SEGMENTS, found, **counters)
        self._segments.clear()

    def _flush_studies(self) -> None:
        known = {found["uid"]: found for found in rows_in(self._connection, STUDIES, "uid", self._studies)}
        total = 0
        for uid, images in self._studies.items():
            old = known.get(uid)
            now = images + (old["images"] if old else 0)
            if old is None and now:
                add(self._connection, STUDIES, [{"uid": uid, "images": now}])
                total += 1
            elif old is not None and now:
                change(self._connection, STUDIES, old, images=now)
            elif old is not None:
                self._connection.execute(delete(STUDIES).where(STUDIES.c.uid == uid))
                total -= 1
        if total:
            write_meta(self._connection, STUDIES_KEY, (read_meta(self._connection, STUDIES_KEY) or 0) + total)
        self._studies.clear()


def _add(counters: list[int], *differences: int) -> None:
    for index, difference in enumerate(differences):
        counters[index] += difference


def _sole(copies: list[frozenset[bytes]]) -> bytes | None:
    """The one segment an image lies in, None when it needs or has more."""
    return next(iter(copies[0])) if len(copies) == 1 and len(copies[0]) == 1 else None


def _class_key(copies: list[frozenset[bytes]], groups: Mapping[bytes, int]) -> str:
    alternatives = {",".join(map(str, sorted({groups[segment] for segment in copy}))) for copy in copies}
    return "|".join(sorted(alternatives))


def count(connection: Connection, groups: Groups, away: Collection[UUID]) -> Counts:
    """The array in numbers with these members away, from groups and classes alone."""
    known = groups.all(connection)
    spare = {str(group.id): group.spare(away) for group, _ in known}
    images = image_bytes = unprotected = unreadable = 0
    for one in rows(connection, CLASSES):
        best = max(min(spare[need] for need in copy.split(",")) for copy in one["key"].split("|"))
        images += one["images"]
        image_bytes += one["bytes"]
        unprotected += one["images"] if best < 1 else 0
        unreadable += one["images"] if best < 0 else 0
    return Counts(
        images=images,
        studies=read_meta(connection, STUDIES_KEY) or 0,
        bytes=image_bytes,
        raw_bytes=sum(counters["shard_bytes"] * group.placement.geometry.n for group, counters in known),
        unprotected_images=unprotected,
        unreadable_images=unreadable,
        least_spare=min(spare.values(), default=None),
        absent_shards=sum(counters["segments"] * group.lost(away).bit_count() for group, counters in known),
        segments=sum(counters["segments"] for _, counters in known),
    )
