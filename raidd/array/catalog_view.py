"""All that can be asked of the catalog. Any thread, any number at once; each call sees one snapshot, the last commit.

``away``: members whose shards do not count now. It is an argument, not a row: that a member goes away changes nothing
in the catalog, and every answer follows it at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, select

from raidd.array import catalog_journal as journal
from raidd.array import catalog_reading as reading
from raidd.array import catalog_search as searching
from raidd.array.catalog_bars import SeenSegments, barred
from raidd.array.catalog_check import faults
from raidd.array.catalog_counts import Groups, count
from raidd.array.catalog_database import Database, read_meta, rows, rows_in
from raidd.array.catalog_fleet import FleetView
from raidd.array.catalog_rows import Counts, Endangered, ExceptionKind, ImageQuery, ImageRow, SegmentRow
from raidd.array.catalog_schema import EXCEPTIONS, IMAGES, RESERVED, SEGMENTS
from raidd.array.journal import Head, JournalEntry
from raidd.codec.manifest import Manifest

LAST_ID_KEY = "catalog.last_id"
Away = Collection[UUID]
NOBODY: frozenset[UUID] = frozenset()


def last_id(connection: Connection) -> UUID | None:
    """The highest id ever reserved or seen."""
    found = read_meta(connection, LAST_ID_KEY)
    return None if found is None else UUID(found)


class CatalogView(FleetView):
    """The reading half of `raidd.array.catalog.Catalog`. Every method may raise CatalogUnusable, StateDirFaulty."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._groups = Groups()

    @property
    def path(self) -> Path:
        """The database file."""
        return self._database.path

    # -- ids and segments -------------------------------------------------------------------------------

    def reserved(self) -> list[UUID]:
        """All ids that are reserved and neither committed nor released, in order."""
        with self._database.read() as connection:
            return sorted(UUID(bytes=found["segment"]) for found in rows(connection, RESERVED))

    def highest_id(self) -> UUID | None:
        """The highest id ever reserved or seen: a member with a higher one knows more than this catalog."""
        with self._database.read() as connection:
            return last_id(connection)

    def last_written_at(self) -> str | None:
        """When the newest segment was written; None without any."""
        with self._database.read() as connection:
            newest = select(SEGMENTS.c.written_at).order_by(SEGMENTS.c.segment.desc()).limit(1)
            found = connection.execute(newest).scalar()
            return None if found is None else str(found)

    def segment(self, segment: UUID) -> SegmentRow | None:
        """A segment, or None when the catalog does not know it."""
        with self._database.read() as connection:
            found = rows_in(connection, SEGMENTS, "segment", [segment.bytes])
            return next(iter(reading.segment_rows(connection, self._groups, found)), None)

    def known(self, ids: Iterable[UUID]) -> set[UUID]:
        """Those of the ids that are segments of the catalog."""
        with self._database.read() as connection:
            found = rows_in(connection, SEGMENTS, "segment", {one.bytes for one in ids})
            return {UUID(bytes=one["segment"]) for one in found}

    def segments_on(self, member: UUID, after: UUID | None = None, limit: int = 1000) -> list[SegmentRow]:
        """Segments with a shard meant for the member, in id order, above ``after``."""
        with self._database.read() as connection:
            return reading.segments_on(connection, self._groups, member, after, limit)

    def segment_images(self, segment: UUID, away: Away = NOBODY) -> list[ImageRow]:
        """Listed images with a part in the segment, in its order (their best copy may lie elsewhere)."""
        with self._database.read() as connection:
            return reading.image_rows(connection, self._groups, reading.images_in(connection, segment), away)

    def barred(self, manifest: Manifest) -> str:
        """Why a segment must not be taken in (purged, replaced), or ""."""
        with self._database.read() as connection:
            return barred(connection, manifest)

    def replaced_by(self, segment: UUID) -> set[UUID]:
        """All segments that this one replaced, and those before them, also when they are long gone."""
        with self._database.read() as connection:
            return {UUID(bytes=one) for one in SeenSegments(connection).older([segment.bytes])}

    def placement_members(self) -> set[UUID]:
        """All members that a segment names."""
        with self._database.read() as connection:
            return {member for group, _ in self._groups.all(connection) for member in group.placement.members}

    # -- exceptions -------------------------------------------------------------------------------------

    def exceptions(
        self, member: UUID | None = None, limit: int = 1000, after: tuple[UUID, int] | None = None
    ) -> list[tuple[UUID, int, ExceptionKind]]:
        """(segment, shard index, kind) in id order, above ``after``; of shards meant for ``member`` when given."""
        with self._database.read() as connection:
            return reading.exceptions(connection, self._groups, member, limit, after)

    def excepted(self, segment: UUID) -> dict[int, ExceptionKind]:
        """shard index → what is wrong with it."""
        with self._database.read() as connection:
            found = rows_in(connection, EXCEPTIONS, "segment", [segment.bytes])
            return {one["shard"]: one["kind"] for one in found}

    def absent(self, segment: UUID) -> frozenset[int]:
        """Indexes of shards that are missing (a damaged one is there, and may still have good blocks)."""
        return frozenset(index for index, kind in self.excepted(segment).items() if kind == "missing")

    def endangered(
        self, away: Away = NOBODY, after: tuple[int, UUID] | None = None, limit: int = 1000
    ) -> list[Endangered]:
        """Segments that miss shards, fewest spare first, then in id order; ``after``: the `cursor` of the last one."""
        with self._database.read() as connection:
            return reading.endangered(connection, self._groups, away, after, limit)

    def counts(self, away: Away = NOBODY) -> Counts:
        """The array in numbers; costs a few hundred rows whatever it holds."""
        with self._database.read() as connection:
            return count(connection, self._groups, away)

    # -- images -----------------------------------------------------------------------------------------

    def has(self, uid: str) -> bool:
        """Whether any version is listed under a SOP Instance UID; cheap."""
        return self._database.any("SELECT 1 FROM images WHERE uid = ?", uid)

    def versions(self, uid: str, away: Away = NOBODY) -> list[ImageRow]:
        """All versions under a SOP Instance UID, newest first."""
        if not self.has(uid):
            return []  # nearly every image that comes in is new
        with self._database.read() as connection:
            return reading.image_rows(connection, self._groups, reading.images_of_uid(connection, uid), away)

    def image(self, uid: str, version: int | None = None, away: Away = NOBODY) -> ImageRow | None:
        """One version, the newest unless told."""
        with self._database.read() as connection:
            found = reading.images_of_uid(connection, uid, version)[:1]
            return next(iter(reading.image_rows(connection, self._groups, found, away)), None)

    def copies(self, uid: str, version: int, away: Away = NOBODY) -> list[ImageRow]:
        """Every complete copy of one version, the best first: when one cannot be read, the next may."""
        with self._database.read() as connection:
            found = reading.images_of_uid(connection, uid, version)[:1]
            return [copy for image in found for copy in reading.copies_of(connection, self._groups, image, away)]

    def incomplete(self, uid: str) -> list[UUID]:
        """Segments that hold parts of unfinished copies of a UID, in order."""
        with self._database.read() as connection:
            return reading.incomplete_segments(connection, uid)

    def study_images(self, study_uid: str, away: Away = NOBODY) -> list[ImageRow]:
        """All images of a study, every version, by series and UID."""
        with self._database.read() as connection:
            found = searching.study_images(connection, study_uid)
            return reading.image_rows(connection, self._groups, found, away)

    def search(self, query: ImageQuery, away: Away = NOBODY) -> list[ImageRow]:
        """Images that match, newest first. RequestRefused for a date that is none."""
        with self._database.read() as connection:
            return reading.image_rows(connection, self._groups, searching.find(connection, query), away)

    def _image_rows(self, connection: Connection, images: Iterable[int]) -> list[ImageRow]:
        wanted = list(dict.fromkeys(images))
        known = {image["id"]: image for image in rows_in(connection, IMAGES, "id", wanted)}
        return reading.image_rows(connection, self._groups, [known[one] for one in wanted if one in known], NOBODY)

    # -- journal, meta, check ---------------------------------------------------------------------------

    def journal_head(self) -> Head:
        """(sequence, hash) of the last entry, (0, zeros) before the first."""
        with self._database.read() as connection:
            return journal.head(connection)

    def journal_after(self, sequence: int, limit: int = 1000) -> list[JournalEntry]:
        """Up to ``limit`` entries above ``sequence``."""
        with self._database.read() as connection:
            return journal.after(connection, sequence, limit)

    def journal_holds(self, head: Head) -> bool:
        """Whether a member's journal head is known: an entry of our chain, or of a branch merged into it."""
        with self._database.read() as connection:
            return journal.holds(connection, head)

    def journal_goes_through(self, head: Head) -> bool:
        """Whether a member's journal head is an entry of our own chain: its replica can go on from there."""
        with self._database.read() as connection:
            return journal.in_chain(connection, head)

    def get_meta(self, key: str) -> Any:
        """The JSON value kept under ``key``, or None."""
        with self._database.read() as connection:
            return read_meta(connection, key)

    def check(self) -> list[str]:
        """Everything that is wrong with the catalog, for `catalog check`; [] when nothing is. Reads all of it."""
        with self._database.read() as connection:
            return faults(connection, self._groups)
