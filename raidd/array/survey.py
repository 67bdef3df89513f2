"""What the members hold of a segment: heads read, grouped by agreement, judged by rule C2 of format.md.

Read-only. Used by adoption (leftovers of a crash), by reindex and by assemble. Shards count together only when
their heads and manifests agree; the group with k or more wins. If two groups have k or more (possible when
k <= m), the one whose checksum tables are those its manifest names wins; if both do, the one the catalog knows;
else neither is served and both are named.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from uuid import UUID

from raidd.array.member_disk import FileNotThere, MemberDisk
from raidd.array.members import Lane, Member
from raidd.array.worker import Cancel, Operation
from raidd.codec.manifest import Manifest
from raidd.codec.shard import HEAD_SIZE, Prefix, damaged_blocks, parse_head, parse_prefix, parse_shard_path, shard_path
from raidd.errors import RaiddError, ShardDamaged, ShardUnsupported

FIRST_READ = 16384
"""Heads of ordinary segments fit; a larger one costs a second read."""


class Verdict(StrEnum):
    """What a shard file turned out to be."""

    GOOD = "good"
    TORN = "torn"  # head and manifest can be read, the body contradicts its table
    DAMAGED = "damaged"  # not even that
    UNSUPPORTED = "unsupported"  # a newer format: never touched
    UNREACHABLE = "unreachable"  # the member did not answer


@dataclass(frozen=True, slots=True)
class Found:
    """One shard file on one member."""

    segment: UUID
    index: int
    member: UUID
    verdict: Verdict
    prefix: Prefix | None = None
    bad_blocks: frozenset[int] = frozenset()  # of a torn one: which blocks contradict the table, or are not there

    @property
    def path(self) -> str:
        """Relative to the member folder."""
        return shard_path(self.segment, self.index)


@dataclass(frozen=True, slots=True)
class Group:
    """Shards of one segment that agree: index → the first member found to hold it. ``torn``: index → (member, bad
    blocks), for those whose body is not whole: damage in different places leaves every block decodable."""

    manifest: Manifest
    prefix: Prefix
    holders: Mapping[int, UUID]
    torn: Mapping[int, tuple[UUID, frozenset[int]]] = field(default_factory=dict)

    @property
    def exists(self) -> bool:
        """C2, the first half: k or more can be read, or of every block k can."""
        k, here = self.manifest.geometry.k, len(self.holders)
        if here >= k or here + len(self.torn) < k:
            return here >= k
        bad = Counter(block for _member, blocks in self.torn.values() for block in blocks)
        return here + len(self.torn) - max(bad.values(), default=0) >= k


def inspect(disk: MemberDisk, segment: UUID, index: int, *, whole: bool) -> Found:
    """Read one shard file's head (and with ``whole`` every block of its body) and say what it is worth."""
    path = shard_path(segment, index)
    try:
        prefix = read_prefix(disk, path)
        head = prefix.head
        if head.segment != segment or head.index != index:
            raise ShardDamaged(f"{path}: its head names shard {head.index} of {head.segment}")
        length = disk.length(path)
        if length > head.file_length:
            raise ShardDamaged(f"{path}: {length} bytes, its head says {head.file_length}")
        if whole or length < head.file_length:
            bad = bad_blocks(disk, path, prefix)
            if bad:
                return Found(segment, index, disk.uuid, Verdict.TORN, prefix, bad)
        return Found(segment, index, disk.uuid, Verdict.GOOD, prefix)
    except ShardUnsupported:
        return Found(segment, index, disk.uuid, Verdict.UNSUPPORTED)
    except ShardDamaged:
        return Found(segment, index, disk.uuid, Verdict.DAMAGED)


def _inspect(segment: UUID, index: int, whole: bool, disk: MemberDisk, _cancel: Cancel) -> Found:
    return inspect(disk, segment, index, whole=whole)


def read_prefix(disk: MemberDisk, path: str) -> Prefix:
    """Head, table and manifest of a shard file, verified. ShardDamaged, ShardUnsupported, MemberError."""
    data = disk.read(path, 0, FIRST_READ)
    head = parse_head(data[:HEAD_SIZE])
    if len(data) < head.body_offset:
        data += disk.read(path, len(data), head.body_offset - len(data))
    prefix = parse_prefix(data[: head.body_offset])
    prefix.manifest()  # its limits and its agreement with the head
    return prefix


