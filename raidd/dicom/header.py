"""From a file's first bytes to what raidd must know of an image: the only place that parses DICOM.

Purpose: decide whether a file is an image (it has a SOP Instance UID), under which UID, and collect its
identity, without ever refusing what a DICOM reader opens. Nothing but the head of the file is needed;
with ``more`` also truncation far behind it is seen. Pixels are never decoded.

How: a bounded walk (`raidd.dicom.elements`) takes the bytes of the wanted elements; each is then turned
into text by itself, so that one broken element costs only itself. Where the walk finds no UID, pydicom is
asked for a second opinion on the first bytes.

UIDs: accepted as text, whatever characters they hold (no path is ever made of one unescaped), padding taken
off. The standard's limit is 64 characters; up to `UID_LIMIT` are kept as sent. A longer one, or one with
unprintable characters, becomes its first 64 printable characters, "~" and 32 hex digits of its SHA-256: bounded, and
different UIDs stay different images.

Promises: memory and time are bounded by constants beside the size of ``head``; nothing but HeaderUnreadable
is raised (and what ``more`` itself raises); nothing is printed.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import pydicom

from raidd.dicom.elements import (
    KNOWN_VRS,
    UNDEFINED,
    Budget,
    Buffer,
    Element,
    Encoding,
    NotAtHand,
    Truncated,
    Window,
    element_at,
    end_of,
    items,
    next_plausible,
)
from raidd.dicom.identity import Identity
from raidd.dicom.text import (
    DEFAULT_ENCODINGS,
    binary_integer,
    date_of,
    encodings_of,
    integer_of,
    name_of,
    text_of,
    uid_text,
)
from raidd.errors import ImageRefused

UID_LIMIT = 128
VALUE_LIMIT = 8192  # bytes of one element that are looked at
INFLATED_LIMIT = 8 * 1024 * 1024
SECOND_OPINION_LIMIT = 256 * 1024

EXPLICIT_BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})
MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"

_CHARACTER_SET, _SOP_CLASS, _SOP_INSTANCE = 0x00080005, 0x00080016, 0x00080018
_MEDIA_CLASS, _MEDIA_INSTANCE, _TRANSFER_SYNTAX = 0x00020002, 0x00020003, 0x00020010
_DIRECTORY_RECORDS = 0x00041220
_PIXELS = 0x7FE00008
_FIRST_TAG_LIMIT = 0x0028FFFF  # what begins with a higher one is something else that happens to parse

_UIDS = {0x0020000D: "study_instance_uid", 0x0020000E: "series_instance_uid"}
_TEXTS = {
    0x00081030: "study_description",
    0x0008103E: "series_description",
    0x00080020: "study_date",
    0x00080030: "study_time",
    0x00080050: "accession_number",
    0x00080060: "modality",
    0x00180015: "body_part",
    0x00200060: "laterality",
    0x00080080: "institution",
    0x00080090: "referring_vet",
    0x00100010: "patient_name",
    0x00100020: "patient_id",
    0x00100030: "birth_date",
    0x00100040: "sex",
    0x00102201: "species",
    0x00102292: "breed",
    0x00102203: "neutered",
    0x00102297: "responsible_person",
    0x00102299: "responsible_organization",
}
_INTEGER_STRINGS = {0x00200011: "series_number", 0x00200013: "instance_number", 0x00280008: "frames"}
_INTEGERS = {0x00280010: "rows", 0x00280011: "columns"}
_NAMES = frozenset({0x00080090, 0x00100010, 0x00102297})
_OTHER_IDS, _IMAGE_LATERALITY = 0x00101000, 0x00200062
# Sequences: where they are, and which of an item's elements say it, the better one first.
_ITEM_TEXTS = {
    0x00101002: (0x00100020,),  # other patient ids: a microchip's number
    0x00102202: (0x00080104, 0x00080100),  # species: code meaning, code value
    0x00102293: (0x00080104, 0x00080100),  # breed
    0x00102294: (0x00102295,),  # breed registration: number
}
_WANTED = frozenset(
    {_CHARACTER_SET, _SOP_CLASS, _SOP_INSTANCE, _DIRECTORY_RECORDS, _OTHER_IDS, _IMAGE_LATERALITY}
    | _UIDS.keys()
    | _TEXTS.keys()
    | _INTEGER_STRINGS.keys()
    | _INTEGERS.keys()
    | _ITEM_TEXTS.keys()
)


class HeaderUnreadable(ImageRefused):
    """This file is no image that raidd can name. ``code``: "not-dicom" or "no-sop-instance-uid"."""

    @property
    def sentence(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class Header:
    """What the catalog, the manifest and the inbox need of one file."""

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    identity: Identity
    dataset_offset: int  # the first byte after group 0002; two files equal from there on hold the same data set
    truncated: bool  # the file ends before its elements say
    dicomdir: bool


@dataclass(slots=True)
class _Found:
    """The wanted elements' bytes, and how the walk ended."""

    values: dict[int, tuple[bytes, bytes]]  # tag -> (VR as written, value)
    item_texts: dict[int, list[bytes]]
    encoding: Encoding
    first_tag: int = 0
    in_order: int = 0  # elements whose tag was above the one before
    truncated: bool = False


