"""What every member carries besides shards: the journal, the settings, README.txt and recover.py.

The journal is replicated behind the commits, not within them: what it says of images can be read off the shards,
and a flush more for every commit would cost a third of the speed. What cannot be read off shards (a purge) is
replicated before it is acted on; `replicate_once` then is called by whoever needs it.

Everything is compared before it is written, so that a start costs reads only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from uuid import UUID

from raidd.array.catalog import Catalog
from raidd.array.journal import Head, JournalDamaged, replica_head, replicate, set_newest_aside
from raidd.array.member_disk import FileNotThere, MemberDisk
from raidd.array.members import Member
from raidd.array.membership import Membership
from raidd.array.replicas import learn
from raidd.errors import FATAL, RaiddError

LOG = logging.getLogger(__name__)
PAGE = 1000
"""Journal entries read and appended at a time."""


class Replicator:
    """Brings each member's journal and papers up to date. One thread at a time."""

    def __init__(
        self, catalog: Catalog, membership: Membership, papers: Mapping[str, bytes], now: Callable[[], str]
    ) -> None:
        self._catalog, self._membership, self._now = catalog, membership, now
        self._papers = dict(papers)
        self._replicated: dict[UUID, int] = {}
        self._furnished: set[UUID] = set()
        self._merged = False
        self.on_branch: Callable[[Member], None] = lambda _member: None
        """A member's journal tells what the catalog has never known: so may its shards."""

    def replicate_once(self) -> bool:
        """Append what is new to every member that is there. True while there is more, and it goes on: a member that
        could not take it (a full one stays) is tried again the next time, not at once."""
        head, _digest = self._catalog.journal_head()
        for member in self._membership.present_members():
            if member.uuid not in self._furnished:
                self._try(member, self.furnish)
        behind = [m for m in self._membership.present_members() if self._replicated.get(m.uuid, -1) < head]
        took = [member for member in behind if self._try(member, self._append)]
        merged, self._merged = self._merged, False
        return merged or any(self._replicated[member.uuid] < head for member in took)

    def _try(self, member: Member, work: Callable[[Member], None]) -> bool:
        """Whether it worked. A member that fails has been judged; it is looked at again when it is back."""
        try:
            work(member)
        except FATAL:
            raise
        except RaiddError as error:
            LOG.warning("%s: %s", member.path, error.message)
            self.forget(member.uuid)
            return False
        return True

    def forget(self, member: UUID) -> None:
        """The member was away: what its replica holds has to be read again."""
        self._replicated.pop(member, None)
        self._furnished.discard(member)

    def use(self, papers: Mapping[str, bytes]) -> None:
        """New papers (changed settings, another roster): every member gets them."""
        self._papers = dict(papers)
        self._furnished.clear()

    def _append(self, member: Member) -> None:
        known = self._replicated.get(member.uuid)
        if known is None:
            known = self._rejoin(member)
        entries = self._catalog.journal_after(known, PAGE)
        if entries:
            member.call("probe", lambda disk, _c: replicate(disk, entries))
            known = entries[-1].sequence
        self._replicated[member.uuid] = known

    def _rejoin(self, member: Member) -> int:
        """Where the replica goes on. Files that are damaged, or of another branch, are kept aside, the newest first,
        once the catalog has learned what only they tell."""
        head = self._end_of(member)
        if head is None or not self._catalog.journal_goes_through(head):
            if head is not None and not self._catalog.journal_holds(head):
                self.on_branch(member)  # before it is known: else nobody would look for what else this disk knows
            self._merged |= learn(self._catalog, member, self._now()) > 0
        while head is None or not self._catalog.journal_goes_through(head):
            if not member.call("probe", lambda disk, _c: set_newest_aside(disk, self._now())):
                return 0
            head = self._end_of(member)
        return head[0]

    def _end_of(self, member: Member) -> Head | None:
        """The last entry of the member's replica; None when it is damaged."""
        try:
            return member.call("probe", lambda disk, _c: replica_head(disk))
        except JournalDamaged as error:
            LOG.warning("%s", error.message)
            return None

    def furnish(self, member: Member) -> None:
        """Put the papers that are missing or old onto a member that is there."""
        papers = self._papers
        member.call("probe", lambda disk, _c: furnish(disk, papers))
        if papers is self._papers:  # else there are newer ones already
            self._furnished.add(member.uuid)


def furnish(disk: MemberDisk, papers: Mapping[str, bytes]) -> None:
    """Write each paper that the disk does not have in this very form."""
    for path, data in papers.items():
        try:
            same = disk.read(path) == data
        except FileNotThere:
            same = False
        if not same:
            disk.replace(path, data)
