"""A SOP Instance UID meets again: is the newcomer a duplicate, a copy to store once more, or another version?

Equal bytes, or an equal data set (all after group 0002) under the same transfer syntax, make a duplicate: senders
and pynetdicom write their own file meta header around the same image. It may be acknowledged without storing only if
the stored copy is read back now and is equal, and is protected now; raidd never takes its own word for that. If not,
the newcomer is stored: as fresh parts of the same version when the bytes are equal, else as the next version.

Costs one read of the stored copy, only when a UID meets again; memory: one piece of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raidd.dicom.header import HeaderUnreadable, read_header
from raidd.errors import ImageNotFound, ImageUnreadable
from raidd.inbox.sink import Sink

if TYPE_CHECKING:
    from raidd.array.catalog_rows import ImageRow

Pieces = Iterable[bytes | memoryview]


@dataclass(frozen=True, slots=True)
class Newcomer:
    """What arrived. ``pieces(offset)`` gives its bytes from ``offset`` on."""

    uid: str
    size: int
    sha256: str
    transfer_syntax: str
    dataset_offset: int
    source: str
    pieces: Callable[[int], Pieces]


@dataclass(frozen=True, slots=True)
class StoreIt:
    """Store the newcomer as ``version``; ``conflict`` is the image that it differs from, if any."""

    version: int
    conflict: ImageRow | None = None


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """It is there already, read back just now, and protected."""

    image: ImageRow


@dataclass(frozen=True, slots=True)
class WaitFor:
    """It is there but not protected, and nothing stored now would be: storing it again would help nobody."""

    image: ImageRow


Meeting = StoreIt | Acknowledge | WaitFor


def meet(sink: Sink, newcomer: Newcomer, rows: Sequence[ImageRow]) -> Meeting:
    """Decide about ``newcomer``; ``rows`` are all stored versions of its UID (``sink.versions``)."""
    if not rows:
        return StoreIt(1)
    following = max(row.version for row in rows) + 1
    for row in rows:
        if (row.size, row.sha256) == (newcomer.size, newcomer.sha256):
            return _met_again(sink, row, _reads_back(sink, row), StoreIt(row.version))
    for row in rows:
        if _same_data_set(sink, row, newcomer):
            return _met_again(sink, row, True, StoreIt(following))
    return StoreIt(following, conflict=max(rows, key=lambda row: row.version))


def protected_now(sink: Sink, row: ImageRow) -> bool:
    """Protected at this moment (reading it back may just have found damage), or made so by a repair on the spot."""
    now = next((one for one in sink.versions(row.sop_instance_uid) if one.version == row.version), None)
    if now is None or (now.size, now.sha256) != (row.size, row.sha256):
        return False
    return now.state == "protected" or sink.protect(now)


def same_origin(one: str, other: str) -> bool:
    """Do two sources mean one sender? The same file, or the same subfolder (each machine has its own share)."""
    return _origin(one) == _origin(other)


def _origin(source: str) -> str:
    folder, _, name = source.rpartition("/")
    return folder if folder and name else source


def _met_again(sink: Sink, row: ImageRow, reads_back: bool, otherwise: StoreIt) -> Meeting:
    if reads_back and protected_now(sink, row):
        return Acknowledge(row)
    return otherwise if sink.protects() else WaitFor(row)


def _reads_back(sink: Sink, row: ImageRow) -> bool:
    digest = hashlib.sha256()
    try:
        for piece in sink.read(row):
            digest.update(piece)
    except (ImageUnreadable, ImageNotFound):
        return False
    return digest.hexdigest() == row.sha256


def _same_data_set(sink: Sink, row: ImageRow, newcomer: Newcomer) -> bool:
    """Compared piece by piece as both are read; what cannot be read is not equal."""
    stored_syntax = row.identity.get("transfer_syntax_uid", "")
    if stored_syntax != newcomer.transfer_syntax:
        return False
    try:
        stored = sink.read(row)
        head = next(stored, b"")
        header = read_header(head, row.size)
        if row.size - header.dataset_offset != newcomer.size - newcomer.dataset_offset:
            return False
        rest = _chain(head[header.dataset_offset :], stored)
        return _equal(rest, newcomer.pieces(newcomer.dataset_offset))
    except (ImageUnreadable, ImageNotFound, HeaderUnreadable):
        return False


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _equal(one: Pieces, other: Pieces) -> bool:
    """Are two streams equal, however they are cut into pieces?"""
    left, right = iter(one), iter(other)
    a, b = memoryview(b""), memoryview(b"")
    while True:
        a = a if len(a) else _next(left)
        b = b if len(b) else _next(right)
        length = min(len(a), len(b))
        if not length:
            return not len(a) and not len(b)
        if a[:length] != b[:length]:
            return False
        a, b = a[length:], b[length:]


def _next(pieces: Iterator[bytes | memoryview]) -> memoryview:
    """The next piece that is not empty; empty at the end."""
    return next((memoryview(piece) for piece in pieces if len(piece)), memoryview(b""))
