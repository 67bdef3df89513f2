"""Opening an array: locks, labels, roster, catalog, leftovers. The same way for the daemon, assemble and reindex.

    state_dir's lock -> members found by id and label -> the roster that counts -> their locks
        -> the catalog, or a new one from the members -> labels brought up to date -> leftovers settled

Nothing here waits for a hung disk longer than the deadline: what does not answer is away, and comes back through the
probe. A catalog that is corrupt, newer, or behind the members is set aside (renamed, never deleted) and made again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random, SystemRandom
from typing import TypeVar
from uuid import UUID

from raidd.array import replicas
from raidd.array.adoption import Adoption
from raidd.array.catalog import Catalog
from raidd.array.catalog_takeover import take_over
from raidd.array.discovery import Sighting, discover, newest_segment
from raidd.array.journal import Head, JournalDamaged, replica_head
from raidd.array.label import Label, choose_roster
from raidd.array.local_disk import LocalDisk
from raidd.array.lock import ArrayLock
from raidd.array.member_disk import MemberDisk
from raidd.array.members import NOT_FOUND, Member
from raidd.array.membership import Membership
from raidd.array.roster import MemberState, Roster, RosterEntry
from raidd.array.state_file import Remembered, StateFile
from raidd.array.worker import Cancel, wait_all
from raidd.config import Config
from raidd.daemon.locks import Locks
from raidd.errors import ArrayLocked, CatalogUnusable, LabelInvalid, RaiddError, RequestUnknown

T = TypeVar("T")
LOG = logging.getLogger(__name__)
LOOK_S = 4.0
"""How long a start waits for a disk: the socket has to answer. One that is slower is away until the probe finds it."""
NOT_KEPT_OPEN = frozenset({MemberState.FAILED, MemberState.OFFLINE})
"""No lock is held on these: the operator may unmount them at any time (design, section 7)."""
TAKEN_OFFLINE = "taken offline by the operator"


@dataclass(slots=True)
class Opened:
    """An array that is open: everything else is built on these."""

    config: Config
    locks: Locks
    catalog: Catalog
    membership: Membership
    reindex_because: str
    random: Random


def now_ms() -> int:
    """Unix time, milliseconds."""
    return time.time_ns() // 1_000_000


def now_text() -> str:
    """RFC 3339, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def open_array(
    config: Config,
    *,
    sightings: Sequence[Sighting] | None = None,
    roster: Roster | None = None,
    fresh_catalog: str = "",
) -> Opened:
    """Open the array that state_dir remembers (or, for assemble, the one whose ``roster`` and ``sightings`` are given).

    ``fresh_catalog``: a reason to make the catalog again whatever it looks like. Raises ArrayLocked, LabelForked,
    LabelInvalid, RequestUnknown (no array here)."""
    state_dir = config.raidd.state_dir
    if not _exists(state_dir):
        raise _no_array(state_dir)
    locks = Locks()
    own = locks.take_folder(str(state_dir))
    try:
        return _open_locked(config, locks, own, sightings, roster, fresh_catalog)
    except BaseException:
        locks.unlock_all()
        raise


def _open_locked(
    config: Config,
    locks: Locks,
    own: ArrayLock,
    sightings: Sequence[Sighting] | None,
    roster: Roster | None,
    fresh_catalog: str,
) -> Opened:
    state_file = StateFile(config.raidd.state_dir)
    remembered = _remembered(config.raidd.state_dir, state_file, roster)
    if sightings is None:
        places = [(path, uuid) for uuid, path in remembered.paths.items()]
        sightings = discover(places, min(LOOK_S, config.health.deadline_s))
    chosen = choose_roster(_labels(remembered.roster.array, sightings), remembered=remembered.roster)
    members = [_member(e, chosen.array, remembered.paths, sightings, config) for e in chosen.entries if _used(e.state)]
    _lock_members([m for m in members if chosen.entry(m.uuid).state not in NOT_KEPT_OPEN], locks)
    catalog, because = _open_catalog(config, chosen, members, fresh_catalog, dead_owner=own.passed_dead)
    membership = Membership(
        catalog,
        state_file,
        chosen,
        members,
        reserve_percent=config.capacity.reserve_percent,
        up_at_stop=remembered.up_at_stop,
    )
    for member in members:
        if not member.present:
            locks.drop(member.uuid)
    membership.let_go = locks.drop
    membership.set_roster(chosen, within_s=LOOK_S)
    return Opened(config, locks, catalog, membership, because, SystemRandom())


def _remembered(state_dir: Path, state_file: StateFile, roster: Roster | None) -> Remembered:
    known = state_file.load()
    if roster is not None:
        paths = known.paths if known is not None and known.roster.array == roster.array else {}
        return Remembered(roster, paths)
    if known is None:
        raise _no_array(state_dir)
    return known


def _exists(folder: Path) -> bool:
    try:
        folder.stat()
    except FileNotFoundError:
        return False
    except OSError:
        return True  # taking its lock says what is wrong with it
    return True


def _no_array(state_dir: Path) -> RequestUnknown:
    return RequestUnknown(
        f"no array is known on this machine (state_dir is {state_dir})",
        next_step="A new array: raidctl init --name NAME MOUNT…; one whose disks are here: raidctl assemble MOUNT…",
    )


