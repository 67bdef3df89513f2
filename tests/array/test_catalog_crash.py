"""kill -9 at any moment: what was acknowledged is there, whole; nothing is there twice; no id is used again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random
from uuid import UUID

from raidd.array.catalog import Catalog
from tests.support.catalog_data import ARRAY, NOW, NOW_MS, image, member, segment, store, take

WRITER = """
import sys
from random import Random
from uuid import UUID
from raidd.array.catalog import Catalog
from tests.support.catalog_data import ARRAY, NOW, NOW_MS, image, segment, take

catalog = Catalog.open(sys.argv[1], array=ARRAY)
number = int(sys.argv[2])
while True:
    number += 1
    used = take(catalog)
    print("taken", used, flush=True)
    images = [image(f"{number}.{i}", f"{number}.{i}") for i in range(5)]
    new = segment(used, images, sequence=catalog.journal_head()[0])
    catalog.commit(new, now=NOW, now_ms=NOW_MS, random=Random(used.int))
    print("stored", used, number, flush=True)
    if number % 3 == 0:
        catalog.mark(used, 0, "missing")
        print("marked", used, flush=True)
"""


def test_acknowledged_commits_survive_kill_9_at_random_moments(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = Random(seed)
    taken: list[UUID] = []
    stored: dict[UUID, int] = {}
    marked: set[UUID] = set()
    for _round in range(8):
        lines = _run_and_kill(path, max(stored.values(), default=0) + 100, dice.uniform(0.0, 0.25))
        for word, identifier, *rest in map(str.split, lines):
            if word == "taken":
                taken.append(UUID(identifier))
            elif word == "stored":
                stored[UUID(identifier)] = int(rest[0])
            else:
                marked.add(UUID(identifier))
        _look(path, taken, stored, marked)
    assert stored


def _run_and_kill(path: Path, number: int, after_s: float) -> list[str]:
    """What the writer said before it was killed, ``after_s`` after its first commit."""
    command = [sys.executable, "-c", WRITER, str(path), str(number)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert child.stdout is not None
    lines = [child.stdout.readline(), child.stdout.readline()]
    time.sleep(after_s)
    os.kill(child.pid, signal.SIGKILL)
    lines += child.stdout.readlines()
    child.wait()
    return [line for line in lines if line.endswith("\n")]


def _look(path: Path, taken: list[UUID], stored: dict[UUID, int], marked: set[UUID]) -> None:
    assert len(set(taken)) == len(taken)
    catalog = Catalog.open(path, array=ARRAY)
    assert catalog.check() == []
    for identifier, number in stored.items():
        rows = catalog.segment_images(identifier)
        assert [row.sop_instance_uid for row in rows] == [f"{number}.{i}" for i in range(5)]
        assert all(len(catalog.versions(row.sop_instance_uid)) == 1 for row in rows)
    assert all(catalog.absent(identifier) == {0} for identifier in marked)
    committed = catalog.known(taken)
    assert committed.issuperset(stored)
    # what was handed out and not committed is still looked for
    assert set(taken) - committed <= set(catalog.reserved())
    catalog.close()


def test_a_crash_between_reserve_and_commit_leaves_the_id_to_be_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    before = Catalog.open(path, array=ARRAY)
    used = take(before)
    before.close()
    after = Catalog.open(path, array=ARRAY)
    assert used in after.reserved()
    after.adopt(segment(used, [image("1")]), NOW)
    assert used not in after.reserved()
    assert len(after.versions("1")) == 1
    after.close()


# Threads ---------------------------------------------------------------------------------------------------------


def test_many_threads_write_and_read_at_once(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "catalog.sqlite", array=ARRAY)
    catalog.reserve(NOW_MS, Random(0), 200)
    errors: list[BaseException] = []
    done = threading.Event()

    def guarded(work: object, *arguments: object) -> None:
        try:
            work(*arguments)  # type: ignore[operator]
        except BaseException as error:
            errors.append(error)

    def write(thread: int) -> None:
        for number in range(10):
            used = store(catalog, [image(f"{thread}.{number}.{i}") for i in range(3)], on=[member(j) for j in range(3)])
            catalog.mark(used, number % 3, "missing")
            catalog.move(used, number % 3, member(3 + thread))

    def read() -> None:
        while not done.is_set():
            counts = catalog.counts({member(0)})
            assert counts.images == 3 * counts.segments
            for row in catalog.all_images():
                assert len(row.parts) == 1
            catalog.endangered()

    writers = [threading.Thread(target=guarded, args=(write, thread)) for thread in range(4)]
    readers = [threading.Thread(target=guarded, args=(read,)) for _ in range(3)]
    for thread in writers + readers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert errors == []
    assert catalog.check() == []
    assert (catalog.counts().segments, catalog.counts().images) == (40, 120)
    assert len({entry.hash for entry in catalog.journal_after(0)}) == 40
    catalog.close()


def test_concurrent_takers_never_get_the_same_id(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "catalog.sqlite", array=ARRAY)
    catalog.reserve(NOW_MS, Random(0), 300)
    got: list[list[UUID | None]] = [[] for _ in range(4)]
    threads = [
        threading.Thread(target=lambda mine=mine: mine.extend(catalog.take_id() for _ in range(100))) for mine in got
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = [one for mine in got for one in mine if one is not None]
    assert (len(taken), len(set(taken))) == (300, 300)
    catalog.close()
