"""The way in: one batch becomes one segment, durable on its members and visible in the catalog (C1 to C4).

    placement -> encode -> every member makes its shard durable (C1) -> k+1 are durable -> catalog (C4)

Promise: `commit` returns only after the catalog's transaction is on disk, and says whether the segment is
protected; what it raises means that nothing was acknowledged. When a member fails or dawdles:

- k+1 or more shards durable: the rest get max(1 s, 4 x the median) more, then are given up; what is absent
  becomes an exception, mended by the repair queue.
- fewer: the batch is written again, narrower, under a new id that names the first in `replaces`; the first's
  shards are taken away once nothing needs them. An id has one geometry and one manifest, for ever.
- one member left (u = 1): 1+1 with shard 1 absent: stored, not protected; the receipt says so.
- the catalog refuses, or anything else is raised: as if the attempt had never been; but when state_dir itself
  failed nobody knows what is committed, and everything stays where it is for the next start.

Called by one thread at a time (one commit in flight: two only double the latency).
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random
from uuid import UUID

from raidd.array.buffers import Lease
from raidd.array.catalog import Catalog, NewSegment, SegmentRow
from raidd.array.member_disk import FileNotThere, MemberDisk, write_durable
from raidd.array.members import Member
from raidd.array.membership import Membership
from raidd.array.placement import Placement, place
from raidd.array.worker import Cancel, Gathering, Operation
from raidd.codec.erasure import Buffer, erasure
from raidd.codec.geometry import ALIGNMENT, WIDTH_LIMIT, Geometry
from raidd.codec.manifest import Manifest, ManifestImage
from raidd.codec.segment import SealedShard, data_bodies, seal
from raidd.codec.shard import day_folder, shard_path
from raidd.errors import (
    ArrayFull,
    ArrayUnwritable,
    CatalogUnusable,
    MemberAway,
    MemberError,
    RaiddError,
    RequestRefused,
    StateDirFaulty,
)

LAGGARD_S, LAGGARD_FACTOR = 1.0, 4.0
"""How long a batch that is safe waits for the rest: max(1 s, 4 x the median of those that are done)."""
PADDING_LIMIT = WIDTH_LIMIT * ALIGNMENT
"""A payload buffer has this much room after the payload, for the zeros up to k shards."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What `commit` answers: the segment, and whether k+1 shards of it are durable."""

    segment: UUID
    protected: bool


@dataclass(frozen=True, slots=True)
class Payload:
    """A batch's bytes, with room for the padding behind them; ``lease`` keeps the buffer while disks use it."""

    buffer: memoryview
    used: int
    lease: Lease | None = None


@dataclass(slots=True)
class _Ledger:
    """What is left of an abandoned attempt: writes not yet ended, and whether a shard could not be unlinked."""

    open: set[int]
    kept: bool = False


@dataclass(slots=True)
class Attempt:
    """One try at writing a batch. ``lone``: one member is up, so 1+1 with shard 1 absent, stored but not protected."""

    segment: UUID
    placement: Placement
    lone: bool
    manifest: Manifest | None = None
    body_offset: int = 0
    operations: dict[int, Operation[None]] = field(default_factory=dict)
    durable: set[int] = field(default_factory=set)

    @property
    def needed(self) -> int:
        """Durable shards that let a batch be committed: k+1, or the only one when one member is left."""
        return 1 if self.lone else self.placement.geometry.k + 1


