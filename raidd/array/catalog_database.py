"""One SQLite file as the catalog needs it: connections, sealed rows, and what makes a file usable.

WAL, synchronous=FULL. Exactly one connection writes and checkpoints (SQLite 3.40 to 3.51.2 can lose commits when
several connections checkpoint one database); all others are opened read-only and see the last commit.

A flipped bit, a truncated or a foreign file ends in `CatalogUnusable`, never in a wrong answer: the integrity check
at every open finds broken pages and indexes that lost an entry, the seal of each row (CRC-32C of its columns) what is
wrong inside one. I/O errors and a full disk end in `StateDirFaulty`, after which this object refuses to write: the
outcome of a commit that failed is unknown, only a restart can tell.

Any thread may read and write; writes take turns.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import crc32c
from sqlalchemy import (
    Connection,
    Engine,
    Select,
    Table,
    Update,
    bindparam,
    create_engine,
    delete,
    event,
    insert,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool, StaticPool

from raidd.array.catalog_schema import APPLICATION_ID, META, METADATA, SCHEMA_VERSION
from raidd.errors import CatalogUnusable, RaiddError, StateDirFaulty

BUSY_TIMEOUT_S = 30.0
READERS = 8
CHUNK = 500  # values in one IN (…)

SCHEMA_KEY, ARRAY_KEY = "catalog.schema", "catalog.array"

Row = Mapping[Any, Any]
"""A row by column names."""
Migration = Callable[[Connection], None]
MIGRATIONS: dict[int, Migration] = {}
"""From version v to v+1. All that are needed run in the one transaction that also raises the version."""


# Sealed rows -----------------------------------------------------------------------------------------------------


@lru_cache
def _columns(table: Table) -> tuple[str, ...]:
    return tuple(column.name for column in table.columns if column.name != "seal")


def _seal(table: Table, row: Row) -> int:
    # ascii() of plain integers, texts and bytes: the same on every Python, and fast
    return int(crc32c.crc32c(ascii([row[name] for name in _columns(table)]).encode()))


def sealed(table: Table, row: Row) -> dict[str, Any]:
    """The row with its seal. KeyError when a column is missing."""
    return {**row, "seal": _seal(table, row)}


def verified(table: Table, row: Row) -> Row:
    """The row as it was written; CatalogUnusable when its seal says otherwise."""
    if "seal" in table.columns and row["seal"] != _seal(table, row):
        raise CatalogUnusable(f"the catalog is corrupt: a row of {table.name} contradicts its checksum")
    return row


def rows(connection: Connection, table: Table, query: Select[Any] | None = None) -> list[Row]:
    """All rows of ``table`` (or those that ``query``, a select of the whole table, gives), verified."""
    found = connection.execute(select(table) if query is None else query).mappings()
    return [verified(table, row) for row in found]


def row(connection: Connection, table: Table, **key: Any) -> Row | None:
    """The one row with these column values, verified, or None."""
    found = connection.execute(_select_one(table, tuple(key)), key).mappings().one_or_none()
    return None if found is None else verified(table, found)


def rows_in(connection: Connection, table: Table, column: str, values: Iterable[Any]) -> list[Row]:
    """All rows whose ``column`` is among ``values``, verified; the values may be many."""
    found: list[Row] = []
    for some in chunks(sorted(set(values))):
        hits = connection.execute(_select_in(table, column), {"wanted": some}).mappings()
        found += [verified(table, one) for one in hits]
    return found


@lru_cache
def _select_one(table: Table, names: tuple[str, ...]) -> Select[Any]:
    return select(table).where(*(table.c[name] == bindparam(name) for name in names))


@lru_cache
def _select_in(table: Table, column: str) -> Select[Any]:
    return select(table).where(table.c[column].in_(bindparam("wanted", expanding=True)))


def remove_in(connection: Connection, table: Table, column: str, values: Iterable[Any]) -> None:
    """Delete all rows whose ``column`` is among ``values``."""
    for some in chunks(sorted(set(values))):
        connection.execute(delete(table).where(table.c[column].in_(some)))


def chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """The values, at most CHUNK at a time."""
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]


def add(connection: Connection, table: Table, new: Iterable[Row]) -> None:
    """Insert rows, sealed, in bulk."""
    if ready := [sealed(table, one) for one in new]:
        connection.execute(insert(table), ready)


def put(connection: Connection, table: Table, new: Iterable[Row]) -> None:
    """Insert rows, or replace those with the same primary key."""
    if ready := [sealed(table, one) for one in new]:
        connection.execute(_upsert(table), ready)


@lru_cache
def _upsert(table: Table) -> Any:
    statement = upsert(table)
    rest = {column.name: statement.excluded[column.name] for column in table.columns if not column.primary_key}
    return statement.on_conflict_do_update(index_elements=list(table.primary_key.columns), set_=rest)


def change(connection: Connection, table: Table, old: Row, **changes: Any) -> None:
    """Rewrite a row that was read, its primary key unchanged."""
    change_many(connection, table, [{**old, **changes}])


def change_many(connection: Connection, table: Table, new: Iterable[Row]) -> None:
    """Rewrite rows that are there, found by their primary keys."""
    if ready := [{f"new_{name}": value for name, value in sealed(table, one).items()} for one in new]:
        connection.execute(_update(table), ready)


@lru_cache
def _update(table: Table) -> Update:
    where = [column == bindparam(f"new_{column.name}") for column in table.primary_key.columns]
    rest = [column for column in table.columns if not column.primary_key]
    return update(table).where(*where).values({column: bindparam(f"new_{column.name}") for column in rest})


def read_meta(connection: Connection, key: str) -> Any:
    """The JSON value under ``key``, or None."""
    found = row(connection, META, key=key)
    return None if found is None else json.loads(found["value"])


def write_meta(connection: Connection, key: str, value: Any) -> None:
    """Keep a JSON value."""
    put(connection, META, [{"key": key, "value": json.dumps(value, sort_keys=True)}])


# The file --------------------------------------------------------------------------------------------------------

_UNUSABLE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT}


def translate(error: Exception) -> RaiddError:
    """What an exception of SQLite means to the array."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    code = getattr(cause, "sqlite_errorcode", None)
    if isinstance(cause, OSError) or (code is not None and code & 0xFF not in _UNUSABLE):
        return StateDirFaulty(f"the catalog cannot be read or written: {cause}")
    return CatalogUnusable(f"the catalog is corrupt: {cause}")


