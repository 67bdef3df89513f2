"""`kill -9` and power cuts at every step of the way in (C1 to C4), of taking away and of the start after it.

STRATEGY, for each scenario (a batch, duplicates, a large image in parts, narrow second attempts, …):
  1. Play it once to its end and note every step: each call on each member, each catalog transaction, each step of
     taking an original away.
  2. For each step: play it again in a copy of the same world, and die there.
  3. Start again from what is left (a) of the process alone, (b) of a power cut on every disk, where also unlinked
     originals may come back to the inbox. Ask for what a start promises; run the ingest until idle, mend, ask again.
  4. Cut the power once more, keeping only what was made durable, and ask a third time: nothing was acknowledged on the
     strength of a page cache.

By default every step of the first scenario is taken, so each distinct operation on each member, and a sample of the
others'; `RAIDD_CRASH_STEPS=all` takes every one of all.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import pytest

from raidd.errors import MemberFaulty
from tests.support.crash_world import CrashWorld, Key, Remains, undo_unlinks
from tests.support.faulty_disk import SimulatedCrash
from tests.support.inbox_yard import dicom

SHARES = 3
"""Each scenario's steps are dealt to this many tests, so that two workers can share them."""
EVERY = os.environ.get("RAIDD_CRASH_STEPS") == "all"
SAMPLE = 28
"""Steps of a scenario, besides the first of each kind, where not every step is taken."""
JUNK = b"Dear colleague, please find enclosed " * 20


def image(uid: str, size: int = 600, seed: int = 0, maker: str = "") -> bytes:
    """A DICOM file of about ``size`` bytes."""
    return dicom(uid, pixels=Random(f"{uid} {seed}").randbytes(size), maker=maker)


@dataclass(frozen=True)
class Scenario:
    """``before`` makes the world in which ``play`` happens; ``play`` is what is interrupted."""

    before: Callable[[Path], CrashWorld]
    play: Callable[[CrashWorld], None]
    whole: bool = False
    """Every step is taken by default, too."""


def fresh(top: Path) -> CrashWorld:
    """Nothing was ever stored: every folder on every member is new."""
    return CrashWorld.new(top)


def used(top: Path) -> CrashWorld:
    """Images are there, and today's folders."""
    world = CrashWorld.new(top)
    for number in range(3):
        world.drop(f"before/{number}.dcm", image(f"1.9.{number}"))
    assert world.run()
    return world


def in_parts(top: Path) -> CrashWorld:
    world = CrashWorld.new(top, part_size=4096)
    world.drop("before.dcm", image("1.9.0"))
    assert world.run()
    return world


def keeping(top: Path) -> CrashWorld:
    return CrashWorld.new(top, keep_days=3)


def mirror_with_one_left(top: Path) -> CrashWorld:
    world = CrashWorld.new(top, members=2)
    world.drop("before.dcm", image("1.9.0"))
    assert world.run()
    world.array.lose(1)
    return world


def large_interrupted(top: Path) -> CrashWorld:
    """Two of a large image's parts are stored; then raidd was killed."""
    world = in_parts(top)
    world.drop("large.dcm", image("1.5", 10_000))
    world.gate.from_here(key=("catalog committed", 2))
    with pytest.raises(SimulatedCrash):
        world.run()
    return CrashWorld.revive(world.remains(), top.with_name(top.name + "-again"))


def drop_batch(world: CrashWorld) -> None:
    for number in range(3):
        world.drop(f"ct/{number}.dcm", image(f"1.2.{number}"))
    world.drop("letter.dcm", JUNK, junk=True)


def batch(world: CrashWorld) -> None:
    drop_batch(world)
    world.run()


def duplicates(world: CrashWorld) -> None:
    world.drop("again.dcm", image("1.9.0"), same_as=image("1.9.0"))
    world.drop("other-header.dcm", image("1.9.1", maker="PACS"), same_as=image("1.9.1"))
    world.drop("corrected.dcm", image("1.9.2", seed=7))
    world.drop("new.dcm", image("1.2.1"))
    world.run()


def large(world: CrashWorld) -> None:
    world.drop("large.dcm", image("1.5", 10_000))
    world.drop("small.dcm", image("1.2.1"))
    world.run()


def finish_large(world: CrashWorld) -> None:
    world.run()


def narrow(world: CrashWorld) -> None:
    """Two members fail in the middle of the write: fewer than k+1 shards are durable, a second attempt is made."""
    world.array.disk(1).fail("file.sync", "tmp/*", error=MemberFaulty("EIO"))
    world.array.disk(4).fail("rename_new", "segments/*", error=MemberFaulty("EIO"), after=True)
    drop_batch(world)
    world.run()
    world.heal()


def one_fails(world: CrashWorld) -> None:
    """One member fails after its write; it comes back and is mended."""
    world.array.disk(2).fail("sync_folder", "segments/*", error=MemberFaulty("EIO"), after=True)
    drop_batch(world)
    world.run()
    world.heal()


def unprotected(world: CrashWorld) -> None:
    """Stored with one member left; the other returns, what is owed becomes protected, the original is taken away."""
    drop_batch(world)
    world.run(rounds=3)
    world.heal()
    world.run()


SCENARIOS = {
    "first-batch": Scenario(fresh, batch, whole=True),
    "batch": Scenario(used, batch),
    "kept": Scenario(keeping, batch),
    "duplicates": Scenario(used, duplicates),
    "large": Scenario(in_parts, large),
    "large-finished": Scenario(large_interrupted, finish_large),
    "narrow": Scenario(used, narrow),
    "one-fails": Scenario(used, one_fails),
    "unprotected": Scenario(mirror_with_one_left, unprotected),
}

