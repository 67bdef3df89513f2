"""What a file that was read turns out to be: an image, one that may still be growing, or nothing for the array.

Files in which no SOP Instance UID is found, and files shorter than their elements say, may be copies that stall: they
get `raidd.inbox.readiness.PATIENCE_S` after their last change. Then the first are refused and the second stored as
they are (a truncated image is still an image). A name never decides against an image: what is called ``Thumbs.db`` or
``DICOMDIR`` and is one, is taken.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from raidd.codec.erasure import Buffer
from raidd.dicom.header import Header, HeaderUnreadable, read_header
from raidd.inbox.intake import Offer
from raidd.inbox.names import NameKind, name_kind
from raidd.inbox.readiness import patience_ends_at
from raidd.inbox.refusals import RefusalCode, refusal_code

logger = logging.getLogger(__name__)
_PROGRAM_MARKS = (b"MZ", b"\x7fELF")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Not for the array: why."""

    code: RefusalCode
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Later:
    """Looks unfinished: judge it again at this moment (monotonic seconds)."""

    at: float


def examine(
    offer: Offer, head: Buffer, now: float, more: Callable[[int], Buffer] | None = None
) -> Header | Refusal | Later:
    """Judge a file by its first bytes; ``more(offset)`` gives some of the others (`read_header`)."""
    patient = patience_ends_at(offer.changed_at)
    try:
        header = read_header(head, offer.observed.size, more)
    except HeaderUnreadable as error:
        return _unreadable(offer, head, refusal_code(error.code), error.message, patient if now < patient else None)
    except (ValueError, LookupError, ArithmeticError, RecursionError, TypeError, AttributeError) as error:
        # A fault of ours in the parser must not stop the images behind this one.
        logger.exception("the header reader failed on %s", offer.source)
        return _unreadable(offer, head, RefusalCode.NOT_DICOM, repr(error), patient if now < patient else None)
    if header.dicomdir:
        return Refusal(RefusalCode.DICOMDIR)
    return Later(patient) if header.truncated and now < patient else header


def _unreadable(
    offer: Offer, head: Buffer, code: RefusalCode, detail: str, patience_until: float | None
) -> Refusal | Later:
    if name_kind(offer.name) is NameKind.JUNK or bytes(head[:4]).startswith(_PROGRAM_MARKS):
        return Refusal(RefusalCode.JUNK)
    return Refusal(code, detail) if patience_until is None else Later(patience_until)


def refused_unread(offer: Offer, image_max_bytes: int) -> Refusal | None:
    """What can be told without reading."""
    seen = offer.observed
    if not seen.regular:
        return Refusal(RefusalCode.NOT_A_FILE)
    if seen.size == 0:
        junk = name_kind(offer.name) is NameKind.JUNK
        return Refusal(RefusalCode.JUNK if junk else RefusalCode.EMPTY)
    if seen.size > image_max_bytes:
        return Refusal(RefusalCode.TOO_LARGE, f"{seen.size} bytes; {image_max_bytes} are allowed")
    return None