def read_header(head: Buffer, file_size: int, more: Callable[[int], Buffer] | None = None) -> Header:
    """Read the header of the file whose first bytes are ``head`` and whose length is ``file_size`` bytes.

    ``more(offset)`` gives some bytes of the file from ``offset`` on (at least 16 unless the file ends first, empty =
    not to be had); without it only what ``head`` shows is known, and ``truncated`` stays False where that does not
    reach. Sources: PS3.10 section 7 (file meta), PS3.5 section 7 (elements). Raises HeaderUnreadable.
    """
    window = Window(head, file_size, more)
    meta, dataset_offset = _read_meta(window)
    transfer_syntax = uid_text(meta.get(_TRANSFER_SYNTAX, b""))
    inflated = _inflate(window, dataset_offset) if transfer_syntax in DEFLATED else None
    if inflated is None:
        found = _collect(window, dataset_offset, transfer_syntax)
    else:
        found = _collect(Window(inflated[0], len(inflated[0])), 0, transfer_syntax)
        found.truncated = inflated[1]
    uid = _sop_instance_uid(found, meta, head, inflated is not None)
    if not uid:
        raise _unreadable(window, found, bool(meta) or dataset_offset > 0)
    sop_class = bounded_uid(_raw(found, _SOP_CLASS) or meta.get(_MEDIA_CLASS, b""))
    return Header(
        sop_instance_uid=uid,
        sop_class_uid=sop_class,
        transfer_syntax_uid=bounded_uid(meta.get(_TRANSFER_SYNTAX, b"")),
        identity=_identity(found, sop_class, bounded_uid(meta.get(_TRANSFER_SYNTAX, b""))),
        dataset_offset=dataset_offset,
        truncated=found.truncated,
        dicomdir=MEDIA_STORAGE_DIRECTORY in (sop_class, uid_text(meta.get(_MEDIA_CLASS, b"")))
        or _DIRECTORY_RECORDS in found.values,
    )


def bounded_uid(value: bytes) -> str:
    """The UID in ``value`` by the rule in the module's docstring; "" if there is none."""
    text = uid_text(value)
    if len(text) <= UID_LIMIT and text.isprintable():
        return text
    printable = "".join(c for c in text if c.isprintable())
    return f"{printable[:64]}~{hashlib.sha256(value).hexdigest()[:32]}"


def _read_meta(window: Window) -> tuple[dict[int, bytes], int]:
    """Group 0002's UIDs and the offset of the first byte behind it; a preamble need not be there."""
    offset = 132 if window.at(128, 4) == b"DICM" else 0
    meta: dict[int, bytes] = {}
    budget = Budget(1000)
    group_end = 0
    try:
        while True:
            encoding = Encoding(explicit=True, little=True)
            element = element_at(window, offset, encoding)
            if element.tag >> 16 != 0x0002:
                break
            behind = end_of(window, element, encoding, budget)
            budget.spend()
            if element.tag == 0x00020000 and element.length == 4:
                group_end = behind + int.from_bytes(window.at(element.offset, 4), "little")
            elif element.length != UNDEFINED:
                meta[element.tag] = window.at(element.offset, min(element.length, VALUE_LIMIT))
            offset = behind
    except (Truncated, NotAtHand):
        # One element of the meta header has an impossible length; the group's own length leads past it.
        offset = group_end if offset < group_end < window.size else offset
    return meta, offset


