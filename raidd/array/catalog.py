"""The catalog: which images there are, in which segments, on which members. A cache of what the members hold.

Deleted, damaged or old it is made again from the members; so anything doubtful about its file is `CatalogUnusable`.
Yet it is the commit point of visibility and acknowledgement (format.md, C4): each changing call is one transaction,
durable when the call returns, with the journal entry that tells of it in the same transaction.

Ids: a segment id is used only after a transaction reserved it. `take_id` hands out those this process reserved; ids
that an earlier process left reserved are never handed out (shards of them may lie about): the start looks for them
and releases them. They rise strictly, whatever the clock does.

Threads: any may call anything; changes take turns, reads see the last commit. Modules: catalog_schema (tables),
catalog_database (file, seals), catalog_intake (what exists), catalog_bars (what must not come back), catalog_counts,
catalog_reading, catalog_search, catalog_journal, catalog_check.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, delete

from raidd.array import catalog_journal as journal
from raidd.array.catalog_bars import SeenSegments, all_purged, barred, buried, purged_images
from raidd.array.catalog_counts import Group, Ledger, group_of
from raidd.array.catalog_database import Database, add, put, row, rows_in, translated, write_meta
from raidd.array.catalog_intake import Intake, Outcome, Version
from raidd.array.catalog_rows import (
    Counts,
    Endangered,
    ExceptionKind,
    ImageQuery,
    ImageRow,
    NewSegment,
    PartRow,
    SegmentRow,
)
from raidd.array.catalog_schema import EXCEPTIONS, RESERVED, SEGMENTS
from raidd.array.catalog_view import LAST_ID_KEY, CatalogView, last_id
from raidd.array.journal import JournalEntry
from raidd.array.placement import Placement
from raidd.codec.ids import RANDOM_BITS, next_id
from raidd.codec.manifest import Manifest
from raidd.errors import RequestRefused

__all__ = [
    "Catalog",
    "Counts",
    "Endangered",
    "ExceptionKind",
    "ImageQuery",
    "ImageRow",
    "NewSegment",
    "PartRow",
    "SegmentRow",
]

RESERVE = 64
"""Ids that are reserved ahead; each commit tops them up, so that reserving costs no flush of its own."""


class Catalog(CatalogView):
    """See the module. Made by `open`; `close` checkpoints. A crash loses nothing that a call returned from."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._fresh: deque[UUID] = deque()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path | str, *, array: UUID | None = None) -> Catalog:
        """Open, or make when absent. CatalogUnusable: corrupt, newer, or another array's. StateDirFaulty: the disk."""
        return cls(Database.open(Path(path), array))

    @staticmethod
    def set_aside(path: Path | str, now: str) -> Path:
        """Rename an unusable catalog (with its WAL) to catalog-TIME.sqlite.aside. Nobody may have it open."""
        path = Path(path)
        stamp = now.replace(":", "").replace("-", "").partition(".")[0]
        with translated():
            target, number = path.with_name(f"{path.stem}-{stamp}.sqlite.aside"), 1
            while target.exists():
                number += 1
                target = path.with_name(f"{path.stem}-{stamp}-{number}.sqlite.aside")
            for suffix in ("-shm", "-wal", ""):  # the database last: until then a crash leaves it in place
                part = Path(f"{path}{suffix}")
                if part.exists():
                    os.rename(part, f"{target}{suffix}")
        return target

    def close(self) -> None:
        """Checkpoint and close. No other call may be running."""
        self._database.close()

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        try:
            with self._database.write() as connection:
                yield connection
        except BaseException:
            self._groups.forget()
            raise

    # -- ids --------------------------------------------------------------------------------------------

    def reserve(self, now_ms: int, random: Random, count: int = RESERVE) -> list[UUID]:
        """Reserve fresh ids; they are handed out by `take_id` from now on."""
        with self._write() as connection:
            fresh = _reserve(connection, now_ms, random, count)
        with self._lock:
            self._fresh.extend(fresh)
        return fresh

    def take_id(self) -> UUID | None:
        """A reserved id that nobody was given, or None: then `reserve`."""
        with self._lock:
            return self._fresh.popleft() if self._fresh else None

    def unused(self) -> frozenset[UUID]:
        """Ids that `take_id` will still hand out: of these no shard can be anywhere."""
        with self._lock:
            return frozenset(self._fresh)

    def release(self, ids: Iterable[UUID]) -> None:
        """Forget reserved ids of which nothing is left on any member. They are never given again."""
        gone = set(ids)
        with self._lock:
            self._fresh = deque(one for one in self._fresh if one not in gone)
        with self._write() as connection:
            _release(connection, gone)

    def keep_reserved(self, ids: Iterable[UUID]) -> None:
        """Have ids looked for at each start (shards that cannot be adopted yet), and give none up to them."""
        with self._write() as connection:
            kept = list(ids)
            put(connection, RESERVED, [{"segment": one.bytes} for one in kept])
            _raise_last_id(connection, kept)

    # -- what exists ------------------------------------------------------------------------------------

    def commit(
        self,
        segment: NewSegment,
        *,
        now: str,
        now_ms: int | None = None,
        random: Random | None = None,
        actor: str = "raidd",
        action: str = "store",
        detail: Mapping[str, Any] | None = None,
    ) -> list[ImageRow]:
        """C4: images, placement, exceptions and the journal entry, at once; the images that this completed.

        The ids of what it replaced are reserved again: their shards are looked for at each start until they are gone.
        RequestRefused: a purge or a newer segment overtook it, or it would replace what it does not carry on; nothing
        was changed, write it again. ValueError: its id was never reserved. With ``now_ms`` and ``random`` the reserve
        is topped up.
        """
        manifest, fresh = segment.manifest, []
        with self._lock:
            wanted = RESERVE - len(self._fresh)
        with self._write() as connection:
            if row(connection, RESERVED, segment=manifest.segment.bytes) is None:
                raise ValueError(f"segment id {manifest.segment} is not reserved")
            _refuse_overtaken(connection, manifest)
            outcome = Intake(connection, self._groups).take(segment, manifest.images)
            _refuse_loss(connection, outcome, manifest)
            _release(connection, [manifest.segment])
            _look_for(connection, outcome.replaced)
            if now_ms is not None and random is not None:
                fresh = _reserve(connection, now_ms, random, max(wanted, 0))
            told = journal.renumbered(outcome.versions, {"segment": str(manifest.segment), **(detail or {})})
            journal.append(connection, now, actor, action, _image_ids(manifest), "ok", told)
            completed = self._image_rows(connection, outcome.completed)
        with self._lock:
            self._fresh.extend(fresh)
        return completed

    def adopt(self, segment: NewSegment, now: str) -> list[ImageRow]:
        """Take in a segment found on the members; the images that this completed. Nothing when known or barred."""
        return self.adopt_many([segment], now)

    def adopt_many(self, segments: Sequence[NewSegment], now: str) -> list[ImageRow]:
        """`adopt` for many in one transaction. ShardDamaged (and nothing done): one contradicts the others."""
        with self._write() as connection:
            outcome, adopted = Outcome(), []
            for segment in segments:
                taken = self._adopt(connection, segment)
                if taken is not None:
                    adopted.append(str(segment.manifest.segment))
                    outcome.completed += taken.completed
                    outcome.versions += taken.versions
            if adopted:
                detail = journal.renumbered(outcome.versions, {})
                journal.append(connection, now, "raidd", "adopt", adopted, "ok", detail)
            return self._image_rows(connection, outcome.completed)

    def _adopt(self, connection: Connection, segment: NewSegment) -> Outcome | None:
        manifest = segment.manifest
        _raise_last_id(connection, [manifest.segment])
        journal.raise_floor(connection, manifest.journal_sequence)
        if row(connection, SEGMENTS, segment=manifest.segment.bytes) is not None:
            _release(connection, [manifest.segment])
            return None
        if barred(connection, manifest):
            self._keep_out(connection, manifest)
            return None
        _release(connection, [manifest.segment])
        purged = {id(image) for image in purged_images(connection, manifest)}
        images = [image for image in manifest.images if id(image) not in purged]
        outcome = Intake(connection, self._groups).take(segment, images)
        _look_for(connection, outcome.replaced)
        return outcome

    def _keep_out(self, connection: Connection, manifest: Manifest) -> None:
        """A barred segment still tells what it replaced."""
        seen = SeenSegments(connection)
        seen.record(manifest.segment, manifest.replaces)
        successors = seen.successors(manifest.segment)
        if successors:
            replaced = seen.replaced_by(UUID(bytes=one) for one in successors)
            Intake(connection, self._groups).drop(replaced)
            _look_for(connection, replaced)

    def forget(self, segments: Iterable[UUID], now: str, reason: str) -> None:
        """Remove segments that are lost or were taken away; images that needed them are no longer listed."""
        with self._write() as connection:
            known = rows_in(connection, SEGMENTS, "segment", {segment.bytes for segment in segments})
            if not known:
                return
            outcome = Intake(connection, self._groups).drop({segment["segment"] for segment in known})
            ids = sorted(str(UUID(bytes=segment["segment"])) for segment in known)
            detail = journal.renumbered(outcome.versions, {"reason": reason})
            journal.append(connection, now, "raidd", "forget", ids, "ok", detail)

    # -- exceptions and placement -----------------------------------------------------------------------

    def mark(self, segment: UUID, index: int, kind: ExceptionKind) -> bool:
        """Note that a shard is missing or damaged. False: the segment is not known (any more)."""
        return self._shift(segment, index, kind, None)

    def clear(self, segment: UUID, index: int) -> bool:
        """The shard is good again, on the member it is meant for. False: the segment is not known (any more)."""
        return self._shift(segment, index, None, None)

    def move(self, segment: UUID, index: int, member: UUID) -> bool:
        """The shard is durable on this member now. False: the segment is not known (any more).

        RequestRefused: it holds another shard of the segment. (One that is meant for it, but missing, is from now on
        meant for the member that this shard was meant for.)
        """
        return self._shift(segment, index, None, member)

    def move_many(self, moves: Iterable[tuple[UUID, int, UUID]]) -> None:
        """`move` for many (segment, index, member) in one transaction; unknown segments are passed over."""
        with self._write() as connection:
            for segment, index, member in moves:
                self._shift_in(connection, segment, index, None, member)

    def _shift(self, segment: UUID, index: int, kind: ExceptionKind | None, member: UUID | None) -> bool:
        with self._write() as connection:
            return self._shift_in(connection, segment, index, kind, member)

    def _shift_in(
        self, connection: Connection, segment: UUID, index: int, kind: ExceptionKind | None, member: UUID | None
    ) -> bool:
        found = row(connection, SEGMENTS, segment=segment.bytes)
        if found is None:
            return False
        group = self._groups.get(connection, [found["group_id"]])[found["group_id"]]
        placement = _moved(group, index, member)
        bit = 1 << index
        mask = group.mask | bit if kind is not None else group.mask & ~bit
        here = (EXCEPTIONS.c.segment == segment.bytes, EXCEPTIONS.c.shard == index)
        connection.execute(delete(EXCEPTIONS).where(*here))
        if kind is not None:
            add(connection, EXCEPTIONS, [{"segment": segment.bytes, "shard": index, "kind": str(kind)}])
        if placement != group.placement or mask != group.mask:
            ledger = Ledger(connection, self._groups)
            ledger.regroup(found, group_of(connection, placement, mask))
            ledger.flush()
        return True

    # -- journal and meta -------------------------------------------------------------------------------

    def append_journal(
        self,
        now: str,
        actor: str,
        action: str,
        objects: Iterable[str] = (),
        outcome: str = "ok",
        detail: Mapping[str, Any] | None = None,
    ) -> JournalEntry:
        """Record what happened; a `purge` bars from now on. ValueError: detail is not JSON, or not a purge's."""
        with self._write() as connection:
            entry = journal.append(connection, now, actor, action, objects, outcome, detail)
            versions = self._bury(connection, [entry])
            if versions:
                told = journal.renumbered(versions, {})
                journal.append(connection, now, actor, "unlist", [str(entry.sequence)], "ok", told)
            return entry

    def restore_journal(self, entries: Sequence[JournalEntry]) -> None:
        """Take in a run of the chain that the members kept. CatalogUnusable: broken, or not a continuation of ours."""
        with self._write() as connection:
            journal.restore(connection, entries)
            self._bury(connection, entries)

    def merge_journal(self, strays: Sequence[JournalEntry], now: str) -> None:
        """Tie in entries that only a branch of the journal holds: what they purged stays purged."""
        with self._write() as connection:
            journal.merge(connection, strays, now)
            self._bury(connection, strays)

    def _bury(self, connection: Connection, entries: Sequence[JournalEntry]) -> list[Version]:
        """Purges take away at once what they name."""
        segments, parts = buried(connection, entries)
        versions: list[Version] = []
        if segments:
            versions += Intake(connection, self._groups).drop(segments).versions
        if parts:
            versions += Intake(connection, self._groups).drop_parts(parts).versions
        return versions

    def put_meta(self, key: str, value: Any) -> None:
        """Keep a JSON value. ValueError for a key of the catalog's own."""
        if key.startswith("catalog."):
            raise ValueError(f"{key} belongs to the catalog itself")
        with self._write() as connection:
            write_meta(connection, key, value)


