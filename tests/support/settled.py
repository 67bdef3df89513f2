"""What must be true of an array when every member is back, everything was repaired, and nothing waits any more."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

from raidd.array.member_disk import FileNotThere, MemberDisk
from raidd.array.roster import ArrayState, MemberState
from raidd.array.survey import Verdict, inspect
from raidd.codec.shard import parse_shard_path
from raidd.daemon import graph
from tests.support.arrays import SmallArray
from tests.support.sender import Sender


def faults(array: SmallArray, sender: Sender) -> list[str]:
    """A sentence for everything that is not as it must be."""
    return [*_state(array), *_shards(array), *_images(array, sender)]


def _state(array: SmallArray) -> Iterator[str]:
    standing = array.store.standing()
    if standing.state is not ArrayState.HEALTHY:
        yield f"the array is {standing.state}: {standing.counts}"
    if standing.counts.absent_shards:
        yield f"{standing.counts.absent_shards} shards are absent: {array.catalog.exceptions()}"
    yield from (f"catalog: {fault}" for fault in array.catalog.check())
    if left := graph.stale_ids(array.parts):
        yield f"ids that are still to be settled: {left}"
    if kept := array.parts.committer.in_flight():
        yield f"ids that count as being written: {sorted(kept)}"


def _shards(array: SmallArray) -> Iterator[str]:
    """Every shard is where the catalog says, whole; nothing else is about but in quarantine."""
    wanted = {
        (member, row.segment, index)
        for row in array.all_segments()
        for index, member in enumerate(row.placement.members)
    }
    found: set[tuple[UUID, UUID, int]] = set()
    for disk in members(array):
        for path in disk.files():  # type: ignore[attr-defined]
            if path.startswith("segments/"):
                found.add((disk.uuid, *parse_shard_path(path)))
            if path.startswith("tmp/"):
                yield f"{disk.path} still has {path}"
    yield from (f"unknown to the catalog: shard {i} of {s} on {m}" for m, s, i in sorted(found - wanted))
    yield from (f"not there: shard {i} of {s} on {m}" for m, s, i in sorted(wanted - found))
    yield from _bad(array, found & wanted)


def _bad(array: SmallArray, shards: set[tuple[UUID, UUID, int]]) -> Iterator[str]:
    disks = {disk.uuid: disk for disk in members(array)}
    for member, segment, index in sorted(shards):
        verdict = inspect(disks[member], segment, index, whole=True).verdict
        if verdict is not Verdict.GOOD:
            yield f"shard {index} of {segment} on {member} is {verdict}"


def members(array: SmallArray) -> list[MemberDisk]:
    """The disks in memory of all members that are not retired."""
    roster = array.membership.roster
    here = {entry.member for entry in roster.entries if entry.state is not MemberState.RETIRED}
    return [disk for disk in array.memory if disk.uuid in here]


def _images(array: SmallArray, sender: Sender) -> Iterator[str]:
    """Exactly what was acknowledged is listed, once each, protected, and reads back."""
    if sender.inbox:
        yield f"still in the inbox: {sorted(sender.inbox)}"
    listed = {(row.sop_instance_uid, row.sha256): row for row in array.catalog.all_images(array.membership.away())}
    yield from (f"lost: {uid} {sha256[:8]}" for uid, sha256 in sorted(sender.acknowledged.keys() - listed.keys()))
    yield from (f"never dropped: {uid} {sha256[:8]}" for uid, sha256 in sorted(listed.keys() - sender.ever.keys()))
    for key, row in sorted(listed.items()):
        if row.state != "protected":
            yield f"{key[0]} version {row.version} is only {row.state}"
        copies = array.catalog.copies(row.sop_instance_uid, row.version)
        if len(copies) > 1 and key not in sender.again:
            yield f"{key[0]} version {row.version} is stored {len(copies)} times"
        if key in sender.ever and array.read(row.sop_instance_uid, row.version) != sender.ever[key]:
            yield f"{key[0]} version {row.version} reads back other bytes"


def versions(array: SmallArray) -> dict[tuple[str, str], int]:
    """(UID, SHA-256) → version, of all that is listed."""
    return {(row.sop_instance_uid, row.sha256): row.version for row in array.catalog.all_images()}


def durable_shards(array: SmallArray, segment: UUID) -> int:
    """Members that have a whole shard of the segment where a power cut cannot take it away. A disk that lies about
    what is durable is believed: raidd cannot know better."""
    row = array.catalog.segment(segment)
    assert row is not None
    return sum(_is_durable(array, segment, index, member) for index, member in enumerate(row.placement.members))


def _is_durable(array: SmallArray, segment: UUID, index: int, member: UUID) -> bool:
    faulty = array.disks[member]
    disk = faulty.inner.copy()  # type: ignore[attr-defined]
    if not faulty.lies():
        disk.power_cut()
    try:
        return inspect(disk, segment, index, whole=True).verdict is Verdict.GOOD
    except FileNotThere:
        return False
