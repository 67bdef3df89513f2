"""Counts come from kept counters: right after any history, and never from a scan."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import event
from sqlalchemy.engine import Engine

from raidd.array.catalog import Catalog, Counts
from raidd.codec.geometry import Geometry, shard_length
from raidd.errors import RequestRefused
from tests.support.catalog_data import ARRAY, NOW, digest, image, member, members, store

FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None
PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)  # explaining costs minutes
STUDY_OF = {c: {"study_instance_uid": study} for c, study in {"a": "7.1", "b": "7.1", "c": "7.2", "d": ""}.items()}
GEOMETRIES = (Geometry(1, 1), Geometry(2, 1), Geometry(2, 2))


@pytest.fixture
def statements() -> Iterator[list[str]]:
    """What is sent to SQLite from now on, by any connection."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield seen
    event.remove(Engine, "before_cursor_execute", note)


def test_a_member_that_goes_away_updates_no_row_and_counts_scan_nothing(tmp_path: Path, statements: list[str]) -> None:
    catalog = Catalog.open(tmp_path / "catalog.sqlite", array=ARRAY)
    for batch in range(5):
        store(catalog, [image(f"{batch}.{i}") for i in range(20)], on=members(4)[batch % 2 :][:3])
    statements.clear()
    here, away = catalog.counts(), catalog.counts({member(0)})
    assert (here.unprotected_images, away.unprotected_images) == (0, 60)
    tables = {
        table
        for table in ("images", "segments", "parts", "copies", "exceptions")
        for s in statements
        if f"FROM {table}" in s
    }
    assert tables == set()
    assert not any(s.startswith(("UPDATE", "INSERT", "DELETE")) for s in statements)
    catalog.close()


def test_what_counts_read_does_not_grow_with_the_array(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "catalog.sqlite", array=ARRAY)
    store(catalog, [image("0")])
    store(catalog, [image("1", size=20, part=(0, 10))])
    store(catalog, [image("1", size=20, part=(10, 10))])
    few = _kept_rows(catalog)
    for number in range(2, 12):
        store(catalog, [image(f"{number}.{i}") for i in range(10)])
        store(catalog, [image(f"{number}", size=20, part=(0, 10))])
        store(catalog, [image(f"{number}", size=20, part=(10, 10))])
    assert _kept_rows(catalog) == few
    assert catalog.counts().images == 112
    catalog.close()


def _kept_rows(catalog: Catalog) -> int:
    with catalog._database.read() as connection:
        return sum(
            connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar() or 0
            for table in ("groups", "classes", "placements")
        )