@contextmanager
def translated() -> Iterator[None]:
    """No exception of SQLite or SQLAlchemy leaves."""
    try:
        yield
    except (DBAPIError, sqlite3.Error, OSError) as error:
        raise translate(error) from error


class Database:
    """The file, its writer and its readers. `open` makes it when absent."""

    def __init__(self, path: Path, writer: Engine, readers: Engine) -> None:
        self.path = path
        self._engine, self._readers = writer, readers
        self._writer = writer.connect()
        self._lock = threading.RLock()
        self._broken: RaiddError | None = None

    @classmethod
    def open(cls, path: Path, array: UUID | None) -> Database:
        """CatalogUnusable: corrupt, newer, another array's or not a catalog. StateDirFaulty: the disk."""
        with translated():
            created = not path.exists()
            _refuse_stranger(path)
            database = cls(path, _writer_engine(path), _reader_engine(path))
        try:
            with translated():
                database._prepare(created, array)
        except BaseException:
            database.close()
            raise
        return database

    def _prepare(self, created: bool, array: UUID | None) -> None:
        if created:
            with self.write() as connection:
                connection.exec_driver_sql(f"PRAGMA application_id={APPLICATION_ID}")
                METADATA.create_all(connection)
                write_meta(connection, SCHEMA_KEY, SCHEMA_VERSION)
            _sync_folder(self.path.parent)
        self._check_file()
        with self.write() as connection:
            _migrate(connection)
            _claim(connection, array)

    def _check_file(self) -> None:
        with self.read() as connection:
            if connection.exec_driver_sql("PRAGMA application_id").scalar() != APPLICATION_ID:
                raise CatalogUnusable(f"{self.path} is not a catalog")
            if faults := integrity_faults(connection, limit=1):
                raise CatalogUnusable(f"the catalog is corrupt: {faults[0]}")

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction, durable on leaving; rolled back when the body raises."""
        with self._lock, translated():
            if self._broken is not None:
                raise self._broken
            transaction = self._writer.begin()
            try:
                yield self._writer
            except BaseException:
                self._roll_back(transaction)
                raise
            try:
                transaction.commit()
            except BaseException as error:
                self._broken = translate(error) if isinstance(error, Exception) else StateDirFaulty(repr(error))
                raise

    def _roll_back(self, transaction: Any) -> None:
        try:
            transaction.rollback()
        except DBAPIError as error:
            self._broken = translate(error)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A snapshot of the last commit."""
        with translated(), self._readers.connect() as connection, connection.begin():
            yield connection

    def any(self, query: str, *values: object) -> bool:
        """Whether a query has a row. For what is asked for every image that comes in: a twentieth of `read`'s cost."""
        with translated():
            pooled = self._readers.raw_connection()
            try:
                return pooled.driver_connection.execute(query, values).fetchone() is not None  # type: ignore[union-attr]
            finally:
                pooled.close()

    def close(self) -> None:
        """The readers first: the writer, last, checkpoints."""
        self._readers.dispose()
        with self._lock:
            self._broken = self._broken or StateDirFaulty("the catalog is closed")
            self._writer.close()
            self._engine.dispose()


