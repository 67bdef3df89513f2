"""The object graph: every part made once and tied to the others, here and nowhere else.

`build_array` takes an open array (opening.py) and gives the running parts; it starts no thread. What loops is listed in
`Daemon._start` (main.py): the supervisor gives each a thread. What happens when a member leaves or comes back is told
in one place, `_member_changed` and `welcome_once`.
"""

from __future__ import annotations

import logging
import queue
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from raidd.array.adoption import Adoption
from raidd.array.commit import Committer
from raidd.array.discovery import MountSearch
from raidd.array.heads import Damage
from raidd.array.host import filesystem
from raidd.array.local_disk import LocalDisk
from raidd.array.member_disk import MemberDisk
from raidd.array.members import Member
from raidd.array.reading import Reader
from raidd.array.replication import Replicator
from raidd.array.roster import MemberState
from raidd.array.store import Store
from raidd.array.worker import Cancel
from raidd.config import Config
from raidd.daemon.opening import NOT_KEPT_OPEN, Opened, now_ms, now_text, rebuild_catalog
from raidd.daemon.papers import papers
from raidd.errors import FATAL, MemberAway, RaiddError
from raidd.health.probe import Probe
from raidd.repair.jobs import Repairs
from raidd.repair.pace import Pace
from raidd.repair.rebuild import Rebuilder, try_repair

LOG = logging.getLogger(__name__)
BUSY_S = 2.0
"""Images came in within this time: repairs keep to their pace."""
FIND_S = 3.0
MEND_S = 5.0
"""How long a start mends what can be mended at once, before images are taken in."""
NEWCOMER = "a newcomer"

Event = Callable[[str, str, str, Sequence[str]], None]


@dataclass(slots=True)
class Array:
    """The parts of an open array that work without the inbox: what assemble and reindex need, too."""

    opened: Opened
    committer: Committer
    reader: Reader
    rebuilder: Rebuilder
    repairs: Repairs
    adoption: Adoption
    store: Store
    replicator: Replicator
    arrived: queue.SimpleQueue[Member | None]
    shard_errors: Counter[str]


def build_array(opened: Opened, offered: Callable[[str, str | None], bool], event: Event) -> Array:
    """Tie the array's parts together."""
    config, catalog, membership = opened.config, opened.catalog, opened.membership
    holder: list[Repairs] = []
    shard_errors: Counter[str] = Counter()

    def absent(segment: UUID) -> None:
        holder[0].note(segment)

    def damage(segment: UUID, index: int, kind: Damage) -> None:
        shard_errors[kind] += 1
        if index not in catalog.excepted(segment) and catalog.mark(segment, index, kind):
            event("shard-damaged", "warning", f"shard {index} of segment {segment} is {kind}", [str(segment)])
            holder[0].note(segment)

    committer = Committer(catalog, membership, now=now_text, now_ms=now_ms, random=opened.random, on_absent=absent)
    reader = Reader(catalog, membership, damage)
    rebuilder = Rebuilder(catalog, membership, reader, now=now_text, on_event=event)
    adoption = Adoption(
        catalog,
        membership,
        now=now_text,
        offered=offered,
        in_flight=committer.in_flight,
        on_absent=absent,
        on_event=event,
    )
    store = Store(
        catalog,
        membership,
        committer,
        reader,
        state_dir=config.raidd.state_dir,
        state_reserve_bytes=config.capacity.state_reserve_mib << 20,
        now_ms=now_ms,
        random=opened.random,
        repair_now=lambda segment: (outcome := try_repair(rebuilder, segment)) is not None and outcome.whole,
        event=event,
    )
    repairs = Repairs(catalog, membership, rebuilder, pace_of(config), busy=lambda: store.busy(BUSY_S))
    holder.append(repairs)
    replicator = Replicator(catalog, membership, papers(membership.roster, config.path), now_text)
    array = Array(
        opened, committer, reader, rebuilder, repairs, adoption, store, replicator, queue.SimpleQueue(), shard_errors
    )
    membership.on_change = lambda member: _member_changed(array, member, event)
    membership.on_retired = rebuilder.on_forgotten = lambda: array.arrived.put(None)
    replicator.on_branch = lambda member: _distrust(array, member)
    return array


def pace_of(config: Config) -> Pace:
    """The repair pace that the settings ask for."""
    repair = config.repair
    return Pace(repair.priority, repair.floor_mib_s, repair.rate_mib_s)  # type: ignore[arg-type]


