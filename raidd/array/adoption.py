"""Leftovers: what a crash, a hung disk or a lost catalog left on the members, settled by rule C5 of format.md.

`settle` looks, by path, for exactly the ids that were reserved and never committed: at start, and when a member
comes back. No clock and no order is trusted. For each id:

- k or more good shards agree: the segment exists, it is adopted (or taken away, if all its images are known and
  protected elsewhere).
- fewer: cleared only when every image it names is still offered by the inbox, or is known and protected; kept
  while a member it names is away; otherwise quarantined.
- only unreadable remains: cleared once every member that is not retired was looked at.

`reindex` makes a catalog from the members' heads alone. Both are idempotent: what a crash interrupts is done
again by the next start. Nothing an image depends on is ever unlinked: a shard goes only after the rule above.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from raidd.array.catalog import Catalog, ExceptionKind, NewSegment
from raidd.array.discovery import newest_segment
from raidd.array.journal import JournalDamaged, replica_head
from raidd.array.member_disk import MemberDisk, quarantine
from raidd.array.members import Member
from raidd.array.membership import Membership
from raidd.array.placement import Placement
from raidd.array.roster import MemberState
from raidd.array.survey import (
    Found,
    Group,
    Verdict,
    all_shard_names,
    groups,
    inspect_all,
    shard_names,
    sweep,
    winner,
)
from raidd.array.worker import Cancel
from raidd.codec.manifest import Manifest, ManifestImage
from raidd.codec.shard import day_folder
from raidd.errors import RaiddError, ShardDamaged

LOG = logging.getLogger(__name__)
NEWEST_READ_WHOLE = 64
"""A reindex reads this many of the newest segments whole: only these can be torn by an unclean stop."""
UNLISTED = "reindex.unlisted"
"""Members that the reindex which made this catalog could not list."""
PAGE = 64
"""Segments listed and settled, or compared with the catalog, at a time."""
READ_AT_ONCE, ADOPT_IMAGES = 16, 4096
"""Memory: a reindex reads the heads of so many segments at a time (each head of each shard holds the manifest, packed),
and writes what it has read to the catalog once that holds so many images (a manifest in full may hold 4096)."""


@dataclass(slots=True)
class Settled:
    """What became of the leftovers: counts of segments."""

    adopted: int = 0
    cleared: int = 0
    quarantined: int = 0
    kept: int = 0
    unreadable: int = 0

    def __str__(self) -> str:
        """For a log: "2 segments adopted, 1 kept"; what did not happen is left out."""
        counts = [(self.adopted, "adopted"), (self.cleared, "cleared"), (self.quarantined, "quarantined")]
        counts += [(self.kept, "kept"), (self.unreadable, "unreadable")]
        return "segments: " + (", ".join(f"{count} {word}" for count, word in counts if count) or "none")

    def then(self, later: Settled) -> Settled:
        """Both rounds together: what was done is added up, what is left is what the later one left."""
        return Settled(
            self.adopted + later.adopted,
            self.cleared + later.cleared,
            self.quarantined + later.quarantined,
            later.kept,
            later.unreadable,
        )


class Adoption:
    """Settles leftovers. One thread at a time (start, the return of a member)."""

    def __init__(
        self,
        catalog: Catalog,
        membership: Membership,
        *,
        now: Callable[[], str],
        offered: Callable[[str, str | None], bool],
        in_flight: Callable[[], frozenset[UUID]],
        on_absent: Callable[[UUID], None],
        on_event: Callable[[str, str, str, Sequence[str]], None],
    ) -> None:
        self._catalog = catalog
        self._membership = membership
        self._now, self._offered = now, offered
        self._in_flight, self._on_absent, self._on_event = in_flight, on_absent, on_event
        self._looked: set[UUID] = set()
        self._unlisted = threading.Lock()

    # -- reserved ids -----------------------------------------------------------------------------------

    def settle(self, ids: Iterable[UUID]) -> Settled:
        """Look for these reserved ids on every member that is there, and settle each; and what those replace that were
        adopted."""
        outcome, wanted = Settled(), set(ids)
        while wanted:
            found = self._settle(wanted - self._in_flight())
            outcome = outcome.then(found)
            wanted = set(self._catalog.reserved()) - self._catalog.unused() if found.adopted else set()
        return outcome

    def _settle(self, wanted: set[UUID]) -> Settled:
        outcome, order = Settled(), sorted(wanted)
        for start in range(0, len(order), PAGE):
            self._settle_page(set(order[start : start + PAGE]), outcome)
        return outcome

    def _settle_page(self, wanted: set[UUID], outcome: Settled) -> None:
        members = {member.uuid: member for member in self._membership.present_members()}
        names, looked = self._list(members, {day_folder(segment) for segment in wanted}, wanted)
        found = inspect_all(names, members, whole=True)
        self._looked, everyone = looked, looked >= self._not_retired()
        known = self._catalog.known(wanted)
        gone = {segment for segment in wanted if segment in known or (everyone and not found.get(segment))}
        if gone:
            self._catalog.release(gone)  # in one transaction: after a start these are nearly all
        for segment in sorted(wanted - gone):
            self._settle_one(segment, found.get(segment, []), everyone, outcome)

    def _list(
        self, members: Mapping[UUID, Member], folders: Iterable[str], wanted: set[UUID]
    ) -> tuple[dict[UUID, list[tuple[UUID, int]]], set[UUID]]:
        """member → shards of the wanted ids by listing; and the members that answered."""
        days = sorted(folders)
        asked = []
        for uuid, member in members.items():
            try:
                asked.append((uuid, member, member.submit("repair", partial(_look, days, wanted))))
            except RaiddError:
                continue
        names: dict[UUID, list[tuple[UUID, int]]] = {}
        for uuid, member, operation in asked:
            try:
                names[uuid] = member.result(operation)
            except RaiddError:  # the disk's fault, the host's, or it was dismissed meanwhile: nothing is known of it
                continue
        return names, set(names)

    def sweep(self) -> None:
        """Empty tmp/ on every member that is there. At a start, before anything is written."""
        for member in self._membership.present_members():
            try:
                member.call("probe", lambda disk, _cancel: sweep(disk))  # where labels are written, by way of tmp/
            except RaiddError as error:
                LOG.warning("%s: tmp/ could not be emptied: %s", member.path, error.message)

    def _not_retired(self) -> set[UUID]:
        return {e.member for e in self._membership.roster.entries if e.state != MemberState.RETIRED}

    def _settle_one(self, segment: UUID, found: list[Found], everyone: bool, outcome: Settled) -> None:
        if not found:
            return
        candidates = groups(found)
        chosen = winner(candidates, found)
        if chosen is not None:
            self._exists(segment, chosen, found, everyone, outcome)
        elif any(group.exists for group in candidates):
            self._dispute(segment, candidates)
            outcome.unreadable += 1
        else:
            self._incomplete(segment, found, everyone, outcome)

    def _exists(self, segment: UUID, group: Group, found: list[Found], everyone: bool, outcome: Settled) -> None:
        barred = self._catalog.barred(group.manifest)  # purged, or replaced by a segment that exists
        images = group.manifest.images
        if barred or (images and all(self._safe_elsewhere(image, segment) for image in images)):
            self._clear(segment, found, self._is_complete(group.manifest, found, everyone), outcome)
            return
        outcome.adopted += self.adopt([(group, found)])

    def _incomplete(self, segment: UUID, found: list[Found], everyone: bool, outcome: Settled) -> None:
        manifest = next((shard.prefix.manifest() for shard in found if shard.prefix is not None), None)
        complete = self._is_complete(manifest, found, everyone)
        if manifest is None:
            if complete:
                self._clear(segment, found, complete, outcome)
            else:
                outcome.kept += 1
        elif self._catalog.barred(manifest) or all(self._recoverable(i, segment) for i in manifest.images):
            self._clear(segment, found, complete, outcome)
        elif not complete:
            outcome.kept += 1
        else:
            self._quarantine(segment, found, outcome)

    def _is_complete(self, manifest: Manifest | None, found: Sequence[Found], everyone: bool) -> bool:
        """Whether every member that may hold a shard of it was looked at, and answered."""
        if any(shard.verdict == Verdict.UNREACHABLE for shard in found):
            return False
        return everyone or (manifest is not None and not self._names_away(manifest))

    def _dispute(self, segment: UUID, candidates: Sequence[Group]) -> None:
        """Neither is served, and both are named."""
        sides = "; ".join(f"shards {sorted(g.holders)} written at {g.manifest.written_at}" for g in candidates)
        self._on_event(
            "segment-disputed", "critical", f"two groups claim to be segment {segment}: {sides}", [str(segment)]
        )

    def _names_away(self, manifest: Manifest) -> bool:
        """One that came since was not looked at. What a retired one held may be on any other now."""
        return any(member not in self._looked for member in manifest.members)

    def _recoverable(self, image: ManifestImage, segment: UUID) -> bool:
        """Its bytes are still in the inbox, or known and protected."""
        return self._safe_elsewhere(image, segment) or self._offered(image.source, image.sha256)

    def _safe_elsewhere(self, image: ManifestImage, segment: UUID) -> bool:
        if image.sha256 is None:
            return False
        for row in self._catalog.versions(image.sop_instance_uid, away=self._membership.away()):
            elsewhere = all(part.segment != segment for part in row.parts)
            if row.sha256 == image.sha256 and row.state == "protected" and elsewhere:
                return True
        return False

    def _clear(self, segment: UUID, found: Sequence[Found], complete: bool, outcome: Settled) -> None:
        """Take its shards away. Its id is given up only when none can be left on a member that is away (``complete``)
        and no power cut can bring one back: after that nobody would look for them."""
        if _newer(found):
            outcome.unreadable += 1
            return
        if not self._on_each(found, _remove):
            return
        if complete:
            self._catalog.release([segment])
        outcome.cleared += 1

    def _quarantine(self, segment: UUID, found: list[Found], outcome: Settled) -> None:
        reason = f"fewer shards of segment {segment} than needed were found, and its images are not known elsewhere"
        now = self._now()
        if _newer(found):
            outcome.unreadable += 1
            return
        if self._on_each(found, lambda disk, shard: _set_aside(disk, shard, reason, now)):
            self._catalog.release([segment])
            outcome.quarantined += 1
            self._on_event("shard-quarantined", "warning", reason, [str(segment)])

    def _on_each(self, found: Iterable[Found], act: Callable[[MemberDisk, Found], None]) -> bool:
        done = True
        for shard in found:
            member = self._membership.member(shard.member)
            try:
                if member is None:
                    return False
                member.call("repair", partial(_acted, act, shard))
            except RaiddError as error:
                LOG.warning("segment %s shard %s: %s", shard.segment, shard.index, error.message)
                done = False
        return done

    def adopt(self, pairs: Sequence[tuple[Group, Sequence[Found]]]) -> int:
        """Take segments that exist into the catalog, with what is absent or torn as exceptions; how many it took.

        One whose manifest contradicts what is known is left alone, and named."""
        news = [_new_segment(group, found) for group, found in pairs]
        try:
            self._catalog.adopt_many(news, now=self._now())
        except ShardDamaged as error:
            if len(pairs) > 1:
                return sum(self.adopt([pair]) for pair in pairs)
            segment = news[0].manifest.segment
            self._on_event("segment-disputed", "critical", f"segment {segment}: {error.message}", [str(segment)])
            self._catalog.keep_reserved([segment])
            return 0
        for new, (_group, found) in zip(news, pairs, strict=True):
            self._note_absent(new, found)
        return len(news)

    def _note_absent(self, new: NewSegment, found: Sequence[Found]) -> None:
        """What lies at the place of an absent shard: damaged (its good blocks may be needed), or a newer raidd's."""
        segment = new.manifest.segment
        for shard in found:
            if shard.index not in new.absent or shard.member != new.placement.members[shard.index]:
                continue
            kind: ExceptionKind = "unsupported" if shard.verdict == Verdict.UNSUPPORTED else "damaged"
            self._catalog.mark(segment, shard.index, kind)
            if shard.verdict == Verdict.GOOD:
                message = f"shard {shard.index} of segment {segment} disagrees with the others; it will be replaced"
                self._on_event("segment-disputed", "critical", message, [str(segment)])
        if new.absent:
            self._on_absent(segment)

    # -- the whole catalog ------------------------------------------------------------------------------

    def reindex(self, progress: Callable[[int, int], None] = lambda _done, _total: None) -> Settled:
        """Adopt every segment that the present members hold and no tombstone or replacement bars.

        The journal has been restored before. Costs one listing of each member and one read of each head; memory: one
        name a shard."""
        outcome = Settled()
        members = {member.uuid: member for member in self._membership.present_members()}
        where, listed = self._all_names(members)
        order = sorted(where)
        newest = set(order[-NEWEST_READ_WHOLE:])
        self._catalog.put_meta(UNLISTED, sorted(str(member) for member in self._not_retired() - listed))
        pairs: list[tuple[Group, list[Found]]] = []
        for start in range(0, len(order), READ_AT_ONCE):
            page = order[start : start + READ_AT_ONCE]
            for whole in (False, True):
                chosen = {segment: where[segment] for segment in page if (segment in newest) == whole}
                pairs += self._read_page(chosen, members, whole, outcome)
            last = start + READ_AT_ONCE >= len(order)
            if last or sum(len(group.manifest.images) for group, _found in pairs) >= ADOPT_IMAGES:
                outcome.adopted += self.adopt(pairs)
                pairs = []
                progress(min(start + READ_AT_ONCE, len(order)), len(order))
        return outcome

    def _all_names(self, members: Mapping[UUID, Member]) -> tuple[dict[UUID, list[tuple[UUID, int]]], set[UUID]]:
        """segment → (member, index) of every shard file found, and who was listed; who fails meanwhile has left."""
        where: dict[UUID, list[tuple[UUID, int]]] = defaultdict(list)
        listed: set[UUID] = set()
        for member in members.values():
            try:
                member.call("repair", _settle_down)
                for segment, index in all_shard_names(member):
                    where[segment].append((member.uuid, index))
                listed.add(member.uuid)
            except RaiddError as error:
                LOG.warning("%s: %s", member.path, error.message)
        return where, listed

    def look_through(self, member: Member) -> None:
        """Have everything that a member holds and nobody knows settled from now on, if the last reindex could not list
        it, or if it is ahead of the catalog (an old copy was put back while it was away): it may have been on members
        that were away alone. Costs a listing then, else two small reads. Raises MemberError, Cancelled."""
        unlisted = set(self._catalog.get_meta(UNLISTED) or ())
        if str(member.uuid) not in unlisted and not member.call("repair", self._ahead):
            return
        busy = self._in_flight() | self._catalog.unused()
        segments = sorted({segment for segment, _index in all_shard_names(member)} - busy)
        for start in range(0, len(segments), PAGE):
            page = set(segments[start : start + PAGE])
            if strange := page - self._catalog.known(page):
                self._catalog.keep_reserved(strange)
        with self._unlisted:
            left = set(self._catalog.get_meta(UNLISTED) or ()) - {str(member.uuid)}
            if left != unlisted:
                self._catalog.put_meta(UNLISTED, sorted(left))

    def distrust(self, member: UUID) -> None:
        """Have the next `look_through` list this member, whatever it finds: its journal knows what ours does not."""
        with self._unlisted:
            self._catalog.put_meta(UNLISTED, sorted({*(self._catalog.get_meta(UNLISTED) or ()), str(member)}))

    def _ahead(self, disk: MemberDisk, _cancel: Cancel) -> bool:
        newest, highest = newest_segment(disk), self._catalog.highest_id()
        if newest is not None and (highest is None or newest > highest):
            return True
        try:
            return not self._catalog.journal_holds(replica_head(disk))
        except JournalDamaged:
            return False  # says nothing; the replication writes it again

    def _read_page(
        self,
        where: Mapping[UUID, list[tuple[UUID, int]]],
        members: Mapping[UUID, Member],
        whole: bool,
        outcome: Settled,
    ) -> list[tuple[Group, list[Found]]]:
        names: dict[UUID, list[tuple[UUID, int]]] = defaultdict(list)
        for segment, holders in where.items():
            for member, index in holders:
                names[member].append((segment, index))
        found = inspect_all(names, members, whole=whole)
        chosen = [self._choose(segment, found.get(segment, []), outcome) for segment in sorted(where)]
        return [pair for pair in chosen if pair is not None]

    def _choose(self, segment: UUID, found: list[Found], outcome: Settled) -> tuple[Group, list[Found]] | None:
        """The group that is the segment, if it is to be adopted; others are looked for at each start."""
        candidates = groups(found)
        chosen = winner(candidates, found)
        if chosen is None:
            outcome.unreadable += 1
            if any(group.exists for group in candidates):
                self._dispute(segment, candidates)
        elif self._catalog.barred(chosen.manifest):
            outcome.kept += 1  # purged or replaced: settling takes its shards away
        else:
            return chosen, found
        self._catalog.keep_reserved([segment])
        return None


