"""Requests that take their time: wait, verify, catalog check. Each is an iterator of progress lines and a result.

A step takes about a second at most, so that a caller that goes away is noticed; nothing is held between steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from uuid import UUID

from raidd import api
from raidd.array.catalog import Catalog, ImageRow
from raidd.array.members import Member
from raidd.array.store import Store
from raidd.array.survey import all_shard_names, shard_names
from raidd.codec.shard import day_folder
from raidd.daemon.advice import quantity
from raidd.errors import FATAL, ImageError, ImageNotFound, RaiddError, TimedOut

STEP_S = 0.25
LINE_S = 1.0


def wait(
    request: api.WaitRequest,
    *,
    idle: Callable[[], bool],
    waiting: Callable[[], int],
    repairs: Callable[[], int],
    healthy: Callable[[], bool],
    held_up: Callable[[], str],
) -> Iterator[api.WaitProgress | api.WaitResult]:
    """Until everything dropped is acknowledged or refused, and/or until no repair is needed. TimedOut.

    ``held_up``: why images cannot be taken in now; "" = they can."""
    both = not request.idle and not request.healthy
    until = None if request.timeout_s is None else time.monotonic() + request.timeout_s
    said = float("-inf")
    while not ((not (request.idle or both) or idle()) and (not (request.healthy or both) or healthy())):
        now = time.monotonic()
        if until is not None and now >= until:
            raise TimedOut(f"not reached within {request.timeout_s:g} s: {_left(waiting(), repairs(), held_up())}")
        if now - said >= LINE_S:
            said = now
            left, due, why = waiting(), repairs(), held_up()
            yield api.WaitProgress(waiting=left, repairs=due, message=_left(left, due, why) if why else "")
        time.sleep(STEP_S if until is None else max(0.0, min(STEP_S, until - now)))
    yield api.WaitResult()


def _left(waiting: int, repairs: int, held_up: str) -> str:
    images = f"{quantity(waiting, 'image')} {'waits' if waiting == 1 else 'wait'}"
    segments = f"{quantity(repairs, 'segment')} {'is' if repairs == 1 else 'are'} to be repaired"
    return f"{images}, {segments}{f' ({held_up})' if held_up else ''}"


def verify(store: Store, request: api.VerifyRequest) -> Iterator[api.VerifyProgress | api.VerifyResult]:
    """Read back and compare digests."""
    failures: list[api.VerifyFailure] = []
    done = bytes_done = 0
    total, total_bytes, rows = _wanted(store, request)
    said = time.monotonic()
    for row in rows:
        try:
            for chunk in store.read(row):
                bytes_done += len(chunk)
                if time.monotonic() - said >= LINE_S:
                    said = time.monotonic()
                    yield api.VerifyProgress(
                        images_done=done, images_total=total, bytes_done=bytes_done, bytes_total=total_bytes
                    )
        except ImageError as error:
            failures.append(
                api.VerifyFailure(
                    sop_instance_uid=row.sop_instance_uid,
                    version=row.version,
                    error=type(error).__name__,
                    message=error.message,
                )
            )
        done += 1
    yield api.VerifyResult(verified=done - len(failures), failed=failures)


def _wanted(store: Store, request: api.VerifyRequest) -> tuple[int, int, Iterator[ImageRow]]:
    if request.all:
        counts = store.catalog.counts(frozenset())
        return counts.images, counts.bytes, store.catalog.all_images()
    rows = []
    for uid in request.uids:
        found = store.versions(uid)
        if not found:
            raise ImageNotFound(f"no image has the SOP Instance UID {uid}")
        rows += found
    return len(rows), sum(row.size for row in rows), iter(rows)


def check_catalog(store: Store) -> Iterator[api.CheckProgress | api.CheckResult]:
    """The catalog against itself, and against what the members hold by name: no shard may be unknown to it."""
    catalog = store.catalog
    yield api.CheckProgress(message="the catalog's own rules")
    findings = list(catalog.check())
    members = [m for m in store.membership.present_members() if store.membership.readable(m.uuid) is not None]
    not_looked_at = _not_looked_at(store, members)
    for number, member in enumerate(members):
        yield api.CheckProgress(progress=(number + 1) / (len(members) + 1), message=f"shards on {member.path}")
        try:
            findings += _compare(catalog, member, set(all_shard_names(member)))
        except FATAL:
            raise
        except RaiddError as error:
            not_looked_at.append(f"{member.path} could not be listed: {error.message}")
    counts = catalog.counts(frozenset())
    yield api.CheckResult(
        segments=counts.segments, images=counts.images, findings=findings, not_looked_at=not_looked_at
    )


def _not_looked_at(store: Store, members: Sequence[Member]) -> list[str]:
    """Of whom nothing can be said now, spares aside: they hold nothing."""
    membership, there = store.membership, {member.uuid for member in members}
    away = [e for e in membership.roster.entries if e.slot is not None and e.member not in there]
    return [f"slot {e.slot} is {membership.state(e.member)}: its shards were not looked at" for e in away]


def _compare(catalog: Catalog, member: Member, held: set[tuple[UUID, int]]) -> list[str]:
    """Shards that only one side knows. Ids in flight or kept for a member that is away are reserved: no debris.

    Images come and go meanwhile, so what differs is looked at once more before it is told."""
    known = set(catalog.shards_on(member.uuid))
    reserved = set(catalog.reserved())
    unknown = [name for name in sorted(held - known) if name[0] not in reserved and not _moved(catalog, name)]
    missing = [name for name in sorted(known - held) if name[1] not in catalog.excepted(name[0])]
    there = _there_now(member, [*unknown, *missing])
    findings = [
        f"{member.path}: shard {i} of segment {s} is unknown to the catalog" for s, i in unknown if (s, i) in there
    ]
    lost = [name for name in missing if name not in there and name in set(catalog.shards_on(member.uuid))]
    return findings + [f"{member.path}: shard {i} of segment {s} is not there" for s, i in lost]


def _there_now(member: Member, names: Sequence[tuple[UUID, int]]) -> set[tuple[UUID, int]]:
    """Which of these shards the member holds."""
    folders = sorted({day_folder(segment) for segment, _index in names})
    return set(member.call("repair", lambda disk, _c: shard_names(disk, folders))) if folders else set()


def _moved(catalog: Catalog, name: tuple[UUID, int]) -> bool:
    """The catalog knows this very segment: what a rebuild left behind on a disk that came back."""
    return bool(catalog.known([name[0]]))
