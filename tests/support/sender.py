"""The inbox in memory: what was dropped and is not taken away yet, and the rules by which it goes to the array.

Which bytes are stored, as which version, or are a duplicate, is decided by raidd's own `inbox.duplicates.meet`; here
are only a dict in place of the folder, and what the model has to know: everything ever dropped, and what was
acknowledged. A crash anywhere in `send` leaves the originals where they are, as it does on a disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from raidd.array.commit import Receipt
from raidd.array.store import Draft
from raidd.codec.manifest import ManifestImage
from raidd.daemon import opening
from raidd.errors import ArrayFull, ArrayUnwritable, MemberError
from raidd.inbox.duplicates import Acknowledge, Newcomer, StoreIt, meet
from tests.support.arrays import SmallArray

NOT_NOW = (ArrayFull, ArrayUnwritable, MemberError)
DRAFT_S = 0.2


@dataclass(frozen=True, slots=True)
class Dropped:
    """One file in the inbox. ``part_size``: it goes through in parts of so many bytes."""

    source: str
    uid: str
    data: bytes
    part_size: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """What identifies the image: UID and SHA-256."""
        return self.uid, hashlib.sha256(self.data).hexdigest()


@dataclass(slots=True)
class Sender:
    """``inbox``: source → file. ``ever``, ``acknowledged``: (UID, SHA-256) → bytes. ``again``: those that were stored
    once more though a copy was there (not readable, or not protected, at that moment), or may have been there, on
    members that could not be asked (``doubtful``). ``clashes``: UIDs that were stored in such doubt: what is found late
    takes the next version number."""

    array: SmallArray
    inbox: dict[str, Dropped] = field(default_factory=dict)
    ever: dict[tuple[str, str], bytes] = field(default_factory=dict)
    acknowledged: dict[tuple[str, str], bytes] = field(default_factory=dict)
    again: set[tuple[str, str]] = field(default_factory=set)
    tried: set[tuple[str, str]] = field(default_factory=set)
    clashes: set[str] = field(default_factory=set)
    count: int = 0
    doubtful: Callable[[], bool] = lambda: False
    on_stored: Callable[[UUID, bool], None] = lambda _segment, _protected: None

    def drop(self, uid: str, data: bytes, part_size: int = 0) -> str:
        """A file appears in the inbox; returns its source."""
        self.count += 1
        file = Dropped(f"inbox:{self.count}", uid, data, part_size)
        self.inbox[file.source] = file
        self.ever[file.key] = data
        self.array.offers[file.source] = file.key[1]
        return file.source

    def send(self, sources: Iterable[str]) -> None:
        """Take these files in: the small ones as one batch, each large one by itself. What has to wait, waits."""
        files = [self.inbox[source] for source in sources if source in self.inbox]
        self._send_batch([file for file in files if not file.part_size])
        for file in files:
            if file.part_size:
                self._send_large(file)

    def send_all(self) -> None:
        """Everything that waits, each file by itself."""
        for source in list(self.inbox):
            self.send([source])

    # -- small ones ---------------------------------------------------------------------------------------

    def _send_batch(self, files: Sequence[Dropped]) -> None:
        draft = self.array.store.draft(DRAFT_S) if files else None
        if draft is None:
            return
        try:
            self._fill_and_commit(draft, files)
        except NOT_NOW:
            return
        finally:
            draft.discard()

    def _fill_and_commit(self, draft: Draft, files: Sequence[Dropped]) -> None:
        used, taken, entries = 0, [], []
        for file in files:
            version = self._meet(file)
            if version is not None and file.uid not in {other.uid for other in taken}:
                draft.buffer[used : used + len(file.data)] = file.data
                entries.append(self.array.entry(file.uid, file.data, used, version, file.source))
                taken.append(file)
                used += len(file.data)
        if entries:
            receipt = self.array.store.commit(draft, used, entries)
            self._stored(receipt, taken)

    def _meet(self, file: Dropped) -> int | None:
        """The version to store it as; None if that is not wanted (now)."""
        uid, sha256 = file.key
        newcomer = Newcomer(uid, len(file.data), sha256, "none", 0, file.source, lambda offset: (file.data[offset:],))
        rows = self.array.store.versions(uid)
        met = meet(self.array.store, newcomer, rows)
        if isinstance(met, StoreIt):
            if any(row.sha256 == sha256 for row in rows) or (file.key in self.tried and self.doubtful()):
                self.again.add(file.key)
            self.tried.add(file.key)
            if self.doubtful():
                self.clashes.add(uid)
            return met.version
        if isinstance(met, Acknowledge) and self._alive():
            self._take_away([file])
        return None

    def _stored(self, receipt: Receipt, files: Iterable[Dropped]) -> None:
        """What a receipt allows; ``files``: those that are whole with it."""
        if self._alive():
            self.on_stored(receipt.segment, receipt.protected)
            if receipt.protected:
                self._take_away(files)

    def _alive(self) -> bool:
        """A process that died meanwhile answers nobody and takes nothing away."""
        return not self.array.gate.dead

    def _take_away(self, files: Iterable[Dropped]) -> None:
        for file in files:
            self.acknowledged[file.key] = file.data
            self.inbox.pop(file.source, None)
            self.array.offers.pop(file.source, None)

    # -- large ones ---------------------------------------------------------------------------------------

    def _send_large(self, file: Dropped) -> None:
        """In parts, each a segment of its own; an attempt that breaks off is begun anew another time."""
        try:
            version = self._meet(file)
            if version is not None:
                self._send_parts(file, version)
        except NOT_NOW:
            return

    def _send_parts(self, file: Dropped, version: int) -> None:
        image, segments, protected = self.array.store.new_image_id(), list[UUID](), True
        for start in range(0, len(file.data), file.part_size):
            last = start + file.part_size >= len(file.data)
            part = _part(file, image, version, start, last)
            earlier = [s for s in self.array.store.incomplete(file.uid) if s not in segments] if last else []
            draft = self.array.store.draft(DRAFT_S)
            if draft is None:
                return
            try:
                draft.buffer[: part.length] = file.data[start : start + part.length]
                receipt = self.array.store.commit(draft, part.length, [part], earlier)
            finally:
                draft.discard()
            segments.append(receipt.segment)
            protected = protected and receipt.protected
            self._stored(receipt, [file] if protected and last else [])


def _part(file: Dropped, image: UUID, version: int, start: int, last: bool) -> ManifestImage:
    data = file.data[start : start + file.part_size]
    return ManifestImage(
        image=image,
        sop_instance_uid=file.uid,
        version=version,
        offset=0,
        length=len(data),
        image_offset=start,
        part_sha256=hashlib.sha256(data).hexdigest(),
        size=len(file.data) if last else None,
        sha256=file.key[1] if last else None,
        received_at=opening.now_text(),
        source=file.source,
        identity={"patient_name": "Owner^Large"},
    )
