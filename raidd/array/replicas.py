"""What the members' replicas tell of the journal: the catalog's own chain made again, and branches tied into it.

A branch comes to be when state_dir was lost, or put back from a backup, while a disk was away that knew more: two
journals went on from the same entry. The chain that goes on the furthest is ours; of every other, entries that ours
does not hold are *merged*: what they purged stays purged, also when the disk that tells of it comes back last.

Bounded: a day file an operation, under the member's deadline; in memory one day, and of a branch its own entries.
What cannot be read of a replica is left out, never a reason to stop; the members' other replicas tell the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

from raidd.array.catalog import Catalog
from raidd.array.journal import (
    GENESIS,
    Head,
    JournalDamaged,
    JournalEntry,
    day_files,
    read_day,
    replica_head,
    whole_entries,
)
from raidd.array.member_disk import MemberDisk
from raidd.array.members import Member
from raidd.array.worker import Cancel
from raidd.errors import FATAL, RaiddError

T = TypeVar("T")
LOG = logging.getLogger(__name__)


def restore(catalog: Catalog, members: Iterable[Member], now: Callable[[], str]) -> None:
    """Give a new catalog the longest chain that a member holds, and what only other branches tell."""
    heads = {member: _head_of(member) for member in members if member.present}
    ordered = sorted(heads, key=lambda member: heads[member], reverse=True)
    before = None
    while before != catalog.journal_head():  # where one replica is damaged another goes on, and the first after it
        before = catalog.journal_head()
        for member in ordered:
            if not catalog.journal_goes_through(heads[member]):
                _try(member, lambda one: _follow(catalog, one))
    for member in ordered:
        _try(member, lambda one: learn(catalog, one, now()))


def _try(member: Member, work: Callable[[Member], object]) -> None:
    try:
        work(member)
    except FATAL:
        raise
    except RaiddError as error:
        LOG.warning("the journal on %s cannot be read: %s", member.path, error.message)


def _head_of(member: Member) -> Head:
    """Where the member's replica ends; the genesis when that cannot be told."""
    try:
        return member.call("probe", _plain(replica_head))
    except RaiddError:
        return GENESIS


def _follow(catalog: Catalog, member: Member) -> None:
    """Go on with the member's entries as far as they follow the catalog's head."""
    for path in member.call("probe", _plain(day_files)):
        try:
            entries = member.call("probe", _plain(partial(_a_day, path, read_day)))
        except JournalDamaged as error:
            LOG.warning("%s", error.message)
            continue
        sequence, digest = catalog.journal_head()
        fresh = [entry for entry in entries if entry.sequence > sequence]
        if fresh and fresh[0].previous != digest:
            return  # another branch, or entries between are lost here
        if fresh:
            catalog.restore_journal(fresh)


def learn(catalog: Catalog, member: Member, now: str) -> int:
    """Merge what only the member's replica tells; how many entries that were. Reads no more than the branch is long."""
    strays = list(_strays(catalog, member))
    if strays:
        LOG.warning("%s tells %d entries of another branch of the journal", member.path, len(strays))
        catalog.merge_journal(sorted(strays, key=lambda entry: entry.head), now)
    return len(strays)


def _strays(catalog: Catalog, member: Member) -> Iterator[JournalEntry]:
    """Entries that the catalog's journal does not hold, back to where the branch begins."""
    for path in reversed(member.call("probe", _plain(day_files))):
        for entry in reversed(member.call("probe", _plain(partial(_a_day, path, whole_entries)))):
            if catalog.journal_goes_through(entry.head):
                return
            if not catalog.journal_holds(entry.head):
                yield entry


def _a_day(path: str, read: Callable[[MemberDisk, str], T], disk: MemberDisk) -> T:
    return read(disk, path)


def _plain(work: Callable[[MemberDisk], T]) -> Callable[[MemberDisk, Cancel], T]:
    return lambda disk, _cancel: work(disk)
