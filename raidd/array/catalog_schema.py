"""The catalog's tables.

Every row carries ``seal``, the CRC-32C of its other columns (SQLite has no checksums of its own); it is verified
wherever a row is read (catalog_database.py). Ids are 16-byte BLOBs, digests 32-byte BLOBs, times RFC 3339 text.

A segment names its *group*: a placement (k, m, members) and the set of shards that are missing or damaged, as a mask.
Counts over the array are sums over groups and classes: a few hundred rows, however many segments and images there
are; a member that goes away changes none of them. A group's or placement's meaning never changes: a segment moves
from one to another.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BLOB, Column, Index, Integer, MetaData, Table, Text, UniqueConstraint

SCHEMA_VERSION = 1
APPLICATION_ID = 0x52414944  # "RAID", so that a stranger's database is not taken for ours

METADATA = MetaData()


def _table(name: str, *items: Any, rowid: bool = False) -> Table:
    seal = Column("seal", Integer, nullable=False)
    return Table(name, METADATA, *items, seal, sqlite_with_rowid=rowid)


def _id(name: str, **options: Any) -> Column[Any]:
    return Column(name, BLOB, nullable=False, **options)


def _int(name: str, **options: Any) -> Column[Any]:
    return Column(name, Integer, nullable=False, **options)


def _text(name: str, **options: Any) -> Column[Any]:
    return Column(name, Text, nullable=False, **options)


META = _table("meta", _text("key", primary_key=True), _text("value"))
RESERVED = _table("reserved", _id("segment", primary_key=True))

PLACEMENTS = _table(
    "placements",
    Column("id", Integer, primary_key=True),
    _int("k"),
    _int("m"),
    _id("members"),  # 16 bytes a shard, in shard order
    UniqueConstraint("k", "m", "members"),
    rowid=True,
)
# A group is all segments of one placement that miss the same shards (a mask, bit i = shard i). Counts over the
# array are sums over groups: a few hundred rows, however many segments there are.
GROUPS = _table(
    "groups",
    Column("id", Integer, primary_key=True),
    _int("placement"),
    _int("mask"),
    _int("segments"),
    _int("shard_bytes"),  # sum over segments of one shard file's length
    UniqueConstraint("placement", "mask"),
    rowid=True,
)
SEGMENTS = _table(
    "segments",
    _id("segment", primary_key=True),
    _int("group_id"),
    _int("payload_length"),
    _int("body_offset"),
    _int("block_size"),
    _text("written_at"),
    _int("journal_sequence"),
    _int("sole_images"),  # listed images that lie in this segment alone, and their bytes
    _int("sole_bytes"),
    _int("shared_images"),  # listed images of which only a part, or only one copy, lies here
    Index("segments_by_group", "group_id", "segment"),
)
EXCEPTIONS = _table(
    "exceptions", _id("segment", primary_key=True), _int("shard", primary_key=True, autoincrement=False), _text("kind")
)
# Who names whom in `replaces`, also of segments that do not exist (any more): an old one must not come back.
REPLACEMENTS = _table(
    "replacements",
    _id("replaced", primary_key=True),
    _id("successor", primary_key=True),
    Index("replacements_by_successor", "successor"),
)
# Images that need several groups at once ("3,4") or one of several ("3|7"): counted by what they need.
CLASSES = _table("classes", _text("key", primary_key=True), _int("images"), _int("bytes"))

SUBJECTS = _table(
    "subjects",
    Column("id", Integer, primary_key=True),
    _text("words"),
    _text("patient"),
    _text("owner"),
    _text("species"),
    UniqueConstraint("words", "patient", "owner", "species"),
    rowid=True,
)
IMAGES = _table(
    "images",
    Column("id", Integer, primary_key=True),
    _text("uid"),
    _int("version"),
    _id("sha256"),
    _int("size"),
    _text("received_at"),
    _text("study_uid"),
    _text("series_uid"),
    _text("study_date"),  # YYYYMMDD or ""
    _text("modality"),
    _int("subject"),
    UniqueConstraint("uid", "version"),
    Index("images_by_study", "study_uid"),
    Index("images_by_time", "received_at"),
    Index("images_by_date", "study_date"),
    Index("images_by_subject", "subject"),
    rowid=True,
)
# One stored copy of an image: the parts that one manifest id ties together. Listed when its parts tile it.
COPIES = _table(
    "copies",
    Column("id", Integer, primary_key=True),
    _id("image"),
    _text("uid"),
    Column("image_row", Integer),  # null until complete
    _int("version"),  # as its manifest wished
    Column("size", Integer),
    Column("sha256", BLOB),
    _text("received_at"),
    _text("source"),
    _text("identity"),
    UniqueConstraint("image", "uid"),
    Index("copies_by_row", "image_row"),
    Index("copies_by_uid", "uid"),
    rowid=True,
)
PARTS = _table(
    "parts",
    _int("copy", primary_key=True, autoincrement=False),
    _int("image_offset", primary_key=True, autoincrement=False),
    _id("segment", primary_key=True),
    _int("offset"),
    _int("length"),
    _id("part_sha256"),
    _int("live"),  # 1 when it is one of the parts that make the copy; 0 for a spare of the same range
    Index("parts_by_segment", "segment"),
)
STUDIES = _table("studies", _text("uid", primary_key=True), _int("images"))
# Version numbers that are not what the manifest says, or whose image is gone: never given to other bytes.
PINS = _table("pins", _text("uid", primary_key=True), _id("sha256", primary_key=True), _int("version"))

JOURNAL = Table(  # its rows are sealed by their own hash chain
    "journal",
    METADATA,
    Column("sequence", Integer, primary_key=True),
    _text("line"),
    _text("hash"),
)
# Entries that some member's replica holds beside our chain, since a state_dir was lost with its newest entries.
JOURNAL_BRANCHES = _table("journal_branches", _text("hash", primary_key=True), _int("sequence"))
TOMBSTONE_SEGMENTS = _table("tombstone_segments", _id("segment", primary_key=True), _int("sequence"))
TOMBSTONE_IMAGES = _table(
    "tombstone_images", _text("uid", primary_key=True), _id("sha256", primary_key=True), _int("sequence")
)
TOMBSTONE_COPIES = _table("tombstone_copies", _id("image", primary_key=True), _int("sequence"))
