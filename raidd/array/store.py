"""The array as the rest of raidd sees it: drafts in, images out, what is there and how safe it is.

A facade over the committer (the way in), the reader (the way back), the membership and the catalog. It decides
nothing of its own but whether images may come in now (`writable`) and what the array's state is.

Promises: what `commit` acknowledges is protected (or the receipt says it is not); what `read` yields was verified.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from uuid import UUID

from raidd.array.buffers import BufferPool, Lease
from raidd.array.catalog import Catalog, Counts, ImageRow
from raidd.array.commit import PADDING_LIMIT, Committer, Payload, Receipt
from raidd.array.membership import Membership
from raidd.array.reading import Reader
from raidd.array.roster import WRITABLE, ArrayState, MemberState, array_state, slot_states
from raidd.array.streaming import ImageStream
from raidd.codec.geometry import PAYLOAD_TARGET
from raidd.codec.ids import next_id
from raidd.codec.manifest import ManifestImage
from raidd.errors import StateDirFaulty

BUFFERS = 3
"""One batch in flight, one being prepared, one for an image that is stored again meanwhile."""
RETURN_WAIT_S = 60.0
"""After a start, ingest waits this long, once, for the members that were up at the last stop."""
DISK_CHECK_S = 1.0

Event = Callable[[str, str, str, Sequence[str]], None]


@dataclass(slots=True)
class Draft:
    """A buffer to fill: at least PAYLOAD_TARGET bytes (32 MiB). It stays the taker's until `discard`."""

    buffer: memoryview
    lease: Lease
    _given_back: bool = False

    def discard(self) -> None:
        """Give the buffer back; the disks that still use it keep it until they are done. Twice is fine."""
        if not self._given_back:
            self._given_back = True
            self.lease.release()


@dataclass(frozen=True, slots=True)
class Standing:
    """How safe the array is now."""

    state: ArrayState
    failures_tolerated: int
    counts: Counts


