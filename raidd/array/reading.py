"""The way back: from the catalog's parts to the bytes that went in, or an error; never other bytes.

A part of an image is read from the data shards that hold its range, in parallel, and believed only when its
SHA-256 is the manifest's. When a shard is absent, fails or is late (`HEDGE_S`), the same byte range of k
other shards gives it: the code works byte by byte, so a range costs a range. When the digest does not match,
the part is read again, block by block against the checksum tables; that finds the damaged shard, which is
reported (`on_damage`) for the repair queue, out of the reader's way.

Large parts are not read whole but in pieces, every block checked (`describing`, `read_piece`); streaming.py makes whole
images of all this.

Source of the idea to decode ranges: the erasure code is a linear map on bytes (format.md, Code).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from raidd.array.catalog import Catalog, PartRow, SegmentRow
from raidd.array.heads import Damage, Heads
from raidd.array.member_disk import FileNotThere, MemberDisk
from raidd.array.members import Lane, Member
from raidd.array.membership import Membership
from raidd.array.worker import Cancel, Operation
from raidd.codec.erasure import Buffer, erasure
from raidd.codec.geometry import Extent, extents, shard_length
from raidd.codec.shard import Prefix, damaged_blocks, shard_path
from raidd.errors import ImageUnreadable, MemberAway, MemberFaulty, RaiddError

HEDGE_S = 0.5
"""A shard that has not answered within this time is decoded from the others."""
PATIENCE_S, LAST_PATIENCE_S = 2.0, 60.0
"""How long a block-by-block read waits for shards: first, and when too few of them answered."""


@dataclass(frozen=True, slots=True)
class Span:
    """The byte range [start, stop) of a shard's body."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


