"""How a file's stay in the inbox ends, and what is done, counted and told at each end.

Protected: counted, then the original taken away. Stored but not protected: the original stays, nothing is
acknowledged, and it is looked at again. Refused: moved aside with its reason. Hindered: left where it is. Called from
both of Ingest's threads. Counting comes before the last sign of the file goes, so that whoever sees an empty inbox
sees complete counts.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from raidd.inbox.complaints import Complaint
from raidd.inbox.custody import Custody, Ending, Outcome
from raidd.inbox.drafting import Entry
from raidd.inbox.duplicates import protected_now, same_origin
from raidd.inbox.examine import Refusal
from raidd.inbox.intake import Hindrance, NotTaken, Offer, Owed
from raidd.inbox.sink import Sink
from raidd.inbox.tally import Tally
from raidd.inbox.watch import Watcher


def timestamp(moment: datetime) -> str:
    """RFC 3339, UTC, milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Endings:
    """Shared by the preparing and the committing thread; holds no state but complaints and counts."""

    def __init__(
        self,
        sink: Sink,
        watcher: Watcher,
        custody: Custody,
        tally: Tally,
        *,
        clock: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:
        self._sink, self._watcher, self._custody, self._tally = sink, watcher, custody, tally
        self._clock, self._now = clock, now
        self.unreadable = Complaint(sink.event, "inbox-unreadable", "everything in the inbox can be read again")
        self.unwatched = Complaint(sink.event, "inbox-unwatched", "the inbox is watched again")
        self._stuck = Complaint(sink.event, "inbox-not-writable", "files can be removed from the inbox again")

    def committed(self, entry: Entry, protected: bool) -> None:
        """One image is stored; the last part, for a large one."""
        image, offer = entry.image, entry.offer
        self._tell(entry)
        owed = Owed(image.sop_instance_uid, image.sha256 or "", acknowledged=protected)
        if protected:
            self._acknowledged(offer, owed)
        else:
            self._watcher.rest(offer, owed)

    def _tell(self, entry: Entry) -> None:
        image, source = entry.image, entry.offer.source
        objects = (image.sop_instance_uid, source)
        if entry.truncated:
            text = f"{source} ends before its elements say; it was stored as it is"
            self._sink.event("image-truncated", "warning", text, objects)
        if entry.conflict is not None:
            severity = "info" if same_origin(source, entry.conflict.source) else "warning"
            text = (
                f"{source} carries the UID of an image stored before (from {entry.conflict.source}) but differs; "
                f"both are kept, this one as version {image.version}"
            )
            self._sink.event("image-conflict", severity, text, objects)

    def _acknowledged(self, offer: Offer, owed: Owed) -> None:
        self._tally.stored(timestamp(self._now()), self._clock() - offer.changed_at)
        self._moved(offer, self._custody.take_away(offer), owed)

    def duplicate(self, offer: Offer, uid: str, sha256: str) -> None:
        """It is stored and protected already."""
        self._tally.duplicate()
        self._moved(offer, self._custody.take_away(offer), Owed(uid, sha256, acknowledged=True))

    def refuse(self, offer: Offer, refusal: Refusal) -> None:
        """Move it aside with its reason."""
        outcome = self._custody.reject(offer, refusal.code, refusal.detail)
        if outcome.ending is Ending.TAKEN:
            self._tally.rejected(refusal.code)
            if not refusal.code.silent:
                text = f"{offer.source} was refused: {refusal.code.sentence} {refusal.detail}".rstrip()
                self._sink.event("image-rejected", "warning", text, (offer.source, refusal.code.value))
        self._moved(offer, outcome, None)

    def _moved(self, offer: Offer, outcome: Outcome, owed: Owed | None) -> None:
        """``owed`` is None for a refusal: unless it was moved, nothing has ended."""
        if outcome.ending is Ending.TAKEN:
            self._watcher.done(offer)
        elif outcome.ending is Ending.GONE:
            self._watcher.done(offer, withdrawn=owed is None)
        elif outcome.ending is Ending.CHANGED:
            self._watcher.again(offer, ended=owed is not None)
        else:
            self._stuck.add(offer.key, f"{offer.source} cannot be removed from the inbox: {outcome.reason}")
            self._watcher.rest(offer, owed)
            return
        self._stuck.settle((offer.key,))

    def hindered(self, offer: Offer, hindrance: NotTaken) -> None:
        """It could not be read just now."""
        if hindrance.hindrance is Hindrance.DENIED:
            self.unreadable.add(offer.key, hindrance.message, (offer.source,))
            self._watcher.rest(offer)
            return
        self.unreadable.settle((offer.key,))
        if hindrance.hindrance is Hindrance.WRITING:
            self._watcher.rest(offer)
        else:
            self._watcher.again(offer)

    def readable(self, offer: Offer) -> None:
        self.unreadable.settle((offer.key,))

    def owing(self, offer: Offer, uid: str, sha256: str) -> None:
        """It is stored, but nothing can protect it now."""
        self._watcher.rest(offer, Owed(uid, sha256, acknowledged=False))

    def settle_debt(self, offer: Offer, owed: Owed) -> bool:
        """A file that was stored before is due again. False: it has to be taken in anew."""
        if owed.acknowledged:
            self._moved(offer, self._custody.take_away(offer), owed)
            return True
        rows = [row for row in self._sink.versions(owed.uid) if row.sha256 == owed.sha256]
        if any(protected_now(self._sink, row) for row in rows):
            self._acknowledged(offer, Owed(owed.uid, owed.sha256, acknowledged=True))
            return True
        if not rows or self._sink.protects():
            return False
        self._watcher.rest(offer, owed)
        return True