class CountsMachine(RuleBasedStateMachine):
    """Any history of segments coming, leaving, losing and regaining shards, against a count made anew."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory(dir=FAST)
        self.catalog = Catalog.open(Path(self.folder.name) / "catalog.sqlite", array=ARRAY)
        self.segments: list[UUID] = []
        self.written = 0

    @rule(
        geometry=st.sampled_from(GEOMETRIES),
        first=st.integers(0, 2),
        contents=st.lists(st.sampled_from("abcd"), min_size=1, max_size=3),
        lost=st.sets(st.integers(0, 3), max_size=2),
    )
    def put_whole(self, geometry: Geometry, first: int, contents: list[str], lost: set[int]) -> None:
        images = [image(c, c, copy=self._next(), identity=STUDY_OF[c]) for c in contents]
        self._store(images, geometry, first, lost)

    @rule(content=st.sampled_from("wx"), copy=st.integers(1, 2), part=st.integers(0, 1), first=st.integers(0, 2))
    def put_part(self, content: str, copy: int, part: int, first: int) -> None:
        number = 100_000 + copy * 1000 + ord(content)
        self._store([image(content, content, copy=number, size=20, part=(part * 10, 10))], GEOMETRIES[1], first, set())

    def _store(self, images: list[Any], geometry: Geometry, first: int, lost: set[int]) -> None:
        on = [member((first + i) % 5) for i in range(geometry.n)]
        absent = [index for index in lost if index < geometry.n]
        self.segments.append(store(self.catalog, images, geometry=geometry, on=on, absent=absent))

    def _next(self) -> int:
        self.written += 1
        return self.written

    @rule(pick=st.integers(0, 99), index=st.integers(0, 3), kind=st.sampled_from(["missing", "damaged", None]))
    def mark_or_clear(self, pick: int, index: int, kind: Any) -> None:
        row = self.catalog.segment(self._some(pick)) if self.segments else None
        if row is not None and index < row.placement.geometry.n:
            change = self.catalog.clear if kind is None else lambda s, i: self.catalog.mark(s, i, kind)
            assert change(row.segment, index)

    @rule(pick=st.integers(0, 99), index=st.integers(0, 3), to=st.integers(0, 4))
    def move(self, pick: int, index: int, to: int) -> None:
        row = self.catalog.segment(self._some(pick)) if self.segments else None
        if row is not None and index < row.placement.geometry.n:
            try:
                self.catalog.move(row.segment, index, member(to))
            except RequestRefused:
                assert member(to) in row.placement.members

    @rule(pick=st.integers(0, 99))
    def forget(self, pick: int) -> None:
        if self.segments:
            self.catalog.forget([self._some(pick)], NOW, "test")

    @rule(pick=st.integers(0, 99))
    def compact(self, pick: int) -> None:
        if self.segments:
            old = self._some(pick)
            parts = _parts_of(self.catalog, old)
            if parts:
                self.segments.append(store(self.catalog, parts, replaces=[old]))

    @rule(content=st.sampled_from("ab"))
    def purge(self, content: str) -> None:
        detail = {"segments": [], "images": [[content, digest(content)]]}
        self.catalog.append_journal(NOW, "vet", "purge", detail=detail)

    def _some(self, pick: int) -> UUID:
        return self.segments[pick % len(self.segments)]

    @invariant()
    def counters_are_what_there_is(self) -> None:
        if not hasattr(self, "catalog"):
            return
        assert self.catalog.check() == []
        for away in ((), (member(0),), (member(1), member(3))):
            assert self.catalog.counts(set(away)) == _counted(self.catalog, self.segments, set(away))

    def teardown(self) -> None:
        if hasattr(self, "catalog"):
            self.catalog.close()
            self.folder.cleanup()


def _parts_of(catalog: Catalog, old: UUID) -> list[Any]:
    """What a rewrite of a segment carries: the parts of listed images that lie in it."""
    carried = []
    for one in catalog.segment_images(old):
        copies = [
            copy
            for copy in catalog.copies(one.sop_instance_uid, one.version)
            if any(p.segment == old for p in copy.parts)
        ]
        for copy in copies:
            for part in (part for part in copy.parts if part.segment == old):
                made = image(
                    one.sop_instance_uid, one.sop_instance_uid, size=one.size, part=(part.image_offset, part.length)
                )
                carried.append(_with_id(made, copy.image))
    return carried


def _with_id(made: Any, identifier: UUID) -> Any:
    from dataclasses import replace

    return replace(made, image=identifier)


def _counted(catalog: Catalog, segments: list[UUID], away: set[UUID]) -> Counts:
    """The same numbers the slow way: row by row."""
    spare, absent, raw = {}, 0, 0
    for row in (row for row in map(catalog.segment, segments) if row is not None):
        gone = set(catalog.excepted(row.segment)) | {i for i, m in enumerate(row.placement.members) if m in away}
        spare[row.segment] = row.placement.geometry.m - len(gone)
        absent += len(gone)
        k, n = row.placement.geometry.k, row.placement.geometry.n
        raw += n * (row.body_offset + shard_length(row.payload_length, k))
    images = list(catalog.all_images(away))
    best = [_best(catalog, row, spare) for row in images]
    for row, worth in zip(images, best, strict=True):
        assert (row.state == "protected") == (worth >= 1)
    return Counts(
        images=len(images),
        studies=len({row.identity.get("study_instance_uid") for row in images} - {None, ""}),
        bytes=sum(row.size for row in images),
        raw_bytes=raw,
        unprotected_images=sum(worth < 1 for worth in best),
        unreadable_images=sum(worth < 0 for worth in best),
        least_spare=min(spare.values(), default=None),
        absent_shards=absent,
        segments=len(spare),
    )


def _best(catalog: Catalog, row: Any, spare: dict[UUID, int]) -> int:
    copies = catalog.copies(row.sop_instance_uid, row.version)
    return max(min(spare[part.segment] for part in copy.parts) for copy in copies)


CountsMachine.TestCase.settings = settings(max_examples=8, stateful_step_count=15, deadline=None, phases=PHASES)
TestCounts = CountsMachine.TestCase