_HOME = Path(tempfile.mkdtemp(prefix="raidd-crashes-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


@pytest.fixture(scope="module", autouse=True)
def home() -> Iterator[Path]:
    _HOME.mkdir(exist_ok=True)
    yield _HOME
    shutil.rmtree(_HOME, ignore_errors=True)


@cache
def beginning(name: str, inline: bool = True) -> Remains:
    """The world before the scenario, as files."""
    world = SCENARIOS[name].before(_HOME / f"{name}-before-{'inline' if inline else 'racing'}")
    world.options["inline"] = inline
    return world.remains()


@cache
def steps(name: str, inline: bool = True) -> list[Key]:
    """Every step of the scenario when nobody dies."""
    world = again(name, inline)
    world.gate.from_here()
    SCENARIOS[name].play(world)
    keys = world.steps()
    world.heal()
    assert world.run()
    faults = world.faults_when_idle()
    world.bury()
    assert not faults, faults
    return keys


def again(name: str, inline: bool = True) -> CrashWorld:
    return CrashWorld.revive(beginning(name, inline), _HOME / f"{name}-now")


def sample(keys: Sequence[Key], *, every: bool = EVERY) -> list[int]:
    """Numbers of steps, from 1: the first of each kind, on whichever member, and others evenly spread."""
    if every:
        return list(range(1, len(keys) + 1))
    firsts = {name.lstrip("0123456789"): number for number, (name, _) in reversed(list(enumerate(keys, 1)))}
    spread = {1 + number * len(keys) // SAMPLE for number in range(SAMPLE)}
    return sorted(spread | set(firsts.values()))


def expect_none(faults: list[str], when: str) -> None:
    assert not faults, "\n".join([when, *faults])


def die_and_check(name: str, *, at: int | None = None, key: Key | None = None, inline: bool = True) -> None:
    """Steps 2 to 4 of the strategy."""
    world = again(name, inline)
    world.gate.from_here(at, key)
    with suppress(SimulatedCrash):
        SCENARIOS[name].play(world)
    what = f"{name}: died at {at} {world.steps()[-1] if key is None else key}"
    left = world.remains()
    seed = at if at is not None else hash(key) % 1000
    check_revived(left, f"{what}, process only", power=None, strict=False)
    check_revived(left, f"{what}, power", power=seed, strict=seed % 3 == 0)
    shutil.rmtree(left.tree, ignore_errors=True)


def check_revived(left: Remains, what: str, *, power: int | None, strict: bool) -> None:
    world = CrashWorld.revive(left, _HOME / "revived", power=power, strict=strict, inline=True)
    owed = world.acknowledged()
    expect_none(world.faults_of_start(owed), f"{what}: after the start")
    if power is not None and power % 2:
        undo_unlinks(world.top, left, power)
    world.run(rounds=3)
    world.heal()
    assert world.run(), f"{what}: never idle"
    expect_none(world.faults_when_idle(), f"{what}: when idle")
    if world.torn:
        world.bury()
        return
    again_left = world.remains()
    last = CrashWorld.revive(again_left, _HOME / "revived-twice", strict=True)
    expect_none(last.faults_of_start(last.acknowledged()), f"{what}: after another power cut")
    assert last.run()
    expect_none(last.faults_when_idle(), f"{what}: idle after another power cut")
    last.bury()
    shutil.rmtree(again_left.tree, ignore_errors=True)


@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("name", SCENARIOS)
def test_death_at_any_step_loses_nothing_stores_nothing_twice_and_leaves_no_debris(name: str, share: int) -> None:
    for at in sample(steps(name), every=EVERY or SCENARIOS[name].whole)[share::SHARES]:
        die_and_check(name, at=at)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the dead raise in their threads
@pytest.mark.parametrize("name", ["batch", "large", "narrow"])
def test_the_same_with_all_threads_racing(name: str) -> None:
    keys = steps(name, inline=False)
    for at in sample(keys)[:: 1 if EVERY else 3]:
        die_and_check(name, key=keys[at - 1], inline=False)


@pytest.mark.parametrize("power", [False, True], ids=["process", "power"])
@pytest.mark.parametrize("name", ["batch", "large-finished", "narrow"])
def test_death_at_any_step_of_the_start_after_a_death(name: str, power: bool) -> None:
    keys = steps(name)
    first_deaths = [at for at, (step, _) in enumerate(keys, 1) if step in ("4 file.sync tmp", "catalog committed")]
    for at in first_deaths if EVERY else first_deaths[:: max(1, len(first_deaths) // 3)]:
        world = again(name)
        world.gate.from_here(at)
        with suppress(SimulatedCrash):
            SCENARIOS[name].play(world)
        left = world.remains()
        seed = at if power else None
        whole = CrashWorld.revive(left, _HOME / "started", power=seed)
        length = whole.steps_of_start
        whole.bury()
        for step in range(1, length + 1, 1 if EVERY else max(1, length // 8)):
            fallen = CrashWorld.revive(left, _HOME / "fallen", power=seed, die_in=step)
            assert fallen.dead
            again_left = fallen.remains()
            what = f"{name}: died at {keys[at - 1]}, then at step {step} of the start"
            check_revived(again_left, what, power=step if power else None, strict=step % 3 == 0 and power)
            shutil.rmtree(again_left.tree, ignore_errors=True)
        shutil.rmtree(left.tree, ignore_errors=True)