class Store:
    """One per array. Thread-safe, except that one thread at a time may commit."""

    def __init__(
        self,
        catalog: Catalog,
        membership: Membership,
        committer: Committer,
        reader: Reader,
        *,
        state_dir: Path,
        state_reserve_bytes: int,
        now_ms: Callable[[], int],
        random: Random,
        repair_now: Callable[[UUID], bool],
        event: Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.catalog, self.membership, self.reader = catalog, membership, reader
        self._committer = committer
        self._state_dir, self.state_reserve_bytes = state_dir, state_reserve_bytes
        self._now_ms, self._random, self._clock = now_ms, random, clock
        self._repair_now, self.event = repair_now, event
        spare = membership.roster.geometry.m + 1  # each hung disk may keep one buffer for as long as it hangs
        self._pool = BufferPool(PAYLOAD_TARGET + PADDING_LIMIT, BUFFERS + spare)
        self._last_image: UUID | None = None
        self._naming = threading.Lock()
        self._expected = membership.up_at_stop
        self._began = clock()
        self._committed_at = float("-inf")
        self._checked_at, self._state_low = float("-inf"), ""

    # -- the way in --------------------------------------------------------------------------------------

    def draft(self, timeout_s: float) -> Draft | None:
        """A free buffer; None if none came free in time (several disks hang)."""
        lease = self._pool.lease(timeout_s)
        return None if lease is None else Draft(lease.buffer, lease)

    def commit(
        self, draft: Draft, used: int, images: Sequence[ManifestImage], replaces: Sequence[UUID] = ()
    ) -> Receipt:
        """Store the first ``used`` bytes of the draft as one segment; returns after C4."""
        try:
            return self._committer.commit(Payload(draft.buffer, used, draft.lease), images, replaces)
        finally:
            self._committed_at = self._clock()

    def busy(self, within_s: float) -> bool:
        """Whether images came in lately: repairs then keep to their pace."""
        return self._clock() - self._committed_at < within_s

    def may_begin(self) -> None:
        """The start is over: from now on members that were up at the last stop are waited for (`RETURN_WAIT_S`)."""
        self._began = self._clock()

    def protects(self) -> bool:
        """Would a commit made now be protected? False with one member up."""
        return sum(place.up for place in self.membership.places()) >= 2

    def writable(self) -> str:
        """ "" while images may come in; else why they have to wait."""
        return self._state_dir_low() or self._waiting_for_members() or self._too_few_members()

    def _too_few_members(self) -> str:
        places = self.membership.places()
        up, roomy = sum(p.up for p in places), sum(p.up and p.roomy for p in places)
        if up == 0:
            return "no member is up"
        parity = min(self.membership.roster.geometry.m, max(1, up - 1))
        if roomy < min(parity + 1, up):
            return f"the array is full: {roomy} of {up} members have room, {parity + 1} are needed: add a disk"
        return ""

    def _waiting_for_members(self) -> str:
        if not self._expected:
            return ""
        late = {uuid for uuid in self._expected if self._awaited(uuid)}
        left = RETURN_WAIT_S - (self._clock() - self._began)
        if not late or left <= 0:
            self._expected = frozenset()
            return ""
        return f"{len(late)} members that were up at the last stop are not here yet; waiting {left:.0f} s more"

    def _awaited(self, uuid: UUID) -> bool:
        entry = self.membership.roster.find(uuid)
        return entry is not None and entry.state in WRITABLE and self.membership.writable(uuid) is None

    def _state_dir_low(self) -> str:
        if self._clock() - self._checked_at > DISK_CHECK_S:
            self._checked_at = self._clock()
            free, least = self._state_dir_free(), self.state_reserve_bytes
            self._state_low = (
                f"the system disk has {free >> 20} MiB left under {self._state_dir}, {least >> 20} are needed: "
                "make room there"
                if free < least
                else ""
            )
        return self._state_low

    def _state_dir_free(self) -> int:
        try:
            return shutil.disk_usage(self._state_dir).free
        except OSError as error:
            raise StateDirFaulty(f"{self._state_dir}: {error.strerror}") from error

    def new_image_id(self) -> UUID:
        """A time-ordered id that ties the parts of one stored image together."""
        with self._naming:
            self._last_image = next_id(self._now_ms(), self._last_image, self._random.getrandbits(74))
            return self._last_image

    def incomplete(self, uid: str) -> list[UUID]:
        """Segments that hold parts of attempts at this image that were never finished."""
        return self.catalog.incomplete(uid)

    # -- the way back ------------------------------------------------------------------------------------

    def versions(self, uid: str) -> list[ImageRow]:
        """Every version of the image, newest first."""
        return self.catalog.versions(uid, away=self.membership.away()) if self.catalog.has(uid) else []

    def read(self, image: ImageRow) -> Iterator[bytes]:
        """The image, a verified piece at a time. ImageUnreadable before the last piece if a digest differs."""
        uid, version = image.sop_instance_uid, image.version
        return iter(ImageStream(self.reader, image, lambda: self.catalog.copies(uid, version, self.membership.away())))

    def protect(self, image: ImageRow) -> bool:
        """Try now to re-create what the image's segments miss; True when it is protected afterwards."""
        for segment in {part.segment for part in image.parts}:
            self._repair_now(segment)
        fresh = [row for row in self.versions(image.sop_instance_uid) if row.version == image.version]
        return bool(fresh) and fresh[0].state == "protected"

    # -- how it stands -----------------------------------------------------------------------------------

    def standing(self) -> Standing:
        """The array's state and what it tolerates, from counts over placements and exceptions."""
        counts = self.catalog.counts(self.membership.away())
        roster = self.membership.roster
        presences = {member.uuid: member.presence for member in self.membership.members()}
        slots = list(slot_states(roster, presences).values())
        state = array_state(
            slots,
            counts.least_spare,
            counts.unprotected_images > 0,
            counts.unreadable_images > 0,
            counts.absent_shards > 0,
        )
        return Standing(state, self._tolerated(counts, slots), counts)

    def _tolerated(self, counts: Counts, slots: Sequence[MemberState]) -> int:
        if counts.least_spare is not None:
            return max(0, counts.least_spare)
        roster = self.membership.roster
        away = roster.size - sum(state in WRITABLE for state in slots)
        return max(0, roster.geometry.m - max(0, away))
