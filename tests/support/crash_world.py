"""An array in memory with a real inbox and a real ingest, that dies at any step and is started again from what is left.

    world = CrashWorld.new(folder)                     fresh array, empty inbox
    world.drop("a.dcm", data); world.run()             until idle; `world.steps()` names every step that was made
    remains = world.remains()                          what a dead process leaves: disks, state_dir, inbox
    again = CrashWorld.revive(remains, folder, power=7)         and after a power cut, with this seed
    world.die_at(step=17) / world.die_at(key=("2 file.sync segment", 1))

Steps are: every call on every member, every catalog transaction (begin, commit, committed), every write of array.json,
every step of `Custody`. From the step chosen on, all of them raise SimulatedCrash, whoever asks.

With ``inline`` each member's work is done at once by whoever submits it: one thread, the same steps in the same order
each time, members one after the other, so that a death at each step meets every number of durable shards. Without it
the real workers and two ingest threads race as they do in the daemon.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from raidd.array.catalog import Catalog, ImageQuery, ImageRow
from raidd.array.members import LANES, Member
from raidd.array.roster import Roster
from raidd.array.survey import Verdict, inspect
from raidd.array.worker import Operation, Worker
from raidd.codec.geometry import Level
from raidd.codec.shard import parse_shard_path
from raidd.errors import RaiddError
from raidd.inbox.batch import Ingest
from raidd.inbox.custody import Custody, Outcome
from raidd.inbox.folders import Root, inbox_root, spool_root
from raidd.inbox.intake import still_offered
from raidd.inbox.watch import Watcher
from tests.support.arrays import CrashGate, SmallArray
from tests.support.faulty_disk import FaultyDisk, SimulatedCrash
from tests.support.inbox_yard import HandClock
from tests.support.memory_disk import MemoryDisk

SETTLE_S = 2.0
PATIENT_S = 60.0
"""Member deadlines where nothing hangs: a loaded machine must not look like a sick disk."""

Key = tuple[str, int]
"""A step by what it does, and the how-manieth of its kind: the same whatever the threads' order."""


class InlineWorker(Worker):
    """A worker without a thread: what is submitted has been done when `submit` returns."""

    def __init__(self, name: str, deadline_s: float) -> None:
        self.name, self.deadline_s, self.clock = name, deadline_s, time.monotonic
        self.changed = threading.Condition(threading.RLock())
        self._queue, self._current, self._closed = deque(), None, False
        self._thread = threading.Thread()  # never started

    def submit(self, function: Callable[..., Any]) -> Operation[Any]:
        operation: Operation[Any] = Operation(self, function)
        operation._started_at = self.clock()
        value, error = operation._run()
        for due in operation._end(value, error, self.clock()):
            due()
        return operation


class StepGate(CrashGate):
    """A gate that can also be told to die at a step by its key."""

    def __init__(self) -> None:
        super().__init__()
        self._key: Key | None = None
        self._begin = 0
        self._seen: Counter[str] = Counter()
        self._counting = threading.Lock()

    def from_here(self, at: int | None = None, key: Key | None = None) -> None:
        """Count from now on, and die at that step, if one is given."""
        with self._counting:
            self._key, self._begin = key, len(self.log)
            self._seen.clear()
            self.at = None if at is None else self.steps + at

    def step(self, name: str) -> None:
        with self._counting:
            self._seen[name] += 1
            if (name, self._seen[name]) == self._key:
                self.dead = True
        super().step(name)

    def alive(self) -> None:
        """Between steps: SimulatedCrash for a dead process."""
        if self.dead:
            raise SimulatedCrash("dead")

    def keys(self) -> list[Key]:
        """Every step made `from_here`, by its key."""
        seen: Counter[str] = Counter()
        keys = []
        for name in self.log[self._begin :]:
            seen[name] += 1
            keys.append((name, seen[name]))
        return keys


