"""DICOM files for tests: every file that pydicom and pydicom-data bring along, and data sets built byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import data_store
import pydicom.data

EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED = (
    "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99",
)  # fmt: skip
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_LONG = ("OB", "OW", "SQ", "UN", "UT", "UC")


@cache
def sample_files() -> tuple[Path, ...]:
    """All files of pydicom's test set and of pydicom-data, those that are not DICOM included."""
    roots = (Path(pydicom.data.__file__).parent, Path(data_store.__file__).parent)
    return tuple(path for root in roots for path in sorted(root.rglob("*")) if path.is_file())


def element(tag: int, vr: str, value: bytes, *, little: bool = True, length: int | None = None) -> bytes:
    """One element; ``vr`` empty = implicit. ``length``: what it claims, if not the truth."""
    order = "<" if little else ">"
    claimed = len(value) if length is None else length
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    if not vr:
        return head + struct.pack(order + "I", claimed) + value
    if vr in _LONG:
        return head + vr.encode() + b"\0\0" + struct.pack(order + "I", claimed) + value
    return head + vr.encode() + struct.pack(order + "H", claimed) + value


def text(tag: int, vr: str, value: str | bytes, **options: bool) -> bytes:
    """A text element, padded to an even length."""
    data = value.encode() if isinstance(value, str) else value
    return element(tag, vr, data + b" " * (len(data) % 2), **options)


def sequence(tag: int, *items: bytes, undefined: bool = False, vr: str = "SQ") -> bytes:
    """A sequence of items, of defined or undefined length."""
    if not undefined:
        return element(tag, vr, b"".join(element(0xFFFEE000, "", item) for item in items))
    body = b"".join(element(0xFFFEE000, "", item, length=0xFFFFFFFF) + element(0xFFFEE00D, "", b"") for item in items)
    return element(tag, vr, body, length=0xFFFFFFFF) + element(0xFFFEE0DD, "", b"")


def file_meta(transfer_syntax: str = EXPLICIT, uid: str = "") -> bytes:
    """Preamble, DICM and group 0002."""
    elements = text(0x00020002, "UI", SECONDARY_CAPTURE)
    elements += text(0x00020003, "UI", uid) if uid else b""
    elements += text(0x00020010, "UI", transfer_syntax)
    return bytes(128) + b"DICM" + element(0x00020000, "UL", struct.pack("<I", len(elements))) + elements


def data_set(elements: Iterable[bytes] = (), uid: str = "1.2.3") -> bytes:
    """Explicit little endian: class and instance UID, then ``elements`` (from group 0008 on, rising)."""
    return text(0x00080016, "UI", SECONDARY_CAPTURE) + text(0x00080018, "UI", uid) + b"".join(elements)
