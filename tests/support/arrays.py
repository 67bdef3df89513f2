"""A whole array in memory: real store, real catalog on disk, members that can fail, hang, lose power and come back.

    array = SmallArray(tmp_path, members=6)          raid6, 4+2, every disk a FaultyDisk over a MemoryDisk
    receipt = array.put({"1.2.3": b"bytes"})         one batch
    array.read("1.2.3") == b"bytes"
    array.restart() / array.crash(seed) / array.lose_catalog()

`gate.die_in(steps)` makes the process die at that step from now on, where a step is a call to any member, or the
beginning or end of a transaction of the catalog: everything after that raises SimulatedCrash, whoever calls. Then
`crash()` is what a person sees as the restart. Hanging calls outlive a crash, as on a real host: released later, the
one system call that hung still takes effect, and nothing after it. A power cut ends them without effect.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

from raidd.array.catalog import Catalog, ImageRow, SegmentRow
from raidd.array.commit import Receipt
from raidd.array.label import Label, choose_roster, label_for
from raidd.array.members import Member
from raidd.array.membership import Membership
from raidd.array.reading import Span
from raidd.array.roster import MemberState, Roster, RosterEntry, new_roster, replace_member
from raidd.array.state_file import Remembered, StateFile
from raidd.array.store import Draft
from raidd.codec.geometry import Level, default_level, level_geometry, shard_length
from raidd.codec.manifest import ManifestImage
from raidd.config import Config, parse
from raidd.daemon import graph, opening
from raidd.daemon.locks import Locks
from raidd.daemon.opening import Opened, _open_catalog
from raidd.errors import ImageUnreadable, MemberAway, RaiddError
from raidd.health.probe import Probe
from tests.support.faulty_disk import FaultyDisk, SimulatedCrash
from tests.support.memory_disk import MemoryDisk
from tests.support.turns import Turns

DEADLINE_S = 0.5


class CrashGate:
    """Counts the steps of all members; from the chosen one on the process is dead."""

    def __init__(self) -> None:
        self.steps = 0
        self.at: int | None = None
        self.dead = False
        self.log: list[str] = []
        self.before_step: Callable[[], None] = lambda: None
        self._lock = threading.Lock()

    def step(self, name: str) -> None:
        """One more step; SimulatedCrash once the process has died."""
        self.before_step()
        with self._lock:
            self.steps += 1
            self.log.append(name)
            if self.at is not None and self.steps >= self.at:
                self.dead = True
        if self.dead:
            raise SimulatedCrash(name)

    def die_in(self, steps: int) -> None:
        """The process dies at the steps-th step from now on."""
        self.at = self.steps + steps

    def die(self) -> None:
        """The process is dead."""
        self.dead, self.at = True, 0


class SmallArray:
    """See the module. ``disks``: by member id; ``events``: (code, severity, message)."""

    def __init__(
        self,
        folder: Path,
        members: int = 6,
        level: Level | None = None,
        *,
        seed: int = 1,
        capacity: int | None = None,
        deadline_s: float = DEADLINE_S,
        turns: Turns | None = None,
    ) -> None:
        self.folder = folder
        self.turns = turns
        self.state_dir = folder / "state"
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self.random = Random(seed)
        self.deadline_s = deadline_s
        self.skipped_s = 0.0  # time that went by without anybody waiting
        self.config = _config(folder)
        self.events: list[tuple[str, str, str]] = []
        self.offers: dict[str, str] = {}
        self.gate = CrashGate()
        self.memory = [self._new_disk(i, capacity) for i in range(members)]
        self.roster = self._found(level or Level(default_level(members)), members)
        self.lost: set[UUID] = set()
        self.start()

    def _new_disk(self, number: int, capacity: int | None = None) -> MemoryDisk:
        uuid = UUID(int=self.random.getrandbits(128), version=4)
        return MemoryDisk(uuid, path=f"/m/{number}", capacity_bytes=capacity)

    def _found(self, level: Level, members: int) -> Roster:
        entries = [RosterEntry(disk.uuid, None, MemberState.SPARE, size=1 << 40) for disk in self.memory]
        roster = new_roster(
            UUID(int=self.random.getrandbits(128), version=4), "test", level, level_geometry(level, members), entries
        )
        for disk in self.memory:
            disk.put("label.json", label_for(disk.uuid, roster).pack())
        StateFile(self.state_dir).save(Remembered(roster, {d.uuid: d.path for d in self.memory}))
        return roster

    # -- start, stop, crash -------------------------------------------------------------------------------

    def start(self, *, die_in: int | None = None) -> None:
        """What the daemon does at a start, with disks in memory. ``die_in``: it dies at that step after the opening."""
        self.gate = self._new_gate()
        if self.turns is not None:
            self.gate.before_step = self.turns.park
        self._open: list[Catalog] = []
        self._running: list[Member] = []
        self.disks = {disk.uuid: self._faulty(disk) for disk in self.memory}
        remembered = StateFile(self.state_dir).load()
        assert remembered is not None
        labels = [Label.parse(d.read("label.json")) for d in self.memory if d.uuid not in self.lost]
        self.roster = choose_roster(labels, remembered=remembered.roster)
        members = [self._member(e.member) for e in self.roster.entries if e.state != MemberState.RETIRED]
        catalog, because = _open_catalog(self.config, self.roster, members, "")
        self._open.append(catalog)
        self.gate.at = None if die_in is None else self.gate.steps + die_in
        catalog._write = self._gated(catalog)  # type: ignore[method-assign]
        self.membership = Membership(
            catalog, StateFile(self.state_dir), self.roster, members, reserve_percent=1, up_at_stop=frozenset()
        )
        self.membership.set_roster(self.roster)
        opened = Opened(self.config, Locks(), catalog, self.membership, because, self.random)
        self.parts = graph.build_array(opened, self._offered, self._event)
        self.catalog, self.store = catalog, self.parts.store
        self.parts.repairs._clock = self.clock
        self.prober = Probe(
            self.membership,
            open_disk=self._find_again,
            lock=lambda _disk, _cancel: None,
            filesystem_of=lambda _disk: "memory",
            recent_write_s=0.0,
            clock=self.clock,
        )
        graph.make_whole(self.parts)

    def _new_gate(self) -> CrashGate:
        return CrashGate()

    def clock(self) -> float:
        """Seconds, for what waits its turn: the repairs and the probe."""
        return self._monotonic() + self.skipped_s

    def _monotonic(self) -> float:
        return time.monotonic() if self.turns is None else self.turns.monotonic()

    def _faulty(self, disk: MemoryDisk) -> FaultyDisk:
        faulty = FaultyDisk(disk)
        faulty.on_call = self._stepper(self.gate)
        if self.turns is not None:
            faulty.while_hanging = self.turns.hanging
        return faulty

    @staticmethod
    def _stepper(gate: CrashGate) -> Any:
        return lambda call: gate.step(f"{call.operation} {call.path}")

    def _gated(self, catalog: Catalog) -> Any:
        gate, write = self.gate, catalog._write

        @contextmanager
        def gated() -> Iterator[Any]:
            gate.step("catalog: begin")
            with write() as connection:
                yield connection
            gate.step("catalog: committed")

        return gated

    def _member(self, uuid: UUID) -> Member:
        here = uuid in self.disks and uuid not in self.lost
        disk = self.disks.get(uuid) or FaultyDisk(MemoryDisk(uuid, born=False))
        reason = "" if here else "lost"
        member = Member(disk, deadline_s=self.deadline_s, clock=self._monotonic, present=here, reason=reason)
        self._running.append(member)
        return member

    def _find_again(self, member: Member) -> FaultyDisk:
        if member.uuid in self.lost or member.uuid not in self.disks:
            raise MemberAway(f"member {member.uuid} is not on any mount", member=str(member.uuid))
        return self.disks[member.uuid]

    def _offered(self, source: str, sha256: str | None) -> bool:
        return source in self.offers and (sha256 is None or self.offers[source] == sha256)

    def _event(self, code: str, severity: str, message: str, _objects: Sequence[str]) -> None:
        self.events.append((code, severity, message))

    def stop(self) -> None:
        """The process ends: what its threads are at is done or dead, only hanging calls are left behind."""
        for member in self._running:
            member.close()
        for member in self._running:
            for worker in member._workers.values():
                while worker._thread.is_alive() and worker._thread not in self._hanging():
                    if self.turns is not None:
                        self.turns.run_all()
                    worker._thread.join(0.005)
        self.gate.die()
        for catalog in self._open:
            catalog.close()

    def _hanging(self) -> set[Any]:
        return {thread for disk in self.disks.values() for thread in disk.hanging}

    def restart(self) -> None:
        """A clean stop and a start."""
        self.membership.remember(stopping=True)
        self.stop()
        self.start()

    def crash(self, seed: int | None = None, *, power: bool = True) -> None:
        """kill -9 (``power``: and a power cut on every member), then a start."""
        self.die(seed, power=power)
        self.start()

    def die(self, seed: int | None = None, *, power: bool = True) -> None:
        """`crash` without the start after it. What the catalog's files hold at this moment is what is left of it."""
        self.gate.die()
        if power:
            for faulty in self.disks.values():
                faulty.kill()
        files = {path: path.read_bytes() for path in self.state_dir.glob("catalog.sqlite*") if path.suffix != ".aside"}
        self.stop()
        for path, data in files.items():
            if not path.name.endswith("-shm"):
                path.write_bytes(data)
        if power:
            for number, disk in enumerate(self.memory):
                disk.power_cut(None if seed is None else seed + number)

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
        member.disk = self.disks[uuid]
        self.disks[uuid].inner.replace("label.json", label_for(uuid, self.membership.roster).pack())
        member.arrive()
        self.welcome_all()

    def probe(self) -> None:
        """One round of the real probe, and the welcome of everyone it found."""
        self.prober.probe_once()
        self.welcome_all()

    def welcome_all(self) -> None:
        """What members that came back need."""
        while not self.parts.arrived.empty():
            graph.welcome_once(self.parts)

    def replace(self, slot: int) -> UUID:
        """`raidctl replace` with a blank disk (administration.Administration.replace); returns the new member."""
        disk = self._new_disk(len(self.memory))
        old = self.membership.roster.slot_entry(slot)
        entry = RosterEntry(disk.uuid, None, MemberState.SPARE, size=1 << 40)
        roster = replace_member(self.membership.roster, slot, entry, self.membership.presence(old.member))
        self.disks[disk.uuid] = self._faulty(disk)
        member = Member(
            self.disks[disk.uuid], deadline_s=self.deadline_s, clock=self._monotonic, present=False, reason="new"
        )
        self._running.append(member)
        self.membership.admit(member)
        self.gate.step("replace: the member folder is about to be made")
        disk.put("label.json", label_for(disk.uuid, roster).pack())
        self.memory.append(disk)
        self.gate.step("replace: the member folder is made")
        member.space = member.call("probe", lambda d, _c: d.space())
        member.arrive()
        self.membership.set_roster(roster)
        self.catalog.append_journal(opening.now_text(), "test", "replace", (str(disk.uuid),), detail={"slot": slot})
        self.welcome_all()
        return disk.uuid

    def scrub(self) -> None:
        """Read every block of every shard past what is remembered of it; what is damaged is queued for repair."""
        for row in self.all_segments():
            everything = range(row.placement.geometry.n)
            for index in everything:
                self.parts.reader.forget(row.segment, index)
            length = shard_length(row.payload_length, row.placement.geometry.k)
            try:
                self.parts.reader.verified_bodies(row, everything, Span(0, length), lane="repair")
            except ImageUnreadable:
                continue

    def all_segments(self) -> list[SegmentRow]:
        """Every segment of the catalog, in id order."""
        members = [entry.member for entry in self.membership.roster.entries]
        rows = {row.segment: row for member in members for row in self.catalog.segments_on(member, limit=1 << 30)}
        return [rows[segment] for segment in sorted(rows)]

    def repair_all(self) -> None:
        """Until there is nothing that could be mended now."""
        self.repair(10_000)
        assert not self.parts.repairs.work_once(), "repairs do not end"

    def repair(self, steps: int) -> None:
        """At most so many steps of the repair loop."""
        for _ in range(steps):
            if not self.parts.repairs.work_once():
                return

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

    def entry(self, uid: str, data: bytes, offset: int, version: int = 1, source: str = "") -> ManifestImage:
        """The manifest's line for an image that is whole in this segment."""
        digest = hashlib.sha256(data).hexdigest()
        source = source or f"inbox:{uid}"
        self.offers.setdefault(source, digest)
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
            received_at=opening.now_text(),
            source=source,
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