class MortalArray(SmallArray):
    """SmallArray with steps that say on which slot they are, members that may work inline, and a real inbox."""

    inline: bool
    offered: Callable[[str, str | None], bool]
    gate: StepGate
    inherited: list[MemoryDisk] | None = None
    may_start = False

    def _found(self, level: Level, members: int) -> Roster:
        if self.inherited is None:
            self.may_start = True
            return super()._found(level, members)
        self.memory = self.inherited
        return None  # type: ignore[return-value]  # labels tell

    def start(self, **options: Any) -> None:
        if self.may_start:
            super().start(**options)

    def _new_gate(self) -> StepGate:
        return StepGate()

    def _faulty(self, disk: MemoryDisk) -> FaultyDisk:
        faulty, gate = FaultyDisk(disk), self.gate
        slot = self.memory.index(disk)
        faulty.on_call = lambda call: gate.step(f"{slot} {call.operation} {kind_of(call.path)}")
        return faulty

    def _member(self, uuid: UUID) -> Member:
        member = super()._member(uuid)
        if self.inline:
            for worker in member._workers.values():
                worker.close()
            member._workers = {lane: InlineWorker(lane, self.deadline_s) for lane in LANES}
        return member

    def _gated(self, catalog: Catalog) -> Any:
        self.opened_at = self.gate.steps
        return self._mortal(catalog)

    def _mortal(self, catalog: Catalog) -> Any:
        """A death within a transaction too: it is rolled back, as SQLite does at the next start."""
        gate, write = self.gate, catalog._write

        @contextmanager
        def gated() -> Iterator[Connection]:
            gate.step("catalog begin")
            with write() as connection:
                yield connection
                gate.step("catalog commit")
            gate.step("catalog committed")

        return gated

    def _offered(self, source: str, sha256: str | None) -> bool:
        return self.offered(source, sha256)


def kind_of(path: str) -> str:
    """What a path is, without the ids in it."""
    top, _, rest = path.partition("/")
    if top == "segments":
        return "segment" if rest.endswith(".shard") else f"folder-{rest.count('/') + bool(rest)}"
    return top if top in ("tmp", "journal", "quarantine", "label.json", "canary", "") else "paper"


class MortalCustody(Custody):
    """Dead people move no files."""

    gate: StepGate

    def _leave(self, *arguments: Any) -> Outcome:
        self.gate.alive()
        return super()._leave(*arguments)

    def restore_leftovers(self) -> int:
        self.gate.alive()
        return super().restore_leftovers()


@dataclass
class Remains:
    """What is left when a process dies. ``tree``: state_dir and the inbox's folders; ``lost``: disks that are away."""

    memory: list[MemoryDisk]
    tree: Path
    lost: set[UUID]
    roster: Roster
    options: dict[str, Any]
    originals: dict[str, bytes]
    duplicates: dict[bytes, bytes]
    expected: Counter[bytes]
    refusals: int
    torn: bool


