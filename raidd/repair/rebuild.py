"""Re-creating lost shards: one segment at a time, from any k good shards, byte for byte the ones that were lost.

Every reason to repair ends here: a laggard's shard, damage a reader met, a member that came back, a replacement.
A repair reads k shards block-verified, computes what is missing, proves it against the manifest's digest of its
checksum table (`reseal`), makes it durable by C1, and only then tells the catalog. Everything is idempotent: after
`kill -9` the same segments are asked for again, and a shard that is already there is read, compared and kept.

All repairs of one segment go through one lock and look again under it. A segment that cannot be repaired now is
skipped and reported, never a reason to stop. What lay under the final name and is not right goes to quarantine.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from uuid import UUID

from raidd.array.catalog import Catalog, SegmentRow
from raidd.array.member_disk import MemberDisk, write_durable
from raidd.array.members import Member
from raidd.array.membership import Membership
from raidd.array.reading import Reader, Span
from raidd.array.roster import Roster
from raidd.array.survey import Verdict, inspect
from raidd.array.worker import Cancel
from raidd.codec.geometry import shard_length
from raidd.codec.segment import SealedShard, reseal
from raidd.codec.shard import Prefix, shard_path
from raidd.errors import (
    ImageUnreadable,
    MemberConflict,
    MemberFaulty,
    RaiddError,
    RequestRefused,
    ShardError,
    ShardUnsupported,
)
from raidd.repair.plan import MembersView, SegmentView, members_view, plan_repairs

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one repair did: shards written, their bytes, and whether the segment is whole now."""

    written: int
    bytes: int
    whole: bool


