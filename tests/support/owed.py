"""What raidd owes after a crash, asked of a daemon that has come up again. Each check is one promise."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

from tests.support.real_daemon import Delivery, RealDaemon

CLEAN_S = 10.0
"""So soon after a start nothing is left in tmp/ of what a crash interrupted (issue 2)."""


def unfinished(raidd: RealDaemon) -> set[Path]:
    """Shards that were being written: all that lies in tmp/ on any member."""
    return {path for member in raidd.members for path in member.glob("raidd-*/tmp/*")}


def assert_gone(leftovers: set[Path], raidd: RealDaemon) -> None:
    """What a crash left in tmp/ is gone soon."""
    deadline = time.monotonic() + CLEAN_S
    while left := [path for path in leftovers if path.exists()]:
        assert time.monotonic() < deadline, f"still in tmp/: {left}\n{raidd.log_end()}"
        time.sleep(0.1)


def sample(owed: Sequence[Delivery], seen: list[Delivery], random: Random, old: int = 50) -> list[Delivery]:
    """What is owed and was not seen yet, which is then, and some of what was: so that rounds do not get longer."""
    before = {one.sha256 for one in seen}
    fresh = [one for one in owed if one.sha256 not in before]
    chosen = [*fresh, *random.sample(seen, min(old, len(seen)))]
    seen += fresh
    return chosen


def assert_nothing_lost(raidd: RealDaemon) -> None:
    """Everything acknowledged comes back, and nothing of it is stored twice."""
    raidd.assert_reads_back(raidd.deliveries.acknowledged())


def assert_one_of_each(raidd: RealDaemon) -> None:
    """Every version is listed once, versions of a UID count from 1, and nothing is listed that was never dropped."""
    rows = raidd.images()
    assert Counter(row["sha256"] for row in rows).most_common(1)[0][1] == 1
    assert {row["sha256"] for row in rows} <= set(raidd.deliveries.dropped)
    versions: dict[str, list[int]] = {}
    for row in rows:
        versions.setdefault(row["sop_instance_uid"], []).append(row["version"])
    assert all(sorted(numbers) == list(range(1, len(numbers) + 1)) for numbers in versions.values())


def assert_at_rest(raidd: RealDaemon) -> None:
    """All that was dropped has been taken in; tmp/ is empty everywhere; catalog and members agree."""
    raidd.wait_idle()
    assert raidd.deliveries.waiting() == []
    assert len(raidd.deliveries.acknowledged()) == len(raidd.deliveries.dropped)
    assert_gone(unfinished(raidd), raidd)
    raidd.raidctl("catalog", "check").ok()