def bad_blocks(disk: MemberDisk, path: str, prefix: Prefix) -> frozenset[int]:
    """Blocks of the body that contradict their CRC-32C or are not there; 4 MiB are read at a time."""
    head = prefix.head
    step = 64 * head.block_size
    bad: set[int] = set()
    for start in range(0, head.shard_length, step):
        wanted = min(step, head.shard_length - start)
        first = start // head.block_size
        body = disk.read(path, head.body_offset + start, wanted)
        whole = body if len(body) == wanted else body[: len(body) // head.block_size * head.block_size]
        bad |= set(damaged_blocks(prefix, whole, first)) if whole else set()
        bad |= set(range(first + -(-len(whole) // head.block_size), first + -(-wanted // head.block_size)))
    return frozenset(bad)


def shard_names(disk: MemberDisk, folders: Iterable[str]) -> list[tuple[UUID, int]]:
    """(segment, index) of every well-named shard file in these day folders, in id order."""
    found = []
    for folder in folders:
        for name in disk.list(folder):
            try:
                found.append(parse_shard_path(f"{folder}/{name}"))
            except ShardDamaged:
                continue  # not a shard's name: nobody's business here
    return sorted(found)


def sweep(disk: MemberDisk) -> None:
    """Remove what a dead writer left in tmp/. Only while nobody writes to this member: a start, a welcome."""
    for name in disk.list("tmp"):
        if not name.endswith("/"):
            disk.unlink(f"tmp/{name}")


def day_folders(disk: MemberDisk) -> list[str]:
    """Every day folder of a member, oldest first."""
    days = []
    for year in _folders(disk, "segments"):
        for month in _folders(disk, year):
            days += _folders(disk, month)
    return sorted(days)


def all_shard_names(member: Member, lane: Lane = "repair") -> Iterator[tuple[UUID, int]]:
    """Every shard on a member, in id order: a folder an operation, so that a full disk is not taken for a hung one."""
    for folder in member.call(lane, lambda disk, _cancel: day_folders(disk)):
        yield from member.call(lane, partial(_names_in, folder))


def _names_in(folder: str, disk: MemberDisk, _cancel: Cancel) -> list[tuple[UUID, int]]:
    return shard_names(disk, [folder])


def _folders(disk: MemberDisk, path: str) -> list[str]:
    return [f"{path}/{name[:-1]}" for name in disk.list(path) if name.endswith("/")]


def inspect_all(
    names: Mapping[UUID, Iterable[tuple[UUID, int]]],
    members: Mapping[UUID, Member],
    *,
    whole: bool,
    lane: Lane = "repair",
) -> dict[UUID, list[Found]]:
    """segment → what each member holds of it. ``names``: member → (segment, index) to look at. In parallel."""
    asked: list[tuple[UUID, int, Member, Operation[Found]]] = []
    result: dict[UUID, list[Found]] = defaultdict(list)
    for uuid, wanted in names.items():
        member = members[uuid]
        for segment, index in wanted:
            try:
                operation = member.submit(lane, partial(_inspect, segment, index, whole))
                asked.append((segment, index, member, operation))
            except RaiddError:
                result[segment].append(Found(segment, index, uuid, Verdict.UNREACHABLE))
    for segment, index, member, operation in asked:
        try:
            result[segment].append(member.result(operation))
        except FileNotThere:
            continue  # gone since it was listed
        except RaiddError:
            result[segment].append(Found(segment, index, member.uuid, Verdict.UNREACHABLE))
    return dict(result)


def groups(found: Iterable[Found]) -> list[Group]:
    """The agreeing groups, largest first."""
    piles: dict[Hashable, list[Found]] = defaultdict(list)
    for shard in found:
        if shard.verdict in (Verdict.GOOD, Verdict.TORN) and shard.prefix is not None:
            piles[shard.prefix.agreement()].append(shard)
    made = [_group(pile) for pile in piles.values()]
    return sorted(made, key=lambda group: -len(group.holders))


def _group(pile: list[Found]) -> Group:
    holders: dict[int, UUID] = {}
    prefix = pile[0].prefix
    assert prefix is not None
    manifest = prefix.manifest()
    torn: dict[int, tuple[UUID, frozenset[int]]] = {}
    for shard in pile:
        if shard.verdict == Verdict.TORN:
            torn[shard.index] = (shard.member, shard.bad_blocks)
        # where the manifest meant it to be wins over a copy that a rebuild left behind
        elif shard.index not in holders or manifest.members[shard.index] == shard.member:
            holders[shard.index] = shard.member
    return Group(manifest, prefix, holders, {i: t for i, t in torn.items() if i not in holders})


def winner(candidates: Sequence[Group], found: Sequence[Found]) -> Group | None:
    """The group that is the segment (format.md, Agreement); None when none has k, or when two equally claim it.

    Only for segments the catalog does not know: of one that it knows, it says which shards belong to it."""
    existing = [group for group in candidates if group.exists]
    if len(existing) > 1:
        existing = [group for group in existing if _tables_match(group, found)] or existing
    return existing[0] if len(existing) == 1 else None


def _tables_match(group: Group, found: Iterable[Found]) -> bool:
    mine = group.prefix.agreement()
    return all(
        shard.prefix.table_matches_manifest()
        for shard in found
        if shard.prefix is not None and shard.prefix.agreement() == mine
    )
