"""The array in memory lives a random life, against a dict: Hypothesis chooses what happens, and shrinks what fails.

STRATEGY
  1. An array of a random level; a sender drops images, again, changed, large ones in parts (tests/support/sender.py).
  2. Members are pulled, with and without their last unsynced bytes, err, lie, hang, fill up, rot, are replaced; the
     process is killed at any step of anything, with and without a power cut, once and again while it starts; the
     catalog is lost, or put back from an old copy; repairs, probe and replication run when it pleases them.
  3. A budget: content is hurt on no more members at once than every segment so far survives. How many are *away* is
     not bounded; then an image may be unreadable.
  4. After each step: what was acknowledged reads back byte for byte, or, with too many members gone, is
     ImageUnreadable. Never other bytes.
  5. At the end, and at times before it: everything is back and repaired. Then all of tests/support/settled.py holds,
     and again after the catalog was deleted.

`make simulate N=…` lives N lives more, of a seed that is printed; RAIDD_SEED=… repeats one.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random, SystemRandom
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from raidd.array.catalog import ImageRow
from raidd.array.roster import ArrayState
from raidd.codec.geometry import Level
from raidd.codec.shard import HEAD_SIZE, parse_head
from raidd.errors import ImageUnreadable, MemberAway, MemberFaulty, MemberFull, MemberReadOnly, ShardError
from tests.support.arrays import SmallArray
from tests.support.faulty_disk import FaultyDisk, SimulatedCrash
from tests.support.memory_disk import MemoryDisk
from tests.support.sender import Sender
from tests.support.settled import durable_shards, faults, versions
from tests.support.turns import Turns, simulated

DEADLINE_S = 30.0
BASE = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
ROUNDS_OF_MENDING = 6

SHAPES: Sequence[tuple[int, Level | None]] = (
    (6, None),  # 4+2
    (4, None),  # 2+2
    (3, None),  # 2+1
    (2, None),  # 1+1
    (5, Level("custom", data=2, parity=1)),  # narrower than the array
    (5, Level("raid7")),  # 2+3
)
SIZES = (1, 17, 4096, 9000, 70_000, 300_000)
UIDS = 6
VERSION = range(8, 12)  # of the head: with another flipped byte there it is a newer raidd's shard, which nobody touches
WRITES = ("create", "file.write", "file.sync", "rename_new", "make_folders", "sync_folder", "file.length")
OTHERS = ("read", "length", "unlink", "replace", "append", "overwrite", "list", "sync_all", "space")

slots = st.integers(0, 5)
numbers = st.integers(0, 1 << 20)
images = st.tuples(st.integers(0, UIDS - 1), st.integers(0, 2))
batches = st.lists(images, min_size=1, max_size=4, unique_by=lambda image: image[0])
few = st.lists(st.integers(1, 120), max_size=2)


class ArrayMachine(RuleBasedStateMachine):
    """See the module. ``hurt``: slots whose content, or whose promises, are not to be counted on until all is mended;
    ``tolerance``: how many such slots every segment survives."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=BASE)
        self.simulation = ExitStack()
        self.turns: Turns
        self.array: SmallArray
        self.sender: Sender
        self.hurt: set[int] = set()
        self.ghosts: dict[UUID, FaultyDisk] = {}
        self.replaced: list[UUID] = []
        self.backup: Path | None = None
        self.known_versions: dict[tuple[str, str], int] = {}
        self.doom = (False, 0)
        self.began = False

    # -- the life -----------------------------------------------------------------------------------------

    @initialize(shape=st.sampled_from(SHAPES), number=numbers, first=st.lists(batches, min_size=1, max_size=3))
    def begin(self, shape: tuple[int, Level | None], number: int, first: Sequence[list[tuple[int, int]]]) -> None:
        members, level = shape
        self.turns = self.simulation.enter_context(simulated(number))
        folder = Path(self.folder.name)
        self.array = SmallArray(folder, members, level, seed=number, deadline_s=DEADLINE_S, turns=self.turns)
        self.sender = Sender(self.array, on_stored=self._stored, doubtful=lambda: bool(self.hurt or self._away()))
        self.width = members
        self.parity = self.tolerance = self.array.membership.roster.geometry.m
        self.began = True
        for batch in first:
            self.put(batch)

    @rule(batch=batches)
    def put(self, batch: list[tuple[int, int]]) -> None:
        if self._may_write():
            sources = [self.sender.drop(f"1.2.{uid}", content(uid, variant)) for uid, variant in batch]
            with self._mortal():
                self.sender.send(sources)

    @rule(image=images)
    def put_one(self, image: tuple[int, int]) -> None:
        self.put([image])

    @rule(batch=batches, steps=st.integers(1, 90), power=st.booleans(), number=numbers)
    def die_amid_a_put(self, batch: list[tuple[int, int]], steps: int, power: bool, number: int) -> None:
        self.crash_soon(steps, power, number)
        self.put(batch)

    @rule(variant=st.integers(0, 2), parts=st.integers(2, 4), die_in=st.none() | st.integers(1, 250), number=numbers)
    def put_large(self, variant: int, parts: int, die_in: int | None, number: int) -> None:
        if die_in is not None:
            self.crash_soon(die_in, bool(number % 2), number)
        if self._may_write():
            data = Random(f"large {variant}").randbytes(40_000)
            source = self.sender.drop("1.9", data, part_size=len(data) // parts + 1)
            with self._mortal():
                self.sender.send([source])

    @rule()
    def send_again(self) -> None:
        if self._may_write():
            with self._mortal():
                self.sender.send_all()

    @rule(steps=st.integers(1, 20))
    def repair(self, steps: int) -> None:
        with self._mortal():
            self.array.skipped_s += 31.0
            self.array.repair(steps)

    @rule()
    def replicate(self) -> None:
        with self._mortal():
            while self.array.parts.replicator.replicate_once():
                pass

    @rule()
    def probe(self) -> None:
        with self._mortal():
            self.array.probe()

    @rule()
    def scrub(self) -> None:
        with self._mortal():
            self.array.scrub()

    # -- members go and come ------------------------------------------------------------------------------

    @rule(slot=slots, told=st.booleans(), cut=st.booleans(), number=numbers)
    def lose(self, slot: int, told: bool, cut: bool, number: int) -> None:
        """Pulled. ``cut``: what it had not written yet is gone. Not ``told``: whoever needs it next finds out."""
        slot %= self.width
        uuid, disk = self.array.uuid(slot), self.array.disk(slot)
        if uuid in self.array.lost or disk.hanging:
            return
        with self._mortal():
            if told:
                self.array.lose(slot)
            else:
                self.array.lost.add(uuid)
                disk.fail("*", error=MemberAway("pulled", member=str(uuid)))
            if cut:
                self._inner(disk).power_cut(number)

    @rule(slot=slots)
    def come_back(self, slot: int) -> None:
        slot %= self.width
        uuid = self.array.uuid(slot)
        if uuid not in self.array.lost:
            return
        self._let_ghost_go(uuid)
        self.array.lost.discard(uuid)
        self._heal(self.array.disks[uuid])
        with self._mortal():
            self.array.probe()
            assert self.array.membership.presence(uuid).present, self.array.membership.presence(uuid)

    @rule(slot=slots)
    def fail_and_be_replaced(self, slot: int) -> None:
        """The disk is dead, and a blank one is put in at once."""
        self.lose(slot, True, False, 0)
        self.replace(slot)

    @rule(slot=slots)
    def replace(self, slot: int) -> None:
        slot %= self.width
        old = self.array.uuid(slot)
        if old not in self.array.lost or old in self.ghosts or not self._may_hurt(slot):
            return
        with self._mortal():
            self.array.membership.member(old).leave("pulled")  # type: ignore[union-attr]
            self.hurt.add(slot)
            self.array.replace(slot)
        if self.array.uuid(slot) != old:
            self.replaced.append(old)

    @rule(which=slots)
    def replaced_one_comes_back(self, which: int) -> None:
        """The old disk is plugged in again, while the new one is being rebuilt or later."""
        if self.replaced:
            uuid = self.replaced[which % len(self.replaced)]
            self.array.lost.discard(uuid)
            self._heal(self.array.disks[uuid])
            with self._mortal():
                self.array.probe()

    # -- members are hurt ---------------------------------------------------------------------------------

    @rule(slot=slots, pick=numbers, where=st.sampled_from(("head", "table", "manifest", "body", "any")), number=numbers)
    def rot(self, slot: int, pick: int, where: str, number: int) -> None:
        slot %= self.width
        path = self._shard(slot, pick)
        if path is None or not self._may_hurt(slot):
            return
        self.hurt.add(slot)
        disk, random = self._inner(self.array.disk(slot)), Random(number)
        start, stop = region(disk.files()[path], where)
        for _ in range(random.choice((1, 1, 5))):
            offset = random.randrange(start, max(stop, start + 1))
            if offset < stop and offset not in VERSION:
                disk.flip(path, offset, random.randrange(1, 256))

    @rule(slot=slots, pick=numbers, number=numbers)
    def cut_short(self, slot: int, pick: int, number: int) -> None:
        slot %= self.width
        path = self._shard(slot, pick)
        if path is None or not self._may_hurt(slot):
            return
        self.hurt.add(slot)
        disk = self._inner(self.array.disk(slot))
        data = disk.files()[path]
        disk.put(path, data[: Random(number).randrange(len(data) or 1)])

    @rule(slot=slots, pick=numbers)
    def vanish(self, slot: int, pick: int) -> None:
        slot %= self.width
        path = self._shard(slot, pick)
        if path is not None and self._may_hurt(slot):
            self.hurt.add(slot)
            disk = self._inner(self.array.disk(slot))
            disk.unlink(path)
            disk.sync_all()

    @rule(
        slot=slots,
        operation=st.sampled_from((*WRITES, *OTHERS, "*")),
        call=st.sampled_from((None, 1, 1, 2, 3)),
        error=st.sampled_from((MemberFaulty, MemberReadOnly, MemberFull)),
        after=st.booleans(),
    )
    def fail(self, slot: int, operation: str, call: int | None, error: type[MemberFaulty], after: bool) -> None:
        slot %= self.width
        if self._may_hurt(slot):
            self.hurt.add(slot)
            disk = self.array.disk(slot)
            disk.fail(operation, error=error("injected", member=str(disk.uuid)), call=call, after=after)

    @rule(slot=slots)
    def lie(self, slot: int) -> None:
        """It says that everything is durable, and nothing is."""
        slot %= self.width
        if self._may_hurt(slot):
            self.hurt.add(slot)
            self.array.disk(slot).lie()

    @rule(slot=slots, operation=st.sampled_from((*WRITES, *OTHERS, "*")), call=st.sampled_from((1, 1, 2, 3)))
    def hang(self, slot: int, operation: str, call: int) -> None:
        slot %= self.width
        member = self.array.membership.member(self.array.uuid(slot))
        if member is None or not self._may_hurt(slot) or member.uuid in self.array.lost:
            return
        self.hurt.add(slot)
        self.array.disk(slot).hang(operation, call=call)

    @rule(slot=slots)
    def slow_down(self, slot: int) -> None:
        """It answers when nobody else has anything to do, and sometimes later."""
        slot %= self.width
        if self._may_hurt(slot):
            self.hurt.add(slot)
            self.turns.slow.add(str(self.array.uuid(slot))[:8])

    @rule(slot=slots)
    def wake(self, slot: int) -> None:
        """What hung goes on, and so does what was given up meanwhile."""
        disk = self.array.disk(slot % self.width)
        with self._mortal():
            self._let_go(disk)

    @rule(slot=slots, left=st.sampled_from((0, 5_000, 30_000)))
    def fill(self, slot: int, left: int) -> None:
        slot %= self.width
        if self._may_hurt(slot):
            self.hurt.add(slot)
            disk = self._inner(self.array.disk(slot))
            disk.capacity_bytes = disk.used_bytes() + left

    # -- the process and its catalog ----------------------------------------------------------------------

    @rule(days=st.sampled_from((-366, -1, 1, 0)))
    def set_the_clock(self, days: int) -> None:
        """The host's clock is wrong by so much from now on."""
        self.turns.wall_offset_s = days * 86400.0

    @rule(steps=st.integers(1, 40))
    def go_on_behind(self, steps: int) -> None:
        """What nobody waits for goes on."""
        with self._mortal():
            for _ in range(steps):
                self.turns.run_one()

    @rule()
    def restart(self) -> None:
        with self._mortal():
            self._mourn()
            self.array.restart()

    @rule(power=st.booleans(), number=numbers, again=few)
    def crash(self, power: bool, number: int, again: list[int]) -> None:
        self._die_and_start(power, number, again)

    @rule(steps=st.integers(1, 150), power=st.booleans(), number=numbers)
    def crash_soon(self, steps: int, power: bool, number: int) -> None:
        """The process will die at that step of whatever it does next."""
        self.doom = (power, number)
        self.array.gate.die_in(steps)

    @rule(power=st.booleans(), number=numbers)
    def lose_catalog(self, power: bool, number: int) -> None:
        with self._mortal():
            self._mourn(power=power)
            self.array.die(number, power=power)
            for path in self.array.state_dir.glob("catalog.sqlite*"):
                path.unlink()
            self.array.start()

    @rule()
    def save_catalog(self) -> None:
        with self._mortal():
            self._mourn()
            self.backup = self.array.save_catalog()

    @rule()
    def put_back_catalog(self) -> None:
        if self.backup is not None:
            with self._mortal():
                self._mourn()
                self.array.put_back_catalog(self.backup)

    @rule()
    def mend(self) -> None:
        """Everything is back, and everything is repaired; the life goes on from there."""
        self._mend()
        self._check_settled()

    # -- what must be true --------------------------------------------------------------------------------

    @invariant()
    def acknowledged_reads_back(self) -> None:
        if not self.began:
            return
        with self._mortal():
            for key, data in list(self.sender.acknowledged.items()):
                self._check_image(key, data)

    @invariant()
    def the_state_word_is_true(self) -> None:
        if self.began and not self.hurt:
            away = {self.array.uuid(slot) for slot in range(self.width)} & self.array.lost
            if len(away) <= self.tolerance:
                assert self.array.store.standing().state is not ArrayState.FAILED

    def _check_image(self, key: tuple[str, str], data: bytes) -> None:
        row = self._row(key)
        if row is None:
            assert self._may_fail(), f"{key[0]} is not listed"
            return
        try:
            found = b"".join(self.array.store.read(row))
        except ImageUnreadable:
            assert self._may_fail()
            return
        assert found == data, f"{key[0]} version {row.version} reads back other bytes"

    def _row(self, key: tuple[str, str]) -> ImageRow | None:
        rows = self.array.store.versions(key[0])
        for row in rows:
            assert (key[0], row.sha256) in self.sender.ever, f"{key[0]} {row.sha256} was never dropped"
        return next((row for row in rows if row.sha256 == key[1]), None)

    def _check_settled(self) -> None:
        assert faults(self.array, self.sender) == []
        now = versions(self.array)
        sure = {key: version for key, version in self.known_versions.items() if key[0] not in self.sender.clashes}
        assert {key: now[key] for key in sure} == sure, "version numbers have changed"
        self.known_versions = now

    def teardown(self) -> None:
        """The end of the life, unless it ended in a failure."""
        try:
            if sys.exc_info()[0] is None and self.began:
                self._mend()
                self._check_settled()
                self.array.lose_catalog()
                self._mend()
                self._check_settled()
        finally:
            self._bury()

    def _bury(self) -> None:
        if self.began:
            for disk in [*self.array.disks.values(), *self.ghosts.values()]:
                disk.kill()
            self.array.stop()
        self.simulation.close()
        self.folder.cleanup()

    # -- crashes ------------------------------------------------------------------------------------------

    @contextmanager
    def _mortal(self) -> Iterator[None]:
        """What is done in here may be the death of the process; then it is started again."""
        try:
            yield
        except SimulatedCrash:
            self.array.gate.dead = True
        if self.array.gate.dead:
            self._die_and_start(*self.doom, [])

    def _die_and_start(self, power: bool, number: int, again: Sequence[int]) -> None:
        self._mourn(power=power)
        self.array.die(number, power=power)
        for steps in (*again, None):
            try:
                self.array.start(die_in=steps)
            except SimulatedCrash:
                self.array.die(number + 1, power=power)
                continue
            self.doom = (power, number + 2)
            return

    def _mourn(self, *, power: bool = False) -> None:
        """A call that hangs outlives its process: until it is let go, the disk cannot be used by the next one."""
        for uuid, disk in self.array.disks.items():
            if disk.hanging and not power:
                self.ghosts[uuid] = disk
                self.array.lost.add(uuid)
        if power:
            for ghost in self.ghosts.values():
                ghost.kill()
            self.ghosts.clear()

    def _let_ghost_go(self, uuid: UUID) -> None:
        ghost = self.ghosts.pop(uuid, None)
        if ghost is not None:
            self._let_go(ghost)

    def _let_go(self, disk: FaultyDisk) -> None:
        held = list(disk.hanging)
        disk.release_all()
        wait_for(lambda: not disk.hanging & set(held))

    # -- the budget ---------------------------------------------------------------------------------------

    def _may_hurt(self, slot: int) -> bool:
        return len(self.hurt | {slot}) <= self.tolerance

    def _away(self) -> set[int]:
        return {slot for slot in range(self.width) if self.array.uuid(slot) in self.array.lost}

    def _may_fail(self) -> bool:
        return len(self.hurt | self._away()) > self.tolerance

    def _may_write(self) -> bool:
        """Not while what is hurt could be more than what the new segment will survive."""
        up = self.width - len(self._away())
        return len(self.hurt) <= max(1, min(self.parity, up - 1))

    def _stored(self, segment: UUID, protected: bool) -> None:
        row = self.array.catalog.segment(segment)
        assert row is not None
        geometry = row.placement.geometry
        self.tolerance = min(self.tolerance, geometry.m)
        if protected:
            assert durable_shards(self.array, segment) > geometry.k, "acknowledged, and not protected"

    # -- mending ------------------------------------------------------------------------------------------

    def _mend(self) -> None:
        array = self.array
        array.gate.at = None
        for uuid in list(self.ghosts):
            self._let_ghost_go(uuid)
        for disk in array.disks.values():
            self._heal(disk)
        array.lost = set(self.replaced) & array.lost
        for _ in range(ROUNDS_OF_MENDING):
            array.probe()
            array.skipped_s += 31.0
            array.scrub()
            array.repair_all()
            self.sender.send_all()
            if not faults(array, self.sender):
                break
        self.hurt = set()

    def _heal(self, disk: FaultyDisk) -> None:
        self.turns.slow.discard(str(disk.uuid)[:8])
        self._let_go(disk)
        disk.heal()
        self._inner(disk).capacity_bytes = None
        with self._mortal():
            self.turns.run_all()

    # -- disks --------------------------------------------------------------------------------------------

    @staticmethod
    def _inner(disk: FaultyDisk) -> MemoryDisk:
        assert isinstance(disk.inner, MemoryDisk)
        return disk.inner

    def _shard(self, slot: int, pick: int) -> str | None:
        names = sorted(n for n in self._inner(self.array.disk(slot)).files() if n.startswith("segments/"))
        return names[pick % len(names)] if names else None


def content(uid: int, variant: int) -> bytes:
    """The bytes of one image: the same for the same arguments."""
    random = Random(f"{uid} {variant}")
    return random.randbytes(random.choice(SIZES))


def region(data: bytes, where: str) -> tuple[int, int]:
    """Where a part of a shard's file lies."""
    try:
        head = parse_head(data[:HEAD_SIZE])
    except (ShardError, ValueError):
        return 0, len(data)
    table = HEAD_SIZE + 4 * -(-head.shard_length // head.block_size)
    return {
        "head": (0, HEAD_SIZE),
        "table": (HEAD_SIZE, table),
        "manifest": (table, table + head.manifest_length),
        "body": (head.body_offset, len(data)),
    }.get(where, (0, len(data)))


def wait_for(done: object) -> None:
    """Threads that were let go need a moment; a minute would mean that they do not end."""
    until = time.monotonic() + 60.0
    while not done():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.001)


ROUNDS = int(os.environ.get("RAIDD_SIMULATE", "0"))
STEPS = int(os.environ.get("RAIDD_SIMULATE_STEPS", "30"))
PHASES = (Phase.generate,) if os.environ.get("RAIDD_SIMULATE_RAW") else (Phase.generate, Phase.shrink)
COMMON = settings(
    deadline=None,
    database=None,
    print_blob=True,
    report_multiple_bugs=False,
    stateful_step_count=STEPS,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("raidd").setLevel(logging.CRITICAL)


@pytest.mark.timeout(1200)
def test_an_array_survives_whatever_happens_to_it() -> None:
    run_state_machine_as_test(ArrayMachine, settings=settings(COMMON, max_examples=30, derandomize=True))


@pytest.mark.skipif(not ROUNDS, reason="make simulate N=… lives that many more lives")
@pytest.mark.timeout(0)
def test_random_lives() -> None:
    number = int(os.environ.get("RAIDD_SEED", SystemRandom().randrange(1 << 32)))
    print(f"\nRAIDD_SEED={number} RAIDD_SIMULATE={ROUNDS} RAIDD_SIMULATE_STEPS={STEPS}", flush=True)

    @seed(number)
    class Life(ArrayMachine):
        pass

    run_state_machine_as_test(Life, settings=settings(COMMON, max_examples=ROUNDS, phases=PHASES))
