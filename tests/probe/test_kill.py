"""`kill -9` of real processes at random moments, under load.

The seed is printed; `RAIDD_DRILL=N` runs N rounds instead of ten, `RAIDD_SEED` repeats a run's choices (its moments
are the machine's).
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import Random

import pytest

from tests.support.load import image, sending, sleep_at_random
from tests.support.owed import assert_at_rest, assert_gone, assert_nothing_lost, assert_one_of_each, sample, unfinished
from tests.support.real_daemon import Delivery, RealDaemon, member_folders, real_daemon

ROUNDS = int(os.environ.get("RAIDD_DRILL", "10"))
SEED = os.environ.get("RAIDD_SEED") or str(time.time_ns())


def _kill_amid_a_start(raidd: RealDaemon, random: Random) -> float:
    """A start that does not get far."""
    raidd.spawn()
    pause_s = sleep_at_random(random, 0.3, 3.0)
    raidd.kill()
    return pause_s


@pytest.mark.timeout(300 + 60 * ROUNDS)
def test_kill_9_under_load_loses_nothing_acknowledged_and_stores_nothing_twice(tmp_path: Path) -> None:
    """Each round: 1. A sender drops images, each written and closed. 2. kill -9 at a random moment; the sender goes on
    for a while. 3. Note what is acknowledged: what has left the inbox and was not refused. 4. Now and then start, and
    kill again during the start. 5. Start. 6. tmp/ is soon empty, everything acknowledged reads back, once.
    7. What was not acknowledged is taken in now; catalog and members agree."""
    print(f"RAIDD_SEED={SEED}")
    random = Random(f"kill/{SEED}")
    with real_daemon(tmp_path / "home", member_folders(tmp_path, 6), trial=True) as raidd:
        seen: list[Delivery] = []
        for number in range(ROUNDS):
            with sending(raidd, f"{SEED}/{number}", largest=2_000_000 if number % 3 == 0 else 200_000):
                moment_s = sleep_at_random(random, 0.1, 2.5)
                raidd.kill()
                sleep_at_random(random, 0.0, 0.5)
            owed, leftovers = raidd.deliveries.acknowledged(), unfinished(raidd)
            print(
                f"round {number}: killed after {moment_s:.3f} s, {len(owed)} of {len(raidd.deliveries.dropped)} "
                f"acknowledged, {len(leftovers)} unfinished shards"
            )
            while random.random() < 0.3:
                print(f"  and again {_kill_amid_a_start(raidd, random):.3f} s into the start")
            raidd.start()
            assert_gone(leftovers, raidd)
            raidd.assert_reads_back(sample(owed, seen, random))
            assert_at_rest(raidd)
        assert_nothing_lost(raidd)
        assert_one_of_each(raidd)
        raidd.restart()
        assert_nothing_lost(raidd)


@pytest.mark.timeout(600)
def test_kill_9_in_the_middle_of_a_large_image_stores_it_once(tmp_path: Path) -> None:
    """1. Drop an image of several parts beside small ones. 2. kill -9 when the first of its parts is on the members.
    3. Start; again, when the next is. 4. Let it finish: it is there once, whole, and no shard is unknown."""
    random = Random(f"large/{SEED}")
    print(f"RAIDD_SEED={SEED}")
    with real_daemon(tmp_path / "home", member_folders(tmp_path, 6), trial=True) as raidd:
        uid = "1.2.3.1"
        raidd.deliveries.drop("large.dcm", image(uid, random.randbytes(150 << 20)), uid)
        for parts in (1, 2):
            raidd.until(lambda least=parts: len(_shards(raidd, 0)) >= least, "a part is stored")  # type: ignore[misc]
            raidd.kill()
            assert raidd.deliveries.waiting(), "it was through before it was killed"
            raidd.start()
        assert_at_rest(raidd)
        assert_nothing_lost(raidd)
        assert_one_of_each(raidd)


@pytest.mark.timeout(600)
def test_a_rebuild_goes_on_where_kill_9_ended_it(tmp_path: Path) -> None:
    """1. Store images in many segments. 2. Take one member away; replace it, with a slow rebuild. 3. kill -9 amid it;
    note each shard that is in place on the new member. 4. Start; twice more. 5. The rebuild ends: the shards noted are
    the very same files, none was made again. 6. Two other members away: everything reads back."""
    random = Random(f"rebuild/{SEED}")
    print(f"RAIDD_SEED={SEED}")
    settings = {"repair": {"rate_mib_s": 3, "floor_mib_s": 0}}
    places = member_folders(tmp_path, 7)
    with real_daemon(tmp_path / "home", places[:6], trial=True, settings=settings) as raidd:
        _store_in_many_segments(raidd, 40, random)
        raidd.member_folder(2).rename(tmp_path / "dead")
        raidd.until(lambda: raidd.states()[2] == "missing", "slot 2 is missing")
        places[6].mkdir()
        raidd.raidctl("replace", "2", str(places[6])).ok()
        raidd.members = [*places[:2], places[6], *places[3:6]]
        kept: set[tuple[str, int]] = set()
        for wanted in (4, 12, 20):
            raidd.until(lambda w=wanted: len(_shards(raidd, 2)) >= w, f"{wanted} shards are rebuilt")  # type: ignore[misc]
            raidd.kill()
            assert kept <= _shards(raidd, 2)
            kept = _shards(raidd, 2)
            assert len(kept) < 40, "the rebuild was through before it was killed"
            leftovers = unfinished(raidd)
            raidd.start()
            assert_gone(leftovers, raidd)
        raidd.wait_healthy()
        assert len(_shards(raidd, 2)) == 40
        assert kept <= _shards(raidd, 2), "a shard that was there already was written again"
        assert raidd.states() == dict.fromkeys(range(6), "online")
        raidd.raidctl("catalog", "check").ok()
        for number in (0, 5):
            raidd.member_folder(number).rename(tmp_path / f"away{number}")
        raidd.until(lambda: list(raidd.states().values()).count("missing") == 2, "two are away")
        assert_nothing_lost(raidd)


def _store_in_many_segments(raidd: RealDaemon, count: int, random: Random) -> None:
    """One image a segment, half a megabyte a shard."""
    for number in range(count):
        uid = f"1.2.3.{number + 1}"
        raidd.deliveries.drop(f"{uid}.dcm", image(uid, random.randbytes(2_000_000)), uid)
        raidd.until(lambda n=number: raidd.status()["images"]["count"] > n, "it is stored")  # type: ignore[misc]
    raidd.wait_idle()
    assert len(_shards(raidd, 2)) == count


def _shards(raidd: RealDaemon, member: int) -> set[tuple[str, int]]:
    """Name and inode of each shard on a member: a file that is written again gets another inode."""
    return {(path.name, path.stat().st_ino) for path in raidd.members[member].glob("raidd-*/segments/*/*/*/*.shard")}
