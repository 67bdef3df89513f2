"""A segment's description: the same bytes in each of its shards, zlib-compressed canonical JSON (format.md).

It names the members the shards were meant for, the digests of their checksum tables, and every image with its place
and identity: enough to make the catalog again, and to read the images when raidd is gone.

What is written obeys the same checks as what is read: `pack` refuses (ValueError) what `parse` would call damaged.
Inflating stops at 32 MiB, and the count of JSON's structure marks is bounded before anything is built of them: a
hostile manifest costs bounded memory. Keys this version does not know are carried in ``extra`` and written back.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn
from uuid import UUID

from raidd.codec.geometry import IMAGES_LIMIT, INFLATED_LIMIT, MANIFEST_LIMIT, PAYLOAD_LIMIT, Geometry
from raidd.errors import ShardDamaged

STRUCTURE_LIMIT = 1 << 19  # commas and opening brackets, in texts too: bounds the objects JSON makes to some 100 MiB
_COMPRESSION = 6
_INTEGER_LIMIT = 1 << 63
_SURROGATE = re.compile("[\ud800-\udfff]")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class ManifestImage:
    """One part of one image: ``length`` bytes at ``offset`` of the payload, at ``image_offset`` of the image.

    ``image`` ties parts together. ``size`` (bytes) and ``sha256`` are the whole image's; None except in its last part
    where they are not known before.
    """

    image: UUID
    sop_instance_uid: str
    version: int
    offset: int
    length: int
    image_offset: int
    part_sha256: str
    size: int | None
    sha256: str | None
    received_at: str
    source: str
    identity: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A segment as all its shards describe it. ``members[i]`` is whom shard i was meant for."""

    array: UUID
    segment: UUID
    written_at: str
    geometry: Geometry
    payload_length: int
    members: tuple[UUID, ...]
    replaces: tuple[UUID, ...]
    journal_sequence: int
    journal_hash: str
    tables: tuple[str, ...]
    images: tuple[ManifestImage, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)

    def pack(self) -> bytes:
        """The bytes for the shards. ValueError if a reader would refuse them. Invalid Unicode becomes U+FFFD."""
        document = _document(self)
        _manifest(document)
        try:
            text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        except (TypeError, RecursionError) as error:
            raise ValueError(f"manifest of {self.segment}: not JSON: {error}") from error
        data = _SURROGATE.sub("\ufffd", text).encode()
        _check_size(data)
        packed = zlib.compress(data, _COMPRESSION)
        if len(packed) > MANIFEST_LIMIT:
            raise ValueError(f"manifest of {len(packed)} bytes; {MANIFEST_LIMIT} are allowed")
        return packed

    @classmethod
    def parse(cls, packed: bytes) -> Manifest:
        """The manifest in a shard's bytes, in bounded memory. ShardDamaged on anything off."""
        try:
            return _manifest(_load(_inflate(packed)))
        except (ValueError, RecursionError, zlib.error) as error:
            raise ShardDamaged(f"manifest: {error}") from error


def _inflate(packed: bytes) -> bytes:
    if len(packed) > MANIFEST_LIMIT:
        raise ValueError(f"{len(packed)} bytes; {MANIFEST_LIMIT} are allowed")
    inflater = zlib.decompressobj()
    data = inflater.decompress(packed, INFLATED_LIMIT + 1)
    _check_size(data)
    if not inflater.eof or inflater.unused_data:
        raise ValueError("the compressed text ends early, or bytes follow it")
    return data


def _check_size(data: bytes) -> None:
    if len(data) > INFLATED_LIMIT:
        raise ValueError(f"more than {INFLATED_LIMIT} bytes of text")
    marks = sum(data.count(mark) for mark in (b",", b"[", b"{"))
    if marks > STRUCTURE_LIMIT:
        raise ValueError(f"{marks} structure marks; {STRUCTURE_LIMIT} are allowed")


def _load(data: bytes) -> object:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(data.decode(), parse_constant=refuse)


# Object to document ---------------------------------------------------------------------------------------------


def _document(manifest: Manifest) -> dict[str, object]:
    known = {
        "array": str(manifest.array),
        "segment": str(manifest.segment),
        "written_at": manifest.written_at,
        "k": manifest.geometry.k,
        "m": manifest.geometry.m,
        "payload_length": manifest.payload_length,
        "members": [str(member) for member in manifest.members],
        "replaces": [str(segment) for segment in manifest.replaces],
        "tables": list(manifest.tables),
        "images": [_image_document(image) for image in manifest.images],
    }
    extra = dict(manifest.extra)
    journal = {"sequence": manifest.journal_sequence, "hash": manifest.journal_hash}
    return _joined(known | {"journal": _joined(journal, extra.pop("journal", {}))}, extra)


