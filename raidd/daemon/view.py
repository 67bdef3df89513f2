"""The array as raidctl and the metrics see it: snapshots of the running parts as `raidd.api` models.

Reads only, from memory and the catalog's kept counters: `status` must answer while any disk hangs, so nothing here
asks a member. Room is what the probe saw last.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from raidd import api
from raidd.array.catalog import Counts, ImageRow
from raidd.array.membership import Membership
from raidd.array.roster import ArrayState, MemberState, Roster, RosterEntry
from raidd.array.store import Standing, Store
from raidd.codec.erasure import codec_name
from raidd.daemon.advice import next_step, reason_clause
from raidd.daemon.beginning import Beginning
from raidd.repair.jobs import Progress, Repairs


def rfc3339(moment: datetime) -> str:
    """UTC, milliseconds, Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def image_info(row: ImageRow) -> api.ImageInfo:
    """One version of one image, its identity flat beside it."""
    own = {
        "sop_instance_uid": row.sop_instance_uid,
        "version": row.version,
        "sha256": row.sha256,
        "size": row.size,
        "state": row.state,
        "received_at": row.received_at,
        "source": row.source,
    }
    return api.ImageInfo.model_validate({**row.identity, **own})


class View:
    """Makes snapshots. Any thread."""

    def __init__(self, store: Store, repairs: Repairs, beginning: Beginning | None = None) -> None:
        self._store, self._repairs = store, repairs
        self._membership: Membership = store.membership
        self._beginning = beginning or Beginning(reindexing=False, over=True)

    def status(self, inbox: api.InboxInfo) -> api.Status:
        """All of `raidctl status --json`."""
        standing = self._store.standing()
        roster = self._membership.roster
        members = self._slot_rows(roster)
        spares = [self.member(e) for e in roster.entries if e.slot is None and e.state != MemberState.RETIRED]
        activities = self._activities()
        return api.Status(
            array=self._array(roster, standing, members),
            members=members,
            spares=spares,
            images=_images(standing.counts),
            inbox=inbox,
            activities=activities,
            codec=codec_name(),
            capacity=self._capacity(standing.counts),
            next=next_step(standing.state, members, paused=self._paused(), waiting=inbox.reason),
            at=rfc3339(datetime.now(UTC)),
        )

    def unknown(self) -> str:
        """Why nobody can say how the images are; "" once everything is known."""
        return self._beginning.unknown()

    def _array(self, roster: Roster, standing: Standing, members: Sequence[api.MemberInfo]) -> api.ArrayInfo:
        return api.ArrayInfo(
            name=roster.array_name,
            id=str(roster.array),
            level=roster.level.name,
            k=roster.geometry.k,
            m=roster.geometry.m,
            state=self._state(standing).value,
            failures_tolerated=standing.failures_tolerated,
            trial=roster.trial,
            reason="; ".join(filter(None, (self.unknown(), reason_clause(standing, members)))),
        )

    def _state(self, standing: Standing) -> ArrayState:
        """What is not known yet is not healthy."""
        unsure = standing.state == ArrayState.HEALTHY and self.unknown()
        return ArrayState.DEGRADED if unsure else standing.state

    def is_healthy(self) -> bool:
        """No repair is needed: every slot online, every segment complete, and all of them known."""
        return self._beginning.over and self._state(self._store.standing()) == ArrayState.HEALTHY

    def _slot_rows(self, roster: Roster) -> list[api.MemberInfo]:
        return [self.member(entry) for slot in roster.slots() for entry in roster.slot_entries(slot)]

    def member(self, entry: RosterEntry) -> api.MemberInfo:
        """One row."""
        member = self._membership.member(entry.member)
        state = self._membership.state(entry.member)
        space = None if member is None else member.space
        there = member is not None and member.present and space is not None
        return api.MemberInfo(
            slot=entry.slot,
            state=state.value,
            path="" if member is None else _valid(member.path),
            uuid=str(entry.member),
            bay=entry.bay,
            size_bytes=space.size_bytes if space is not None else entry.size or None,
            used_bytes=space.size_bytes - space.free_bytes if there and space is not None else None,
            errors=0 if member is None else member.errors,
            since=None if member is None else rfc3339(member.since),
            reason=self._membership.presence(entry.member).reason,
            model=entry.model,
            serial=entry.serial,
            filesystem="" if member is None else member.filesystem,
        )

    def member_of(self, uuid: UUID) -> api.MemberInfo:
        """The row of a member that is in the roster."""
        return self.member(self._membership.roster.entry(uuid))

    def _capacity(self, counts: Counts) -> api.CapacityInfo:
        """Room for images at the target geometry. The least free member limits a full-width array."""
        roster = self._membership.roster
        places = [place for place in self._membership.places() if place.up]
        if not places:
            return api.CapacityInfo()
        reserve = self._membership.reserve_percent
        usable = [max(0, p.free_bytes - int(p.size_bytes * reserve / 100)) for p in places]
        n = min(roster.geometry.n, len(places))
        raw = n * min(usable) if n == len(places) else sum(usable)
        free = raw * roster.geometry.k // roster.geometry.n
        left = free * counts.images // counts.bytes if counts.bytes else None
        return api.CapacityInfo(free_bytes=free, images_left=left)

    def rebuild(self) -> api.RebuildStatus:
        """`raidctl rebuild status`."""
        return api.RebuildStatus(
            priority=self._repairs.priority,
            paused=self._paused(),
            segments_waiting=self._repairs.queued(),
            activities=self._activities(),
            skipped=[f"segment {segment} cannot be mended now" for segment in self._repairs.skipped()],
        )

    def _activities(self) -> list[api.Activity]:
        beginning = self._beginning.activity()
        rebuilds = [activity_of(progress) for progress in self._repairs.progress()]
        return rebuilds if beginning is None else [beginning, *rebuilds]

    def _paused(self) -> bool:
        return self._repairs.pace.priority == "pause"


def _valid(path: str) -> str:
    """A mount's name may be any bytes; what goes over the socket is text."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def activity_of(progress: Progress) -> api.Activity:
    """A rebuild as an activity."""
    return api.Activity(
        kind=progress.kind,
        slot=progress.slot,
        progress=min(1.0, progress.bytes_done / progress.bytes_total) if progress.bytes_total else 0.0,
        bytes_done=progress.bytes_done,
        bytes_total=progress.bytes_total,
        rate_mib_s=progress.rate_bytes_s / (1 << 20),
        eta_s=progress.eta_s,
        paused=progress.paused,
    )


def _images(counts: Counts) -> api.ImagesInfo:
    return api.ImagesInfo(
        count=counts.images,
        studies=counts.studies,
        bytes=counts.bytes,
        raw_bytes=counts.raw_bytes,
        unprotected=counts.unprotected_images,
        unreadable=counts.unreadable_images,
    )
