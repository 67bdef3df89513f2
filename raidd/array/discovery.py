"""Finding the members: on remembered paths and on every mount of the host, each by its id and its label.

A hung disk must not hold up a start: every place is looked at by a thread of its own, and what has not answered
within the deadline is left out (it will be found by the probe when it wakes up). Read-only.

What is seen is only reported here (`Sighting`): a label may be good, damaged, not understood, or absent. Which
roster counts is decided by label.choose_roster, who is let in by `identity`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from uuid import UUID

from raidd.array.host import find_member_folders, host_mounts
from raidd.array.label import LABEL_NAME, Label, LabelUnsupported
from raidd.array.local_disk import LocalDisk
from raidd.array.member_disk import MemberDisk
from raidd.array.survey import day_folders, read_prefix, shard_names
from raidd.array.worker import Cancel, Operation, Worker, wait_all
from raidd.codec.shard import shard_path
from raidd.errors import LabelInvalid, MemberError, RaiddError, ShardError

T = TypeVar("T")
PAUSE_S, PAUSE_LIMIT_S = 5.0, 60.0
"""Between two searches of all mounts, when none came or went."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A member folder and what its label says. ``fault``: why there is no label; ``proved`` says that a good shard of
    array ``array`` lies on the disk, so that a damaged label may be made again."""

    path: str
    uuid: UUID
    label: Label | None
    fault: str = ""
    understood: bool = True
    proved: UUID | None = None

    @property
    def array(self) -> UUID | None:
        """The array it belongs to, by its label, else by its shards."""
        return self.label.roster.array if self.label is not None else self.proved


def each_in_time(works: Sequence[Callable[[], T]], deadline_s: float) -> list[T | None]:
    """Run all side by side; None for what failed or has not answered in time (its thread is left behind)."""
    workers = [Worker(f"look {number}", deadline_s) for number in range(len(works))]
    operations = [w.submit(partial(_ignoring_cancel, work)) for w, work in zip(workers, works, strict=True)]
    wait_all(operations, deadline_s)
    for worker in workers:
        worker.close()
    return [_value(operation) for operation in operations]


def _ignoring_cancel(work: Callable[[], T], _cancel: Cancel) -> T:
    return work()


def _value(operation: Operation[T]) -> T | None:
    try:
        return operation.result() if operation.settled() else None
    except RaiddError:
        return None


def discover(
    remembered: Iterable[tuple[str, UUID]], deadline_s: float, mounts: Iterable[str] | None = None
) -> list[Sighting]:
    """Every member folder on the remembered paths and on the mounts (None: all of the host), looked at once each."""
    on_mounts = list(host_mounts() if mounts is None else mounts)
    lists = each_in_time([partial(find_member_folders, [mount]) for mount in on_mounts], deadline_s)
    found = dict.fromkeys([*remembered, *(place for places in lists if places for place in places)])
    seen = each_in_time([partial(look, path, uuid) for path, uuid in found], deadline_s)
    return [sighting for sighting in seen if sighting is not None]


class MountSearch:
    """Where a member is among all mounts of the host, for whoever asks again and again while it is away.

    Any thread; one searches at a time, the others get what the search before found. A mount that hangs costs one
    thread, once: it is not looked at again before that thread has come back. All mounts are listed when one came or
    went, else after a pause that doubles from ``PAUSE_S`` to ``PAUSE_LIMIT_S``."""

    def __init__(
        self, *, mounts: Callable[[], Iterable[str]] = host_mounts, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._mounts, self._clock = mounts, clock
        self._found: dict[UUID, str] = {}
        self._looking: dict[str, Operation[list[tuple[str, UUID]]]] = {}
        self._seen: frozenset[str] = frozenset()
        self._pause_s, self._due_at = PAUSE_S, float("-inf")
        self._searching = threading.Lock()

    def find(self, member: UUID, within_s: float) -> str | None:
        """The mount where the member was seen last, None if nowhere."""
        if self._searching.acquire(blocking=False):
            try:
                self._search_if_due(within_s)
            finally:
                self._searching.release()
        return self._found.get(member)

    def _search_if_due(self, within_s: float) -> None:
        mounts = frozenset(self._mounts())
        if mounts != self._seen:
            self._pause_s = PAUSE_S
        elif self._clock() < self._due_at:
            return
        self._seen, self._due_at = mounts, self._clock() + self._pause_s
        self._pause_s = min(2 * self._pause_s, PAUSE_LIMIT_S)
        self._search(within_s)

    def _search(self, within_s: float) -> None:
        self._looking = {mount: asked for mount, asked in self._looking.items() if not asked.done()}
        workers = {mount: Worker(f"look at {mount}", within_s) for mount in self._seen - self._looking.keys()}
        asked = {mount: worker.submit(_ask_for_members(mount)) for mount, worker in workers.items()}
        wait_all(list(asked.values()), within_s)
        for worker in workers.values():
            worker.close()
        self._looking |= asked
        answers = [_value(asked[mount]) for mount in sorted(asked)]
        self._found = {uuid: path for answer in answers for path, uuid in answer or ()}


def _ask_for_members(mount: str) -> Callable[[Cancel], list[tuple[str, UUID]]]:
    return partial(_ignoring_cancel, partial(find_member_folders, [mount]))


def look(path: str, uuid: UUID) -> Sighting:
    """One member folder. Raises MemberError when it is not there or cannot be read at all."""
    disk = LocalDisk(path, uuid)
    disk.check()
    return look_at(disk)


def look_at(disk: MemberDisk) -> Sighting:
    """The same for any disk."""
    try:
        label = Label.parse(disk.read(LABEL_NAME))
    except LabelUnsupported as error:
        return Sighting(disk.path, disk.uuid, None, error.message, understood=False)
    except (LabelInvalid, MemberError) as error:
        return Sighting(disk.path, disk.uuid, None, error.message, proved=array_of_newest_shard(disk))
    if label.member != disk.uuid:
        return Sighting(disk.path, disk.uuid, None, f"its label names member {label.member}", understood=False)
    return Sighting(disk.path, disk.uuid, label)


def array_of_newest_shard(disk: MemberDisk) -> UUID | None:
    """The array that a good head found on the disk belongs to (format.md: how a damaged label is made again)."""
    for folder in reversed(day_folders(disk)):
        for segment, index in reversed(shard_names(disk, [folder])):
            try:
                return read_prefix(disk, shard_path(segment, index)).head.array
            except (ShardError, MemberError):
                continue
    return None


def newest_segment(disk: MemberDisk) -> UUID | None:
    """The highest segment id on the disk, by name: the last of its last folder."""
    for folder in reversed(day_folders(disk)):
        names = shard_names(disk, [folder])
        if names:
            return names[-1][0]
    return None