def _image_document(image: ManifestImage) -> dict[str, object]:
    known = {name: getattr(image, name) for name in _IMAGE_KEYS}
    return _joined(known | {"image": str(image.image), "identity": dict(image.identity)}, image.extra)


def _joined(known: dict[str, object], extra: Mapping[str, Any]) -> dict[str, object]:
    if clash := known.keys() & extra.keys():
        raise ValueError(f"extra keys {sorted(clash)} have a meaning of their own")
    return known | dict(extra)


# Document to object ---------------------------------------------------------------------------------------------


def _manifest(document: object) -> Manifest:
    keys = _Keys(document, "manifest")
    journal = _Keys(keys.take("journal", _mapping), "journal")
    geometry = Geometry(keys.take("k", _count), keys.take("m", _count))
    payload_length = keys.take("payload_length", _count)
    if not 0 < payload_length <= PAYLOAD_LIMIT:
        raise ValueError(f"payload of {payload_length} bytes")
    return Manifest(
        array=keys.take("array", _uuid),
        segment=keys.take("segment", _uuid),
        written_at=keys.take("written_at", _time),
        geometry=geometry,
        payload_length=payload_length,
        members=keys.take("members", _each(_uuid, geometry.n, geometry.n)),
        replaces=keys.take("replaces", _each(_uuid)),
        journal_sequence=journal.take("sequence", _count),
        journal_hash=journal.take("hash", _text),
        tables=keys.take("tables", _each(_digest, geometry.n, geometry.n)),
        images=keys.take("images", _each(lambda value: _image(value, payload_length), 0, IMAGES_LIMIT)),
        extra=keys.rest | ({"journal": journal.rest} if journal.rest else {}),
    )


def _image(document: object, payload_length: int) -> ManifestImage:
    keys = _Keys(document, "image")
    fields = {name: keys.take(name, check) for name, check in _IMAGE_KEYS.items()}
    image = ManifestImage(**fields, extra=keys.rest)
    if image.length < 1 or image.offset + image.length > payload_length:
        raise ValueError(f"image part {image.offset}+{image.length} in a payload of {payload_length} bytes")
    if image.size is not None and image.image_offset + image.length > image.size:
        raise ValueError(f"image part {image.image_offset}+{image.length} of an image of {image.size} bytes")
    if image.version < 1 or not image.sop_instance_uid:
        raise ValueError(f"image {image.image}: version {image.version}, UID {image.sop_instance_uid!r}")
    return image


class _Keys:
    """Takes checked values out of a JSON object; what is not taken is ``rest``."""

    def __init__(self, document: object, name: str) -> None:
        if not isinstance(document, dict):
            raise ValueError(f"{name} is not an object")
        self.rest = dict(document)
        self._name = name

    def take(self, key: str, check: Callable[[object], Any]) -> Any:
        if key not in self.rest:
            raise ValueError(f"{self._name} without {key!r}")
        try:
            return check(self.rest.pop(key))
        except ValueError as error:
            raise ValueError(f"{self._name}, {key!r}: {error}") from error


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < _INTEGER_LIMIT:
        raise ValueError("not a count")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _uuid(value: object) -> UUID:
    identifier = UUID(_text(value))
    if str(identifier) != value:
        raise ValueError("not an id in lower-case 8-4-4-4-12")
    return identifier


def _digest(value: object) -> str:
    if not _DIGEST.fullmatch(_text(value)):
        raise ValueError("not a SHA-256 in lower-case hexadecimal")
    return str(value)


def _time(value: object) -> str:
    if not _TIME.fullmatch(_text(value)):
        raise ValueError("not a UTC time with milliseconds")
    return str(value)


def _nullable(check: Callable[[object], Any]) -> Callable[[object], Any]:
    return lambda value: None if value is None else check(value)


def _each(
    check: Callable[[object], Any], least: int = 0, most: int | None = None
) -> Callable[[object], tuple[Any, ...]]:
    def checked(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) < least or (most is not None and len(value) > most):
            raise ValueError(f"not a list of {least} to {most} entries")
        return tuple(check(entry) for entry in value)

    return checked


_IMAGE_KEYS: dict[str, Callable[[object], Any]] = {
    "image": _uuid,
    "sop_instance_uid": _text,
    "version": _count,
    "offset": _count,
    "length": _count,
    "image_offset": _count,
    "part_sha256": _digest,
    "size": _nullable(_count),
    "sha256": _nullable(_digest),
    "received_at": _time,
    "source": _text,
    "identity": _mapping,
}
