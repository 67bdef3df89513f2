"""A walk over a DICOM file's data elements in bounded memory (PS3.5 section 7), values left as bytes.

pydicom builds an object for every element it passes, also inside sequences that nobody asked for: a header
of 32 MiB in eight-byte elements costs it gigabytes, and one element with an impossible length costs it all
the others. This walk keeps nothing but its place. It reads only from the bytes at hand (`Window`), counts
its steps (`Budget`), and says how it ended: at the end, cut short (`Truncated`), or not knowable from what
is at hand (`NotAtHand`).

It is as tolerant as pydicom, on purpose in the same places: implicit elements amid explicit ones, UN of
undefined length as implicit sequences (PS3.5 section 6.2.2), sequences whose delimiters do not pair up.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

Buffer = bytes | bytearray | memoryview

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
STEPS_LIMIT = 400_000
LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
SHORT_VRS = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL"}
    | {b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}
)
KNOWN_VRS = LONG_VRS | SHORT_VRS

RESYNC_LIMIT = 65536
_VR_PATTERN = re.compile(b"|".join(sorted(KNOWN_VRS)))

_TAG_LENGTH = {True: struct.Struct("<HHI"), False: struct.Struct(">HHI")}
_SHORT = {True: struct.Struct("<H"), False: struct.Struct(">H")}
_LONG = {True: struct.Struct("<I"), False: struct.Struct(">I")}


class Truncated(Exception):
    """The file ends before its elements say."""


class NotAtHand(Exception):
    """Bytes that were not given, or more steps than the budget allows, would be needed to go on."""


class Window:
    """Random access to a file of ``size`` bytes of which the first, ``head``, are in memory.

    ``more(offset)`` returns some bytes of the file from that offset on (at least 16 unless the file ends
    first; empty = not to be had); without it only ``head`` is known. One answer is kept, for the next steps.
    """

    __slots__ = ("_chunk", "_chunk_offset", "_head", "_more", "size")

    def __init__(self, head: Buffer, size: int, more: Callable[[int], Buffer] | None = None) -> None:
        self._head = memoryview(head).cast("B")
        self.size = max(size, len(self._head))
        self._more = more
        self._chunk = memoryview(b"")
        self._chunk_offset = 0

    def at(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset``; fewer at the end of the file or of what is at hand."""
        if offset + length <= len(self._head) or self._more is None or len(self._head) == self.size:
            return self._head[offset : offset + length].tobytes()
        return self._fetched(offset, min(length, self.size - offset))

    def _fetched(self, offset: int, length: int) -> bytes:
        start = offset - self._chunk_offset
        if start < 0 or start + length > len(self._chunk):
            assert self._more is not None
            self._chunk, self._chunk_offset, start = memoryview(self._more(offset)).cast("B"), offset, 0
        return self._chunk[start : start + length].tobytes()

    def need(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``; Truncated past the file's end, NotAtHand past what was given."""
        data = self.at(offset, length)
        if len(data) < length:
            raise Truncated if offset + length > self.size else NotAtHand
        return data


class Budget:
    """Steps left: a hostile header costs bounded time."""

    __slots__ = ("left",)

    def __init__(self, steps: int = STEPS_LIMIT) -> None:
        self.left = steps

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise NotAtHand


class Element(NamedTuple):
    """One element's place. ``vr`` is empty where the encoding is implicit; ``length`` may be UNDEFINED."""

    tag: int
    vr: bytes
    offset: int
    length: int


class Encoding(NamedTuple):
    """How a data set's elements are written (PS3.5 section 7.1)."""

    explicit: bool
    little: bool


def element_at(window: Window, offset: int, encoding: Encoding) -> Element:
    """The element whose tag starts at ``offset``. Truncated, NotAtHand."""
    raw = window.at(offset, 12)
    if len(raw) < 8:
        raw = window.need(offset, 8)
    group, number, length = _TAG_LENGTH[encoding.little].unpack_from(raw)
    tag = group << 16 | number
    vr = raw[4:6]
    if not encoding.explicit or group == 0xFFFE or not (vr.isalpha() and vr.isupper()):
        return Element(tag, b"", offset + 8, length)
    if vr in LONG_VRS:
        raw = window.need(offset, 12)
        return Element(tag, vr, offset + 12, _LONG[encoding.little].unpack_from(raw, 8)[0])
    return Element(tag, vr, offset + 8, _SHORT[encoding.little].unpack_from(raw, 6)[0])


def end_of(window: Window, element: Element, encoding: Encoding, budget: Budget) -> int:
    """Offset of the first byte behind ``element``. Truncated when the file does not reach that far."""
    if element.length == UNDEFINED:
        return _end_of_undefined(window, element, encoding, budget)
    end = element.offset + element.length
    if end > window.size:
        raise Truncated
    return end


def next_plausible(window: Window, broken: Element, encoding: Encoding) -> int:
    """Offset of the first explicit element that may follow one whose length is impossible; Truncated if none does.

    Two elements in a row with known VRs and rising tags are taken for it. Looked for in the next `RESYNC_LIMIT` bytes.
    """
    value = window.at(broken.offset, RESYNC_LIMIT)
    for match in _VR_PATTERN.finditer(value, 4):
        offset = broken.offset + match.start() - 4
        if _follows(window, offset, broken.tag, encoding):
            return offset
    raise Truncated


def _follows(window: Window, offset: int, tag: int, encoding: Encoding) -> bool:
    try:
        first = element_at(window, offset, encoding)
        if first.length == UNDEFINED:
            return first.vr == b"SQ" and tag < first.tag
        second = element_at(window, first.offset + first.length, encoding)
    except (Truncated, NotAtHand):
        return False
    return tag < first.tag < second.tag and second.vr in KNOWN_VRS


def _inner(element: Element, encoding: Encoding) -> Encoding:
    """UN of undefined length holds implicit little endian, whatever is around it (PS3.5 section 6.2.2)."""
    return Encoding(explicit=False, little=True) if element.vr == b"UN" else encoding


def _end_of_undefined(window: Window, element: Element, encoding: Encoding, budget: Budget) -> int:
    open_levels: list[tuple[bool, Encoding]] = [(False, _inner(element, encoding))]  # (is an item, its encoding)
    offset = element.offset
    while open_levels:
        budget.spend()
        current = item_encoding(window, offset, open_levels[-1][1])
        inner = element_at(window, offset, current)
        offset = inner.offset
        if inner.tag == ITEM_END:
            open_levels.pop()
        elif inner.tag == SEQUENCE_END:
            while open_levels and open_levels.pop()[0]:  # also closes items whose own end is missing
                pass
        elif inner.length == UNDEFINED:
            open_levels.append((inner.tag == ITEM, _inner(inner, current)))
        else:
            offset = end_of(window, inner, current, budget)
    return offset


def item_encoding(window: Window, offset: int, encoding: Encoding) -> Encoding:
    """Explicit elements met where implicit ones were expected are read as what they are."""
    if not encoding.explicit and window.at(offset + 4, 2) in KNOWN_VRS and window.at(offset, 2) != b"\xfe\xff":
        return encoding._replace(explicit=True)
    return encoding


def walk(window: Window, offset: int, end: int, encoding: Encoding, budget: Budget) -> Iterator[tuple[Element, int]]:
    """Each element from ``offset`` to ``end`` (or an item's delimiter) with the offset behind it.

    Truncated at an element that the file is too short for, NotAtHand where what was given does not reach.
    """
    while offset < end:
        budget.spend()
        element = element_at(window, offset, encoding)
        if element.tag == ITEM_END:
            return
        offset = end_of(window, element, encoding, budget)
        yield element, offset


def items(
    window: Window, sequence: Element, encoding: Encoding, budget: Budget
) -> Iterator[Iterator[tuple[Element, int]]]:
    """The items of ``sequence``, each a walk over its elements (PS3.5 section 7.5). Stops at what is no item."""
    encoding = _inner(sequence, encoding) if sequence.length == UNDEFINED else encoding
    end = window.size if sequence.length == UNDEFINED else sequence.offset + sequence.length
    offset = sequence.offset
    while offset < end:
        budget.spend()
        item = element_at(window, offset, encoding)
        if item.tag != ITEM:
            return
        offset = end_of(window, item, encoding, budget)
        inner_end = offset if item.length != UNDEFINED else window.size
        yield walk(window, item.offset, inner_end, item_encoding(window, item.offset, encoding), budget)