@dataclass
class CrashWorld:
    """See the module. ``expected``: every image's bytes that must be stored exactly once in the end."""

    top: Path
    array: MortalArray
    options: dict[str, Any]
    clock: HandClock = field(default_factory=HandClock)
    originals: dict[str, bytes] = field(default_factory=dict)
    duplicates: dict[bytes, bytes] = field(default_factory=dict)
    expected: Counter[bytes] = field(default_factory=Counter)
    refusals: int = 0
    steps_of_start: int = 0
    torn: bool = False
    """The power was cut: a shard torn by that may be kept in quarantine when it is made again."""

    @classmethod
    def new(
        cls,
        top: Path,
        *,
        members: int = 6,
        level: Level | None = None,
        inline: bool = True,
        part_size: int = 32 << 20,
        keep_days: int = 0,
    ) -> CrashWorld:
        """A fresh array and an empty inbox under ``top``."""
        options = {"inline": inline, "part_size": part_size, "keep_days": keep_days}
        array = _unborn(top, options)
        SmallArray.__init__(array, top, members, level, deadline_s=PATIENT_S)
        return cls(top, array, options)._open_inbox()

    @classmethod
    def revive(
        cls,
        remains: Remains,
        top: Path,
        *,
        power: int | None = None,
        strict: bool = False,
        die_in: int | None = None,
        **options: Any,
    ) -> CrashWorld:
        """Start again. ``power``: after a power cut with this seed; ``strict``: one that keeps only what was durable.

        ``die_in``: the start itself dies at that step; ask `dead` then."""
        shutil.rmtree(top, ignore_errors=True)
        _copy_tree(remains.tree, top)
        memory = [disk.copy() for disk in remains.memory]
        if power is not None or strict:
            for number, disk in enumerate(memory):
                disk.power_cut(None if strict else (power or 0) * 100 + number)
        array = _unborn(top, remains.options | options)
        array.inherited = memory
        SmallArray.__init__(array, top, seed=2, deadline_s=PATIENT_S)
        array.lost, array.roster, array.may_start = set(remains.lost), remains.roster, True
        world = cls(top, array, remains.options | options)
        world.originals, world.expected = dict(remains.originals), Counter(remains.expected)
        world.torn = remains.torn or power is not None or strict
        world.duplicates, world.refusals = dict(remains.duplicates), remains.refusals
        try:
            array.start(die_in=die_in)
        except SimulatedCrash:
            return world
        world.steps_of_start = array.gate.steps - array.opened_at
        return world._open_inbox()

    def _open_inbox(self) -> CrashWorld:
        roots = _roots(self.top)
        self.watcher = Watcher(roots, SETTLE_S, clock=self.clock)
        keep_days = self.options["keep_days"]
        self.custody = MortalCustody(roots, keep_days=keep_days, now=self.clock.now, step=self.gate.step)
        self.custody.gate = self.gate
        self.ingest = Ingest(
            self.array.store,
            self.watcher,
            self.custody,
            image_max_bytes=1 << 34,
            clock=self.clock,
            now=self.clock.now,
            part_size=self.options["part_size"],
        )
        return self

    # -- doing --------------------------------------------------------------------------------------------

    @property
    def gate(self) -> StepGate:
        return self.array.gate

    @property
    def dead(self) -> bool:
        return self.gate.dead

    @property
    def inbox(self) -> Path:
        return self.top / "inbox"

    @property
    def rejected(self) -> Path:
        return self.top / "inbox-rejected"

    def drop(self, name: str, data: bytes, *, same_as: bytes = b"", junk: bool = False) -> Path:
        """A sender's file. ``same_as``: it is a duplicate of these bytes; ``junk``: it is to be refused."""
        path = self.inbox / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if junk:
            self.refusals += 1
            return path
        self.originals[name] = data
        self.duplicates[data] = same_as or data
        if not same_as:
            self.expected[data] += 1
        return path

    def steps(self) -> list[Key]:
        """Every step since `gate.from_here`, by its key."""
        return self.gate.keys()

    def run(self, rounds: int = 40) -> bool:
        """Both halves of the ingest until it is idle. False if something keeps waiting."""
        if not self.options["inline"]:
            return self._run_threads(rounds)
        for _ in range(rounds):
            if self.ingest.idle_once():
                return True
            self.clock.seconds += SETTLE_S + 0.1
            self._turn()
        return self.ingest.idle_once()

    def _turn(self) -> None:
        for _ in range(10_000):
            moved = self.ingest.prepare_once(0)
            moved = self.ingest.commit_once(0) or moved
            if not moved:
                self.clock.seconds += 0.06
                if not (self.ingest.prepare_once(0) or self.ingest.commit_once(0)):
                    return
        raise AssertionError("it never comes to rest: a busy loop")

    def _run_threads(self, rounds: int) -> bool:
        ended, deaths = threading.Event(), []

        def loop(once: Callable[[float], bool]) -> None:
            try:
                while not ended.is_set():
                    once(0.01)
            except BaseException as error:
                deaths.append(error)
                ended.set()

        threads = [
            threading.Thread(target=loop, args=(f,)) for f in (self.ingest.prepare_once, self.ingest.commit_once)
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in range(rounds * 50):
                if ended.wait(0.01) or self.ingest.idle_once():
                    break
                self.clock.seconds += 0.1
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        if deaths:
            raise deaths[0]
        return self.ingest.idle_once()

    def heal(self) -> None:
        """Lost and failed disks are back, what they missed is mended."""
        for disk in self.array.disks.values():
            disk.heal()
        for slot, entry in enumerate(self.array.membership.roster.entries):
            member = self.array.membership.member(entry.member)
            if entry.member in self.array.lost or (member is not None and not member.present):
                self.array.bring_back(slot)
        self.array.repair_all()

    # -- dying --------------------------------------------------------------------------------------------

    def remains(self) -> Remains:
        """What a process that dies now leaves. This world is over."""
        self.gate.die()
        self._let_threads_end()
        tree = self.top.with_name(self.top.name + "-left")
        shutil.rmtree(tree, ignore_errors=True)
        _copy_tree(self.top, tree)
        left = Remains(
            [disk.copy() for disk in self.array.memory],
            tree,
            set(self.array.lost),
            self.array.roster,
            self.options,
            dict(self.originals),
            dict(self.duplicates),
            Counter(self.expected),
            self.refusals,
            self.torn,
        )
        self.bury()
        return left

    def _let_threads_end(self) -> None:
        """What the members' threads are in the middle of dies at its next step."""
        for member in self.array._running:
            member.close()
            for worker in member._workers.values():
                if worker._thread.is_alive():
                    worker._thread.join(PATIENT_S)

    def bury(self) -> None:
        """Give back what this process would have given back by ending."""
        self.gate.die()
        if hasattr(self, "ingest"):
            self.ingest.close()
        self.array.stop()
        shutil.rmtree(self.top, ignore_errors=True)

    # -- looking ------------------------------------------------------------------------------------------

    def here(self) -> list[bytes]:
        """The bytes of every file in the inbox, whatever its name."""
        return [path.read_bytes() for path in self.inbox.rglob("*") if path.is_file()]

    def acknowledged(self) -> list[bytes]:
        """What is owed: dropped, and no longer in the inbox under any name."""
        left = self.here()
        return [self.duplicates[data] for data in self.originals.values() if data not in left]

    def rows(self) -> list[ImageRow]:
        """Every image that is listed, in every version."""
        return self.array.catalog.search(ImageQuery((), limit=10_000), away=self.array.membership.away())

    def stored(self) -> Counter[bytes]:
        """What can be read back, image by image; one that cannot counts as the error's text."""
        found: Counter[bytes] = Counter()
        for row in self.rows():
            try:
                found[b"".join(self.array.store.read(row))] += 1
            except RaiddError as error:
                found[f"{row.sop_instance_uid}: {error.message}".encode()] += 1
        return found

    def faults_of_start(self, owed: Sequence[bytes]) -> list[str]:
        """What must hold as soon as a start is through."""
        stored = self.stored()
        faults = [f"acknowledged and not there: {data[128:200]!r}" for data in owed if not stored[data]]
        faults += [f"unreadable or foreign: {data[:80]!r}" for data in stored if data not in self.expected]
        return faults + self._faults_of_members() + self.array.catalog.check()

    def _faults_of_members(self) -> list[str]:
        """Debris in tmp/, and shards that the catalog does not know (unless a member that may know more is away)."""
        faults = []
        everyone = not self.array.membership.away()
        reserved = set(self.array.catalog.reserved())
        for disk in self.array.memory:
            if disk.uuid in self.array.lost:
                continue
            for path in disk.files():
                if path.startswith("tmp/"):
                    faults.append(f"{disk.path}: {path} is left")
                elif path.startswith("segments/"):
                    segment, index = parse_shard_path(path)
                    row = self.array.catalog.segment(segment)
                    known = row is not None and row.placement.members[index] == disk.uuid
                    if not known and (everyone or segment not in reserved):
                        faults.append(f"{disk.path}: {path} is unknown to the catalog")
                elif path.startswith("quarantine/") and not self.torn:
                    faults.append(f"{disk.path}: {path}")
        return faults

    def faults_when_idle(self) -> list[str]:
        """What must hold when everything was taken in and mended."""
        faults = [f"left in the inbox: {path}" for path in self.inbox.rglob("*") if path.is_file()]
        stored = self.stored()
        if stored != self.expected:
            faults.append(
                f"stored, not expected {_some(stored - self.expected)}, lacking {_some(self.expected - stored)}"
            )
        for row in self.rows():
            copies = self.array.catalog.copies(row.sop_instance_uid, row.version, self.array.membership.away())
            if len(copies) != 1 or row.state != "protected":
                faults.append(f"{row.sop_instance_uid} version {row.version}: {len(copies)} copies, {row.state}")
        refused = [p for p in self.rejected.rglob("*") if p.is_file() and not p.name.endswith(".reason.txt")]
        if len(refused) != self.refusals:
            faults.append(f"refused: {sorted(map(str, refused))}")
        return faults + self._faults_of_members() + self._faults_of_shards() + self.array.catalog.check()

    def _faults_of_shards(self) -> list[str]:
        """What the catalog says is there is there, every block of it."""
        faults = []
        disks = {disk.uuid: disk for disk in self.array.memory}
        for row in self.rows():
            for segment in {part.segment for part in row.parts}:
                at = self.array.catalog.segment(segment)
                assert at is not None
                absent = self.array.catalog.absent(segment)
                for index, member in enumerate(at.placement.members):
                    verdict = _verdict(disks[member], segment, index)
                    if (index in absent) or verdict != Verdict.GOOD:
                        faults.append(
                            f"{segment} shard {index}: {verdict}, {'' if index in absent else 'not '}excepted"
                        )
        return faults


def _verdict(disk: MemoryDisk, segment: UUID, index: int) -> str:
    try:
        return str(inspect(disk, segment, index, whole=True).verdict)
    except RaiddError as error:
        return error.message


def _some(images: Counter[bytes]) -> list[bytes]:
    return [data[128:170] for data in images.elements()][:4]


def _roots(top: Path) -> tuple[Root, Root]:
    return inbox_root(top / "inbox"), spool_root(top / "spool", top / "inbox")


def _unborn(top: Path, options: Mapping[str, Any]) -> MortalArray:
    for name in ("inbox", "spool"):
        (top / name).mkdir(parents=True, exist_ok=True)
    array = MortalArray.__new__(MortalArray)
    array.inline = options["inline"]
    array.offered = lambda source, sha256: still_offered(_roots(top), source, sha256)
    return array


def _copy_tree(source: Path, target: Path) -> None:
    """Files with their times and their links to each other; SQLite's shared memory dies with its process."""
    twins: dict[int, Path] = {}
    for folder, _, names in os.walk(source):
        here = target / Path(folder).relative_to(source)
        here.mkdir(parents=True)
        for name in names:
            inode = (Path(folder) / name).stat().st_ino
            if inode in twins:
                (here / name).hardlink_to(twins[inode])
            elif not name.endswith("-shm"):
                twins[inode] = here / name
                shutil.copy2(Path(folder) / name, here / name)


def undo_unlinks(world_top: Path, remains: Remains, seed: int) -> int:
    """A power cut may bring back what was unlinked and not yet durable: some originals are in the inbox again."""
    random, undone = Random(seed), 0
    tree = remains.tree / "inbox"
    left = [path.read_bytes() for path in tree.rglob("*") if path.is_file()]
    for name, data in remains.originals.items():
        if data not in left and random.random() < 0.5:
            path = world_top / "inbox" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            undone += 1
    return undone
