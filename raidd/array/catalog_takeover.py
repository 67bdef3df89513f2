"""The catalog's file, freed from the locks of a process that is dead and cannot end.

A process killed while one of its threads is stuck on a hung disk keeps not only its flocks (lock.py) but also SQLite's
own locks: killed in the middle of a transaction, it bars every writer for as long as the disk hangs (tried: "database
is locked"). Locks belong to a file, not to its name. So a start that had to pass such a process by gives the name to a
copy: what is committed, and nothing else.

Promises: the dead process can change nothing any more but its own, nameless file; a crash at any step leaves a catalog
with the same commits, and the next start does it again. Costs one copy of the file.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from raidd.array.catalog_database import translated
from raidd.errors import StateDirFaulty

PARTS = ("", "-wal", "-shm")


def take_over(path: Path) -> None:
    """Put a copy, free of anybody's locks, in the place of the catalog at `path` (none there: nothing to do).

    Only for the holder of the folder's lock who knows that the holder before is dead. CatalogUnusable: the file is
    corrupt and was left as it is. StateDirFaulty: the disk."""
    copy = path.with_name(f"{path.name}.copy")
    with translated():
        _remove(copy, PARTS)
        if not path.exists():
            return
        for part in ("", "-wal"):  # the wal-index, -shm, is made again from the WAL
            if Path(f"{path}{part}").exists():
                shutil.copyfile(f"{path}{part}", f"{copy}{part}")
        _fold_in_wal(copy)
        _sync(copy)
        os.replace(copy, path)
        _sync(path.parent)
        # The old WAL holds what the new file has already: read again after a crash here, it changes nothing.
        _remove(path, ("-shm", "-wal"))
        _sync(path.parent)


def _fold_in_wal(copy: Path) -> None:
    """Afterwards the one file holds every commit."""
    with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        connection.execute("PRAGMA cell_size_check=ON")
        busy, _pages, _moved = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy or Path(f"{copy}-wal").exists():
        raise StateDirFaulty(f"the catalog could not be taken over from a dead process: {copy} is in use")


def _remove(path: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        Path(f"{path}{part}").unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