def _refuse_stranger(path: Path) -> None:
    """Leave another program's database as it is: opening it would already switch it to WAL.

    The id stands at byte 68 of the file (SQLite, "Database File Format", 1.3); with a WAL beside it the WAL may know
    better, and it is asked for after opening."""
    if not path.exists() or Path(f"{path}-wal").exists():
        return
    with path.open("rb") as file:
        header = file.read(100)
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise CatalogUnusable(f"{path} is not a catalog")


def integrity_faults(connection: Connection, limit: int = 100) -> list[str]:
    """What SQLite's own check finds: pages, order, indexes against their tables."""
    found = connection.exec_driver_sql(f"PRAGMA integrity_check({limit})").scalars().all()
    return [] if found == ["ok"] else [str(line) for line in found]


def _writer_engine(path: Path) -> Engine:
    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA cell_size_check=ON")
        if connection.execute("PRAGMA journal_mode=WAL").fetchone() != ("wal",):
            raise StateDirFaulty(f"{path.parent} is on a file system that SQLite's WAL does not work on")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA temp_store=MEMORY")
        return connection

    return _engine(connect, "BEGIN IMMEDIATE", poolclass=StaticPool)


def _reader_engine(path: Path) -> Engine:
    uri = f"file:{quote(str(path.absolute()))}?mode=ro"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA query_only=ON")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("PRAGMA cell_size_check=ON")
        return connection

    return _engine(connect, "BEGIN", poolclass=QueuePool, pool_size=READERS, max_overflow=-1)


def _engine(connect: Callable[[], sqlite3.Connection], begin: str, **options: Any) -> Engine:
    """An engine whose transactions begin as told: the driver's own idea of when they begin is not wanted."""
    engine = create_engine("sqlite://", creator=connect, **options)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _migrate(connection: Connection) -> None:
    version = read_meta(connection, SCHEMA_KEY)
    if not isinstance(version, int) or version < 1:
        raise CatalogUnusable("the catalog does not say which version it is")
    if version > SCHEMA_VERSION:
        raise CatalogUnusable(f"the catalog is of version {version}; this program knows up to {SCHEMA_VERSION}")
    for step in range(version, SCHEMA_VERSION):
        MIGRATIONS[step](connection)
    if version != SCHEMA_VERSION:
        write_meta(connection, SCHEMA_KEY, SCHEMA_VERSION)


def _claim(connection: Connection, array: UUID | None) -> None:
    """The array this catalog is of: kept from the first time it is told."""
    known = read_meta(connection, ARRAY_KEY)
    if known is None and array is not None:
        write_meta(connection, ARRAY_KEY, str(array))
    elif array is not None and known != str(array):
        raise CatalogUnusable(f"the catalog is of array {known}, not of {array}")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