def make_whole(
    array: Array,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    restored: Callable[[], None] = lambda: None,
) -> None:
    """At a start: the catalog, if it has to be made again; then leftovers; then what of these can be mended at once.

    Ingest begins after this: an image whose commit a crash interrupted is known before its original is met again."""
    array.adoption.sweep()
    if array.opened.reindex_because:
        rebuild_catalog(array.opened, array.adoption, progress, restored)
    for member in array.opened.membership.present_members():
        _look_through(array, member)
    settled = array.adoption.settle(stale_ids(array))
    if settled.adopted or settled.cleared or settled.quarantined or settled.kept:
        LOG.warning("leftovers of the last run: %s", settled)
    array.repairs.look_again()
    until = time.monotonic() + MEND_S
    for segment in array.repairs.due():
        if time.monotonic() >= until:
            return  # images wait for this; the repairs' own thread goes on with the rest
        try_repair(array.rebuilder, segment)


def _look_through(array: Array, member: Member) -> None:
    try:
        array.adoption.look_through(member)
    except FATAL:
        raise
    except RaiddError as error:
        LOG.warning("%s: %s", member.path, error.message)


def _distrust(array: Array, member: Member) -> None:
    array.adoption.distrust(member.uuid)
    array.arrived.put(member)


def tell_absent(array: Array, event: Event) -> None:
    """At a start: who was not found. Those taken offline are where they should be."""
    for member in array.opened.membership.members():
        if array.opened.membership.state(member.uuid) == MemberState.MISSING:
            _tell_away(array, member, event)


def _member_changed(array: Array, member: Member, event: Event) -> None:
    """Runs on whatever thread noticed: only tells and queues."""
    slot = _slot(array, member)
    if member.present:
        if slot != NEWCOMER:  # that one is journaled with who asked for it
            event("member-back", "info", f"{slot} ({member.path}) is back", [str(member.uuid)])
        array.arrived.put(member)
        return
    _tell_away(array, member, event)


def _tell_away(array: Array, member: Member, event: Event) -> None:
    message = f"{_slot(array, member)} ({member.path}): {member.presence.reason}"
    event("member-away", "warning", message, [str(member.uuid)])


def _slot(array: Array, member: Member) -> str:
    entry = array.opened.membership.roster.find(member.uuid)
    return NEWCOMER if entry is None else "spare" if entry.slot is None else f"slot {entry.slot}"


def welcome_once(array: Array) -> None:
    """What a member that came back needs: its papers and journal, its leftovers settled, what it missed queued."""
    try:
        member = array.arrived.get(timeout=1.0)
    except queue.Empty:
        return
    if member is None:  # one was retired: nothing waits for it any more; or a lost segment was forgotten
        array.adoption.settle(stale_ids(array))
        return
    opened = array.opened
    try:
        array.replicator.forget(member.uuid)
        opened.membership.remember()
        _look_through(array, member)
        array.adoption.settle(stale_ids(array))
        array.repairs.note_member(member.uuid)
    except FATAL:
        raise
    except RaiddError as error:
        LOG.warning("%s came and went: %s", member.path, error.message)


def stale_ids(array: Array) -> list[UUID]:
    """Reserved ids that this process will never hand out, or has given up: of these, shards may lie about."""
    return sorted(set(array.opened.catalog.reserved()) - array.opened.catalog.unused())


def make_probe(array: Array) -> Probe:
    """The probe, with how a member that is away is found again."""
    opened, search = array.opened, MountSearch()
    return Probe(
        opened.membership,
        open_disk=lambda member: find_again(search, opened.config, member),
        lock=lambda disk, cancel: _lock(opened, disk, cancel),
        unlock=opened.locks.drop,
        filesystem_of=lambda disk: filesystem(disk.path),
        recent_write_s=opened.config.health.probe_interval_s,
    )


def _lock(opened: Opened, disk: MemberDisk, cancel: Cancel) -> None:
    """On the member's own thread. A failed member comes back unlocked: it may be taken out at any time."""
    if opened.membership.state(disk.uuid) not in NOT_KEPT_OPEN:
        opened.locks.take(disk, cancel)


def find_again(search: MountSearch, config: Config, member: Member) -> MemberDisk:
    """Where it was last, else on any mount of the host. MemberAway if nowhere."""
    disk = LocalDisk(member.path, member.uuid)
    try:
        disk.check()
        return disk
    except MemberAway:
        path = search.find(member.uuid, min(FIND_S, config.health.deadline_s))
        if path is None and not member.path:  # assembled without it
            raise MemberAway("it has not been seen on this machine", member=str(member.uuid)) from None
        if path is None:
            raise
        return LocalDisk(path, member.uuid)
