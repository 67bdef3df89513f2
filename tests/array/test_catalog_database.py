"""A catalog file that is not exactly what was committed is refused; it never gives a wrong answer."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from pathlib import Path
from random import Random
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from raidd.array import catalog_database
from raidd.array.catalog import Catalog, ImageQuery
from raidd.array.catalog_database import Database, translated
from raidd.errors import CatalogUnusable, StateDirFaulty
from tests.support.catalog_data import ARRAY, NOW, NOW_MS, image, member, store

FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None


def filled(path: Path) -> tuple[object, ...]:
    """A catalog with a bit of everything; its answers."""
    catalog = Catalog.open(path, array=ARRAY)
    for number in range(4):
        identity = {"patient_name": f"Meier^Rex{number}", "study_instance_uid": "7.1", "study_date": "20260102"}
        images = [image(f"1.{number}.{i}", f"{number}{i}", identity=identity) for i in range(6)]
        segment = store(catalog, [*images, image("1.9", "large", size=40, part=(number * 10, 10))])
        catalog.mark(segment, number % 3, "missing")
    catalog.put_meta("roster", {"slots": [1, 2]})
    catalog.append_journal(NOW, "vet", "purge", detail={"segments": [str(uuid4())], "images": []})
    given = answers(catalog)
    catalog.close()
    return given


def answers(catalog: Catalog) -> tuple[object, ...]:
    """Everything that is asked of a catalog."""
    segments = catalog.segments_on(member(0))
    images = list(catalog.all_images())
    return (
        images,
        [catalog.versions(row.sop_instance_uid) for row in images],
        segments,
        [catalog.segment_images(row.segment) for row in segments],
        [catalog.excepted(row.segment) for row in segments],
        catalog.reserved(),
        catalog.exceptions(),
        catalog.counts(),
        catalog.counts({member(1)}),
        catalog.endangered(),
        catalog.search(ImageQuery(words=("rex", "meier"))),
        catalog.study_images("7.1"),
        catalog.incomplete("1.9"),
        catalog.journal_after(0),
        catalog.journal_head(),
        catalog.get_meta("roster"),
        catalog.highest_id(),
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[object, ...]]:
    path = tmp_path_factory.mktemp("catalog") / "catalog.sqlite"
    given = filled(path)
    assert not Path(f"{path}-wal").exists()
    return path, given


def refused_or_right(path: Path, given: tuple[object, ...]) -> bool:
    """Whether the file was refused; a wrong answer fails."""
    try:
        catalog = Catalog.open(path, array=ARRAY)
    except CatalogUnusable:
        return True
    try:
        assert answers(catalog) == given
    except CatalogUnusable:
        return True
    finally:
        catalog.close()
    return False


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bits_are_refused_or_change_no_answer(
    original: tuple[Path, tuple[object, ...]], data: st.DataObject
) -> None:
    path, given = original
    content = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(content) * 8 - 1), min_size=1, max_size=3, unique=True)):
        content[at // 8] ^= 1 << at % 8
    with tempfile.TemporaryDirectory(dir=FAST) as folder:
        copy = Path(folder) / "catalog.sqlite"
        copy.write_bytes(content)
        refused_or_right(copy, given)


def test_a_flip_in_what_is_stored_is_refused(original: tuple[Path, tuple[object, ...]], tmp_path: Path) -> None:
    path, given = original
    content = path.read_bytes()
    copy = tmp_path / "catalog.sqlite"
    hits = [at for at in range(len(content)) if content.startswith(b"Meier^Rex2", at)]
    assert hits
    for at in hits:
        copy.write_bytes(content[:at] + b"N" + content[at + 1 :])
        assert refused_or_right(copy, given)


@pytest.mark.parametrize("keep", [0, 1, 100, 4096, 0.3, 0.7, -1])
def test_a_truncated_file_is_refused(original: tuple[Path, tuple[object, ...]], tmp_path: Path, keep: float) -> None:
    content = original[0].read_bytes()
    length = int(len(content) * keep) if isinstance(keep, float) else keep % len(content)
    copy = tmp_path / "catalog.sqlite"
    copy.write_bytes(content[:length])
    assert refused_or_right(copy, original[1]) or keep == -1  # the last byte of all may be one that nobody uses


@pytest.mark.parametrize("content", [b"garbage" * 1000, b"\0" * 8192, b"SQLite format 3\0" + b"\xff" * 5000])
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(content)
    with pytest.raises(CatalogUnusable):
        Catalog.open(path)


def test_a_strangers_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    stranger = sqlite3.connect(path)
    stranger.execute("CREATE TABLE meta (key, value)")
    stranger.commit()
    stranger.close()
    before = path.read_bytes()
    with pytest.raises(CatalogUnusable, match="not a catalog"):
        Catalog.open(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_another_arrays_catalog_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    Catalog.open(path, array=ARRAY).close()
    with pytest.raises(CatalogUnusable, match="array"):
        Catalog.open(path, array=uuid4())
    Catalog.open(path).close()


# Versions of the schema ------------------------------------------------------------------------------------------


def test_a_newer_catalog_is_refused_and_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    Catalog.open(path, array=ARRAY).close()
    database = Database.open(path, ARRAY)
    with database.write() as connection:
        catalog_database.write_meta(connection, "catalog.schema", catalog_database.SCHEMA_VERSION + 1)
    database.close()
    before = path.read_bytes()
    with pytest.raises(CatalogUnusable, match="version"):
        Catalog.open(path, array=ARRAY)
    assert path.read_bytes() == before


def test_an_older_catalog_is_migrated_step_by_step_in_one_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "catalog.sqlite"
    filled(path)
    steps: list[int] = []
    broken = [True]

    def first(connection: Connection) -> None:
        steps.append(1)
        connection.exec_driver_sql("ALTER TABLE studies ADD COLUMN color TEXT")

    def second(_connection: Connection) -> None:
        steps.append(2)
        if broken[0]:
            raise StateDirFaulty("power cut")

    now = catalog_database.SCHEMA_VERSION
    monkeypatch.setattr(catalog_database, "MIGRATIONS", {now: first, now + 1: second})
    monkeypatch.setattr(catalog_database, "SCHEMA_VERSION", now + 2)
    with pytest.raises(StateDirFaulty):
        Catalog.open(path, array=ARRAY)
    broken[0] = False
    catalog = Catalog.open(path, array=ARRAY)
    assert steps == [1, 2, 1, 2]
    assert catalog.get_meta("catalog.schema") == now + 2
    catalog.close()


# Connections -----------------------------------------------------------------------------------------------------


def test_only_the_writer_can_write_and_checkpoint_and_it_syncs_every_commit(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "catalog.sqlite", ARRAY)
    with database.write() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA wal_autocheckpoint").scalar() == 0
        assert connection.exec_driver_sql("PRAGMA query_only").scalar() == 1
        connection.exec_driver_sql("PRAGMA query_only=OFF")
        with pytest.raises(OperationalError, match="readonly"):
            connection.exec_driver_sql("DELETE FROM meta")
    database.close()


def test_a_read_sees_one_state_whatever_is_committed_meanwhile(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "catalog.sqlite", ARRAY)
    with database.read() as connection:
        before = catalog_database.read_meta(connection, "x")
        with database.write() as writer:
            catalog_database.write_meta(writer, "x", 1)
        assert catalog_database.read_meta(connection, "x") == before
    with database.read() as connection:
        assert catalog_database.read_meta(connection, "x") == 1
    database.close()


def test_what_raises_within_a_transaction_leaves_nothing_behind(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "catalog.sqlite", ARRAY)

    def half_done() -> None:
        with database.write() as connection:
            catalog_database.write_meta(connection, "x", 1)
            raise KeyError

    with pytest.raises(KeyError):
        half_done()
    with database.read() as connection:
        assert catalog_database.read_meta(connection, "x") is None
    with database.write() as connection:  # and the next one works
        catalog_database.write_meta(connection, "x", 2)
    database.close()


def test_after_a_commit_that_failed_nothing_is_written_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = Catalog.open(tmp_path / "catalog.sqlite", array=ARRAY)
    store(catalog, [image("1")])
    writer = catalog._database._writer

    def fails(_connection: object) -> None:
        raise _sqlite_error(sqlite3.SQLITE_IOERR_FSYNC)

    monkeypatch.setattr(writer.dialect, "do_commit", fails)
    taken = catalog.unused()
    with pytest.raises(StateDirFaulty):
        catalog.reserve(NOW_MS, Random(1))
    monkeypatch.undo()
    with pytest.raises(StateDirFaulty):
        catalog.put_meta("x", 1)
    assert catalog.unused() == taken
    assert len(catalog.versions("1")) == 1
    catalog.close()


def _sqlite_error(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        (sqlite3.SQLITE_IOERR_FSYNC, StateDirFaulty),
        (sqlite3.SQLITE_FULL, StateDirFaulty),
        (sqlite3.SQLITE_READONLY, StateDirFaulty),
        (sqlite3.SQLITE_CORRUPT, CatalogUnusable),
        (sqlite3.SQLITE_NOTADB, CatalogUnusable),
        (sqlite3.SQLITE_CORRUPT_INDEX, CatalogUnusable),
    ],
)
def test_sqlites_errors_are_told_apart(code: int, meaning: type[Exception]) -> None:
    with pytest.raises(meaning), translated():
        raise OperationalError("SELECT 1", {}, _sqlite_error(code))


def test_a_state_dir_that_is_not_there_is_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(StateDirFaulty):
        Catalog.open(tmp_path / "nowhere" / "catalog.sqlite")


def test_a_full_disk_refuses_the_commit_and_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    catalog = Catalog.open(path, array=ARRAY)
    store(catalog, [image("1")])
    with catalog._database.write() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    with catalog._database._lock:
        catalog._database._writer.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        catalog._database._writer.rollback()
    with pytest.raises(StateDirFaulty):
        store(catalog, [image(f"2.{i}", str(i)) for i in range(500)])
    assert catalog.check() == []
    assert (catalog.counts().images, len(catalog.versions("1"))) == (1, 1)
    catalog.close()


# Setting aside ---------------------------------------------------------------------------------------------------


def test_set_aside_keeps_the_file_and_its_wal_readable_and_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    targets = []
    for content in ("first", "second"):
        catalog = Catalog.open(path, array=ARRAY)
        store(catalog, [image(content)])
        for suffix in ("", "-wal", "-shm"):  # as a kill would leave them
            shutil.copy(f"{path}{suffix}", tmp_path / f"left{suffix}")
        catalog.close()
        for suffix in ("", "-wal", "-shm"):
            os.replace(tmp_path / f"left{suffix}", f"{path}{suffix}")
        targets.append(Catalog.set_aside(path, NOW))
        assert not path.exists()
        assert not Path(f"{path}-wal").exists()
    assert len(set(targets)) == 2
    for target, content in zip(targets, ("first", "second"), strict=True):
        assert target.name.startswith("catalog-20261124T100000")
        aside = Catalog.open(target, array=ARRAY)
        assert len(aside.versions(content)) == 1
        aside.close()