def _inflate(window: Window, offset: int) -> tuple[bytes, bool] | None:
    """(the data set's first bytes, cut short?) of a deflated data set (PS3.5 A.5); None if it is not deflated."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = bytearray()
    try:
        while len(inflated) < INFLATED_LIMIT and not inflater.eof:
            packed = inflater.unconsumed_tail or window.at(offset, 65536)
            offset += 0 if inflater.unconsumed_tail else len(packed)
            if not packed:
                break
            inflated += inflater.decompress(packed, INFLATED_LIMIT - len(inflated))
    except zlib.error:
        if not inflated:
            return None
    at_end = offset >= window.size
    return bytes(inflated), at_end and not inflater.eof and len(inflated) < INFLATED_LIMIT


def _encoding(window: Window, offset: int, transfer_syntax: str) -> Encoding:
    """Judged by the first element itself as pydicom does: declarations are often wrong."""
    raw = window.at(offset, 8)
    little = transfer_syntax != EXPLICIT_BIG_ENDIAN
    group = int.from_bytes(raw[:2], "little" if little else "big")
    if group >= 0x0400 and group & 0xFF == 0 and raw[4:6] in KNOWN_VRS:
        little = not little  # 0x0008 read the wrong way round
    return Encoding(explicit=raw[4:6].isalpha() and raw[4:6].isupper(), little=little)


def _collect(window: Window, offset: int, transfer_syntax: str) -> _Found:
    """Walk the data set to the file's end, keeping the wanted elements met before the pixels."""
    budget = Budget()
    found = _Found({}, {}, Encoding(True, True))
    try:
        offset = _skip_command_set(window, offset, budget)
        found.encoding = _encoding(window, offset, transfer_syntax)
        last_tag = 0
        while offset < window.size and not _is_padding(window, offset, last_tag):
            element = element_at(window, offset, found.encoding)
            if last_tag >= _PIXELS and element.tag <= last_tag:
                break  # garbage behind the pixels says nothing about their length
            found.first_tag = found.first_tag or element.tag
            found.in_order += element.tag > last_tag
            last_tag = element.tag
            if element.tag in _WANTED and last_tag < _PIXELS:
                _keep(window, element, found)
            offset = _behind(window, element, found.encoding, budget)
    except Truncated:
        found.truncated = True
    except NotAtHand:
        pass
    return found


def _behind(window: Window, element: Element, encoding: Encoding, budget: Budget) -> int:
    """Where the next element is, also when this one's length is impossible; Truncated if there is no next one."""
    budget.spend()
    try:
        return end_of(window, element, encoding, budget)
    except Truncated:
        if element.tag >= _PIXELS or element.length == UNDEFINED or element.vr in (b"", b"SQ"):
            raise
        return next_plausible(window, element, encoding)


def _is_padding(window: Window, offset: int, last_tag: int) -> bool:
    """Zeros (no data set has an element (0000,xxxx)), or behind the pixels too little for an element."""
    short = window.size - offset < 8
    return window.at(offset, 4) == bytes(4) or (short and (last_tag >= _PIXELS or not any(window.at(offset, 8))))


def _skip_command_set(window: Window, offset: int, budget: Budget) -> int:
    """Group 0000 of a message saved as it was, always implicit little endian (PS3.7 section 6.3)."""
    implicit = Encoding(explicit=False, little=True)
    if window.at(offset, 8) != b"\0\0\0\0\4\0\0\0":
        return offset
    while window.at(offset, 2) == b"\0\0":
        budget.spend()
        offset = end_of(window, element_at(window, offset, implicit), implicit, budget)
    return offset


def _keep(window: Window, element: Element, found: _Found) -> None:
    if element.tag in _ITEM_TEXTS:
        found.item_texts[element.tag] = _item_texts(window, element, found.encoding)
    elif element.length != UNDEFINED and element.vr != b"SQ":
        value = window.at(element.offset, min(element.length, VALUE_LIMIT))
        found.values[element.tag] = (element.vr, value)
    elif element.tag == _DIRECTORY_RECORDS:
        found.values[element.tag] = (element.vr, b"")


