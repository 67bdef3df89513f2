"""A whole array in memory: real store, real catalog on disk, members that can fail, hang, lose power and come back.

    array = SmallArray(tmp_path, members=6)          raid6, 4+2, every disk a FaultyDisk over a MemoryDisk
    receipt = array.put({"1.2.3": b"bytes"})         one batch
    array.read("1.2.3") == b"bytes"
    array.restart() / array.crash(seed) / array.lose_catalog()

`crash_at(step)` makes the process die at the step-th call to any member or hook from now on: everything after that
raises SimulatedCrash, whoever calls.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from uuid import UUID, uuid4

from raidd.array.catalog import Catalog, ImageRow
from raidd.array.commit import Receipt
from raidd.array.label import Label, choose_roster, label_for
from raidd.array.members import Member
from raidd.array.membership import Membership
from raidd.array.roster import MemberState, Roster, RosterEntry, new_roster
from raidd.array.state_file import Remembered, StateFile
from raidd.array.store import Draft
from raidd.codec.geometry import Level, default_level, level_geometry
from raidd.codec.manifest import ManifestImage
from raidd.config import Config, parse
from raidd.daemon import graph
from raidd.daemon.opening import Locks, Opened, _behind, now_text
from raidd.errors import CatalogUnusable, RaiddError
from tests.support.faulty_disk import Call, FaultyDisk, SimulatedCrash
from tests.support.memory_disk import MemoryDisk

DEADLINE_S = 0.5


class CrashGate:
    """Counts the steps of all members; from the chosen one on the process is dead."""

    def __init__(self) -> None:
        self.steps = 0
        self.at: int | None = None
        self.dead = False
        self.log: list[str] = []
        self._lock = threading.Lock()

    def step(self, name: str) -> None:
        """One more step; SimulatedCrash once the process has died."""
        with self._lock:
            self.steps += 1
            self.log.append(name)
            if self.at is not None and self.steps >= self.at:
                self.dead = True
        if self.dead:
            raise SimulatedCrash(name)


class SmallArray:
    """See the module. ``disks``: by member id; ``events``: (code, severity, message)."""

    def __init__(
        self, folder: Path, members: int = 6, level: Level | None = None, *, seed: int = 1, capacity: int | None = None
    ) -> None:
        self.folder = folder
        self.state_dir = folder / "state"
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self.random = Random(seed)
        self.config = _config(folder)
        self.events: list[tuple[str, str, str]] = []
        self.offers: dict[str, str] = {}
        self.gate = CrashGate()
        self.memory = [MemoryDisk(path=f"/m/{i}", capacity_bytes=capacity) for i in range(members)]
        self.roster = self._found(level or Level(default_level(members)), members)
        self.lost: set[UUID] = set()
        self.start()

    def _found(self, level: Level, members: int) -> Roster:
        entries = [RosterEntry(disk.uuid, None, MemberState.SPARE, size=1 << 40) for disk in self.memory]
        roster = new_roster(uuid4(), "test", level, level_geometry(level, members), entries)
        for disk in self.memory:
            disk.put("label.json", label_for(disk.uuid, roster).pack())
        StateFile(self.state_dir).save(Remembered(roster, {d.uuid: d.path for d in self.memory}))
        return roster

    # -- start, stop, crash -------------------------------------------------------------------------------

    def start(self) -> None:
        """What the daemon does at a start, with disks in memory."""
        self.gate = CrashGate()
        self.disks = {disk.uuid: FaultyDisk(disk) for disk in self.memory}
        for disk in self.disks.values():
            disk.on_call = self._step
        remembered = StateFile(self.state_dir).load()
        assert remembered is not None
        labels = [Label.parse(d.read("label.json")) for d in self.memory if d.uuid not in self.lost]
        self.roster = choose_roster(labels, remembered=remembered.roster)
        members = [self._member(e.member) for e in self.roster.entries if e.state != MemberState.RETIRED]
        catalog, because = self._catalog(members)
        membership = Membership(
            catalog, StateFile(self.state_dir), self.roster, members, reserve_percent=1, up_at_stop=frozenset()
        )
        membership.set_roster(self.roster)
        opened = Opened(self.config, Locks(), catalog, membership, because, self.random)
        self.parts = graph.build_array(opened, self._offered, self._event)
        self.catalog, self.membership, self.store = catalog, membership, self.parts.store
        graph.make_whole(self.parts)

    def _step(self, call: Call) -> None:
        self.gate.step(f"{call.operation} {call.path}")

    def _member(self, uuid: UUID) -> Member:
        here = uuid in self.disks and uuid not in self.lost
        disk = self.disks.get(uuid) or FaultyDisk(MemoryDisk(uuid, born=False))
        return Member(disk, deadline_s=DEADLINE_S, clock=time.monotonic, present=here, reason="" if here else "lost")

    def _catalog(self, members: Sequence[Member]) -> tuple[Catalog, str]:
        path = self.state_dir / "catalog.sqlite"
        because = "" if path.exists() else "there was none"
        if not because:
            try:
                catalog = Catalog.open(path, array=self.roster.array)
                because = _behind(catalog, members)
                if not because:
                    return catalog, ""
                catalog.close()
            except CatalogUnusable as error:
                because = error.message
            Catalog.set_aside(path, now_text())
        return Catalog.open(path, array=self.roster.array), because

    def _offered(self, source: str, sha256: str | None) -> bool:
        return source in self.offers and (sha256 is None or self.offers[source] == sha256)

    def _event(self, code: str, severity: str, message: str, _objects: Sequence[str]) -> None:
        self.events.append((code, severity, message))

    def stop(self) -> None:
        """Let go of the catalog; the workers are left to end by themselves."""
        for member in self.membership.members():
            member.close()
        self.catalog.close()

    def restart(self) -> None:
        """A clean stop and a start."""
        self.membership.remember(stopping=True)
        self.stop()
        self.start()

    def crash(self, seed: int | None = None, *, power: bool = True) -> None:
        """kill -9 (``power``: and a power cut on every member), then a start."""
        self.gate.dead, self.gate.at = True, 0
        self.stop()
        if power:
            for number, disk in enumerate(self.memory):
                disk.power_cut(None if seed is None else seed + number)
        self.start()

    def lose_catalog(self) -> None:
        """Stop, delete the catalog, start."""
        self.stop()
        for path in self.state_dir.glob("catalog.sqlite*"):
            path.unlink()
        self.start()

    def save_catalog(self) -> Path:
        """A backup of the catalog as it is now."""
        self.stop()
        copy = self.folder / "backup"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.state_dir, copy)
        self.start()
        return copy

    def put_back_catalog(self, copy: Path) -> None:
        """Restore an old catalog from a backup."""
        self.stop()
        for path in self.state_dir.glob("catalog.sqlite*"):
            path.unlink()
        for path in copy.glob("catalog.sqlite*"):
            shutil.copy2(path, self.state_dir / path.name)
        self.start()

    # -- members ------------------------------------------------------------------------------------------

    def uuid(self, slot: int) -> UUID:
        """Who fills the slot."""
        return self.membership.roster.slot_entry(slot).member

    def disk(self, slot: int) -> FaultyDisk:
        """Its disk."""
        return self.disks[self.uuid(slot)]

    def lose(self, slot: int, reason: str = "pulled") -> None:
        """The disk is away, also after a restart."""
        uuid = self.uuid(slot)
        self.lost.add(uuid)
        member = self.membership.member(uuid)
        assert member is not None
        member.leave(reason)

    def bring_back(self, slot: int) -> None:
        """It is back: what the probe and the welcome do."""
        uuid = self.uuid(slot)
        self.lost.discard(uuid)
        member = self.membership.member(uuid)
        assert member is not None
        disk = self.disks.setdefault(uuid, FaultyDisk(next(d for d in self.memory if d.uuid == uuid)))
        disk.on_call = self._step
        disk.inner.replace("label.json", label_for(uuid, self.membership.roster).pack())
        member.disk = disk
        member.arrive()
        while not self.parts.arrived.empty():
            graph.welcome_once(self.parts)

    def repair_all(self) -> None:
        """Until there is nothing that could be mended now."""
        for _ in range(10_000):
            if not self.parts.repairs.work_once():
                return
        raise AssertionError("repairs do not end")

    # -- images -------------------------------------------------------------------------------------------

    def put(self, images: Mapping[str, bytes], *, replaces: Sequence[UUID] = (), version: int = 1) -> Receipt:
        """One batch of these images (UID → bytes)."""
        draft = self.store.draft(5.0)
        assert draft is not None
        try:
            return self._commit(draft, images, replaces, version)
        finally:
            draft.discard()

    def _commit(self, draft: Draft, images: Mapping[str, bytes], replaces: Sequence[UUID], version: int) -> Receipt:
        used, entries = 0, []
        for uid, data in images.items():
            draft.buffer[used : used + len(data)] = data
            entries.append(self.entry(uid, data, used, version))
            used += len(data)
        return self.store.commit(draft, used, entries, replaces)

    def entry(self, uid: str, data: bytes, offset: int, version: int = 1) -> ManifestImage:
        """The manifest's line for an image that is whole in this segment."""
        digest = hashlib.sha256(data).hexdigest()
        self.offers.setdefault(f"inbox:{uid}", digest)
        return ManifestImage(
            image=self.store.new_image_id(),
            sop_instance_uid=uid,
            version=version,
            offset=offset,
            length=len(data),
            image_offset=0,
            part_sha256=digest,
            size=len(data),
            sha256=digest,
            received_at=now_text(),
            source=f"inbox:{uid}",
            identity={"patient_name": f"Owner^{uid}"},
        )

    def row(self, uid: str, version: int | None = None) -> ImageRow:
        """The catalog's row; AssertionError if there is none."""
        row = self.catalog.image(uid, version, away=self.membership.away())
        assert row is not None, f"{uid} is not in the catalog"
        return row

    def read(self, uid: str, version: int | None = None) -> bytes:
        """The image's bytes, verified. RaiddError if it cannot be had."""
        row = self.row(uid, version)
        data = b"".join(self.store.read(row))
        assert hashlib.sha256(data).hexdigest() == row.sha256
        return data

    def readable(self, uid: str) -> bool:
        """Whether it can be read now."""
        try:
            self.read(uid)
        except RaiddError:
            return False
        return True


def _config(folder: Path) -> Config:
    text = (
        f'[raidd]\nstate_dir = "{folder}/state"\nrun_dir = "{folder}/run"\ninbox = "{folder}/inbox"\n'
        f'spool = "{folder}/spool"\n[health]\ndeadline_s = {DEADLINE_S}\n[capacity]\nstate_reserve_mib = 0\n'
    )
    return parse(text)
