"""wait, verify, catalog check: each ends when it says, tells what it waits for, and finds what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import pytest

from raidd import api
from raidd.array.member_disk import MemberDisk
from raidd.codec.shard import shard_path
from raidd.daemon import long_requests
from raidd.errors import ImageNotFound, MemberFaulty, TimedOut
from tests.support.arrays import SmallArray

DATA = {f"1.2.{n}": Random(n).randbytes(size) for n, size in enumerate([1, 4096, 300_000])}


@pytest.fixture
def array(tmp_path: Path) -> SmallArray:
    array = SmallArray(tmp_path)
    array.put(DATA)
    return array


# -- wait ------------------------------------------------------------------------------------------------------------


def wait(request: api.WaitRequest, **given: Callable[[], Any]) -> Iterator[api.WaitProgress | api.WaitResult]:
    wanted: dict[str, Callable[[], Any]] = {
        "idle": lambda: True,
        "healthy": lambda: True,
        "waiting": lambda: 0,
        "repairs": lambda: 0,
        "held_up": lambda: "",
    }
    return long_requests.wait(request, **{**wanted, **given})


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_requests, "STEP_S", 0.0)
    monkeypatch.setattr(long_requests, "LINE_S", 0.0)


def test_wait_ends_at_once_when_it_is_so() -> None:
    assert list(wait(api.WaitRequest(idle=True, timeout_s=0))) == [api.WaitResult()]


@pytest.mark.parametrize(
    ("request_", "ends"),
    [
        (api.WaitRequest(idle=True), {"idle"}),
        (api.WaitRequest(healthy=True), {"healthy"}),
        (api.WaitRequest(idle=True, healthy=True), {"idle", "healthy"}),
        (api.WaitRequest(), {"idle", "healthy"}),
    ],
)
def test_wait_waits_for_what_was_asked_and_for_no_more(request_: api.WaitRequest, ends: set[str]) -> None:
    true: set[str] = set()
    lines = wait(request_, idle=lambda: "idle" in true, healthy=lambda: "healthy" in true)
    for word in sorted(ends):
        assert isinstance(next(lines), api.WaitProgress)
        true.add(word)
    assert list(lines) == [api.WaitResult()]


def test_wait_tells_what_is_left_and_why() -> None:
    line = next(wait(api.WaitRequest(idle=True), idle=lambda: False, waiting=lambda: 3, repairs=lambda: 1))
    assert (line.waiting, line.repairs, line.message) == (3, 1, "")
    held_up = wait(
        api.WaitRequest(idle=True), idle=lambda: False, waiting=lambda: 1, held_up=lambda: "the array is full"
    )
    assert next(held_up).message == "1 image waits, 0 segments are to be repaired (the array is full)"


def test_a_wait_that_is_not_reached_says_what_was_missing() -> None:
    lines = wait(
        api.WaitRequest(idle=True, timeout_s=0),
        idle=lambda: False,
        waiting=lambda: 2,
        held_up=lambda: "no member is up",
    )
    with pytest.raises(TimedOut, match=r"not reached within 0 s: 2 images wait, .* \(no member is up\)") as timed_out:
        list(lines)
    assert timed_out.value.exit_code == 4


# -- verify ----------------------------------------------------------------------------------------------------------


def verify(array: SmallArray, request: api.VerifyRequest) -> api.VerifyResult:
    *_progress, last = long_requests.verify(array.store, request)
    assert isinstance(last, api.VerifyResult)
    return last


def test_verify_reads_every_image_back(array: SmallArray) -> None:
    assert verify(array, api.VerifyRequest(all=True)) == api.VerifyResult(verified=3, failed=[])
    array.lose(0)
    array.lose(1)
    assert verify(array, api.VerifyRequest(all=True)).verified == 3


def test_verify_takes_every_version(array: SmallArray) -> None:
    array.put({"1.2.0": b"other bytes"}, version=2)
    assert verify(array, api.VerifyRequest(uids=["1.2.0"])).verified == 2


def test_verify_names_what_cannot_be_read_and_goes_on(array: SmallArray) -> None:
    array.put({"9.9": b"x"})
    lost = array.row("1.2.2").parts[0].segment
    row = array.catalog.segment(lost)
    assert row is not None
    for index in (0, 1, 2):
        array.disks[row.placement.members[index]].inner.unlink(shard_path(lost, index))
    result = verify(array, api.VerifyRequest(all=True))
    assert {failure.sop_instance_uid for failure in result.failed} == {"1.2.0", "1.2.1", "1.2.2"}
    assert {failure.error for failure in result.failed} == {"ImageUnreadable"}
    assert result.verified == 1


def test_verify_of_an_unknown_image_says_so(array: SmallArray) -> None:
    with pytest.raises(ImageNotFound, match=r"9\.9\.9"):
        verify(array, api.VerifyRequest(uids=["1.2.0", "9.9.9"]))


def test_verify_tells_how_far_it_is(array: SmallArray) -> None:
    lines = list(long_requests.verify(array.store, api.VerifyRequest(all=True)))[:-1]
    assert lines
    for line in lines:
        assert isinstance(line, api.VerifyProgress)
        assert line.images_total == 3
        assert line.bytes_total == sum(map(len, DATA.values()))
        assert 0 < line.bytes_done <= line.bytes_total


# -- catalog check ---------------------------------------------------------------------------------------------------


def check(array: SmallArray) -> api.CheckResult:
    *progress, last = long_requests.check_catalog(array.store)
    assert isinstance(last, api.CheckResult)
    shares = [line.progress for line in progress]
    assert shares == sorted(shares)
    return last


def test_a_catalog_that_is_right_has_no_findings(array: SmallArray) -> None:
    assert check(array) == api.CheckResult(segments=1, images=3)


def test_a_shard_that_is_gone_and_one_that_nobody_knows_are_found(array: SmallArray) -> None:
    receipt = array.put({"9.9": b"x"})
    row = array.catalog.segment(receipt.segment)
    assert row is not None
    disk = array.disks[row.placement.members[0]]
    disk.inner.unlink(shard_path(receipt.segment, 0))
    assert [f.split(": ", 1)[1] for f in check(array).findings] == [
        f"shard 0 of segment {receipt.segment} is not there"
    ]
    array.catalog.forget([receipt.segment], "2026-11-24T08:00:00.000Z", "lost by a fault of this test")
    unknown = [finding for finding in check(array).findings if "is unknown to the catalog" in finding]
    assert len(unknown) == 5


def test_a_shard_that_is_known_to_be_missing_is_no_finding(array: SmallArray) -> None:
    array.disk(2).fail("file.sync", "tmp/*")
    array.put({"9.9": b"x"})
    array.disk(2).heal()
    array.bring_back(2)
    assert check(array).findings == []


def test_who_is_away_is_told_and_is_no_finding(array: SmallArray) -> None:
    array.lose(3)
    result = check(array)
    assert result.findings == []
    assert result.not_looked_at == ["slot 3 is missing: its shards were not looked at"]


def test_a_member_that_fails_meanwhile_is_told(array: SmallArray) -> None:
    array.disk(3).fail("list", error=MemberFaulty("Input/output error"))
    result = check(array)
    assert result.findings == []
    assert result.not_looked_at == ["/m/3 could not be listed: Input/output error"]


def test_images_that_come_in_meanwhile_are_no_findings(array: SmallArray, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is committed between the listing of a member and the look into the catalog: only one knows of it."""
    real, put = array.catalog.shards_on, iter(range(1000))

    def meanwhile(member: UUID) -> Iterator[tuple[UUID, int]]:
        array.put({f"3.{next(put)}": b"x" * 5000})
        return real(member)

    monkeypatch.setattr(array.catalog, "shards_on", meanwhile)
    assert check(array).findings == []
    assert next(put) >= 6


def test_debris_of_ids_that_are_still_reserved_is_no_finding(array: SmallArray) -> None:
    """A crash left a shard of an id that was reserved and never committed: settling it is not the check's business."""
    (reserved, *_rest) = array.catalog.reserved()
    disk: MemberDisk = array.disk(0)
    disk.make_folders(shard_path(reserved, 0).rpartition("/")[0])
    disk.replace(shard_path(reserved, 0), b"torn")
    assert check(array).findings == []
