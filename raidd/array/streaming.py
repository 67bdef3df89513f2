"""An image as a stream: its parts one after the other, from whichever copy can give them, never more in memory than a
few MiB of it, whatever its size.

A part of up to `WHOLE_BYTES` is read whole, from all its data shards at once, and is given out after its SHA-256 was
compared. A larger one comes in pieces of `PIECE_BYTES`: each 64 KiB block is compared with its checksum, and only
shards that agree with k of the segment are believed; the part's SHA-256 is compared at its end, the image's before the
last piece is given. So a wrong digest always ends a stream before its end (design.md, sections 4 and 6).

When a segment cannot give a piece, or was replaced meanwhile, the same range of another copy does, at the same place.
Who holds an iterator holds no lock and no buffer: a slow client costs two pieces.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from uuid import UUID

from raidd.array.catalog import ImageRow, PartRow, SegmentRow
from raidd.array.reading import Reader
from raidd.codec.shard import Prefix
from raidd.errors import ImageUnreadable

WHOLE_BYTES = 8 << 20
PIECE_BYTES = 4 << 20


class ImageStream:
    """One reading of one image, by one thread. ``copies()`` asks for all copies there are now, the best first."""

    def __init__(self, reader: Reader, image: ImageRow, copies: Callable[[], Iterable[ImageRow]]) -> None:
        self._reader, self._image, self._copies = reader, image, copies
        self._described: dict[UUID, tuple[SegmentRow, Prefix]] = {}

    def __iter__(self) -> Iterator[bytes]:
        """The image's bytes. Raises ImageUnreadable before the last piece if they turn out to be others."""
        digest, left = hashlib.sha256(), self._image.size
        for part in sorted(self._image.parts, key=lambda part: part.image_offset):
            for piece in self._part(part):
                digest.update(piece)
                left -= len(piece)
                if left == 0 and digest.hexdigest() != self._image.sha256:
                    uid = self._image.sop_instance_uid
                    raise ImageUnreadable(f"image {uid}: its parts do not make the whole that was stored")
                yield piece
                del piece  # not held while the next is read

    def _part(self, part: PartRow) -> Iterator[bytes]:
        if part.length <= WHOLE_BYTES:
            yield self._from_any(part, self._reader.read_part)
            return
        digest, position = hashlib.sha256(), 0
        while position < part.length:
            piece = self._from_any(part, partial(self._piece, start=position))
            digest.update(piece)
            position += len(piece)
            if position == part.length and digest.hexdigest() != part.part_sha256:
                raise ImageUnreadable(f"segment {part.segment}: the digest of a part does not match")
            yield piece
            del piece

    def _from_any(self, part: PartRow, read: Callable[[PartRow], bytes]) -> bytes:
        try:
            return read(part)
        except ImageUnreadable as error:
            for copy in self._copies():
                for other in copy.parts:
                    if _same_range(other, part) and other.segment != part.segment:
                        return _second(other, read, error)
            raise

    def _piece(self, part: PartRow, *, start: int) -> bytes:
        """The part's bytes from `start` on, at most PIECE_BYTES and not beyond the data shard they lie in."""
        if part.segment not in self._described:
            self._described = {part.segment: self._reader.describing(part.segment)}
        row, like = self._described[part.segment]
        try:
            return self._reader.read_piece(row, part.offset + start, min(PIECE_BYTES, part.length - start), like)
        except ImageUnreadable:
            self._described.clear()  # asked for again by the next attempt: it may have been replaced
            raise


def _second(part: PartRow, read: Callable[[PartRow], bytes], first: ImageUnreadable) -> bytes:
    try:
        return read(part)
    except ImageUnreadable:
        raise first from None


def _same_range(a: PartRow, b: PartRow) -> bool:
    return (a.image_offset, a.length, a.part_sha256) == (b.image_offset, b.length, b.part_sha256)
