"""`catalog check` finds what is wrong, also where every row in itself is as it was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Table, delete

from raidd.array.catalog import Catalog
from raidd.array.catalog_database import add, change, rows, write_meta
from raidd.array.catalog_schema import (
    CLASSES,
    COPIES,
    EXCEPTIONS,
    GROUPS,
    IMAGES,
    PARTS,
    PINS,
    PLACEMENTS,
    REPLACEMENTS,
    RESERVED,
    SEGMENTS,
    STUDIES,
    SUBJECTS,
    TOMBSTONE_IMAGES,
    TOMBSTONE_SEGMENTS,
)
from tests.support.catalog_data import ARRAY, image, store

Harm = Callable[[Connection], None]


def first(connection: Connection, table: Table) -> dict[str, Any]:
    return dict(rows(connection, table)[0])


def changed(table: Table, **values: Any) -> Harm:
    return lambda connection: change(connection, table, first(connection, table), **values)


def added(table: Table, **values: Any) -> Harm:
    return lambda connection: add(connection, table, [{**first(connection, table), **values}])


def emptied(table: Table) -> Harm:
    def harm(connection: Connection) -> None:
        connection.execute(delete(table))

    return harm


def _reserve_a_segment(connection: Connection) -> None:
    add(connection, RESERVED, [{"segment": first(connection, SEGMENTS)["segment"]}])


def _replace_a_segment(connection: Connection) -> None:
    old, new = (one["segment"] for one in rows(connection, SEGMENTS)[:2])
    add(connection, REPLACEMENTS, [{"replaced": old, "successor": new}])


def _bury_a_segment(connection: Connection) -> None:
    add(connection, TOMBSTONE_SEGMENTS, [{"segment": first(connection, SEGMENTS)["segment"], "sequence": 99}])


def _bury_an_image(connection: Connection) -> None:
    one = first(connection, IMAGES)
    add(connection, TOMBSTONE_IMAGES, [{"uid": one["uid"], "sha256": one["sha256"], "sequence": 99}])


def _pin_anothers_version(connection: Connection) -> None:
    one = first(connection, IMAGES)
    add(connection, PINS, [{"uid": one["uid"], "sha256": b"x" * 32, "version": one["version"]}])


HARMS: dict[str, Harm] = {
    "a wrong group counter": changed(GROUPS, segments=7),
    "a wrong size counter": changed(GROUPS, shard_bytes=1),
    "a wrong class counter": changed(CLASSES, images=9),
    "classes lost": emptied(CLASSES),
    "a wrong study counter": changed(STUDIES, images=9),
    "studies not counted": lambda connection: write_meta(connection, "catalog.studies", 5),
    "a segment's wrong counter": changed(SEGMENTS, sole_images=9),
    "a segment of no group": changed(SEGMENTS, group_id=99),
    "a mask without its exception": changed(GROUPS, mask=4),
    "an exception lost": emptied(EXCEPTIONS),
    "an exception of no segment": added(EXCEPTIONS, segment=b"x" * 16),
    "parts lost": emptied(PARTS),
    "a part out of place": changed(PARTS, length=3),
    "a part beyond its segment": changed(PARTS, offset=1 << 20),
    "a part of no segment": changed(PARTS, live=0),
    "images lost": emptied(IMAGES),
    "copies lost": emptied(COPIES),
    "a copy untied": changed(COPIES, image_row=None),
    "a copy of other bytes": changed(COPIES, sha256=b"x" * 32),
    "an image twice": added(IMAGES, id=99, version=99),
    "subjects lost": emptied(SUBJECTS),
    "placements lost": emptied(PLACEMENTS),
    "a segment that is reserved": _reserve_a_segment,
    "a segment beside its successor": _replace_a_segment,
    "a purged segment": _bury_a_segment,
    "a purged image": _bury_an_image,
    "another's version": _pin_anothers_version,
}


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    opened = Catalog.open(tmp_path / "catalog.sqlite", array=ARRAY)
    store(opened, [image("1", identity={"study_instance_uid": "7.1"}), image("2", "b")], absent=[1])
    store(opened, [image("3", "c")])
    store(opened, [image("4", "d", size=20, part=(0, 10))])
    assert opened.check() == []
    return opened


@pytest.mark.parametrize("what", HARMS)
def test_check_finds(catalog: Catalog, what: str) -> None:
    with catalog._database.write() as connection:
        HARMS[what](connection)
    assert catalog.check() != []
    catalog.close()


@pytest.mark.parametrize("table", [PARTS, COPIES, IMAGES, SEGMENTS, GROUPS, PLACEMENTS], ids=lambda table: table.name)
def test_check_finds_a_row_that_is_not_as_written(catalog: Catalog, table: Table) -> None:
    with catalog._database.write() as connection:
        connection.exec_driver_sql(f"UPDATE {table.name} SET seal = seal + 1")
    assert any(table.name in fault for fault in catalog.check())
    catalog.close()
