"""An array on plain folders, opened in this process the way the daemon opens it: labels, locks and starts are real.

with real_folders(tmp_path) as array:      `raidctl init` on six folders, then the daemon's own start, no threads
    array.put({"1.2.3": data}); array.close(); …damage a label…; array.open()
    array.probe()                          one round of the probe, and the welcome of whom it found
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from raidd import config as settings
from raidd.array.members import Member
from raidd.codec.manifest import ManifestImage
from raidd.config import Config
from raidd.daemon import graph, offline
from raidd.daemon.opening import now_text, open_array


class RealFolders:
    """``mounts``: where the members lie, by slot. Open after it was made."""

    def __init__(self, home: Path, members: int) -> None:
        self.home = home
        self.mounts = [home / f"disk{number}" for number in range(members)]
        for mount in self.mounts:
            mount.mkdir(parents=True)
        self.config_path = home / "raidd.toml"
        self.config_path.write_text(
            f'[raidd]\nstate_dir = "{home}/state"\nrun_dir = "{home}/run"\ninbox = "{home}/inbox"\n'
            f'spool = "{home}/spool"\n[health]\ndeadline_s = 10\n[capacity]\nstate_reserve_mib = 0\n'
        )
        options = ["--name", "test", "--config", str(self.config_path), "--allow-same-device", "--allow-filesystem"]
        assert offline.main(["init", *options, *map(str, self.mounts)]) == 0
        self.events: list[str] = []
        self.parts: graph.Array | None = None
        self.open()

    @property
    def config(self) -> Config:
        return settings.load(self.config_path)

    def open(self) -> None:
        """What the daemon does at a start, before its threads."""
        opened = open_array(self.config)
        self.parts = graph.build_array(opened, lambda _source, _sha256: False, self._event)
        graph.make_whole(self.parts)
        self.prober = graph.make_probe(self.parts)
        self.prober.recent_write_s = 0.0

    def close(self) -> None:
        """A clean stop."""
        if self.parts is None:
            return
        opened = self.parts.opened
        opened.membership.remember(stopping=True)
        for member in opened.membership.members():
            member.close()
        opened.catalog.close()
        opened.locks.unlock_all()
        self.parts = None

    def _event(self, code: str, _severity: str, message: str, _objects: Sequence[str]) -> None:
        self.events.append(f"{code}: {message}")

    @property
    def array(self) -> graph.Array:
        assert self.parts is not None
        return self.parts

    def probe(self) -> None:
        """One round, and the welcome of everyone it found."""
        self.prober.probe_once()
        while not self.array.arrived.empty():
            graph.welcome_once(self.array)

    def member(self, slot: int) -> Member:
        """Who fills the slot at run time."""
        membership = self.array.opened.membership
        member = membership.member(membership.roster.slot_entry(slot).member)
        assert member is not None
        return member

    def folder(self, slot: int) -> Path:
        """`raidd-<uuid>` of the slot's member."""
        return next(self.mounts[slot].glob("raidd-*"))

    def label(self, slot: int) -> Path:
        return self.folder(slot) / "label.json"

    def uuid(self, slot: int) -> UUID:
        return UUID(self.folder(slot).name.removeprefix("raidd-"))

    def put(self, images: Mapping[str, bytes]) -> None:
        """One protected batch."""
        store = self.array.store
        draft = store.draft(5.0)
        assert draft is not None
        used, entries = 0, []
        for uid, data in images.items():
            draft.buffer[used : used + len(data)] = data
            digest = hashlib.sha256(data).hexdigest()
            entries.append(
                ManifestImage(
                    image=store.new_image_id(),
                    sop_instance_uid=uid,
                    version=1,
                    offset=used,
                    length=len(data),
                    image_offset=0,
                    part_sha256=digest,
                    size=len(data),
                    sha256=digest,
                    received_at=now_text(),
                    source=f"inbox:{uid}",
                    identity={},
                )
            )
            used += len(data)
        try:
            assert store.commit(draft, used, entries).protected
        finally:
            draft.discard()

    def read(self, uid: str) -> bytes:
        (row,) = self.array.store.versions(uid)
        return b"".join(self.array.store.read(row))


@contextmanager
def real_folders(home: Path, members: int = 6) -> Iterator[RealFolders]:
    """An open array; closed at the end if it is open then."""
    array = RealFolders(home, members)
    try:
        yield array
    finally:
        array.close()
