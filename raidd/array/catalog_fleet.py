"""What the catalog knows member by member, and all images in turn: for rebuilds, checks and verification.

The reading half's other part (catalog_view): pages over everything, so that memory does not grow with the array.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from uuid import UUID

from sqlalchemy import select

from raidd.array import catalog_reading as reading
from raidd.array.catalog_counts import Groups
from raidd.array.catalog_database import Database, rows, rows_in
from raidd.array.catalog_rows import ImageRow
from raidd.array.catalog_schema import COPIES, IMAGES, PARTS

PAGE = 1000


class FleetView:
    """Mixed into CatalogView, whose ``_database`` and ``_groups`` these are."""

    _database: Database
    _groups: Groups

    def load(self, member: UUID) -> tuple[int, int]:
        """(segments, bytes of their shards) that are meant for the member; from kept counters."""
        with self._database.read() as connection:
            mine = [c for group, c in self._groups.all(connection) if member in group.placement.members]
            return sum(c["segments"] for c in mine), sum(c["shard_bytes"] for c in mine)

    def shards_on(self, member: UUID) -> Iterator[tuple[UUID, int]]:
        """(segment, shard index) of every shard meant for the member, in id order."""
        after: UUID | None = None
        while True:
            with self._database.read() as connection:
                page = reading.segments_on(connection, self._groups, member, after, PAGE)
            for row in page:
                yield row.segment, row.placement.members.index(member)
            if len(page) < PAGE:
                return
            after = page[-1].segment

    def incomplete_in(self, segment: UUID) -> list[tuple[str, str | None]]:
        """(UID, SHA-256) of the copies that are not complete and have a part in the segment; None: no part tells it."""
        with self._database.read() as connection:
            parts = rows_in(connection, PARTS, "segment", [segment.bytes])
            copies = rows_in(connection, COPIES, "id", {part["copy"] for part in parts})
            incomplete = [copy for copy in copies if copy["image_row"] is None]
            return [(c["uid"], None if c["sha256"] is None else c["sha256"].hex()) for c in incomplete]

    def all_images(self, away: Collection[UUID] = frozenset()) -> Iterator[ImageRow]:
        """Every version of every listed image, in the order they came."""
        last = 0
        while True:
            with self._database.read() as connection:
                query = select(IMAGES).where(IMAGES.c.id > last).order_by(IMAGES.c.id).limit(PAGE)
                found = rows(connection, IMAGES, query)
                page = reading.image_rows(connection, self._groups, found, away)
            yield from page
            if len(found) < PAGE:
                return
            last = found[-1]["id"]