def _reserve(connection: Connection, now_ms: int, random: Random, count: int) -> list[UUID]:
    fresh: list[UUID] = []
    last = last_id(connection)
    for _ in range(count):
        last = next_id(now_ms, last, random.getrandbits(RANDOM_BITS))
        fresh.append(last)
    add(connection, RESERVED, [{"segment": one.bytes} for one in fresh])
    _raise_last_id(connection, fresh)
    return fresh


def _raise_last_id(connection: Connection, ids: Iterable[UUID]) -> None:
    highest, last = max(ids, default=None), last_id(connection)
    if highest is not None and (last is None or highest > last):
        write_meta(connection, LAST_ID_KEY, str(highest))


def _release(connection: Connection, ids: Iterable[UUID]) -> None:
    for one in ids:
        connection.execute(delete(RESERVED).where(RESERVED.c.segment == one.bytes))


def _look_for(connection: Connection, segments: Iterable[bytes]) -> None:
    """Shards of these are left on members that nobody will ask for any more, but to take them away."""
    put(connection, RESERVED, [{"segment": one} for one in segments])


def _image_ids(manifest: Manifest) -> list[str]:
    return list(dict.fromkeys(str(image.image) for image in manifest.images))


def _refuse_overtaken(connection: Connection, manifest: Manifest) -> None:
    """What would be barred when it is adopted must not be acknowledged."""
    reason = barred(connection, manifest)
    if not reason and purged_images(connection, manifest):
        reason = "an image of it was purged"
    if reason:
        raise RequestRefused(f"segment {manifest.segment} was overtaken: {reason}", next_step="Write it again.")


def _refuse_loss(connection: Connection, outcome: Outcome, manifest: Manifest) -> None:
    """Replacing must not lose an image, unless it was purged."""
    if outcome.unlisted and not all_purged(connection, outcome.unlisted):
        uid = outcome.unlisted[0][0]
        raise RequestRefused(f"segment {manifest.segment} would replace the only copy of image {uid}")


def _moved(group: Group, index: int, member: UUID | None) -> Placement:
    placement = group.placement
    if not 0 <= index < placement.geometry.n:
        raise ValueError(f"shard {index} of a segment of {placement.geometry.n}")
    if member is None or placement.members[index] == member:
        return placement
    members = list(placement.members)
    if member in members:
        other = members.index(member)
        if not group.mask >> other & 1:
            raise RequestRefused(f"member {member} holds another shard of the same segment")
        members[other] = members[index]
    members[index] = member
    return Placement(placement.geometry, tuple(members))
