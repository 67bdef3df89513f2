"""Rows of the catalog as the values others work with. Reads only; every row's seal is verified."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, cast
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, and_, or_, select, true

from raidd.array.catalog_counts import Group, Groups
from raidd.array.catalog_database import Row, rows, rows_in
from raidd.array.catalog_rows import Endangered, ExceptionKind, ImageRow, PartRow, SegmentRow
from raidd.array.catalog_schema import COPIES, EXCEPTIONS, IMAGES, PARTS, REPLACEMENTS, SEGMENTS

Away = Collection[UUID]


def segment_rows(connection: Connection, groups: Groups, found: Sequence[Row]) -> list[SegmentRow]:
    """Segments with their placement and what they replace, in the order given."""
    placements = groups.get(connection, {segment["group_id"] for segment in found})
    replaces: defaultdict[bytes, list[UUID]] = defaultdict(list)
    for edge in rows_in(connection, REPLACEMENTS, "successor", {segment["segment"] for segment in found}):
        replaces[edge["successor"]].append(UUID(bytes=edge["replaced"]))
    return [
        SegmentRow(
            segment=UUID(bytes=segment["segment"]),
            placement=placements[segment["group_id"]].placement,
            payload_length=segment["payload_length"],
            body_offset=segment["body_offset"],
            block_size=segment["block_size"],
            written_at=segment["written_at"],
            journal_sequence=segment["journal_sequence"],
            replaces=tuple(sorted(replaces[segment["segment"]])),
        )
        for segment in found
    ]


def segments_on(
    connection: Connection, groups: Groups, member: UUID, after: UUID | None, limit: int
) -> list[SegmentRow]:
    """Segments with a shard meant for a member, in id order."""
    wanted = {group.id for group, _ in groups.all(connection) if member in group.placement.members}
    found: list[Row] = []
    for segment in _by_id(connection, after):
        if len(found) >= limit:
            break
        if segment["group_id"] in wanted:
            found.append(segment)
    return segment_rows(connection, groups, found)


def _by_id(connection: Connection, after: UUID | None, page: int = 1000) -> Iterator[Row]:
    """All segments above ``after``, in id order, a page at a time."""
    last = b"" if after is None else after.bytes
    while True:
        some = rows(
            connection,
            SEGMENTS,
            select(SEGMENTS).where(SEGMENTS.c.segment > last).order_by(SEGMENTS.c.segment).limit(page),
        )
        yield from some
        if len(some) < page:
            return
        last = some[-1]["segment"]


def endangered(
    connection: Connection, groups: Groups, away: Away, after: tuple[int, UUID] | None, limit: int
) -> list[Endangered]:
    """Segments that miss shards, fewest spare first, then in id order; from ``after`` (spare, segment) on."""
    by_spare: defaultdict[int, dict[int, Group]] = defaultdict(dict)
    for group, _ in groups.all(connection):
        if group.lost(away):
            by_spare[group.spare(away)][group.id] = group
    found: list[Endangered] = []
    for spare in sorted(by_spare):
        if after is not None and spare < after[0]:
            continue
        start = after[1] if after is not None and spare == after[0] else None
        for segment in _of_groups(connection, by_spare[spare], start, limit - len(found)):
            missing = _indexes(by_spare[spare][segment["group_id"]].lost(away))
            found += [Endangered(one, spare, missing) for one in segment_rows(connection, groups, [segment])]
        if len(found) >= limit:
            break
    return found


def _of_groups(connection: Connection, groups: Iterable[int], after: UUID | None, limit: int) -> list[Row]:
    """The first segments above ``after`` in any of these groups, in id order."""
    found: list[Row] = []
    for group in sorted(groups):
        query = select(SEGMENTS).where(SEGMENTS.c.group_id == group)
        query = query.where(SEGMENTS.c.segment > after.bytes if after is not None else true())
        found += rows(connection, SEGMENTS, query.order_by(SEGMENTS.c.segment).limit(max(limit, 0)))
    return sorted(found, key=lambda segment: segment["segment"])[: max(limit, 0)]


def _indexes(mask: int) -> tuple[int, ...]:
    return tuple(index for index in range(mask.bit_length()) if mask >> index & 1)


def exceptions(
    connection: Connection, groups: Groups, member: UUID | None, limit: int, after: tuple[UUID, int] | None
) -> list[tuple[UUID, int, ExceptionKind]]:
    """(segment, shard, kind), in order, above ``after``; those of shards meant for ``member`` when given."""
    found: list[tuple[UUID, int, ExceptionKind]] = []
    last = (b"", -1) if after is None else (after[0].bytes, after[1])
    while len(found) < limit:
        place = (EXCEPTIONS.c.segment, EXCEPTIONS.c.shard)
        page = rows(connection, EXCEPTIONS, select(EXCEPTIONS).where(_above(last)).order_by(*place).limit(1000))
        placements = {} if member is None else _placements(connection, groups, page)
        for one in page:
            if member is None or placements[one["segment"]].members[one["shard"]] == member:
                found.append((UUID(bytes=one["segment"]), one["shard"], cast(ExceptionKind, one["kind"])))
        if len(page) < 1000:
            break
        last = (page[-1]["segment"], page[-1]["shard"])
    return found[:limit]


def _above(last: tuple[bytes, int]) -> ColumnElement[bool]:
    segment, shard = EXCEPTIONS.c.segment, EXCEPTIONS.c.shard
    return or_(segment > last[0], and_(segment == last[0], shard > last[1]))


def _placements(connection: Connection, groups: Groups, page: Iterable[Row]) -> dict[bytes, Any]:
    segments = rows_in(connection, SEGMENTS, "segment", {one["segment"] for one in page})
    known = groups.get(connection, {segment["group_id"] for segment in segments})
    return {segment["segment"]: known[segment["group_id"]].placement for segment in segments}


# Images ----------------------------------------------------------------------------------------------------------


def image_rows(connection: Connection, groups: Groups, found: Sequence[Row], away: Away) -> list[ImageRow]:
    """Listed images, each with its best copy, in the order given."""
    copies = _copies(connection, {image["id"] for image in found})
    parts = _live_parts(connection, {copy["id"] for some in copies.values() for copy in some})
    spare = _spare(connection, groups, {part["segment"] for some in parts.values() for part in some}, away)
    return [_image_row(image, copies[image["id"]], parts, spare) for image in found]


def _copies(connection: Connection, images: Collection[int]) -> defaultdict[int, list[Row]]:
    copies: defaultdict[int, list[Row]] = defaultdict(list)
    for copy in rows_in(connection, COPIES, "image_row", images):
        copies[copy["image_row"]].append(copy)
    return copies


def _live_parts(connection: Connection, copies: Collection[int]) -> defaultdict[int, list[Row]]:
    parts: defaultdict[int, list[Row]] = defaultdict(list)
    for part in rows_in(connection, PARTS, "copy", copies):
        if part["live"]:
            parts[part["copy"]].append(part)
    return parts


def _spare(connection: Connection, groups: Groups, segments: Collection[bytes], away: Away) -> dict[bytes, int]:
    """Present shards beyond k of each segment."""
    group_of = {
        segment["segment"]: segment["group_id"] for segment in rows_in(connection, SEGMENTS, "segment", segments)
    }
    known = groups.get(connection, group_of.values())
    return {segment: known[group].spare(away) for segment, group in group_of.items()}


def copies_of(connection: Connection, groups: Groups, image: Row, away: Away) -> list[ImageRow]:
    """Every complete copy of a listed image, the best first."""
    copies = _copies(connection, {image["id"]})[image["id"]]
    parts = _live_parts(connection, {copy["id"] for copy in copies})
    spare = _spare(connection, groups, {part["segment"] for some in parts.values() for part in some}, away)
    return [_copy_row(image, copy, parts[copy["id"]], spare) for copy in _best_first(copies, parts, spare)]


def _image_row(image: Row, copies: Sequence[Row], parts: dict[int, list[Row]], spare: dict[bytes, int]) -> ImageRow:
    best = _best_first(copies, parts, spare)[0]
    return _copy_row(image, best, parts[best["id"]], spare)


def _best_first(copies: Sequence[Row], parts: dict[int, list[Row]], spare: dict[bytes, int]) -> list[Row]:
    """Protected, then readable ones; of equals the oldest."""

    def worth(copy: Row) -> tuple[int, int]:
        return max(-1, min(1, _least_spare(parts[copy["id"]], spare))), -copy["id"]

    return sorted(copies, key=worth, reverse=True)


def _least_spare(parts: Iterable[Row], spare: dict[bytes, int]) -> int:
    return min(spare[part["segment"]] for part in parts)


def _copy_row(image: Row, copy: Row, parts: Sequence[Row], spare: dict[bytes, int]) -> ImageRow:
    chain = sorted(parts, key=lambda part: part["image_offset"])
    return ImageRow(
        image=UUID(bytes=copy["image"]),
        sop_instance_uid=image["uid"],
        version=image["version"],
        sha256=image["sha256"].hex(),
        size=image["size"],
        received_at=copy["received_at"],
        source=copy["source"],
        identity=json.loads(copy["identity"]),
        parts=tuple(_part_row(part) for part in chain),
        state="protected" if _least_spare(parts, spare) >= 1 else "stored",
    )


def _part_row(part: Row) -> PartRow:
    return PartRow(
        UUID(bytes=part["segment"]), part["offset"], part["length"], part["image_offset"], part["part_sha256"].hex()
    )


def images_of_uid(connection: Connection, uid: str, version: int | None = None) -> list[Row]:
    """The versions of a UID, newest first."""
    query = select(IMAGES).where(IMAGES.c.uid == uid, IMAGES.c.version == version if version is not None else true())
    return rows(connection, IMAGES, query.order_by(IMAGES.c.version.desc()))


def images_in(connection: Connection, segment: UUID) -> list[Row]:
    """Listed images with a part in a segment, in its order."""
    parts = sorted(rows_in(connection, PARTS, "segment", [segment.bytes]), key=lambda part: part["offset"])
    copies = {copy["id"]: copy["image_row"] for copy in rows_in(connection, COPIES, "id", {p["copy"] for p in parts})}
    order = dict.fromkeys(copies[part["copy"]] for part in parts if copies[part["copy"]] is not None)
    known = {image["id"]: image for image in rows_in(connection, IMAGES, "id", order)}
    return [known[image] for image in order]


def incomplete_segments(connection: Connection, uid: str) -> list[UUID]:
    """Segments that hold nothing but parts of copies of a UID which are not complete."""
    copies = rows(connection, COPIES, select(COPIES).where(COPIES.c.uid == uid, COPIES.c.image_row.is_(None)))
    parts = rows_in(connection, PARTS, "copy", {copy["id"] for copy in copies})
    segments = {part["segment"] for part in parts}
    others = rows_in(connection, PARTS, "segment", segments)
    needed = rows_in(connection, COPIES, "id", {part["copy"] for part in others})
    shared = {copy["id"] for copy in needed if copy["image_row"] is not None or copy["uid"] != uid}
    return sorted(UUID(bytes=one) for one in segments - {part["segment"] for part in others if part["copy"] in shared})