class Rebuilder:
    """Repairs segments. Any thread; two threads never work on the same segment."""

    def __init__(
        self,
        catalog: Catalog,
        membership: Membership,
        reader: Reader,
        *,
        now: Callable[[], str],
        on_event: Callable[[str, str, str, Sequence[str]], None],
    ) -> None:
        self._catalog = catalog
        self._membership = membership
        self._reader = reader
        self._now, self._on_event = now, on_event
        self.on_forgotten: Callable[[], None] = lambda: None
        self._busy: set[UUID] = set()
        self._free = threading.Condition()

    def repair(self, segment: UUID) -> Outcome:
        """Re-create every shard of the segment that is missing and has somewhere to go.

        Raises ImageUnreadable when fewer than k good shards can be read."""
        with self._alone(segment):
            row = self._catalog.segment(segment)
            if row is None or self._is_needless(row):
                return Outcome(0, 0, True)
            plan = plan_repairs([self._view(row)], self._members(row))
            if plan.stuck and self._find_again(row):
                plan = plan_repairs([self._view(row)], self._members(row))
            homes = {task.index: self._membership.writable(task.target) for task in plan.tasks}
            outcome = self._recreate(row, {i: m for i, m in homes.items() if m is not None and not m.full})
            return Outcome(outcome.written, outcome.bytes, not plan.stuck and outcome.written == len(plan.tasks))

    def _find_again(self, row: SegmentRow) -> bool:
        """With too few shards to make the others from: those called missing may be there after all, whole; a reindex
        calls so what was on members that it could not see. True if one was."""
        excepted = self._catalog.excepted(row.segment)
        homes = {i: self._membership.writable(row.placement.members[i]) for i, kind in excepted.items()}
        there = {i: m for i, m in homes.items() if m is not None and excepted[i] == "missing"}
        good = {i: m for i, m in there.items() if self._look(row, i, m) == Verdict.GOOD}
        self._record(row, good)
        return bool(good)

    def _is_needless(self, row: SegmentRow) -> bool:
        """A segment that is lost, while all its images are protected elsewhere, is forgotten (format.md, C5).

        Its id is looked for from then on: what is left of its shards is taken away, or adopted if disks come back."""
        away = self._membership.away()
        excepted = self._catalog.excepted(row.segment)
        present = sum(i not in excepted and m not in away for i, m in enumerate(row.placement.members))
        if present >= row.placement.geometry.k:
            return False
        images = self._catalog.segment_images(row.segment, away)
        wanted = self._catalog.incomplete_in(row.segment)  # of an attempt whose other parts are forgotten already
        wanted += [(image.sop_instance_uid, image.sha256) for image in images]
        if not wanted or not all(self._is_elsewhere(row.segment, uid, sha256, away) for uid, sha256 in wanted):
            return False
        self._catalog.keep_reserved([row.segment])
        self._catalog.forget([row.segment], self._now(), "lost; its images are protected elsewhere")
        self.on_forgotten()
        return True

    def _is_elsewhere(self, segment: UUID, uid: str, sha256: str | None, away: frozenset[UUID]) -> bool:
        """Whether the image is protected, with nothing of it in this segment."""
        rows = [row for row in self._catalog.versions(uid, away) if row.sha256 == sha256]
        return any(row.state == "protected" and all(part.segment != segment for part in row.parts) for row in rows)

    def _view(self, row: SegmentRow) -> SegmentView:
        length = shard_length(row.payload_length, row.placement.geometry.k)
        excepted = self._catalog.excepted(row.segment)
        damaged = frozenset(index for index, kind in excepted.items() if kind == "damaged")
        untouchable = frozenset(index for index, kind in excepted.items() if kind == "unsupported")
        return SegmentView(row.segment, row.placement, frozenset(excepted), length, damaged, untouchable)

    def _members(self, row: SegmentRow) -> MembersView:
        """The members as they are now; for the shards of former members, the emptiest of the others adopt."""
        roster = self._membership.roster
        presences = {member.uuid: member.presence for member in self._membership.members()}
        places = sorted(self._membership.places(), key=lambda place: -place.free_bytes)
        adopters = [place.member for place in places if place.up and place.roomy]
        former = frozenset(m for m in row.placement.members if _is_former(roster, m))
        return replace(members_view(roster, presences), given_up=former, adopters=tuple(adopters))

    def _recreate(self, row: SegmentRow, homes: dict[int, Member]) -> Outcome:
        if not homes:
            return Outcome(0, 0, False)
        length = shard_length(row.payload_length, row.placement.geometry.k)
        verdicts = {index: self._look(row, index, member) for index, member in homes.items()}
        for index in [index for index, verdict in verdicts.items() if verdict == Verdict.UNSUPPORTED]:
            self._catalog.mark(row.segment, index, "unsupported")  # a newer raidd wrote it: never repaired over
        adopted = [index for index, verdict in verdicts.items() if verdict == Verdict.GOOD]
        left = [index for index, verdict in verdicts.items() if verdict not in (Verdict.GOOD, Verdict.UNSUPPORTED)]
        self._record(row, {index: homes[index] for index in adopted})
        written = 0
        if left:
            sibling = self._reader.prefix(row, range(row.placement.geometry.n))
            bodies = self._reader.verified_bodies(row, left, Span(0, length), lane="repair", like=sibling)
            for index in left:
                if self._write(homes[index], row, reseal(sibling, index, bodies[index])):
                    self._record(row, {index: homes[index]})  # at once: what fails after it does not undo it
                    written += 1
        return Outcome(len(adopted) + written, written * length, False)

    def _record(self, row: SegmentRow, durable: Mapping[int, Member]) -> None:
        """These shards are durable on these members."""
        if durable:
            self._catalog.move_many([(row.segment, index, member.uuid) for index, member in durable.items()])
        for index in durable:
            self._reader.forget(row.segment, index)

    def _look(self, row: SegmentRow, index: int, member: Member) -> Verdict:
        """What already lies at the place of the shard: GOOD only if every byte is right and durable (a late write, or
        a repair that a crash interrupted after C1)."""
        try:
            found = member.call("repair", lambda disk, _c: inspect(disk, row.segment, index, whole=True))
        except RaiddError:
            return Verdict.UNREACHABLE
        if found.verdict != Verdict.GOOD or found.prefix is None:
            return found.verdict
        try:
            sibling = self._sibling(row, index)
        except ImageUnreadable:
            return Verdict.DAMAGED
        agrees = found.prefix.agreement() == sibling.agreement() and found.prefix.table_matches_manifest()
        return Verdict.GOOD if agrees and self._settled(member) else Verdict.DAMAGED

    def _sibling(self, row: SegmentRow, index: int) -> Prefix:
        """What the shard has to agree with: the others; if none can be read, what the catalog knows of the segment."""
        try:
            return self._reader.prefix(row, [i for i in range(row.placement.geometry.n) if i != index])
        except ImageUnreadable:
            return self._reader.prefix(row, [index])

    def _settled(self, member: Member) -> bool:
        """Make a file that is already there durable before it counts: its writer may have died before C1 ended."""
        try:
            member.call("repair", lambda disk, _c: disk.sync_all())
        except RaiddError:
            return False
        return True

    def _write(self, member: Member, row: SegmentRow, shard: SealedShard) -> bool:
        try:
            member.call("repair", lambda disk, cancel: self._put(disk, cancel, row.segment, shard))
        except RaiddError as error:
            LOG.warning(
                "segment %s shard %s was not re-created on %s: %s", row.segment, shard.index, member.path, error
            )
            return False
        return True

    def _put(self, disk: MemberDisk, cancel: Cancel, segment: UUID, shard: SealedShard) -> None:
        path = shard_path(segment, shard.index)
        temporary = f"tmp/{segment}-{shard.index:02d}.repair"
        disk.unlink(temporary)
        try:
            write_durable(disk, temporary, path, [shard.prefix, shard.body], cancel)
        except MemberConflict:
            if _lies_there(disk, segment, shard):
                disk.sync_all()  # a write that was given up has landed meanwhile
                return
            # Whole in one step: good blocks of the damaged one may be what the segment hangs on until this is durable.
            self._keep_copy(disk, path)
            disk.replace(path, b"".join((shard.prefix, shard.body)))
        self._prove(disk, path, shard)

    def _keep_copy(self, disk: MemberDisk, path: str) -> None:
        """A copy of the damaged shard goes to quarantine, as far as it can be read."""
        moment = self._now()
        name = f"quarantine/{path.rpartition('/')[2]}.{moment.replace(':', '')}"
        reason = f"{moment}\n{path}\nits bytes contradict the segment's checksums; re-created from the others\n"
        try:
            disk.replace(name, disk.read(path))
        except MemberFaulty as error:
            reason += f"it could not be copied: {error.message}\n"
        disk.replace(f"{name}.reason.txt", reason.encode())

    def _prove(self, disk: MemberDisk, path: str, shard: SealedShard) -> None:
        """Read back what was written: a rebuild is the one time that nothing else would notice."""
        head = len(shard.prefix)
        if disk.length(path) != head + len(shard.body) or disk.read(path, 0, head) != bytes(shard.prefix):
            raise MemberFaulty(f"{path} does not read back as it was written", member=str(disk.uuid))

    @contextmanager
    def _alone(self, segment: UUID) -> Iterator[None]:
        """All repairs of one segment, one after the other."""
        with self._free:
            self._free.wait_for(lambda: segment not in self._busy)
            self._busy.add(segment)
        try:
            yield
        finally:
            with self._free:
                self._busy.discard(segment)
                self._free.notify_all()


def _lies_there(disk: MemberDisk, segment: UUID, shard: SealedShard) -> bool:
    """The very shard, every block good. ShardUnsupported for one of a newer format, which is never written over."""
    found = inspect(disk, segment, shard.index, whole=True)
    if found.verdict == Verdict.UNSUPPORTED:
        raise ShardUnsupported(f"shard {shard.index} of segment {segment} was written by a newer raidd")
    path = shard_path(segment, shard.index)
    return found.verdict == Verdict.GOOD and disk.read(path, 0, len(shard.prefix)) == bytes(shard.prefix)


def _is_former(roster: Roster, member: UUID) -> bool:
    """No slot holds it: removed, or a spare that came back after its slot was taken."""
    entry = roster.find(member)
    return entry is None or entry.slot is None


def try_repair(rebuilder: Rebuilder, segment: UUID) -> Outcome | None:
    """One repair; None when it cannot be done now (reported in the log, tried again later)."""
    try:
        return rebuilder.repair(segment)
    except (ImageUnreadable, ShardError, RequestRefused) as error:
        LOG.warning("segment %s cannot be repaired now: %s", segment, error)
        return None
