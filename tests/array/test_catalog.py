"""What is committed is there, whole and once: ids, versions, parts, replacements, purges, exceptions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from uuid import UUID

import pytest

from raidd.array.catalog import RESERVE, Catalog
from raidd.codec.geometry import Geometry
from raidd.errors import RequestRefused, ShardDamaged
from tests.support.catalog_data import ARRAY, NOW, NOW_MS, digest, image, member, members, segment, some_id, store, take

YEAR_MS = 365 * 86_400_000


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    opened = Catalog.open(tmp_path / "catalog.sqlite", array=ARRAY)
    yield opened
    assert opened.check() == []
    opened.close()


# Ids -------------------------------------------------------------------------------------------------------------


def test_ids_rise_also_when_the_clock_is_set_back_a_year(catalog: Catalog) -> None:
    first = catalog.reserve(NOW_MS, Random(1), 5)
    second = catalog.reserve(NOW_MS - YEAR_MS, Random(2), 5)
    assert first + second == sorted(first + second)
    assert len({*first, *second}) == 10
    assert catalog.highest_id() == second[-1]


def test_each_id_is_handed_out_once_and_none_when_none_is_left(catalog: Catalog) -> None:
    reserved = catalog.reserve(NOW_MS, Random(1), 3)
    assert [catalog.take_id() for _ in range(4)] == [*reserved, None]
    assert catalog.reserved() == reserved


def test_ids_of_an_earlier_process_are_looked_for_but_never_handed_out(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    before = Catalog.open(path, array=ARRAY)
    left = before.reserve(NOW_MS, Random(1), 4)
    before.take_id()
    before.close()
    after = Catalog.open(path, array=ARRAY)
    assert after.reserved() == left
    assert after.take_id() is None
    fresh = after.reserve(NOW_MS - YEAR_MS, Random(1), 4)
    assert min(fresh) > max(left)
    assert after.take_id() == fresh[0]
    after.close()


def test_each_commit_tops_the_reserve_up_and_uses_its_id(catalog: Catalog) -> None:
    for number in range(3):
        used = store(catalog, [image(f"1.{number}")])
        assert used not in catalog.reserved()
        assert len(catalog.unused()) == RESERVE


def test_released_ids_are_not_handed_out(catalog: Catalog) -> None:
    reserved = catalog.reserve(NOW_MS, Random(1), 3)
    catalog.release(reserved[:2])
    assert catalog.take_id() == reserved[2]
    assert catalog.reserved() == [reserved[2]]


def test_ids_kept_for_leftovers_are_looked_for_and_never_given(catalog: Catalog) -> None:
    stranger = some_id(7, NOW_MS + YEAR_MS)
    catalog.keep_reserved([stranger, stranger])
    assert catalog.reserved() == [stranger]
    assert catalog.reserve(NOW_MS, Random(1), 1)[0] > stranger


def test_an_id_that_was_not_reserved_cannot_be_committed(catalog: Catalog) -> None:
    with pytest.raises(ValueError, match="not reserved"):
        catalog.commit(segment(some_id(1), [image()]), now=NOW)
    assert catalog.counts().segments == 0


def test_an_id_is_committed_once(catalog: Catalog) -> None:
    used = store(catalog, [image()])
    with pytest.raises(ValueError, match="not reserved"):
        catalog.commit(segment(used, [image("1.9", "z")]), now=NOW)


# Images and versions ---------------------------------------------------------------------------------------------


def test_what_is_committed_comes_back_as_it_was(catalog: Catalog) -> None:
    new = image("1.2.3", "bytes", identity={"patient_name": "Müller^Rex", "private": {"x": [1]}}, source="inbox:a/b")
    used = take(catalog)
    (row,) = catalog.commit(segment(used, [image("9"), new]), now=NOW)[1:]
    assert row == catalog.image("1.2.3")
    assert (row.image, row.sha256, row.size, row.version) == (new.image, digest("bytes"), 100, 1)
    assert (row.source, row.received_at, row.identity) == ("inbox:a/b", NOW, new.identity)
    (part,) = row.parts
    assert (part.segment, part.offset, part.length, part.image_offset) == (used, 100, 100, 0)
    assert part.part_sha256 == new.part_sha256
    stored = catalog.segment(used)
    assert stored is not None
    assert (stored.placement.members, stored.payload_length, stored.body_offset) == (members(3), 200, 4096)
    assert [row.sop_instance_uid for row in catalog.segment_images(used)] == ["9", "1.2.3"]


def test_other_bytes_under_one_uid_are_the_next_version_and_the_newest_is_served(catalog: Catalog) -> None:
    for content in ("a", "b", "c"):
        store(catalog, [image("1.2", content)])
    assert [(row.version, row.sha256) for row in catalog.versions("1.2")] == [
        (3, digest("c")),
        (2, digest("b")),
        (1, digest("a")),
    ]
    newest, first = catalog.image("1.2"), catalog.image("1.2", 1)
    assert newest is not None
    assert first is not None
    assert (newest.sha256, first.sha256) == (digest("c"), digest("a"))
    assert catalog.image("1.2", 4) is None
    assert catalog.versions("1.9") == []


def test_two_versions_in_one_batch_are_both_kept(catalog: Catalog) -> None:
    store(catalog, [image("1.2", "a"), image("1.2", "b")])
    assert [row.version for row in catalog.versions("1.2")] == [2, 1]


def test_a_version_number_is_never_given_to_other_bytes(catalog: Catalog) -> None:
    first = store(catalog, [image("1.2", "a")])
    catalog.forget([first], NOW, "lost")
    store(catalog, [image("1.2", "b")])
    store(catalog, [image("1.2", "a", copy=5)])
    assert {row.sha256: row.version for row in catalog.versions("1.2")} == {digest("a"): 1, digest("b"): 2}


def test_version_numbers_survive_a_reindex_in_another_order(tmp_path: Path) -> None:
    early, late = some_id(1), some_id(2)
    made = {early: segment(early, [image("1.2", "a")]), late: segment(late, [image("1.2", "b")])}
    live = Catalog.open(tmp_path / "live.sqlite", array=ARRAY)
    for one in (late, early):  # the orphan was found after the other was acknowledged
        live.adopt(made[one], NOW)
    again = Catalog.open(tmp_path / "again.sqlite", array=ARRAY)
    again.restore_journal(live.journal_after(0))
    again.adopt_many([made[early], made[late]], NOW)
    numbers = {row.sha256: row.version for row in live.versions("1.2")}
    assert numbers == {digest("b"): 1, digest("a"): 2}
    assert {row.sha256: row.version for row in again.versions("1.2")} == numbers
    live.close()
    again.close()


def test_a_source_that_is_no_unicode_is_stored(catalog: Catalog) -> None:
    store(catalog, [image("1.2", source="inbox:\udcff\ud83d", identity={"patient_name": "a\x00b"})])
    (row,) = catalog.versions("1.2")
    assert row.source == "inbox:\ufffd\ufffd"
    assert row.identity == {"patient_name": "a\x00b"}


# Images in parts -------------------------------------------------------------------------------------------------


def test_an_image_is_listed_when_its_parts_tile_it(catalog: Catalog) -> None:
    first = store(catalog, [image(size=30, part=(0, 10), told=False)])
    second = store(catalog, [image(size=30, part=(10, 10), told=False)])
    assert catalog.versions("1.2.3") == []
    assert catalog.incomplete("1.2.3") == [first, second]
    assert catalog.counts().images == 0
    third = store(catalog, [image(size=30, part=(20, 10))])
    (row,) = catalog.versions("1.2.3")
    assert [(part.segment, part.image_offset) for part in row.parts] == [(first, 0), (second, 10), (third, 20)]
    assert catalog.incomplete("1.2.3") == []
    assert (catalog.counts().images, catalog.counts().bytes) == (1, 30)


def test_a_part_that_is_missing_unlists_the_image(catalog: Catalog) -> None:
    parts = [store(catalog, [image(size=20, part=(start, 10))]) for start in (0, 10)]
    catalog.forget(parts[:1], NOW, "lost")
    assert catalog.versions("1.2.3") == []
    assert catalog.counts().images == 0
    assert catalog.incomplete("1.2.3") == parts[1:]
    catalog.adopt(segment(parts[0], [image(size=20, part=(0, 10))]), NOW)
    assert len(catalog.versions("1.2.3")) == 1


def test_parts_of_two_attempts_are_not_mixed(catalog: Catalog) -> None:
    store(catalog, [image(size=20, part=(0, 10), copy=1)])
    store(catalog, [image(size=20, part=(10, 10), copy=2)])
    assert catalog.versions("1.2.3") == []


def test_the_last_part_drops_the_segments_of_earlier_attempts(catalog: Catalog) -> None:
    old = store(catalog, [image(size=20, part=(0, 10), copy=1, told=False)])
    store(catalog, [image(size=20, part=(0, 10), copy=2, told=False)])
    store(catalog, [image(size=20, part=(10, 10), copy=2)], replaces=[old])
    assert catalog.known([old]) == set()
    assert len(catalog.versions("1.2.3")) == 1
    assert catalog.incomplete("1.2.3") == []


def test_parts_that_disagree_about_their_image_are_refused_and_change_nothing(catalog: Catalog) -> None:
    store(catalog, [image(size=20, part=(0, 10), copy=1)])
    with pytest.raises(ShardDamaged):
        catalog.adopt(segment(some_id(99), [image(size=30, part=(10, 10), copy=1)]), NOW)
    assert catalog.counts().segments == 1


# Copies ----------------------------------------------------------------------------------------------------------


def test_of_two_copies_the_protected_one_is_served(catalog: Catalog) -> None:
    first = store(catalog, [image(copy=1)])
    second = store(catalog, [image(copy=2)])
    assert [row.version for row in catalog.versions("1.2.3")] == [1]
    for index in (0, 1):
        catalog.mark(first, index, "missing")
    (row,) = catalog.versions("1.2.3")
    assert (row.parts[0].segment, row.state) == (second, "protected")
    assert [copy.parts[0].segment for copy in catalog.copies("1.2.3", 1)] == [second, first]
    catalog.mark(second, 0, "missing")
    (row,) = catalog.versions("1.2.3")
    assert (row.parts[0].segment, row.state) == (second, "stored")
    assert (catalog.counts().images, catalog.counts().unprotected_images) == (1, 1)


def test_an_image_stays_while_one_copy_is_left(catalog: Catalog) -> None:
    first = store(catalog, [image(copy=1)])
    store(catalog, [image(copy=2)])
    catalog.forget([first], NOW, "lost")
    assert len(catalog.versions("1.2.3")) == 1
    assert catalog.counts().images == 1


# Replacing -------------------------------------------------------------------------------------------------------


def test_a_replaced_segment_leaves_and_its_images_go_on(catalog: Catalog) -> None:
    old = store(catalog, [image("1"), image("2", "b")])
    new = store(catalog, [image("2", "b"), image("1")], replaces=[old])
    assert catalog.known([old, new]) == {new}
    assert [row.parts[0].segment for uid in ("1", "2") for row in catalog.versions(uid)] == [new, new]
    assert catalog.counts().segments == 1


def test_a_replaced_segment_that_comes_late_is_not_taken_in_again(catalog: Catalog) -> None:
    old = some_id(1)
    store(catalog, [image("1")], replaces=[old])
    late = segment(old, [image("1"), image("2")])
    assert "replaced" in catalog.barred(late.manifest)
    assert catalog.adopt(late, NOW) == []
    assert catalog.known([old]) == set()


def test_when_the_new_segment_is_lost_the_old_one_counts_again(catalog: Catalog) -> None:
    old = store(catalog, [image("1")])
    new = store(catalog, [image("1")], replaces=[old])
    catalog.forget([new], NOW, "lost")
    assert catalog.versions("1") == []
    catalog.adopt(segment(old, [image("1")]), NOW)
    assert [row.parts[0].segment for row in catalog.versions("1")] == [old]


def test_replacements_bar_along_a_chain(catalog: Catalog) -> None:
    oldest, old = some_id(1), some_id(2)
    new = store(catalog, [image("1")], replaces=[old])
    catalog.adopt(segment(oldest, [image("1")]), NOW)
    catalog.adopt(segment(old, [image("1")], replaces=[oldest]), NOW)
    assert catalog.known([oldest, old, new]) == {new}
    assert catalog.replaced_by(new) == {oldest, old}


def test_a_commit_that_would_lose_an_image_is_refused(catalog: Catalog) -> None:
    old = store(catalog, [image("1"), image("2", "b")])
    fresh = take(catalog)
    with pytest.raises(RequestRefused):
        catalog.commit(segment(fresh, [image("1")], replaces=[old]), now=NOW)
    assert catalog.known([old]) == {old}
    assert fresh in catalog.reserved()


# Purging ---------------------------------------------------------------------------------------------------------


def purge(catalog: Catalog, segments: list[UUID], images: list[tuple[str, str]]) -> int:
    detail = {"segments": [str(one) for one in segments], "images": [list(one) for one in images]}
    return catalog.append_journal(NOW, "vet", "purge", detail=detail).sequence


def test_a_purge_takes_away_at_once_and_what_it_names_does_not_come_back(catalog: Catalog) -> None:
    old = store(catalog, [image("1")])
    purge(catalog, [old], [("1", digest("a"))])
    assert catalog.versions("1") == []
    late = segment(old, [image("1")], sequence=0)
    assert catalog.barred(late.manifest) == "it was purged"
    assert catalog.adopt(late, NOW) == []
    assert catalog.counts().images == 0


def test_a_purged_image_is_barred_in_whatever_older_segment_it_lies(catalog: Catalog) -> None:
    purge(catalog, [], [("1", digest("a"))])
    catalog.adopt(segment(some_id(3), [image("1"), image("2", "b")], sequence=0), NOW)
    catalog.adopt(segment(some_id(4), [image("1", copy=7)], sequence=0), NOW)
    assert catalog.versions("1") == []
    assert len(catalog.versions("2")) == 1
    assert catalog.known([some_id(3), some_id(4)]) == {some_id(3)}


def test_a_purged_image_leaves_a_shared_segment_and_the_others_stay(catalog: Catalog) -> None:
    store(catalog, [image("1"), image("2", "b")])
    purge(catalog, [], [("1", digest("a"))])
    assert catalog.versions("1") == []
    assert len(catalog.versions("2")) == 1
    assert catalog.counts().images == 1


def test_the_same_image_delivered_after_its_purge_is_stored(catalog: Catalog) -> None:
    purge(catalog, [store(catalog, [image("1")])], [("1", digest("a"))])
    store(catalog, [image("1", copy=3)])
    assert [row.version for row in catalog.versions("1")] == [1]


def test_a_segment_that_a_purge_overtook_is_not_acknowledged(catalog: Catalog) -> None:
    fresh = take(catalog)
    late = segment(fresh, [image("1")], sequence=catalog.journal_head()[0])
    purge(catalog, [], [("1", digest("a"))])
    with pytest.raises(RequestRefused):
        catalog.commit(late, now=NOW)
    assert catalog.versions("1") == []


def test_a_purge_that_cannot_be_understood_is_refused(catalog: Catalog) -> None:
    with pytest.raises(ValueError, match="purge"):
        catalog.append_journal(NOW, "vet", "purge", detail={"segments": ["x"], "images": []})
    assert catalog.journal_head()[0] == 0


# Exceptions and moves --------------------------------------------------------------------------------------------


def test_state_follows_exceptions_and_members_that_are_away(catalog: Catalog) -> None:
    used = store(catalog, [image()])
    assert catalog.image("1.2.3").state == "protected"  # type: ignore[union-attr]
    assert catalog.image("1.2.3", away={member(1)}).state == "stored"  # type: ignore[union-attr]
    catalog.mark(used, 0, "damaged")
    assert catalog.image("1.2.3").state == "stored"  # type: ignore[union-attr]
    assert catalog.absent(used) == frozenset()
    assert catalog.excepted(used) == {0: "damaged"}
    catalog.mark(used, 0, "missing")
    assert catalog.absent(used) == {0}
    catalog.clear(used, 0)
    assert catalog.image("1.2.3").state == "protected"  # type: ignore[union-attr]


def test_a_mirror_with_one_shard_is_stored_not_protected_until_the_other_is_made(catalog: Catalog) -> None:
    used = store(catalog, [image()], geometry=Geometry(1, 1), absent=[1])
    assert catalog.versions("1.2.3")[0].state == "stored"
    assert catalog.counts().unprotected_images == 1
    catalog.move(used, 1, member(5))
    assert catalog.versions("1.2.3")[0].state == "protected"
    assert catalog.counts().unprotected_images == 0


def test_a_moved_shard_is_on_its_new_member(catalog: Catalog) -> None:
    used = store(catalog, [image()], absent=[2])
    assert catalog.exceptions(member(2)) == [(used, 2, "missing")]
    catalog.move_many([(used, 2, member(9)), (some_id(1), 0, member(9))])
    assert catalog.exceptions() == []
    assert [row.segment for row in catalog.segments_on(member(9))] == [used]
    assert catalog.segments_on(member(2)) == []
    assert catalog.placement_members() == {member(0), member(1), member(9)}


def test_a_member_never_holds_two_shards_of_a_segment(catalog: Catalog) -> None:
    used = store(catalog, [image()])
    with pytest.raises(RequestRefused):
        catalog.move(used, 0, member(1))
    catalog.mark(used, 1, "missing")
    catalog.move(used, 0, member(1))
    row = catalog.segment(used)
    assert row is not None
    assert row.placement.members == (member(1), member(0), member(2))
    assert catalog.absent(used) == {1}


def test_marks_on_unknown_segments_and_shards(catalog: Catalog) -> None:
    assert catalog.mark(some_id(1), 0, "missing") is False
    used = store(catalog, [image()])
    with pytest.raises(ValueError, match="shard 3"):
        catalog.mark(used, 3, "missing")


def test_segments_on_a_member_come_in_id_order_page_by_page(catalog: Catalog) -> None:
    made = [store(catalog, [image(str(i))], on=members(4)[i % 2 :][:3]) for i in range(7)]
    assert [row.segment for row in catalog.segments_on(member(1), limit=3)] == made[:3]
    assert [row.segment for row in catalog.segments_on(member(1), after=made[2])] == made[3:]
    assert [row.segment for row in catalog.segments_on(member(0))] == made[::2]
    assert catalog.load(member(0))[0] == 4


def test_the_most_endangered_come_first_and_the_cursor_goes_on(catalog: Catalog) -> None:
    wide = Geometry(2, 2)
    made = [store(catalog, [image(str(i))], geometry=wide, absent=range(i % 3)) for i in range(9)]
    first = catalog.endangered(limit=4)
    rest = catalog.endangered(after=first[-1].cursor)
    assert [(one.spare, one.segment.segment) for one in first + rest] == [
        *((0, made[i]) for i in (2, 5, 8)),
        *((1, made[i]) for i in (1, 4, 7)),
    ]
    assert first[0].missing == (0, 1)
    with_away = catalog.endangered({member(3)})
    assert [one.spare for one in with_away] == [-1] * 3 + [0] * 3 + [1] * 3


def test_meta_keeps_json_and_protects_its_own_keys(catalog: Catalog) -> None:
    catalog.put_meta("roster", {"a": [1, None]})
    assert catalog.get_meta("roster") == {"a": [1, None]}
    assert catalog.get_meta("nothing") is None
    with pytest.raises(ValueError, match="itself"):
        catalog.put_meta("catalog.schema", 9)


def test_the_journal_tells_of_every_change_in_its_order(catalog: Catalog) -> None:
    new = image("1")
    used = store(catalog, [new])
    catalog.adopt(segment(some_id(9_000), [image("2", "b")]), NOW)
    catalog.forget([used], NOW, "lost")
    entries = catalog.journal_after(0)
    assert [entry.action for entry in entries] == ["store", "adopt", "forget"]
    assert entries[0].objects == (str(new.image),)
    assert entries[0].detail["segment"] == str(used)
    assert catalog.journal_head() == entries[-1].head
    assert catalog.journal_holds(entries[0].head)
    assert not catalog.journal_holds((1, "0" * 64))
