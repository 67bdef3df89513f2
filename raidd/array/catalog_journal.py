"""The journal's table, and what follows from entries: tombstones and version numbers.

An entry is appended in the transaction of what it tells. Sequence numbers never fall behind one that a manifest
names, and leave a gap after a restore: entries that were lost with a state_dir had numbers too, and a tombstone must
have a higher one than every manifest written before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, insert, select

from raidd.array.catalog_bars import bury
from raidd.array.catalog_database import put, read_meta, row, write_meta
from raidd.array.catalog_intake import pin_versions
from raidd.array.catalog_schema import JOURNAL, JOURNAL_BRANCHES
from raidd.array.journal import (
    GENESIS,
    MERGE,
    Head,
    JournalEntry,
    make_entry,
    merge_detail,
    merged,
    parse_line,
    verify_chain,
)
from raidd.errors import CatalogUnusable

FLOOR_KEY = "catalog.sequence_floor"
RESTORE_GAP = 1_000_000
"""More entries than can be lost with a state_dir: what no replica had yet."""


def head(connection: Connection) -> Head:
    """(sequence, hash) of the last entry, or the genesis."""
    last = select(JOURNAL.c.sequence, JOURNAL.c.hash).order_by(JOURNAL.c.sequence.desc()).limit(1)
    found = connection.execute(last).one_or_none()
    return GENESIS if found is None else (int(found.sequence), str(found.hash))


def append(
    connection: Connection,
    at: str,
    actor: str,
    action: str,
    objects: Iterable[str],
    outcome: str = "ok",
    detail: Mapping[str, Any] | None = None,
) -> JournalEntry:
    """Write the next entry, with what follows from it."""
    sequence, digest = head(connection)
    floor = read_meta(connection, FLOOR_KEY) or 0
    entry = make_entry((max(sequence, floor), digest), at, actor, action, objects, outcome, detail)
    keep(connection, [entry])
    return entry


def keep(connection: Connection, entries: Sequence[JournalEntry]) -> None:
    """Insert entries that follow the head, and project them."""
    if not entries:
        return
    lines = [{"sequence": e.sequence, "line": e.to_line().decode(), "hash": e.hash} for e in entries]
    connection.execute(insert(JOURNAL), lines)
    for entry in entries:
        _project(connection, entry)


def _project(connection: Connection, entry: JournalEntry) -> None:
    bury(connection, entry)
    pin_versions(connection, _versions(entry))
    if entry.action == MERGE:
        branches = [{"hash": digest, "sequence": sequence} for sequence, digest in entry.detail["branches"]]
        put(connection, JOURNAL_BRANCHES, branches)
    for other in merged(entry):
        pin_versions(connection, _versions(other))


def _versions(entry: JournalEntry) -> list[tuple[str, str, int]]:
    """Version numbers that an entry tells because no manifest does."""
    told = entry.detail.get("versions", [])
    return [(str(uid), str(sha256), int(version)) for uid, sha256, version in told]


def raise_floor(connection: Connection, sequence: int) -> None:
    """Give no number up to ``sequence`` any more."""
    if sequence > max(head(connection)[0], read_meta(connection, FLOOR_KEY) or 0):
        write_meta(connection, FLOOR_KEY, sequence)


def after(connection: Connection, sequence: int, limit: int) -> list[JournalEntry]:
    """Up to ``limit`` entries above ``sequence``, verified."""
    query = select(JOURNAL.c.line).where(JOURNAL.c.sequence > sequence).order_by(JOURNAL.c.sequence).limit(limit)
    try:
        return [parse_line(line.encode()) for line in connection.execute(query).scalars()]
    except (ValueError, TypeError) as error:
        raise CatalogUnusable(f"the catalog's journal is corrupt: {error}") from error


def holds(connection: Connection, wanted: Head) -> bool:
    """Whether (sequence, hash) is an entry of this journal or of a branch merged into it, or the genesis."""
    return in_chain(connection, wanted) or (
        row(connection, JOURNAL_BRANCHES, hash=wanted[1], sequence=wanted[0]) is not None
    )


def in_chain(connection: Connection, wanted: Head) -> bool:
    """Whether (sequence, hash) is an entry of this very chain, or the genesis: only there a replica can go on."""
    query = select(JOURNAL.c.hash).where(JOURNAL.c.sequence == wanted[0])
    return wanted == GENESIS or connection.execute(query).scalar() == wanted[1]


def restore(connection: Connection, entries: Sequence[JournalEntry]) -> None:
    """Take in a run of a chain that the members kept: what is above our head must follow it, or CatalogUnusable."""
    known = head(connection)
    fresh = [entry for entry in entries if entry.sequence > known[0]]
    try:
        verify_chain(fresh, known)
    except ValueError as error:
        raise CatalogUnusable(f"the journal on the members does not go on with the catalog's: {error}") from error
    keep(connection, fresh)
    if entries:
        raise_floor(connection, entries[-1].sequence + RESTORE_GAP)


def merge(connection: Connection, strays: Sequence[JournalEntry], at: str) -> None:
    """Tie branches in: what they purged stays purged, and their heads count as known."""
    fresh = [entry for entry in strays if not holds(connection, entry.head)]
    if fresh:
        append(connection, at, "raidd", MERGE, (), "ok", merge_detail(fresh))


def check_chain(connection: Connection) -> list[str]:
    """What is wrong with the chain, read a thousand entries at a time."""
    last = GENESIS
    while page := after(connection, last[0], 1000):
        try:
            last = verify_chain(page, last)
        except ValueError as error:
            return [str(error)]
    return []


def renumbered(versions: Iterable[tuple[str, str, int]], detail: Mapping[str, Any]) -> dict[str, Any]:
    """The entry's detail with the version numbers that it has to tell."""
    told = [list(version) for version in versions]
    return {**detail, "versions": told} if told else dict(detail)
