"""The order in which segments, late ones and purges become known does not matter for which bytes there are."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from raidd.array.catalog import Catalog, NewSegment
from raidd.array.journal import GENESIS, JournalEntry, make_entry
from tests.support.catalog_data import ARRAY, NOW, digest, image, members, segment, some_id

PART = 10
FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None  # many small databases, and nobody cuts the power

# An image is (uid, content, copy, part, parts); contents are drawn so that UIDs, digests and copies meet often.
whole = st.tuples(st.sampled_from(["1", "2"]), st.sampled_from("ab"), st.integers(1, 4), st.just(0), st.just(1))
parted = st.tuples(st.just("3"), st.just("c"), st.integers(5, 6), st.integers(0, 2), st.just(3))


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[NewSegment], JournalEntry | None]:
    """Some segments, each replacing some earlier ones, and perhaps a purge."""
    made: list[NewSegment] = []
    for number in range(draw(st.integers(1, 5))):
        images = draw(st.lists(whole | parted, min_size=1, max_size=3, unique_by=lambda one: (one[2], one[3])))
        earlier = [one.manifest.segment for one in made]
        replaces = draw(st.lists(st.sampled_from(earlier), unique=True, max_size=2)) if earlier else []
        on = members(4)[number % 2 :][:3]
        absent = draw(st.sets(st.integers(0, 2), max_size=1))
        built = [
            image(uid, content, copy=copy * 10 + ord(content), size=parts * PART, part=(part * PART, PART))
            for uid, content, copy, part, parts in images
        ]
        sequence = draw(st.sampled_from([0, 50]))
        made.append(segment(some_id(number), built, on=on, absent=absent, replaces=replaces, sequence=sequence))
    return made, _purge(draw(st.none() | st.integers(0, len(made) - 1)), draw(st.booleans()), made)


def _purge(number: int | None, with_images: bool, made: Sequence[NewSegment]) -> JournalEntry | None:
    if number is None:
        return None
    replaces = {one.manifest.segment: one.manifest.replaces for one in made}
    named, edge = set(), {made[number].manifest.segment}  # a tombstone names all that its segments replaced
    while edge:
        named |= edge
        edge = {old for one in edge for old in replaces.get(one, ())} - named
    images = [["1", digest("a")]] if with_images else []
    detail = {"segments": sorted(map(str, named)), "images": images}
    return make_entry((24, GENESIS[1]), NOW, "vet", "purge", (), "ok", detail)


def _learn(path: Path, steps: Sequence[NewSegment | JournalEntry]) -> tuple[object, ...]:
    catalog = Catalog.open(path, array=ARRAY)
    for step in steps:
        if isinstance(step, JournalEntry):
            catalog.append_journal(NOW, step.actor, step.action, step.objects, step.outcome, step.detail)
        else:
            catalog.adopt(step, NOW)
            catalog.adopt(step, NOW)  # once more: nothing happens
    assert catalog.check() == []
    rows = [row for uid in "123" for row in catalog.versions(uid)]
    there = frozenset((row.sop_instance_uid, row.sha256, row.size, row.state) for row in rows)
    segments = frozenset(catalog.known([one.manifest.segment for one in steps if isinstance(one, NewSegment)]))
    counts = catalog.counts()
    catalog.close()
    return there, segments, counts


@settings(max_examples=40, deadline=None)
@given(world=worlds(), data=st.data())
def test_the_order_of_adoption_does_not_matter(
    world: tuple[list[NewSegment], JournalEntry | None], data: st.DataObject
) -> None:
    made, purge = world
    first = data.draw(st.permutations(made))
    second = data.draw(st.permutations(made))
    # the journal is restored before shards count; its sequence then lies between the manifests'
    barrier = [] if purge is None else [_at_sequence_25(purge)]
    with tempfile.TemporaryDirectory(dir=FAST) as folder:
        one = _learn_after(Path(folder) / "1.sqlite", barrier, first)
        other = _learn_after(Path(folder) / "2.sqlite", barrier, second)
    assert one == other


def _at_sequence_25(purge: JournalEntry) -> JournalEntry:
    assert purge.sequence == 25
    return purge


def _learn_after(
    path: Path, restored: Sequence[JournalEntry], steps: Sequence[NewSegment | JournalEntry]
) -> tuple[object, ...]:
    catalog = Catalog.open(path, array=ARRAY)
    catalog.restore_journal(restored)
    catalog.close()
    return _learn(path, steps)


@settings(max_examples=25, deadline=None)
@given(world=worlds(), data=st.data())
def test_a_purge_bars_the_same_whether_it_is_learnt_before_or_after(
    world: tuple[list[NewSegment], JournalEntry | None], data: st.DataObject
) -> None:
    made, purge = world
    if purge is None:
        return
    before = [one for one in made if one.manifest.journal_sequence == 0]
    order = data.draw(st.permutations(before))
    with tempfile.TemporaryDirectory(dir=FAST) as folder:
        one = _learn(Path(folder) / "1.sqlite", [purge, *order])
        other = _learn(Path(folder) / "2.sqlite", [*order, purge])
    assert one[0] == other[0]
