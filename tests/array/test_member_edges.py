"""What asking a member may end with, besides an answer: the host is short, or the member was dismissed meanwhile.

Neither says anything about the disk, and neither may end a thread of the daemon.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import cast

import pytest

from raidd.array.host import filesystem, host_mounts, mounts
from raidd.array.members import Member
from raidd.daemon import graph
from raidd.daemon.long_requests import check_catalog
from raidd.errors import CatalogUnusable, RaiddError
from tests.support.arrays import SmallArray

DATA = {f"1.{number}": Random(number).randbytes(50_000) for number in range(3)}
SHORT = RaiddError("the host is out of descriptors [EMFILE]")


@pytest.fixture
def array(tmp_path: Path) -> SmallArray:
    array = SmallArray(tmp_path)
    array.put(DATA)
    return array


def member(array: SmallArray, slot: int) -> Member:
    return cast(Member, array.membership.member(array.uuid(slot)))


def trouble(array: SmallArray, slot: int, kind: str) -> None:
    """All that is asked of the member from now on ends without an answer, and not by its fault."""
    if kind == "host is short":
        array.disk(slot).fail("*", error=SHORT)
    else:
        member(array, slot).close()


KINDS = pytest.mark.parametrize("kind", ["host is short", "dismissed meanwhile"])


@KINDS
def test_a_sweep_passes_over_it(array: SmallArray, kind: str) -> None:
    trouble(array, 1, kind)
    array.parts.adoption.sweep()
    assert member(array, 1).present


@KINDS
def test_leftovers_are_kept_while_one_member_could_not_be_asked(array: SmallArray, kind: str) -> None:
    reserved = array.catalog.reserve(0, array.random, 1)
    trouble(array, 1, kind)
    array.parts.adoption.settle(reserved)
    assert set(reserved) <= set(array.catalog.reserved())
    assert member(array, 1).present


@KINDS
def test_a_shard_that_could_not_be_taken_away_is_looked_for_again(array: SmallArray, kind: str) -> None:
    """One segment is a leftover whose images are known elsewhere; one of its shards cannot be unlinked."""
    segment = array.put({"1.0": DATA["1.0"]}, version=1).segment
    array.catalog.forget([segment], "2026-11-24T00:00:00.000Z", "test")
    array.catalog.keep_reserved([segment])
    if kind == "host is short":
        array.disk(1).fail("unlink", error=SHORT)
    else:
        array.disk(0).on_call = lambda call: member(array, 1).close() if call.operation == "unlink" else None
    array.parts.adoption.settle([segment])
    assert segment in array.catalog.reserved()
    assert member(array, 1).present


@KINDS
def test_a_catalog_is_made_again_without_it(array: SmallArray, kind: str) -> None:
    trouble(array, 1, kind)
    array.parts.adoption.reindex()
    for uid, data in DATA.items():
        assert array.read(uid) == data


@KINDS
def test_the_check_says_that_it_was_not_looked_at(array: SmallArray, kind: str) -> None:
    trouble(array, 1, kind)
    *_, result = check_catalog(array.store)
    assert any("could not be listed" in line for line in result.not_looked_at)  # type: ignore[union-attr]


@KINDS
def test_replication_goes_on_with_the_others(array: SmallArray, kind: str) -> None:
    trouble(array, 1, kind)
    array.catalog.append_journal("2026-11-24T00:00:00.000Z", "test", "note")
    while array.parts.replicator.replicate_once():
        pass
    assert member(array, 1).present


@KINDS
def test_a_welcome_ends(array: SmallArray, kind: str) -> None:
    array.lose(1)
    trouble(array, 1, kind)
    array.lost.clear()
    member(array, 1).arrive()
    array.welcome_all()
    assert array.parts.arrived.empty()


def test_a_catalog_that_fails_is_nobody_elses_fault(array: SmallArray, monkeypatch: pytest.MonkeyPatch) -> None:
    def corrupt(*_arguments: object) -> None:
        raise CatalogUnusable("the catalog is corrupt")

    array.catalog.append_journal("2026-11-24T00:00:00.000Z", "test", "note")
    monkeypatch.setattr(array.catalog, "journal_after", corrupt)
    with pytest.raises(CatalogUnusable):
        array.parts.replicator.replicate_once()
    monkeypatch.undo()
    monkeypatch.setattr(array.catalog, "reserved", corrupt)
    array.lose(2)
    member(array, 2).arrive()
    with pytest.raises(CatalogUnusable):
        graph.welcome_once(array.parts)


def test_a_host_without_descriptors_is_told_as_such(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 8, hard))
    taken = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        for ask in (mounts, host_mounts, lambda: filesystem(str(tmp_path))):
            with pytest.raises(RaiddError, match="EMFILE") as raised:
                ask()
            assert type(raised.value) is RaiddError
    finally:
        for file in taken:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
