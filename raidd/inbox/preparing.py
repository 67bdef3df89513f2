"""Filling the next batch: due files are read into the draft, judged, and met with what is stored already.

`fill_once` goes on while files are due and the batch has room; large images get their turn between batches, every
second one at most while smaller ones wait. Owned by the preparing thread; the committing thread only leaves word
(`suspect`, `part_ended`), which is read at the next turn. Holds one leased draft, and one open large file.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime
from enum import Enum, auto

from raidd.codec.manifest import ManifestImage
from raidd.dicom.header import Header
from raidd.errors import ArrayFull, ArrayUnwritable, MemberError
from raidd.inbox.claims import Claims
from raidd.inbox.drafting import Batch, Entry
from raidd.inbox.duplicates import Acknowledge, Newcomer, StoreIt, meet
from raidd.inbox.endings import Endings, timestamp
from raidd.inbox.examine import Later, Refusal, examine, refused_unread
from raidd.inbox.intake import NotTaken, Offer, OpenImage, Owed
from raidd.inbox.large import PART_SIZE, LargeImage
from raidd.inbox.sink import Sink
from raidd.inbox.watch import Watcher

DRAFT_TIMEOUT_S = 1.0
HEAD_SIZE = 1024 * 1024
ELEMENT_SIZE = 64 * 1024
NOT_NOW = (ArrayFull, ArrayUnwritable, MemberError)
"""What the sink raises when images have to wait; anything else concerns the batch, or stops raidd."""


class PartEnd(Enum):
    """What became of one part of a large image."""

    STORED = auto()
    FAILED = auto()
    """To be read again from what is durable on."""
    FAILED_IN_COMPANY = auto()
    REFUSED = auto()


class Preparer:
    """Turns offers into batches."""

    def __init__(
        self,
        sink: Sink,
        watcher: Watcher,
        endings: Endings,
        claims: Claims,
        *,
        image_max_bytes: int,
        clock: Callable[[], float],
        now: Callable[[], datetime],
        part_size: int = PART_SIZE,
    ) -> None:
        self._sink, self._watcher, self._endings, self._claims = sink, watcher, endings, claims
        self.image_max_bytes, self._clock, self._now = image_max_bytes, clock, now
        self._part_size = part_size
        self._open: Batch | None = None
        self._kept: Offer | None = None
        self._suspects: deque[deque[Offer]] = deque()
        self._confined: deque[Offer] | None = None
        self._large: LargeImage | None = None
        self._large_waiting: deque[Offer] = deque()
        self._large_was_last = False
        self._word: deque[tuple[LargeImage, int, PartEnd]] = deque()

    # What the committing thread leaves word of

    def suspect(self, offers: Iterable[Offer]) -> None:
        """These broke a batch together: they get one of their own."""
        self._suspects.append(deque(offers))

    def part_ended(self, large: LargeImage, position: int, end: PartEnd) -> None:
        """The part that ended at ``position`` has its end."""
        self._word.append((large, position, end))

    # What Ingest asks

    @property
    def open(self) -> Batch | None:
        """The batch that could be handed over now, if it holds anything."""
        self._learn()
        return self._open if self._open is not None and self._open.entries else None

    @property
    def accepting(self) -> bool:
        """Can more be put into the open batch?"""
        return self._open is None or not self._open.full

    def take(self) -> Batch:
        """Hand the open batch over."""
        assert self._open is not None
        batch, self._open = self._open, None
        self._large_was_last = batch.large is not None
        return batch

    def close(self) -> None:
        """At the end of the process: give the draft and the open file back."""
        if self._open is not None:
            self._open.draft.discard()
            self._open = None
        if self._large is not None:
            self._large.source.close()

    def fill_once(self) -> bool:
        """Take what is due, while the batch has room. True when anything was dealt with."""
        self._learn()
        if not self.accepting:
            return False
        try:
            return self._fill_large() if self._large_turn() else self._fill_small()
        finally:
            self._drop_empty()

    def _fill_small(self) -> bool:
        moved = False
        while self.accepting and (offer := self._next()) is not None:
            moved = True
            if not self._admit(offer):
                break
        return moved

    def _next(self) -> Offer | None:
        if self._kept is not None:
            offer, self._kept = self._kept, None
            return offer
        if self._confined is None and self._suspects and self._open is None:
            self._confined = self._suspects.popleft()
        if self._confined:
            return self._confined.popleft()
        if self._confined is not None:
            self._confined = None
            if self._open is not None and self._open.entries:
                self._open.full = True  # the suspects are among themselves
                return None
        return self._watcher.take()

    def _batch(self) -> Batch | None:
        """The open batch; None when no buffer comes free (disks hang)."""
        if self._open is None:
            draft = self._sink.draft(DRAFT_TIMEOUT_S)
            self._open = None if draft is None else Batch(draft, self._part_size)
        return self._open

    def _drop_empty(self) -> None:
        if self._open is not None and not self._open.entries:
            self._open.draft.discard()
            self._open = None

    # One file

    def _admit(self, offer: Offer) -> bool:
        """Deal with one offer. False when the batch is full, or there is none."""
        if offer.owed is not None and self._settled(offer, offer.owed):
            return True
        refusal = refused_unread(offer, self.image_max_bytes)
        if refusal is not None:
            self._endings.refuse(offer, refusal)
            return True
        if offer.observed.size > self._part_size:
            self._large_waiting.append(offer)
            return True
        batch = self._batch()
        if batch is None:
            self._watcher.later(offer, self._clock() + DRAFT_TIMEOUT_S)
            return False
        if not batch.fits(offer.observed.size):
            return self._keep(offer, batch)
        return self._read(offer, batch)

    def _settled(self, offer: Offer, owed: Owed) -> bool:
        try:
            return self._endings.settle_debt(offer, owed)
        except NOT_NOW:
            self._watcher.rest(offer, owed)
            return True

    def _keep(self, offer: Offer, batch: Batch) -> bool:
        """It is the first of the next batch."""
        self._kept, batch.full = offer, True
        return False

    def _read(self, offer: Offer, batch: Batch) -> bool:
        size = offer.observed.size
        view = batch.room(size)
        try:
            with OpenImage(offer) as image:
                image.read_into(view)
                image.confirm()
        except NotTaken as hindrance:
            self._endings.hindered(offer, hindrance)
            return True
        self._endings.readable(offer)
        header = self._judged(offer, examine(offer, view, self._clock()))
        return header is None or self._place(offer, header, view, batch)

    def _judged(self, offer: Offer, found: Header | Refusal | Later) -> Header | None:
        if isinstance(found, Refusal):
            self._endings.refuse(offer, found)
        elif isinstance(found, Later):
            self._watcher.later(offer, found.at)
        else:
            return found
        return None

    def _place(self, offer: Offer, header: Header, view: memoryview, batch: Batch) -> bool:
        uid = header.sop_instance_uid
        if not self._claims.claim(uid, offer):
            return True
        sha256 = hashlib.sha256(view).hexdigest()
        newcomer = _newcomer(offer, header, sha256, lambda offset: (view[offset:],))
        met = self._meet(offer, newcomer)
        if met is None:
            return True
        image = ManifestImage(
            image=self._sink.new_image_id(),
            sop_instance_uid=uid,
            version=met.version,
            offset=batch.used,
            length=len(view),
            image_offset=0,
            part_sha256=sha256,
            size=len(view),
            sha256=sha256,
            received_at=timestamp(self._now()),
            source=offer.source,
            identity=header.identity.to_json(),
        )
        if not batch.holds_text(image) and batch.entries:
            self._release(uid)
            return self._keep(offer, batch)
        batch.add(Entry(offer, image, met.conflict, header.truncated))
        return True

    def _meet(self, offer: Offer, newcomer: Newcomer) -> StoreIt | None:
        """None: it needs no storing, or not now; its UID is free again."""
        try:
            meeting = meet(self._sink, newcomer, self._sink.versions(newcomer.uid))
        except NOT_NOW:
            self._watcher.rest(offer)
        except NotTaken as hindrance:
            self._endings.hindered(offer, hindrance)
        else:
            if isinstance(meeting, StoreIt):
                return meeting
            if isinstance(meeting, Acknowledge):
                self._endings.duplicate(offer, newcomer.uid, newcomer.sha256)
            else:
                self._endings.owing(offer, newcomer.uid, meeting.image.sha256)
        self._release(newcomer.uid)
        return None

    def _release(self, uid: str) -> None:
        for offer in self._claims.release((uid,)):
            self._watcher.later(offer, self._clock())

    # Large images

    def _large_turn(self) -> bool:
        if self._open is not None or not (self._large or self._large_waiting):
            return False
        if self._large is not None and self._large.at_end:
            return False  # its last part is being committed
        return not (self._large_was_last and self._small_due())

    def _small_due(self) -> bool:
        return self._kept is not None or bool(self._suspects) or self._watcher.due_in_s() == 0

    def _fill_large(self) -> bool:
        if self._large is None:
            self._large = self._begin(self._large_waiting.popleft())
        large, batch = self._large, self._batch()
        if large is None or batch is None:
            return large is None
        try:
            image = large.read_part(batch.room(large.next_length), batch.used)
        except NotTaken as hindrance:
            self._end_large(large)
            self._endings.hindered(large.offer, hindrance)
            return True
        last = large.at_end
        batch.add(Entry(large.offer, image, large.conflict if last else None, large.header.truncated and last, large))
        batch.full = batch.full or not last or large.alone
        return True

    def _begin(self, offer: Offer) -> LargeImage | None:
        try:
            source = OpenImage(offer)
        except NotTaken as hindrance:
            self._endings.hindered(offer, hindrance)
            return None
        large = self._judge_large(offer, source)
        if large is None:
            source.close()
        return large

    def _judge_large(self, offer: Offer, source: OpenImage) -> LargeImage | None:
        try:
            head = source.some(0, HEAD_SIZE)
            found = examine(offer, head, self._clock(), lambda offset: source.some(offset, ELEMENT_SIZE))
        except NotTaken as hindrance:
            self._endings.hindered(offer, hindrance)
            return None
        self._endings.readable(offer)
        header = self._judged(offer, found)
        if header is None or not self._claims.claim(header.sop_instance_uid, offer):
            return None
        met = self._meet_large(offer, source, header)
        if met is None:
            return None
        image, received_at = self._sink.new_image_id(), timestamp(self._now())
        return LargeImage(source, header, image, met.version, met.conflict, received_at, self._part_size)

    def _meet_large(self, offer: Offer, source: OpenImage, header: Header) -> StoreIt | None:
        """Only when its UID is known is it worth reading the image once more beforehand, for its digest."""
        sha256 = ""
        if self._sink.versions(header.sop_instance_uid):
            try:
                sha256 = _digest(source)
            except NotTaken as hindrance:
                self._release(header.sop_instance_uid)
                self._endings.hindered(offer, hindrance)
                return None
        return self._meet(offer, _newcomer(offer, header, sha256, source.chunks))

    def _learn(self) -> None:
        """Read what the committing thread left word of."""
        while self._word:
            large, position, end = self._word.popleft()
            if large is not self._large:
                continue  # given up meanwhile
            if end is PartEnd.STORED:
                large.secure(position)
                if position == large.source.size:
                    self._end_large(large)
            elif end is PartEnd.REFUSED:
                self._scrap(large)
                self._end_large(large)
            else:
                large.alone = large.alone or end is PartEnd.FAILED_IN_COMPANY
                self._scrap(large)
                large.rewind()

    def _scrap(self, large: LargeImage) -> None:
        """The open batch holds a part that must not be stored; what else is in it is read again."""
        if self._open is None or self._open.large is not large:
            return
        for entry in self._open.entries:
            if entry.large is None:
                self._release(entry.image.sop_instance_uid)
                self._watcher.later(entry.offer, self._clock())
        self._open.draft.discard()
        self._open = None

    def _end_large(self, large: LargeImage) -> None:
        large.source.close()
        self._large = None
        self._release(large.header.sop_instance_uid)


def _newcomer(
    offer: Offer, header: Header, sha256: str, pieces: Callable[[int], Iterable[bytes | memoryview]]
) -> Newcomer:
    return Newcomer(
        uid=header.sop_instance_uid,
        size=offer.observed.size,
        sha256=sha256,
        transfer_syntax=header.transfer_syntax_uid,
        dataset_offset=header.dataset_offset,
        source=offer.source,
        pieces=pieces,
    )


def _digest(source: OpenImage) -> str:
    digest = hashlib.sha256()
    for piece in source.chunks():
        digest.update(piece)
    source.confirm()
    return digest.hexdigest()