def _item_texts(window: Window, sequence: Element, encoding: Encoding) -> list[bytes]:
    """The best text of each item; a broken item ends the list but loses nothing before it."""
    texts: list[bytes] = []
    wanted = _ITEM_TEXTS[sequence.tag]
    budget = Budget(10_000)
    try:
        for item in items(window, sequence, encoding, budget):
            said: dict[int, bytes] = {}
            try:
                for element, _ in item:
                    if element.tag in wanted and element.length != UNDEFINED:
                        said[element.tag] = window.at(element.offset, min(element.length, VALUE_LIMIT))
            finally:
                texts += [said[tag] for tag in wanted if said.get(tag, b"").strip(b" \0")][:1]
    except (Truncated, NotAtHand):
        pass
    return texts


def _raw(found: _Found, tag: int) -> bytes:
    return found.values.get(tag, (b"", b""))[1]


def _sop_instance_uid(found: _Found, meta: dict[int, bytes], head: Buffer, inflated: bool) -> str:
    """The data set's, else the file meta's (the same by PS3.10 section 7.1), else what pydicom finds."""
    uid = bounded_uid(_raw(found, _SOP_INSTANCE)) or bounded_uid(meta.get(_MEDIA_INSTANCE, b""))
    return uid if uid or inflated else _second_opinion(head)


def _second_opinion(head: Buffer) -> str:
    """The UID that pydicom sees in the first bytes, "" if none: the promise is what *it* opens, bugs included."""
    start = memoryview(head).cast("B")[:SECOND_OPINION_LIMIT].tobytes()
    try:
        dataset = pydicom.dcmread(
            io.BytesIO(start),
            force=True,
            stop_before_pixels=True,
            specific_tags=[_SOP_INSTANCE],
            defer_size=VALUE_LIMIT,
        )
        return bounded_uid(str(dataset.get("SOPInstanceUID", "") or "").encode("utf-8", "replace"))
    except Exception:  # a parser of hostile bytes raises whatever it likes
        return ""


def _unreadable(window: Window, found: _Found, has_meta: bool) -> HeaderUnreadable:
    if window.size == 0:
        return HeaderUnreadable("not-dicom", "The file is empty.")
    if not has_meta and (found.in_order < 3 or found.first_tag > _FIRST_TAG_LIMIT):
        return HeaderUnreadable(
            "not-dicom", "This is not a DICOM file: no DICM mark, and its first bytes are no elements."
        )
    cut = " The file is cut short." if found.truncated else ""
    return HeaderUnreadable(
        "no-sop-instance-uid", f"A DICOM file without a SOP Instance UID (0008,0018): it names no image.{cut}"
    )


def _identity(found: _Found, sop_class: str, transfer_syntax: str) -> Identity:
    encodings = encodings_of(_raw(found, _CHARACTER_SET)) if _CHARACTER_SET in found.values else DEFAULT_ENCODINGS
    little = found.encoding.little
    said: dict[str, object] = {"sop_class_uid": sop_class, "transfer_syntax_uid": transfer_syntax}
    for tag, (vr, value) in found.values.items():
        if tag in _TEXTS:
            said[_TEXTS[tag]] = (name_of if tag in _NAMES else text_of)(value, encodings)
        elif tag in _UIDS:
            said[_UIDS[tag]] = bounded_uid(value)
        elif tag in _INTEGER_STRINGS:
            said[_INTEGER_STRINGS[tag]] = integer_of(value.decode("latin-1"))
        elif tag in _INTEGERS:
            said[_INTEGERS[tag]] = binary_integer(value, vr, little)
    return Identity.from_json({**said, **_derived(found, said, encodings)})


def _derived(found: _Found, said: dict[str, object], encodings: tuple[str, ...]) -> dict[str, object]:
    """What more than one element may say: species and breed as text or code, ids of every kind, side, dates."""
    texts = {tag: [text_of(raw, encodings) for raw in raws] for tag, raws in found.item_texts.items()}
    ids = text_of(_raw(found, _OTHER_IDS), encodings).split("\\")
    ids += texts.get(0x00101002, []) + texts.get(0x00102294, [])
    return {
        "species": said.get("species") or ", ".join(texts.get(0x00102202, [])),
        "breed": said.get("breed") or ", ".join(texts.get(0x00102293, [])),
        "other_ids": [text.strip() for text in dict.fromkeys(ids) if text.strip()],
        "laterality": text_of(_raw(found, _IMAGE_LATERALITY)) or said.get("laterality") or "",
        "study_date": date_of(str(said.get("study_date", ""))),
        "birth_date": date_of(str(said.get("birth_date", ""))),
    }