def _new_segment(group: Group, found: Sequence[Found]) -> NewSegment:
    """Where each shard is; one found nowhere is expected where the manifest meant it, or where no other is."""
    manifest, indexes = group.manifest, range(group.manifest.geometry.n)
    there = {shard.index: shard.member for shard in found if shard.member not in group.holders.values()}
    there |= {index: member for index, (member, _bad) in group.torn.items()}
    members = [group.holders.get(index) or there.get(index) for index in indexes]
    free = [member for member in manifest.members if member not in members]
    for index in indexes:
        if members[index] is None:
            meant = manifest.members[index]
            members[index] = meant if meant in free else free[0]
            free.remove(members[index])  # type: ignore[arg-type]
    placed = tuple(member for member in members if member is not None)
    placement = Placement(manifest.geometry, placed)
    return NewSegment(manifest, group.prefix.head.body_offset, placement, frozenset(indexes) - set(group.holders))


def _newer(found: Iterable[Found]) -> bool:
    """A shard of a newer format is among them: it may be all right, and none of them is taken away."""
    return any(shard.verdict == Verdict.UNSUPPORTED for shard in found)


def _settle_down(disk: MemberDisk, _cancel: Cancel) -> None:
    """What an unclean stop left in the page cache must be on the disk before it counts."""
    disk.sync_all()


def _acted(act: Callable[[MemberDisk, Found], None], shard: Found, disk: MemberDisk, _cancel: Cancel) -> None:
    act(disk, shard)


def _remove(disk: MemberDisk, shard: Found) -> None:
    disk.unlink(shard.path)
    disk.sync_folder(day_folder(shard.segment))


def _set_aside(disk: MemberDisk, shard: Found, reason: str, now: str) -> None:
    quarantine(disk, shard.path, reason, now)


def _look(folders: Iterable[str], wanted: set[UUID], disk: MemberDisk, _cancel: Cancel) -> list[tuple[UUID, int]]:
    """Shards of the wanted ids, and all of it durable, what is there and what is not: whoever wrote or unlinked may
    have died before it was, and a power cut would then undo what is concluded from the page cache."""
    names = [name for name in shard_names(disk, folders) if name[0] in wanted]
    if wanted:
        disk.sync_all()
    return names