class Reader:
    """Reads parts of segments. Any thread; holds no lock while it waits for a disk."""

    def __init__(
        self, catalog: Catalog, membership: Membership, on_damage: Callable[[UUID, int, Damage], None]
    ) -> None:
        self._catalog = catalog
        self._membership = membership
        self._on_damage = on_damage
        self._heads = Heads(membership, on_damage)

    def read_part(self, part: PartRow) -> bytes:
        """One part, its SHA-256 proved."""
        row = self._row(part.segment)
        data = self._quick(row, part)
        if data is not None and _is_part(data, part):
            return data
        for patience_s in (PATIENCE_S, LAST_PATIENCE_S):  # first by the shards' own word, then by the largest group's
            data = self.read_range(row, part.offset, part.length, patience_s)
            if _is_part(data, part):
                return data
        raise ImageUnreadable(f"segment {part.segment}: the digest of a part does not match")

    def _row(self, segment: UUID) -> SegmentRow:
        row = self._catalog.segment(segment)
        if row is None:
            raise ImageUnreadable(f"segment {segment} is not in the catalog")
        return row

    def describing(self, segment: UUID) -> tuple[SegmentRow, Prefix]:
        """The segment, and a head that k of its shards agree with: who agrees with it can be believed block by block.
        Raises ImageUnreadable."""
        row = self._row(segment)
        geometry = row.placement.geometry
        for patience_s in (HEDGE_S, LAST_PATIENCE_S):
            agreeing = self._heads.agreeing(row, self._prefixes_of(row, range(geometry.n), "read", patience_s))
            if len(agreeing) >= geometry.k:
                return row, agreeing[min(agreeing)]
        raise ImageUnreadable(
            f"segment {segment}: {len(agreeing)} of the {geometry.k} shards that are needed can be read"
        )

    def read_piece(self, row: SegmentRow, offset: int, most: int, like: Prefix) -> bytes:
        """The payload's bytes from `offset` on, at most `most` and not beyond the data shard they lie in, each block
        checked against shards that agree with `like`. Raises ImageUnreadable."""
        size, block = shard_length(row.payload_length, row.placement.geometry.k), row.block_size
        piece = extents(offset, most, size)[0]
        span = Span(piece.offset // block * block, min(size, -(-(piece.offset + piece.length) // block) * block))
        bodies = self.verified_bodies(row, [piece.shard], span, patience_s=HEDGE_S, like=like)
        return bytes(bodies[piece.shard][piece.offset - span.start :][: piece.length])

    # -- unverified and fast: the caller compares a digest ------------------------------------------------

    def _quick(self, row: SegmentRow, part: PartRow) -> bytes | None:
        """The range without looking at checksums; None when fewer than k shards answer."""
        length = shard_length(row.payload_length, row.placement.geometry.k)
        wanted = extents(part.offset, part.length, length)
        pieces = self._fetch_extents(row, wanted)
        lost = [extent for extent in wanted if extent.shard not in pieces]
        if lost:
            hull = Span(min(e.offset for e in lost), max(e.offset + e.length for e in lost))
            decoded = self._decode_raw(row, [e.shard for e in lost], hull)
            if decoded is None:
                return None
            for extent in lost:
                start = extent.offset - hull.start
                pieces[extent.shard] = memoryview(decoded[extent.shard])[start : start + extent.length]
        return b"".join(pieces[extent.shard] for extent in wanted)

    def _fetch_extents(self, row: SegmentRow, wanted: Sequence[Extent]) -> dict[int, Buffer]:
        asked = {e.shard: self._ask(row, e.shard, Span(e.offset, e.offset + e.length)) for e in wanted}
        return self._whole(row, self._collect(row, asked, HEDGE_S), {e.shard: e.length for e in wanted})

    def _decode_raw(self, row: SegmentRow, wanted: Sequence[int], span: Span) -> dict[int, Buffer] | None:
        geometry = row.placement.geometry
        present: dict[int, Buffer] = {}
        candidates = [index for index in range(geometry.n) if index not in wanted]
        while len(present) < geometry.k and candidates:
            batch, candidates = candidates[: geometry.k - len(present)], candidates[geometry.k - len(present) :]
            asked = {index: self._ask(row, index, span) for index in batch}
            present |= self._whole(row, self._collect(row, asked, HEDGE_S), dict.fromkeys(batch, span.length))
        if len(present) < geometry.k:
            return None
        return dict(erasure(geometry).reconstruct(present, wanted))

    def _ask(
        self, row: SegmentRow, index: int, span: Span, lane: Lane = "read", *, last_resort: bool = False
    ) -> tuple[Member, Operation[bytes]] | None:
        if not last_resort and index in self._catalog.absent(row.segment):
            return None  # called missing by a reindex that could not see its member, it may yet be there
        member = self._membership.readable(row.placement.members[index], last_resort=last_resort)
        if member is None:
            return None
        path, start = shard_path(row.segment, index), row.body_offset + span.start
        try:
            return member, member.submit(lane, partial(_read, path=path, offset=start, length=span.length))
        except MemberAway:
            return None

    def _collect(
        self,
        row: SegmentRow,
        asked: dict[int, tuple[Member, Operation[bytes]] | None],
        patience_s: float,
    ) -> dict[int, bytes]:
        """What came in time, shorter than asked for where a file ends. What is late is left behind, and withdrawn, so
        that a slow disk is not kept slow by a queue of reads that nobody waits for."""
        found: dict[int, bytes] = {}
        until = time.monotonic() + patience_s
        for index, question in asked.items():
            if question is None:
                continue
            member, operation = question
            operation.wait(max(0.0, until - time.monotonic()))
            if not operation.settled():
                operation.withdraw()
                operation.add_done_callback(member.heed)
                continue
            data = self._answer(row, index, member, operation)
            if data is not None:
                found[index] = data
        return found

    def _whole(self, row: SegmentRow, found: dict[int, bytes], lengths: dict[int, int]) -> dict[int, Buffer]:
        """Only the answers that are not cut short. A shorter file is damaged, unless a newer raidd wrote it."""
        for index in [index for index, data in found.items() if len(data) != lengths[index]]:
            if self._prefixes_of(row, [index], "read", HEDGE_S):
                self._on_damage(row.segment, index, "damaged")
        return {index: data for index, data in found.items() if len(data) == lengths[index]}

    def _answer(self, row: SegmentRow, index: int, member: Member, operation: Operation[bytes]) -> bytes | None:
        try:
            return member.result(operation)
        except FileNotThere:
            self._on_damage(row.segment, index, "missing")
        except MemberFaulty:
            self._on_damage(
                row.segment, index, "damaged"
            )  # a bad sector, if it is not the disk: written anew, it heals
        except RaiddError:
            pass  # judged by member.result: the member has left or was counted
        return None

    # -- block by block, every byte checked ---------------------------------------------------------------

    def read_range(self, row: SegmentRow, offset: int, length: int, patience_s: float = PATIENCE_S) -> bytes:
        """A range of the payload, every block checked against its CRC-32C, damaged ones decoded.

        Raises ImageUnreadable when a block cannot be had from any k good shards."""
        size = shard_length(row.payload_length, row.placement.geometry.k)
        wanted = extents(offset, length, size)
        block = row.block_size
        hull = Span(
            min(e.offset for e in wanted) // block * block,
            min(size, -(-max(e.offset + e.length for e in wanted) // block) * block),
        )
        bodies = self.verified_bodies(row, sorted({e.shard for e in wanted}), hull, patience_s=patience_s)
        return b"".join(bodies[e.shard][e.offset - hull.start : e.offset - hull.start + e.length] for e in wanted)

    def verified_bodies(
        self,
        row: SegmentRow,
        wanted: Sequence[int],
        span: Span,
        lane: Lane = "read",
        *,
        patience_s: float = PATIENCE_S,
        like: Prefix | None = None,
    ) -> dict[int, memoryview]:
        """The same block-aligned range of the wanted shards (data or parity), whatever they have to be made of.

        Asks the wanted ones first, and of the others as many as have to be decoded from; all, for longer, only when
        those that answer soon are too few. With ``like``, only shards that agree with it are believed.
        Raises ImageUnreadable."""
        try:
            return self._verified(row, wanted, span, lane, patience_s, like)
        except ImageUnreadable:
            return self._verified(row, wanted, span, lane, LAST_PATIENCE_S, like)

    def _verified(
        self,
        row: SegmentRow,
        wanted: Sequence[int],
        span: Span,
        lane: Lane,
        patience_s: float,
        like: Prefix | None,
    ) -> dict[int, memoryview]:
        geometry, block = row.placement.geometry, row.block_size
        blocks = range(span.start // block, -(-span.stop // block))
        batch, rest = list(wanted), [index for index in range(geometry.n) if index not in wanted]
        if patience_s > PATIENCE_S:
            batch, rest = batch + rest, []  # all at once: the largest agreeing group is what counts
        good: dict[int, tuple[set[int], bytes]] = {}
        while batch:
            fresh = self._heads.agreeing(row, self._prefixes_of(row, batch, lane, patience_s), like)
            good |= self._good_blocks(row, fresh, span, lane, patience_s)
            like = like or next(iter(fresh.values()), None)
            more = _lacking(geometry.k, wanted, blocks, good)
            batch, rest = rest[:more], rest[more:]
        result = {index: bytearray(span.length) for index in wanted}
        for run in _runs(blocks, good):
            self._fill(row, result, good, run, span)
        return {index: memoryview(body) for index, body in result.items()}

    def _fill(
        self,
        row: SegmentRow,
        result: dict[int, bytearray],
        good: dict[int, tuple[set[int], bytes]],
        run: tuple[int, int, frozenset[int]],
        span: Span,
    ) -> None:
        first, last, have = run
        geometry, block = row.placement.geometry, row.block_size
        start, stop = first * block - span.start, min((last + 1) * block, span.stop) - span.start
        missing = [index for index in result if index not in have]
        if missing and len(have) < geometry.k:
            raise ImageUnreadable(
                f"segment {row.segment}: {len(have)} of the {geometry.k} shards that are needed can be read"
            )
        for index in result:
            if index in have:
                result[index][start:stop] = good[index][1][start:stop]
        if missing:
            pieces: dict[int, Buffer] = {
                index: memoryview(good[index][1])[start:stop] for index in sorted(have)[: geometry.k]
            }
            for index, piece in erasure(geometry).reconstruct(pieces, missing).items():
                result[index][start:stop] = piece

    def _good_blocks(
        self, row: SegmentRow, prefixes: dict[int, Prefix], span: Span, lane: Lane, patience_s: float
    ) -> dict[int, tuple[set[int], bytes]]:
        """index → (numbers of the blocks that are proved good, the bytes read). Damage is reported."""
        asked = {index: self._ask(row, index, span, lane, last_resort=patience_s > PATIENCE_S) for index in prefixes}
        first, block = span.start // row.block_size, row.block_size
        numbers = set(range(first, -(-span.stop // block)))
        good = {}
        for index, body in self._collect(row, asked, patience_s).items():
            there = range(first, first + -(-len(body) // block))  # a file cut short still has the blocks before the cut
            good[index] = (set(there) - set(damaged_blocks(prefixes[index], body, first)), body)
            if bad := numbers - good[index][0]:
                self._heads.note_bad(row, index, bad)
        return good

    def _prefixes_of(self, row: SegmentRow, indexes: Sequence[int], lane: Lane, patience_s: float) -> dict[int, Prefix]:
        found: dict[int, Prefix] = {}
        asked: dict[int, tuple[Member, Operation[bytes]] | None] = {}
        for index in indexes:
            kept = self._heads.kept(row.segment, index)
            if kept is not None:
                found[index] = kept
            else:
                asked[index] = self._ask(
                    row, index, Span(-row.body_offset, 0), lane, last_resort=patience_s > PATIENCE_S
                )
        for index, data in self._collect(row, asked, patience_s).items():
            prefix = self._heads.learn(row, index, data)
            if prefix is not None:
                found[index] = prefix
        return found

    def prefix(self, row: SegmentRow, indexes: Sequence[int], lane: Lane = "repair") -> Prefix:
        """One trusted prefix of the segment, for re-creating a sibling: k that agree are read, if there are so many.
        Raises ImageUnreadable."""
        k, left = row.placement.geometry.k, list(indexes)
        found: dict[int, Prefix] = {}
        agreeing: dict[int, Prefix] = {}
        while left and len(agreeing) < k:
            batch, left = left[: k - len(agreeing)], left[k - len(agreeing) :]
            found |= self._prefixes_of(row, batch, lane, LAST_PATIENCE_S)
            agreeing = self._heads.agreeing(row, found)
        if not agreeing:
            raise ImageUnreadable(f"segment {row.segment}: the heads of its shards cannot be read")
        return agreeing[min(agreeing)]

    def forget(self, segment: UUID, index: int) -> None:
        """Drop what is remembered of a shard that was written again."""
        self._heads.forget(segment, index)


def _lacking(k: int, wanted: Sequence[int], blocks: range, good: Mapping[int, tuple[set[int], bytes]]) -> int:
    """How many more shards have to be read before each block of the wanted ones is there or can be decoded."""
    whose = [numbers for numbers, _body in good.values()]
    mine = [good[index][0] if index in good else set[int]() for index in wanted]
    decoded = [number for number in blocks if any(number not in numbers for numbers in mine)]
    return max((k - sum(number in numbers for numbers in whose) for number in decoded), default=0)


def _runs(blocks: range, good: dict[int, tuple[set[int], bytes]]) -> Iterator[tuple[int, int, frozenset[int]]]:
    """Neighbouring blocks that the same shards have: (first, last, those shards)."""
    first, have = blocks.start, None
    for number in blocks:
        now = frozenset(index for index, (numbers, _body) in good.items() if number in numbers)
        if have is not None and now != have:
            yield first, number - 1, have
            first = number
        have = now
    if have is not None:
        yield first, blocks.stop - 1, have


def _read(disk: MemberDisk, _cancel: Cancel, *, path: str, offset: int, length: int) -> bytes:
    return disk.read(path, offset, length)


def _is_part(data: bytes, part: PartRow) -> bool:
    return hashlib.sha256(data).hexdigest() == part.part_sha256
