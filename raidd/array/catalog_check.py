"""What `raidctl catalog check` looks at: SQLite's own check, every seal, the journal's chain, the rules between tables,
and every kept counter against a count made anew. Reads all of the catalog; writes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby

from sqlalchemy import Connection, Table, select, text

from raidd.array.catalog_counts import STUDIES_KEY, Groups, Ledger
from raidd.array.catalog_database import Row, integrity_faults, read_meta, rows, verified
from raidd.array.catalog_intake import tile
from raidd.array.catalog_journal import check_chain
from raidd.array.catalog_schema import (
    CLASSES,
    COPIES,
    EXCEPTIONS,
    GROUPS,
    IMAGES,
    METADATA,
    PARTS,
    SEGMENTS,
    STUDIES,
)
from raidd.errors import CatalogUnusable

FAULTS_LIMIT = 100
PAGE = 500

_NEVER = {  # what must find nothing
    "groups without a placement": "SELECT id FROM groups WHERE placement NOT IN (SELECT id FROM placements)",
    "segments without a group": "SELECT hex(segment) FROM segments WHERE group_id NOT IN (SELECT id FROM groups)",
    "segments that are reserved too": "SELECT hex(segment) FROM segments JOIN reserved USING (segment)",
    "segments beside one that replaced them": (
        "SELECT hex(r.replaced) FROM replacements r"
        " JOIN segments o ON o.segment = r.replaced JOIN segments n ON n.segment = r.successor"
    ),
    "segments that were purged": (
        "SELECT hex(s.segment) FROM segments s"
        " JOIN tombstone_segments t ON t.segment = s.segment AND t.sequence > s.journal_sequence"
    ),
    "images that were purged": (
        "SELECT i.uid FROM images i JOIN tombstone_images t ON t.uid = i.uid AND t.sha256 = i.sha256"
        " JOIN copies c ON c.image_row = i.id JOIN parts p ON p.copy = c.id"
        " JOIN segments s ON s.segment = p.segment AND s.journal_sequence < t.sequence"
    ),
    "exceptions without a segment": (
        "SELECT hex(segment) FROM exceptions WHERE segment NOT IN (SELECT segment FROM segments)"
    ),
    "parts without a segment": "SELECT copy FROM parts WHERE segment NOT IN (SELECT segment FROM segments)",
    "parts without a copy": "SELECT copy FROM parts WHERE copy NOT IN (SELECT id FROM copies)",
    "parts outside their segment": (
        "SELECT hex(p.segment) FROM parts p JOIN segments s ON s.segment = p.segment"
        ' WHERE p."offset" + p.length > s.payload_length'
    ),
    "copies without parts": "SELECT id FROM copies WHERE id NOT IN (SELECT copy FROM parts)",
    "copies of no image": (
        "SELECT id FROM copies WHERE image_row IS NOT NULL AND image_row NOT IN (SELECT id FROM images)"
    ),
    "copies of another image": (
        "SELECT c.id FROM copies c JOIN images i ON i.id = c.image_row"
        " WHERE c.uid <> i.uid OR c.sha256 IS NOT i.sha256 OR c.size IS NOT i.size"
    ),
    "images without a copy": (
        "SELECT uid FROM images WHERE id NOT IN (SELECT image_row FROM copies WHERE image_row IS NOT NULL)"
    ),
    "images twice": "SELECT uid FROM images GROUP BY uid, sha256 HAVING count(*) > 1",
    "images without a subject": "SELECT uid FROM images WHERE subject NOT IN (SELECT id FROM subjects)",
    "images whose version is another's": (
        "SELECT i.uid FROM images i JOIN pins p ON p.uid = i.uid AND p.version = i.version WHERE p.sha256 <> i.sha256"
    ),
}


def faults(connection: Connection, groups: Groups) -> list[str]:
    """Sentences, at most FAULTS_LIMIT; what is damaged in itself ends the check."""
    found = integrity_faults(connection, FAULTS_LIMIT) or _broken_seals(connection)
    if found:
        return found
    try:
        found = [*check_chain(connection), *_broken_rules(connection), *_wrong_masks(connection)]
        found += [*_wrong_tilings(connection), *_wrong_counters(connection, groups)]
    except (CatalogUnusable, KeyError, ValueError) as error:
        found.append(f"the check could not go on: {error}")
    return found[:FAULTS_LIMIT]


def _broken_seals(connection: Connection) -> list[str]:
    found = []
    for table in METADATA.sorted_tables:
        try:
            for row in _all(connection, table):
                verified(table, row)
        except CatalogUnusable as error:
            found.append(error.message)
    return found


def _all(connection: Connection, table: Table) -> Iterator[Row]:
    """Every row in the order of the primary key, a page in memory at a time."""
    query = select(table).order_by(*table.primary_key.columns).execution_options(yield_per=PAGE)
    yield from connection.execute(query).mappings()


def _broken_rules(connection: Connection) -> Iterator[str]:
    for what, query in _NEVER.items():
        hits = connection.execute(text(f"{query} LIMIT 4")).scalars().all()
        if hits:
            yield f"{what}: {', '.join(map(str, hits[:3]))}{' and more' if len(hits) > 3 else ''}"


def _wrong_masks(connection: Connection) -> Iterator[str]:
    """Each segment's group must miss exactly the shards that have exceptions."""
    masks: dict[bytes, int] = defaultdict(int)
    for one in _all(connection, EXCEPTIONS):
        masks[one["segment"]] |= 1 << one["shard"]
    group_masks = {group["id"]: group["mask"] for group in rows(connection, GROUPS)}
    for segment in _all(connection, SEGMENTS):
        if group_masks[segment["group_id"]] != masks.get(segment["segment"], 0):
            yield f"segment {segment['segment'].hex()}: its exceptions are not those of its group"


def _wrong_tilings(connection: Connection) -> Iterator[str]:
    """Exactly the copies whose live parts tile them are tied to an image."""
    every_part = groupby(_all(connection, PARTS), key=lambda part: part["copy"])
    for copy, (_number, some) in zip(_all(connection, COPIES), every_part, strict=True):
        live = sorted((part for part in some if part["live"]), key=lambda part: part["image_offset"])
        whole = bool(live) and tile(live, copy["size"] or 0) == live
        if whole != (copy["image_row"] is not None):
            wrong = "are complete, yet it is not listed" if whole else "do not make it"
            yield f"image {copy['uid']}: its parts {wrong}"


def _wrong_counters(connection: Connection, groups: Groups) -> Iterator[str]:
    ledger = Ledger(connection, groups)
    for segment in _all(connection, SEGMENTS):
        ledger.count_segment(segment, 1)
    page: list[int] = []
    for image in _all(connection, IMAGES):
        page.append(image["id"])
        if len(page) == PAGE:
            ledger.count_images(page, 1)
            page = []
    ledger.count_images(page, 1)
    yield from ledger.differences({table: _all(connection, table) for table in (GROUPS, CLASSES, SEGMENTS, STUDIES)})
    studies = sum(1 for _ in _all(connection, STUDIES))
    if studies != (read_meta(connection, STUDIES_KEY) or 0):
        yield f"{studies} studies, but {read_meta(connection, STUDIES_KEY)} were counted"
