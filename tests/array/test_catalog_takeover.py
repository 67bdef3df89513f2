"""A catalog whose dead owner still holds SQLite's locks: taken over with every commit, at whatever step it is cut."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest

from raidd.array import catalog_takeover
from raidd.array.catalog import Catalog
from raidd.array.catalog_takeover import take_over
from raidd.errors import CatalogUnusable, StateDirFaulty

ARRAY = UUID("5f0c2a6e-3f6b-4c1e-9d55-0a6b0f7c1d2e")

# Stands for a process that was killed in the middle of a transaction and cannot end: it holds the locks and says no
# more. Its last commit is only in the WAL.
OWNER = """
import sys
from pathlib import Path
from uuid import UUID
from raidd.array.catalog import Catalog
catalog = Catalog.open(Path(sys.argv[1]), array=UUID(sys.argv[2]))
for number in range(200):
    catalog.put_meta("committed", number)
with catalog._database.write() as connection:
    connection.exec_driver_sql("DELETE FROM meta WHERE key = 'committed'")
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextmanager
def stuck_owner(path: Path) -> Iterator[None]:
    command = [sys.executable, "-c", OWNER, str(path), str(ARRAY)]
    owner = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        yield
    finally:
        owner.kill()
        owner.communicate()


@pytest.fixture
def catalog_path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.sqlite"


def committed(path: Path) -> object:
    catalog = Catalog.open(path, array=ARRAY)
    try:
        catalog.put_meta("new owner", True)
        return catalog.get_meta("committed")
    finally:
        catalog.close()


def test_a_dead_owner_bars_every_writer(catalog_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this is for; without it the next test proves nothing."""
    monkeypatch.setattr("raidd.array.catalog_database.BUSY_TIMEOUT_S", 0.1)
    with stuck_owner(catalog_path), pytest.raises(StateDirFaulty, match="locked"):
        committed(catalog_path)


def test_what_was_committed_is_taken_over_and_nothing_else(catalog_path: Path) -> None:
    with stuck_owner(catalog_path):
        take_over(catalog_path)
        assert committed(catalog_path) == 199
    assert committed(catalog_path) == 199
    assert [path.name for path in catalog_path.parent.iterdir()] == ["catalog.sqlite"]


@pytest.mark.parametrize("dead_meanwhile", [False, True])
@pytest.mark.parametrize("step", range(7))
def test_cut_at_any_step_the_next_one_takes_over_the_same(
    catalog_path: Path, step: int, dead_meanwhile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step that changes a file is one of these calls; the process dies instead of the one with this number. If the
    owner could end meanwhile, nobody takes over: the next start just opens what is there."""

    class Cut(BaseException):
        pass

    calls = []

    def dies(real: object) -> object:
        def call(*arguments: object) -> object:
            calls.append(arguments)
            if len(calls) == step + 1:
                raise Cut
            return real(*arguments)  # type: ignore[operator]

        return call

    with stuck_owner(catalog_path):
        with monkeypatch.context() as patched:
            patched.setattr(shutil, "copyfile", dies(shutil.copyfile))
            patched.setattr(os, "replace", dies(os.replace))
            patched.setattr(catalog_takeover, "_fold_in_wal", dies(catalog_takeover._fold_in_wal))
            patched.setattr(catalog_takeover, "_sync", dies(catalog_takeover._sync))
            with pytest.raises(Cut):
                take_over(catalog_path)
        if not dead_meanwhile:
            take_over(catalog_path)
            assert committed(catalog_path) == 199
    assert committed(catalog_path) == 199


def test_a_corrupt_file_is_left_as_it_is(catalog_path: Path) -> None:
    committed(catalog_path)
    catalog_path.write_bytes(b"\x55" * len(catalog_path.read_bytes()))
    before = catalog_path.read_bytes()
    with pytest.raises(CatalogUnusable):
        take_over(catalog_path)
    assert catalog_path.read_bytes() == before


def test_where_there_is_no_catalog_there_is_nothing_to_take_over(catalog_path: Path) -> None:
    take_over(catalog_path)
    assert list(catalog_path.parent.iterdir()) == []
