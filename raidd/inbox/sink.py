"""What the inbox needs of the array, as one protocol: `Sink`. ``array/store.py`` is one, tests bring another.

The inbox decides *what* is stored (which bytes, under which UID and version) and when the original may
go; the sink decides *where* and whether it is durable. Between them stands one promise: when `Sink.commit`
returns a receipt that says ``protected``, everything in that draft survives the loss of a member, and only
then does the inbox take an original away.

Structural types on purpose: the array must not import the inbox (design, section 10).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

if TYPE_CHECKING:
    from raidd.array.catalog_rows import ImageRow
    from raidd.codec.manifest import ManifestImage


class Draft(Protocol):
    """A leased payload buffer. `discard` gives it back; harmless when called twice or after a commit."""

    @property
    def buffer(self) -> memoryview:
        """Writable bytes, at least `raidd.codec.geometry.PAYLOAD_TARGET` (32 MiB) of them."""
        ...

    def discard(self) -> None: ...


class Receipt(Protocol):
    """What a commit answers."""

    @property
    def segment(self) -> UUID: ...

    @property
    def protected(self) -> bool:
        """False: stored and readable, but not yet on k+1 members: nothing is acknowledged."""
        ...


class Sink(Protocol):
    """The array, seen from the inbox. Called by the two threads of `Ingest` and by nobody else."""

    def draft(self, timeout_s: float) -> Draft | None:
        """A free buffer, or None when none came free in time."""
        ...

    def commit(self, draft: Any, used: int, images: Sequence[ManifestImage], replaces: Sequence[UUID] = ()) -> Receipt:
        """Store ``draft.buffer[:used]``. Blocks until it is acknowledged (C4) or raises with nothing stored.

        `ArrayFull`, `ArrayUnwritable`, `MemberError`: the images wait. Another `ArrayError`: raidd stops. Any
        other `RaiddError`, or ValueError: the batch itself is at fault, and is halved.
        ``draft`` is one of `draft`'s own (Any: each sink knows its own kind).
        """
        ...

    def versions(self, uid: str) -> Sequence[ImageRow]:
        """What is stored under a SOP Instance UID, newest first; ``state`` as it is at this moment."""
        ...

    def read(self, image: ImageRow) -> Iterator[bytes]:
        """The stored bytes, in order. Raises `ImageUnreadable` rather than yield wrong ones to the end."""
        ...

    def protect(self, image: ImageRow) -> bool:
        """Repair it now; True when it is protected."""
        ...

    def protects(self) -> bool:
        """Would a commit made now be protected? (False on a mirror with one member left.)"""
        ...

    def writable(self) -> str:
        """Empty, or the reason why images have to wait."""
        ...

    def incomplete(self, uid: str) -> Sequence[UUID]:
        """Segments of unfinished attempts at a large image: its last part names them in ``replaces``."""
        ...

    def new_image_id(self) -> UUID: ...

    def event(self, code: str, severity: str, message: str, objects: Sequence[str]) -> None:
        """Tell the operator; ``severity`` is info, warning, critical or emergency."""
        ...