def _used(state: MemberState) -> bool:
    return state != MemberState.RETIRED


def _labels(array: UUID, sightings: Iterable[Sighting]) -> list[Label]:
    """Good labels of this array; those that are not understood are named in the log."""
    for sighting in sightings:
        if not sighting.understood:
            LOG.warning("%s: %s", sighting.path, sighting.fault)
    return [s.label for s in sightings if s.label is not None and s.label.roster.array == array]


def _member(
    entry: RosterEntry, array: UUID, paths: Mapping[UUID, str], sightings: Iterable[Sighting], config: Config
) -> Member:
    """A member at run time: present when it was seen, is of this array and may be touched.

    One whose label is damaged is, if a good shard of this array lies in its folder: `Membership.set_roster` then makes
    its label again. One whose label is not understood is left alone."""
    seen = next((s for s in sightings if s.uuid == entry.member and s.understood and s.array == array), None)
    path = seen.path if seen is not None else paths.get(entry.member, "")
    reason = "" if seen is not None else NOT_FOUND
    if entry.state == MemberState.OFFLINE:
        reason = TAKEN_OFFLINE
    return Member(
        LocalDisk(path, entry.member),
        deadline_s=config.health.deadline_s,
        clock=time.monotonic,
        present=not reason,
        reason=reason,
    )


def _lock_members(members: Iterable[Member], locks: Locks) -> None:
    """Another living owner refuses the start; a disk that fails or dawdles has left."""
    ask_in_time(members, locks.take)


def ask_in_time(members: Iterable[Member], work: Callable[[MemberDisk, Cancel], T]) -> list[tuple[Member, T]]:
    """Ask all who are there side by side, for as long as a start may take. Who fails or dawdles has left.

    Raises ArrayLocked, the one error that is not the disk's own."""
    running = [(member, member.submit("probe", work)) for member in members if member.present]
    wait_all([operation for _member, operation in running], LOOK_S)
    answers = []
    for member, operation in running:
        if not operation.settled():
            operation.cancel.cancel()
            member.leave("it did not answer at the start")
            continue
        try:
            answers.append((member, member.result(operation)))
        except ArrayLocked:
            raise
        except RaiddError as error:
            member.leave(error.message)
    return answers


# -- the catalog --------------------------------------------------------------------------------------------


def _open_catalog(
    config: Config, roster: Roster, members: Sequence[Member], fresh: str, *, dead_owner: bool = False
) -> tuple[Catalog, str]:
    """The catalog, and why it has to be made again ("" if it does not)."""
    path = config.raidd.state_dir / "catalog.sqlite"
    existed = path.exists()
    because = fresh
    if existed and not because:
        try:
            if dead_owner:
                take_over(path)
            catalog = Catalog.open(path, array=roster.array)
            because = _behind(catalog, members)
            if not because:
                if catalog.get_meta("reindexing"):
                    because = "an earlier rebuild of the catalog did not end"
                else:
                    return catalog, ""
            catalog.close()
        except CatalogUnusable as error:
            because = error.message
    if existed:
        aside = Catalog.set_aside(path, now_text())
        LOG.warning("the catalog was set aside as %s: %s", aside, because)
    catalog = Catalog.open(path, array=roster.array)
    catalog.put_meta("reindexing", True)
    return catalog, because or "there was none"


def _behind(catalog: Catalog, members: Iterable[Member]) -> str:
    """Whether members hold more than the catalog knows of: an older copy of it was put back."""
    highest = catalog.highest_id()
    for member, (newest, head) in ask_in_time(members, _newest):
        if newest is not None and (highest is None or newest > highest):
            return f"{member.path} holds segment {newest}, which is newer than any the catalog has reserved"
        if head is not None and not catalog.journal_holds(head):
            return f"the journal on {member.path} is not the catalog's (entry {head[0]})"
    return ""


def _newest(disk: MemberDisk, _cancel: Cancel) -> tuple[UUID | None, Head | None]:
    """The newest segment and the journal's last entry; a damaged journal tells nothing, and is written anew."""
    newest = newest_segment(disk)
    try:
        return newest, replica_head(disk)
    except JournalDamaged:
        return newest, None


def rebuild_catalog(
    opened: Opened,
    adoption: Adoption,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    restored: Callable[[], None] = lambda: None,
) -> None:
    """Fill a new catalog from the members' journal and heads. ``restored`` is called when the journal is whole."""
    catalog = opened.catalog
    replicas.restore(catalog, opened.membership.members(), now_text)
    restored()
    outcome = adoption.reindex(progress)
    catalog.put_meta("reindexing", None)
    catalog.append_journal(
        now_text(), "raidd", "reindex", (), detail={"reason": opened.reindex_because, "segments": outcome.adopted}
    )
    LOG.warning("the catalog was made again from the members (%s); %s", opened.reindex_because, outcome)


def refuse_strangers(sightings: Iterable[Sighting], roster: Roster) -> None:
    """For assemble: a disk whose label is not understood must not be worked around in silence."""
    for sighting in sightings:
        if not sighting.understood and roster.find(sighting.uuid) is not None:
            raise LabelInvalid(f"{sighting.path}: {sighting.fault}")
