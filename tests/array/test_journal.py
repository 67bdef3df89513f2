"""The journal cannot be changed unseen, and its replica on the members heals what a power cut tore."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raidd.array.catalog import Catalog
from raidd.array.journal import (
    GENESIS,
    JournalDamaged,
    JournalEntry,
    JournalForeign,
    journal_path,
    make_entry,
    parse_line,
    read_replica,
    replica_head,
    replicate,
    set_newest_aside,
    tombstones,
    verify_chain,
)
from raidd.errors import CatalogUnusable
from tests.support.catalog_data import ARRAY, NOW, digest, image, segment, some_id, store
from tests.support.memory_disk import MemoryDisk


def chain(
    count: int, *, start: JournalEntry | None = None, word: str = "store", year: int = 2026
) -> list[JournalEntry]:
    """``count`` entries, three a day, after ``start``."""
    made: list[JournalEntry] = []
    head = start.head if start is not None else GENESIS
    for number in range(count):
        at = f"{year}-11-{number // 3 + 1:02d}T10:00:00.000Z"
        made.append(make_entry(head, at, "raidd", word, [str(number)], detail={"n": number}))
        head = made[-1].head
    return made


# Entries ---------------------------------------------------------------------------------------------------------

texts = st.text(max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | texts, lambda inner: st.lists(inner, max_size=3)
)


@given(
    actor=texts,
    action=texts,
    objects=st.lists(texts, max_size=3),
    detail=st.dictionaries(texts, json_values, max_size=3),
)
def test_an_entry_comes_back_from_its_line(actor: str, action: str, objects: list[str], detail: dict[str, Any]) -> None:
    entry = make_entry((7, "a" * 64), NOW, actor, "x" + action, objects, "ok", detail)
    line = entry.to_line()
    assert line.count(b"\n") == 1
    assert parse_line(line) == entry
    assert verify_chain([entry], (7, "a" * 64)) == entry.head


def test_lone_surrogates_do_not_break_the_chain() -> None:
    entry = make_entry(GENESIS, NOW, "vet", "hide", ["\udcff"], detail={"why": "\ud800"})
    assert parse_line(entry.to_line()) == entry


@given(data=st.data())
def test_no_byte_of_a_line_can_be_changed_unseen(data: st.DataObject) -> None:
    line = bytearray(chain(2)[1].to_line()[:-1])
    line[data.draw(st.integers(0, len(line) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        changed = parse_line(bytes(line))
    except ValueError:
        return
    assert changed == chain(2)[1]  # JSON written otherwise, the same entry


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b"null", b"{", b"\xff", b'{"sequence":1}'])
def test_what_is_no_entry_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_line(line)


def test_entries_cannot_be_left_out_swapped_or_changed() -> None:
    entries = chain(4)
    assert verify_chain(entries) == entries[-1].head
    for broken in (
        [entries[0], *entries[2:]],
        [entries[1], entries[0]],
        entries[1:],
        [entries[0], replace(entries[1], actor="mallory"), *entries[2:]],
    ):
        with pytest.raises(ValueError, match="does not follow"):
            verify_chain(broken)


def test_tombstones_are_the_purges() -> None:
    segments, images = [str(uuid4())], [["1.2", digest("a")]]
    purge = make_entry(GENESIS, NOW, "vet", "purge", ["x"], detail={"segments": segments, "images": images})
    (stone,) = tombstones([*chain(2), purge])
    assert (stone.sequence, stone.segments, stone.images) == (1, (UUID(segments[0]),), (("1.2", digest("a")),))


# The replica -----------------------------------------------------------------------------------------------------


def test_a_replica_grows_by_what_it_lacks_a_file_a_day() -> None:
    disk, entries = MemoryDisk(), chain(8)
    assert replicate(disk, entries[:4]) == 4
    assert replicate(disk, entries[:4]) == 0
    assert replicate(disk, entries[2:]) == 4
    assert read_replica(disk) == entries
    assert replica_head(disk) == entries[-1].head
    assert disk.list("journal") == ["2026-11-01.jsonl", "2026-11-02.jsonl", "2026-11-03.jsonl"]
    assert disk.read(journal_path(entries[3])) == b"".join(entry.to_line() for entry in entries[3:6])


def test_an_empty_replica_is_at_the_genesis() -> None:
    disk = MemoryDisk()
    assert (read_replica(disk), replica_head(disk), replicate(disk, [])) == ([], GENESIS, 0)


def test_what_replicate_returned_from_survives_a_power_cut() -> None:
    for seed in range(20):
        disk, entries = MemoryDisk(), chain(8)
        replicate(disk, entries[:5])
        disk.power_cut(seed)
        assert read_replica(disk) == entries[:5]
        replicate(disk, entries)
        disk.power_cut(seed)
        assert read_replica(disk) == entries


@settings(deadline=None)
@given(cut=st.integers(0, 2000), junk=st.binary(max_size=20))
def test_a_torn_tail_is_not_read_and_the_next_append_heals_it(cut: int, junk: bytes) -> None:
    disk, entries = MemoryDisk(), chain(6)
    replicate(disk, entries[:5])
    path = journal_path(entries[4])
    whole = disk.read(path)
    torn = whole[: cut % len(whole)] + junk
    disk.replace(path, torn)
    read = read_replica(disk)
    assert read == entries[: len(read)]
    assert len(read) >= 3
    replicate(disk, entries)
    assert read_replica(disk) == entries


def test_lines_that_are_cut_off_with_more_than_a_torn_tail_are_kept_aside() -> None:
    disk, entries = MemoryDisk(), chain(6)
    replicate(disk, entries)
    path = journal_path(entries[5])
    content = disk.read(path)
    disk.replace(path, b"X" + content[1:])
    replicate(disk, entries)
    assert read_replica(disk) == entries
    kept = [name for name in disk.list("quarantine") if name.endswith(".jsonl")]
    assert [disk.read(f"quarantine/{name}") for name in kept] == [b"X" + content[1:]]


def set_aside_until(disk: MemoryDisk, entries: list[JournalEntry]) -> None:
    """As the replicator does: the newest files go, until the replica ends with one of these."""
    known = {GENESIS, *(entry.head for entry in entries)}
    while True:
        with suppress(JournalDamaged):
            if replica_head(disk) in known:
                return
        assert set_newest_aside(disk, NOW)


def test_damage_before_the_newest_day_is_told_and_written_anew() -> None:
    disk, entries = MemoryDisk(), chain(8)
    replicate(disk, entries)
    path = journal_path(entries[0])
    disk.replace(path, disk.read(path).replace(b"raidd", b"mallo"))
    with pytest.raises(JournalDamaged):
        read_replica(disk)
    while set_newest_aside(disk, NOW):
        pass
    replicate(disk, entries)
    assert read_replica(disk) == entries
    assert "2026-11-01.jsonl" in disk.list("quarantine")


def test_a_day_that_is_gone_is_told() -> None:
    disk, entries = MemoryDisk(), chain(8)
    replicate(disk, entries)
    disk.unlink(journal_path(entries[3]))
    with pytest.raises(JournalDamaged):
        read_replica(disk)


def test_files_follow_the_chain_also_when_the_clock_is_set_back_a_year() -> None:
    disk, entries = MemoryDisk(), chain(5)
    entries += chain(5, start=entries[-1], year=2025)
    for number in range(1, 11):
        replicate(disk, entries[:number])
    assert read_replica(disk) == entries
    assert replica_head(disk) == entries[-1].head


def test_a_replica_of_another_branch_is_never_overwritten_unasked() -> None:
    disk, entries = MemoryDisk(), chain(3)
    other = [*entries[:2], *chain(2, start=entries[1], word="other")]
    replicate(disk, other)
    for ours in (entries, [*entries, *chain(4, start=entries[-1])]):
        with pytest.raises(JournalForeign, match="follow"):
            replicate(disk, ours)
    assert read_replica(disk) == other
    set_aside_until(disk, entries)
    replicate(disk, entries)
    assert read_replica(disk) == entries
    kept = [name for name in disk.list("quarantine") if name.endswith(".jsonl")]
    assert [disk.read(f"quarantine/{name}") for name in kept] == [b"".join(entry.to_line() for entry in other)]


# From the members back into a catalog ----------------------------------------------------------------------------


def test_the_journal_comes_back_from_a_replica(tmp_path: Path) -> None:
    disk = MemoryDisk()
    lost = Catalog.open(tmp_path / "lost.sqlite", array=ARRAY)
    used = store(lost, [image("1")])
    purge = {"segments": [str(used)], "images": [["1", digest("a")]]}
    lost.append_journal(NOW, "vet", "purge", detail=purge)
    replicate(disk, lost.journal_after(0))
    lost.close()
    again = Catalog.open(tmp_path / "again.sqlite", array=ARRAY)
    again.restore_journal(read_replica(disk))
    assert again.journal_after(0) == read_replica(disk)
    again.adopt(segment(used, [image("1")], sequence=0), NOW)
    assert again.versions("1") == []
    replicate(disk, again.journal_after(0))
    assert verify_chain(read_replica(disk)) == again.journal_head()
    assert again.check() == []
    again.close()


def test_a_number_that_was_lost_with_the_catalog_is_never_given_again(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "catalog.sqlite", array=ARRAY)
    catalog.restore_journal(chain(5))
    # written when the journal was at 40; its member was away when the journal was restored from another at 5
    late = segment(some_id(1), [image("1")], sequence=40)
    purge = {"segments": [str(some_id(1))], "images": [["1", digest("a")]]}
    stone = catalog.append_journal(NOW, "vet", "purge", detail=purge)
    assert stone.sequence > 40
    assert catalog.adopt(late, NOW) == []
    assert verify_chain(catalog.journal_after(0)) == catalog.journal_head()
    catalog.close()


def test_numbers_stay_above_every_manifest_that_is_adopted(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "catalog.sqlite", array=ARRAY)
    catalog.adopt(segment(some_id(1), [image("1")], sequence=5_000_000), NOW)
    assert catalog.journal_head()[0] > 5_000_000
    catalog.close()


def test_a_broken_or_foreign_chain_is_not_taken_in(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "catalog.sqlite", array=ARRAY)
    entries = chain(4)
    with pytest.raises(CatalogUnusable):
        catalog.restore_journal([entries[0], entries[2]])
    catalog.restore_journal(entries[:2])
    catalog.restore_journal(entries)
    assert catalog.journal_after(0) == entries
    with pytest.raises(CatalogUnusable):
        catalog.restore_journal([*entries[:3], *chain(3, start=entries[2], word="other")])
    assert catalog.journal_after(0) == entries
    catalog.close()


def test_branches_are_merged_and_what_they_purged_stays_purged(tmp_path: Path) -> None:
    entries = chain(3)
    purge = {"segments": [], "images": [["1", digest("a")]]}
    branch = [*entries[:2], make_entry(entries[1].head, NOW, "vet", "purge", detail=purge)]
    best, strays = [*entries, *chain(2, start=entries[2])], branch[2:]
    first = Catalog.open(tmp_path / "first.sqlite", array=ARRAY)
    first.restore_journal(best)
    first.merge_journal(strays, NOW)
    assert all(first.journal_holds(entry.head) for entry in (*best, *branch))
    assert [first.journal_goes_through(entry.head) for entry in branch] == [True, True, False]
    second = Catalog.open(tmp_path / "second.sqlite", array=ARRAY)
    second.restore_journal(first.journal_after(0))  # the merge itself is in the chain
    for catalog in (first, second):
        assert catalog.journal_holds(branch[-1].head)
        catalog.adopt(segment(some_id(1), [image("1"), image("2", "b")], sequence=2), NOW)
        assert (len(catalog.versions("1")), len(catalog.versions("2"))) == (0, 1)
        assert catalog.check() == []
        catalog.close()


def test_a_changed_line_in_the_catalog_is_never_given_out(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "catalog.sqlite", array=ARRAY)
    for number in range(3):
        catalog.append_journal(NOW, "vet", "hide", [str(number)])
    with catalog._database.write() as connection:
        connection.exec_driver_sql("UPDATE journal SET line = replace(line, '\"vet\"', '\"cat\"') WHERE sequence = 2")
    with pytest.raises(CatalogUnusable):
        catalog.journal_after(0)
    assert any("journal" in fault for fault in catalog.check())
    catalog.close()


def test_appending_is_one_transaction_with_what_it_tells(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "catalog.sqlite", array=ARRAY)
    store(catalog, [image("1")])
    head = catalog.journal_head()
    taken = catalog.take_id()
    assert taken is not None
    new = segment(taken, [image("2", "b")])
    with pytest.raises(ValueError, match="JSON"):
        catalog.commit(new, now=NOW, detail={"bad": object()}, random=Random(1))
    assert catalog.journal_head() == head
    assert catalog.versions("2") == []
    catalog.commit(new, now=NOW)
    assert len(catalog.versions("2")) == 1
    catalog.close()
