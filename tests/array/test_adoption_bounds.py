"""Adoption in pages, beside members that come: memory is bounded, nobody who was not looked at is concluded on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from raidd.array import adoption
from raidd.array.journal import make_entry, read_replica, replicate
from raidd.array.survey import Found, inspect_all
from tests.support.arrays import SmallArray

CONTENTS = {f"1.{number}": bytes([number]) * 5000 for number in range(12)}


@pytest.fixture
def array(tmp_path: Path) -> SmallArray:
    array = SmallArray(tmp_path, deadline_s=20.0)
    for uid, data in CONTENTS.items():
        array.put({uid: data})
    return array


def check(array: SmallArray) -> None:
    for uid, data in CONTENTS.items():
        assert array.read(uid) == data


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many segments' heads were read at once."""
    sizes: list[int] = []

    def counted(names: Mapping[UUID, Iterable[tuple[UUID, int]]], *rest: Any, **how: Any) -> dict[UUID, list[Found]]:
        whole = {member: list(some) for member, some in names.items()}
        sizes.append(len({segment for some in whole.values() for segment, _index in some}))
        return inspect_all(whole, *rest, **how)

    monkeypatch.setattr(adoption, "inspect_all", counted)
    return sizes


def test_a_reindex_reads_no_more_heads_at_once_than_it_may(array: SmallArray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adoption, "READ_AT_ONCE", 5)
    monkeypatch.setattr(adoption, "ADOPT_IMAGES", 7)
    sizes = counting(monkeypatch)
    array.lose_catalog()
    assert 0 < max(sizes) <= 5
    assert sum(sizes) >= 12
    check(array)
    assert array.catalog.check() == []


def test_leftovers_are_settled_a_page_at_a_time(array: SmallArray, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = [row.segment for row in array.all_segments()]
    array.catalog.forget(segments, "2026-11-24T00:00:00.000Z", "test")
    array.catalog.keep_reserved(segments)
    monkeypatch.setattr(adoption, "PAGE", 5)
    sizes = counting(monkeypatch)
    settled = array.parts.adoption.settle(segments)
    assert settled.adopted == 12
    assert max(sizes) <= 5
    check(array)


def test_a_member_that_comes_while_others_are_looked_at_is_not_taken_for_looked_at(
    array: SmallArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four of six shards are needed, three members are there, and the fourth comes between looking and judging."""
    segment = array.row("1.3").parts[0].segment
    array.catalog.forget([segment], "2026-11-24T00:00:00.000Z", "test")
    array.catalog.keep_reserved([segment])
    array.offers.clear()
    for slot in (3, 4, 5):
        array.lose(slot)

    def and_one_comes(*asked: Any, **how: Any) -> dict[UUID, list[Found]]:
        found = inspect_all(*asked, **how)
        for slot in (3, 4, 5):
            array.lost.discard(array.uuid(slot))
            member = array.membership.member(array.uuid(slot))
            assert member is not None
            member.arrive()
        return found

    monkeypatch.setattr(adoption, "inspect_all", and_one_comes)
    settled = array.parts.adoption.settle([segment])
    assert (settled.kept, settled.quarantined, settled.cleared) == (1, 0, 0)
    assert segment in array.catalog.reserved()
    monkeypatch.undo()
    array.welcome_all()
    check(array)


def test_what_a_disk_of_another_branch_holds_is_looked_for_though_its_journal_was_learned_first(
    array: SmallArray,
) -> None:
    """A machine that is no more stored an image on these disks; their ids are below ours of today."""
    stored = array.put({"7.7": b"by another machine"}).segment
    array.catalog.forget([stored], "2026-11-24T00:00:00.000Z", "as if it had never been known")
    array.put({"8.8": b"newer"})
    while array.parts.replicator.replicate_once():
        pass
    array.lose(2)
    last = read_replica(array.memory[2])[-1].head
    replicate(array.memory[2], [make_entry(last, "2030-01-01T00:00:00.000Z", "another machine", "store")])
    array.lost.clear()
    member = array.membership.member(array.uuid(2))
    assert member is not None
    member.arrive()
    while not array.parts.arrived.empty():
        array.parts.arrived.get()  # the replication is faster than the welcome
    array.parts.replicator.forget(member.uuid)
    while array.parts.replicator.replicate_once():
        pass
    array.welcome_all()
    assert array.read("7.7") == b"by another machine"
    check(array)