class Committer:
    """Writes segments. ``on_absent(segment)`` is told of each segment that misses shards (a repair)."""

    def __init__(
        self,
        catalog: Catalog,
        membership: Membership,
        *,
        now: Callable[[], str],
        now_ms: Callable[[], int],
        random: Random,
        on_absent: Callable[[UUID], None],
    ) -> None:
        self._catalog = catalog
        self._membership = membership
        self._now, self._now_ms, self._random = now, now_ms, random
        self._on_absent = on_absent
        self._in_flight: set[UUID] = set()
        self._lock = threading.Lock()

    def in_flight(self) -> frozenset[UUID]:
        """Ids whose shards are being written or taken away right now: no debris."""
        with self._lock:
            return frozenset(self._in_flight)

    def commit(self, payload: Payload, images: Sequence[ManifestImage], replaces: Sequence[UUID] = ()) -> Receipt:
        """Write the batch until it is protected (or stored, with one member left); then the catalog."""
        given_up: list[Attempt] = []
        replaced = self._replaced(replaces)
        try:
            attempt = self._write_until_safe(payload, images, list(replaces), given_up)
            receipt = self._acknowledge(attempt, given_up)
        except BaseException:
            self._land(row.segment for row in replaced)
            raise
        else:
            for row in replaced:
                self._take_away(row)
        finally:
            for failed in given_up:
                self._abandon(failed)
        self._land([attempt.segment])
        return receipt

    def _write_until_safe(
        self, payload: Payload, images: Sequence[ManifestImage], replaces: list[UUID], given_up: list[Attempt]
    ) -> Attempt:
        for _attempt in range(len(self._membership.places()) + 1):  # each failure takes a member out, or is the host's
            attempt = self._begin()
            given_up.append(attempt)  # until it is safe, whatever is raised
            self._write(attempt, payload, images, replaces)
            if len(attempt.durable) >= attempt.needed:
                given_up.pop()
                return attempt
            replaces.append(attempt.segment)
        raise ArrayUnwritable("the batch could not be made durable on enough members, though they seem well")

    def _begin(self) -> Attempt:
        places = self._membership.places()
        target = self._membership.roster.geometry
        up = sum(p.up for p in places)
        if up == 0:
            raise ArrayUnwritable("no member is up")
        chosen = place(target, places, self._random)
        if chosen is None:
            roomy = sum(p.up and p.roomy for p in places)
            raise ArrayFull(f"{roomy} of {up} members have room, {min(target.m, max(up - 1, 1)) + 1} are needed")
        return Attempt(self._take_id(), chosen, lone=up == 1)

    # -- C1 on every member -----------------------------------------------------------------------------

    def _write(
        self, attempt: Attempt, payload: Payload, images: Sequence[ManifestImage], replaces: Sequence[UUID]
    ) -> None:
        placement = attempt.placement
        attempt.manifest = self._manifest(attempt.segment, placement, payload.used, images, replaces)
        shards = seal(attempt.manifest, bodies(payload, placement.geometry))
        attempt.body_offset = len(shards[0].prefix)
        for shard, uuid in zip(shards, placement.members, strict=True):
            member = self._membership.writable(uuid)
            operation = None if member is None else self._start(member, attempt.segment, shard, payload)
            if operation is not None:
                attempt.operations[shard.index] = operation
        self._await(attempt)

    def _take_id(self) -> UUID:
        """An id that is in flight from the moment it leaves the reserve: nobody may take it for a dead writer's."""
        while True:
            with self._lock:
                segment = self._catalog.take_id()
                if segment is not None:
                    self._in_flight.add(segment)
                    return segment
            self._catalog.reserve(self._now_ms(), self._random)

    def _land(self, segments: Iterable[UUID]) -> None:
        with self._lock:
            self._in_flight.difference_update(segments)

    def _manifest(
        self,
        segment: UUID,
        placement: Placement,
        used: int,
        images: Sequence[ManifestImage],
        replaces: Sequence[UUID],
    ) -> Manifest:
        sequence, digest = self._catalog.journal_head()
        return Manifest(
            array=self._membership.roster.array,
            segment=segment,
            written_at=self._now(),
            geometry=placement.geometry,
            payload_length=used,
            members=placement.members,
            replaces=tuple(replaces),
            journal_sequence=sequence,
            journal_hash=digest,
            tables=(),
            images=tuple(images),
        )

    def _start(self, member: Member, segment: UUID, shard: SealedShard, payload: Payload) -> Operation[None] | None:
        path = shard_path(segment, shard.index)
        temporary = temporary_path(segment, shard.index)

        def make_durable(disk: MemberDisk, cancel: Cancel) -> None:
            write_durable(disk, temporary, path, [shard.prefix, shard.body], cancel)
            member.last_write_at = time.monotonic()

        try:
            operation = member.submit("write", make_durable)
        except MemberError:
            return None
        if payload.lease is not None:
            payload.lease.hold()
            operation.add_done_callback(partial(_give_back, payload.lease))
        return operation

    def _await(self, attempt: Attempt) -> None:
        """Until all are done, or the laggard rule gives up on the rest. Fills ``attempt.durable``.

        What did not end is withdrawn: it never begins, or stops at its next step; only a call that hangs keeps its
        buffer."""
        operations = attempt.operations
        gathering = Gathering(list(operations.values()))
        if gathering.wait_succeeded(attempt.needed):
            took = [operation.elapsed_s() for operation in gathering.succeeded()]
            patience_s = max(LAGGARD_S, LAGGARD_FACTOR * statistics.median(took))
            gathering.wait(lambda: len(gathering.settled()) == len(operations), patience_s)
        for index, operation in operations.items():
            if operation.settled() and self._is_durable(attempt, index, operation):
                attempt.durable.add(index)
            else:
                operation.withdraw()

    def _is_durable(self, attempt: Attempt, index: int, operation: Operation[None]) -> bool:
        member = self._membership.member(attempt.placement.members[index])
        try:
            operation.result() if member is None else member.result(operation)
        except RaiddError:
            return False  # judged by member.result: it has left, or has no room (or the host is short of memory)
        return True

    # -- C4 ---------------------------------------------------------------------------------------------

    def _acknowledge(self, attempt: Attempt, given_up: list[Attempt]) -> Receipt:
        geometry = attempt.placement.geometry
        assert attempt.manifest is not None
        absent = frozenset(range(geometry.n)) - attempt.durable
        new = NewSegment(attempt.manifest, attempt.body_offset, attempt.placement, absent)
        try:
            self._catalog.commit(new, now=self._now(), now_ms=self._now_ms(), random=self._random)
        except (StateDirFaulty, CatalogUnusable):
            raise  # it may be committed or not
        except Exception as error:  # nothing was changed
            given_up.append(attempt)
            if isinstance(error, RequestRefused):  # a purge or a newer segment overtook it
                raise ArrayUnwritable(f"{error.message}; the batch is written again") from error
            raise
        if absent:
            self._on_absent(attempt.segment)
        return Receipt(attempt.segment, len(attempt.durable) >= geometry.k + 1)

    # -- what was replaced ------------------------------------------------------------------------------

    def _replaced(self, replaces: Sequence[UUID]) -> list[SegmentRow]:
        """Known segments that are about to be replaced: nobody else may take their shards away meanwhile."""
        rows = [row for segment in replaces if (row := self._catalog.segment(segment)) is not None]
        if rows:
            with self._lock:
                self._in_flight.update(row.segment for row in rows)
        return rows

    def _take_away(self, row: SegmentRow) -> None:
        """Unlink what the new segment replaced; what cannot be reached now is settled when its member returns."""
        ledger = _Ledger(set(range(row.placement.geometry.n)))
        for index, uuid in enumerate(row.placement.members):
            self._unlink(row.segment, index, uuid, ledger)

    # -- what was given up ------------------------------------------------------------------------------

    def _abandon(self, attempt: Attempt) -> None:
        """Take away the shards of an attempt that nobody was told of; its id is free once all are gone.

        What cannot be reached now keeps its reservation and is settled when its member returns."""
        ledger = _Ledger(set(attempt.operations))
        if not attempt.operations:
            self._free(attempt.segment, ledger)
        for index, operation in attempt.operations.items():
            operation.withdraw()
            operation.add_done_callback(partial(self._clear, attempt, index, ledger))

    def _clear(self, attempt: Attempt, index: int, ledger: _Ledger, ended: Operation[None]) -> None:
        """Runs when the write has really ended, so that nothing can appear after the unlink."""
        if ended.began():
            self._unlink(attempt.segment, index, attempt.placement.members[index], ledger)
        else:
            self._strike(attempt.segment, index, ledger, gone=True)

    def _unlink(self, segment: UUID, index: int, uuid: UUID, ledger: _Ledger) -> None:
        member = self._membership.member(uuid)
        try:
            if member is None:
                raise MemberAway(f"member {uuid} is not known here")
            operation = member.submit("repair", partial(_unlink_durably, segment, index))
        except MemberError:
            self._strike(segment, index, ledger, gone=False)
            return
        operation.add_done_callback(partial(self._unlinked, segment, index, ledger, member))

    def _unlinked(self, segment: UUID, index: int, ledger: _Ledger, member: Member, ended: Operation[None]) -> None:
        member.heed(ended)
        self._strike(segment, index, ledger, gone=ended.succeeded())

    def _strike(self, segment: UUID, index: int, ledger: _Ledger, *, gone: bool) -> None:
        with self._lock:
            ledger.open.discard(index)
            ledger.kept |= not gone
            if ledger.open:
                return
        self._free(segment, ledger)

    def _free(self, segment: UUID, ledger: _Ledger) -> None:
        if not ledger.kept:
            self._catalog.release([segment])
        self._land([segment])


def _give_back(lease: Lease, _ended: Operation[None]) -> None:
    lease.release()


def temporary_path(segment: UUID, index: int) -> str:
    """Where a shard is while it is written: a name of its own, so that a late write meets nothing else."""
    return f"tmp/{segment}-{index:02d}.shard"


def _unlink_durably(segment: UUID, index: int, disk: MemberDisk, _cancel: Cancel) -> None:
    """Durably, for the id is given up next: a power cut must not bring back what nobody would look for."""
    disk.unlink(temporary_path(segment, index))
    disk.unlink(shard_path(segment, index))
    with suppress(FileNotThere):  # not even its folder came to be
        disk.sync_folder(day_folder(segment))


def bodies(payload: Payload, geometry: Geometry) -> list[Buffer]:
    """The k data shards as views of the payload buffer (its padding set to zero), then the parity."""
    data = data_bodies(payload.buffer, payload.used, geometry.k)
    return [*data, *erasure(geometry).encode(data)]
