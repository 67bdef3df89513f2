"""Real power cuts: every member and the disk of `state_dir` lose what was not durable, at the same random moment.

Loop devices with XFS and ext4, shut down without a log flush, unmounted, mounted again (faults.md). Twenty rounds
together; `RAIDD_DRILL=N` makes it N each, `RAIDD_SEED` repeats a run's choices.

The inbox lies on another disk, which stays: what has left it is what raidd promised.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from tests.support.load import sending, sleep_at_random
from tests.support.loop_disks import LoopDisk, loop_disks, requires_disks
from tests.support.owed import assert_at_rest, assert_gone, assert_nothing_lost, assert_one_of_each, sample, unfinished
from tests.support.real_daemon import Delivery, RealDaemon, real_daemon

pytestmark = [pytest.mark.disks]

ROUNDS = int(os.environ.get("RAIDD_DRILL", "10"))
SEED = os.environ.get("RAIDD_SEED") or str(time.time_ns())
SIZE_MIB = {"xfs": 400, "ext4": 300}


@requires_disks("xfs")
@pytest.mark.timeout(300 + 60 * ROUNDS)
def test_power_cuts_on_xfs_lose_nothing_acknowledged(tmp_path: Path) -> None:
    _cut_again_and_again("xfs", tmp_path)


@requires_disks("ext4")
@pytest.mark.timeout(300 + 60 * ROUNDS)
def test_power_cuts_on_ext4_lose_nothing_acknowledged(tmp_path: Path) -> None:
    _cut_again_and_again("ext4", tmp_path)


def _cut_again_and_again(filesystem: str, home: Path) -> None:
    """Each round: 1. A sender drops images. 2. At a random moment the power goes: now raidd is killed first, now the
    disks go first, in a random order, under a raidd that is still running. 3. Note what is acknowledged. 4. Mount
    everything again; start. 5. All that was acknowledged reads back; tmp/ is empty; what was not acknowledged is taken
    in now; catalog and members agree."""
    print(f"RAIDD_SEED={SEED}")
    random = Random(f"{filesystem}/{SEED}")
    with loop_disks(7, filesystem, SIZE_MIB[filesystem]) as disks:
        state = disks[6].folder / "raidd"
        state.mkdir()
        with real_daemon(home / "home", [disk.folder for disk in disks[:6]], state_dir=state) as raidd:
            seen: list[Delivery] = []
            for number in range(ROUNDS):
                moment_s, order = _cut_under_load(raidd, disks, random, f"{filesystem}/{SEED}/{number}")
                owed, leftovers = raidd.deliveries.acknowledged(), unfinished(raidd)
                print(
                    f"{filesystem} round {number}: {order}, after {moment_s:.3f} s, {len(owed)} of "
                    f"{len(raidd.deliveries.dropped)} acknowledged, {len(leftovers)} unfinished shards"
                )
                raidd.start()
                assert_gone(leftovers, raidd)
                raidd.assert_reads_back(sample(owed, seen, random))
                assert_at_rest(raidd)
            assert_nothing_lost(raidd)
            assert_one_of_each(raidd)
            assert raidd.status()["array"]["state"] == "healthy"


def _cut_under_load(raidd: RealDaemon, disks: Sequence[LoopDisk], random: Random, seed: str) -> tuple[float, str]:
    with sending(raidd, seed, largest=random.choice((50_000, 400_000))):
        moment_s = sleep_at_random(random, 0.2, 2.0)
        going, disks_first = random.sample(disks, len(disks)), random.random() < 0.5
        if not disks_first:
            raidd.kill()
        for disk in going:
            disk.shutdown()
        if disks_first:
            raidd.kill()
    for disk in disks:
        disk.umount()
        disk.mount()
    return moment_s, "the disks went first" if disks_first else "raidd went first"
