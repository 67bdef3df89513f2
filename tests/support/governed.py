"""The parts of the daemon above an array, without its threads: view, administration, service over a `SmallArray`.

governed = Governed(SmallArray(tmp_path), tmp_path)
governed.administration.offline(1, "anna")
governed.journal == [("anna", "offline", (…,), {"slot": 1})]
governed.folder("new")                    a blank folder that may become a member
"""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from raidd import api
from raidd.array.member_disk import MemberDisk
from raidd.daemon.administration import Administration
from raidd.daemon.beginning import Beginning
from raidd.daemon.service import Service
from raidd.daemon.view import View
from raidd.errors import StateDirFaulty
from raidd.inbox.batch import Ingest
from raidd.inbox.custody import Custody
from raidd.inbox.folders import inbox_root
from raidd.inbox.watch import Watcher
from tests.support.arrays import SmallArray

Entry = tuple[str, str, tuple[str, ...], dict[str, object]]


STILL_PASSES = 10


class Governed:
    """See the module. What would be told to others is kept in lists."""

    def __init__(self, array: SmallArray, home: Path, *, beginning: Beginning | None = None) -> None:
        self.array, self.home = array, home
        self.journal: list[Entry] = []
        self.changes = 0
        self.given_up: list[StateDirFaulty] = []
        self.locked: list[str] = []
        self.let_go: list[UUID] = []
        array.membership.let_go = self.let_go.append
        self.beginning = beginning or Beginning(reindexing=False, over=True)
        self.view = View(array.store, array.parts.repairs, self.beginning)
        self.administration = Administration(
            array.config,
            array.store,
            self.view,
            lock_disk=self._lock,
            journal=self._journal,
            changed=self._changed,
            give_up=self.given_up.append,
        )
        roots = (inbox_root(array.config.raidd.inbox),)
        array.config.raidd.inbox.mkdir(exist_ok=True)
        self.watcher = Watcher(roots, 0.0, listen=False)
        self.ingest = Ingest(array.store, self.watcher, Custody(roots), image_max_bytes=1 << 30)
        self.service = Service(
            array.store,
            self.view,
            array.parts.repairs,
            self.ingest,
            self.administration,
            self.beginning,
            self._journal,
        )

    def folder(self, name: str) -> Path:
        """A blank folder."""
        made = self.home / name
        made.mkdir()
        return made

    def status(self) -> api.Status:
        return self.service.status()

    def row(self, slot: int) -> api.MemberInfo:
        """The last row of a slot."""
        return [row for row in self.status().members if row.slot == slot][-1]

    def take_in(self) -> None:
        """Everything that lies in the inbox, as the two threads do."""
        self.ingest.idle_once()
        still = 0
        while still < STILL_PASSES:  # batches are paced: nothing to do now does not mean nothing to do soon
            moved = self.ingest.prepare_once(0.02) or self.ingest.commit_once(0.0)
            still = 0 if moved else still + 1

    def _lock(self, disk: MemberDisk) -> None:
        self.locked.append(disk.path)

    def _journal(self, actor: str, action: str, objects: tuple[str, ...], detail: dict[str, object]) -> None:
        self.journal.append((actor, action, objects, detail))

    def _changed(self) -> None:
        self.changes += 1
