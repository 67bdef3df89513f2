"""A shard file, format 1.0: head, checksum table, manifest, zeros, body. This module owns the table.

Little-endian; ids are the 16 bytes of RFC 9562 in their order (big-endian, as `UUID.bytes`).

    offset  size  field
         0     8  magic 89 52 41 49 44 44 0D 0A
         8   2+2  format major, minor
        12   1×4  k, m, shard index, codec id (1 = Reed-Solomon as zfec does it)
        16     4  body offset, a multiple of 4096
        20     4  block size B (1.0 writes 65536)
        24     8  shard length S, bytes of body
        32     8  payload length P; S = ceil(P / k) rounded up to 4096
        40    16  segment id (UUIDv7)
        56    16  array id
        72     4  manifest length M, as stored
        76     4  number of images in the manifest
        80     4  CRC-32C of the checksum table
        84     4  CRC-32C of the manifest, as stored
        88    36  zeros
       124     4  CRC-32C of bytes 0…123
       128   4·N  checksum table: CRC-32C of each block of the body, N = ceil(S / B)
             M    manifest, zlib; zeros up to the body offset; then S bytes of body, and the file ends

Versions: an unknown minor is read (its head's spare bytes are carried along); an unknown major or codec is
ShardUnsupported: unreadable, never damaged. All limits are checked before anything is allocated by a field's value.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Hashable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from crc32c import crc32c

from raidd.codec.erasure import Buffer
from raidd.codec.geometry import (
    ALIGNMENT,
    BLOCK_SIZE,
    IMAGES_LIMIT,
    MANIFEST_LIMIT,
    PAYLOAD_LIMIT,
    PREFIX_LIMIT,
    WIDTH_LIMIT,
    Geometry,
    block_count,
    shard_length,
)
from raidd.codec.ids import id_time_ms
from raidd.codec.manifest import Manifest
from raidd.errors import ShardDamaged, ShardUnsupported

HEAD_SIZE = 128
MAGIC = b"\x89RAIDD\r\n"
MAJOR, MINOR = 1, 0
CODEC_ZFEC = 1
SPARE = bytes(36)

_HEAD = struct.Struct("<8s HH BBBB II QQ 16s16s II II 36s")
_CRC = struct.Struct("<I")
_CRC_OFFSET = HEAD_SIZE - _CRC.size
_INDEX_OFFSET, _TABLE_CRC_OFFSET = 14, 80
_VERSION = slice(8, 12)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PATH = re.compile(
    r"segments/(\d{4}/\d\d/\d\d)/([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})-(\d\d)\.shard", re.ASCII
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The 128 bytes at a shard's start, in the order of the table. Lengths in bytes."""

    k: int
    m: int
    index: int
    body_offset: int
    block_size: int
    shard_length: int
    payload_length: int
    segment: UUID
    array: UUID
    manifest_length: int
    image_count: int
    table_crc: int
    manifest_crc: int
    major: int = MAJOR
    minor: int = MINOR
    codec: int = CODEC_ZFEC
    spare: bytes = SPARE

    @property
    def geometry(self) -> Geometry:
        """k+m as one value."""
        return Geometry(self.k, self.m)

    @property
    def block_count(self) -> int:
        """N, entries of the checksum table."""
        return block_count(self.shard_length, self.block_size)

    @property
    def manifest_offset(self) -> int:
        """Where the checksum table ends."""
        return HEAD_SIZE + 4 * self.block_count

    @property
    def prefix_length(self) -> int:
        """Bytes before the body: the body offset."""
        return self.body_offset

    @property
    def file_length(self) -> int:
        """The exact length of the file."""
        return self.body_offset + self.shard_length

    def pack(self) -> bytes:
        """The 128 bytes, CRC included. ValueError for a head that no reader would take."""
        if fault := _fault(self):
            raise ValueError(f"shard head: {fault}")
        version = (MAGIC, self.major, self.minor)
        code = (self.k, self.m, self.index, self.codec)
        lengths = (self.body_offset, self.block_size, self.shard_length, self.payload_length)
        manifest = (self.manifest_length, self.image_count, self.table_crc, self.manifest_crc)
        packed = _HEAD.pack(*version, *code, *lengths, self.segment.bytes, self.array.bytes, *manifest, self.spare)
        return packed + _CRC.pack(crc32c(packed))


def parse_head(data: Buffer) -> Head:
    """The head in a shard's first 128 bytes, every limit checked. ShardDamaged, ShardUnsupported."""
    if len(data) < HEAD_SIZE:
        raise ShardDamaged(f"a shard of {len(data)} bytes has no head")
    raw = bytes(data[:HEAD_SIZE])
    _check_version(raw)
    (stored,) = _CRC.unpack_from(raw, _CRC_OFFSET)
    if crc32c(raw[:_CRC_OFFSET]) != stored:
        raise ShardDamaged("head: its checksum does not fit")
    head = _unpack(raw)
    if head.codec != CODEC_ZFEC:
        raise ShardUnsupported(f"shard of segment {head.segment}: codec {head.codec} is not known")
    if fault := _fault(head):
        raise ShardDamaged(f"head: {fault}")
    return head


def _check_version(raw: bytes) -> None:
    """An unknown major is not ours to judge, unless the CRC proves that it is a damaged 1.x head."""
    if not raw.startswith(MAGIC):
        raise ShardDamaged("head: not a shard")
    major, minor = struct.unpack_from("<HH", raw, _VERSION.start)
    if major == MAJOR:
        return
    (stored,) = _CRC.unpack_from(raw, _CRC_OFFSET)
    for candidate in {(MAJOR, minor), (MAJOR, MINOR)}:
        mended = raw[: _VERSION.start] + struct.pack("<HH", *candidate) + raw[_VERSION.stop : _CRC_OFFSET]
        if crc32c(mended) == stored:
            raise ShardDamaged(f"head: its version was overwritten by {major}.{minor}")
    raise ShardUnsupported(f"shard format {major}.{minor} is not known; this program reads {MAJOR}.x")


def _unpack(raw: bytes) -> Head:
    (_, major, minor, k, m, index, codec, body_offset, block_size, length, payload_length, segment, array, *rest) = (
        _HEAD.unpack_from(raw)
    )
    manifest_length, image_count, table_crc, manifest_crc, spare = rest
    return Head(
        k=k,
        m=m,
        index=index,
        body_offset=body_offset,
        block_size=block_size,
        shard_length=length,
        payload_length=payload_length,
        segment=UUID(bytes=segment),
        array=UUID(bytes=array),
        manifest_length=manifest_length,
        image_count=image_count,
        table_crc=table_crc,
        manifest_crc=manifest_crc,
        major=major,
        minor=minor,
        codec=codec,
        spare=spare,
    )


def _fault(head: Head) -> str:
    """The first limit of format.md that this head breaks, or ''. Allocates nothing."""
    if min(head.k, head.m) < 1 or head.k + head.m > WIDTH_LIMIT:
        return f"geometry {head.k}+{head.m}"
    if not 0 <= head.index < head.k + head.m:
        return f"shard {head.index} of {head.k}+{head.m}"
    if not 0 < head.payload_length <= PAYLOAD_LIMIT:
        return f"payload of {head.payload_length} bytes"
    if head.shard_length != shard_length(head.payload_length, head.k):
        return f"shard length {head.shard_length} for a payload of {head.payload_length} bytes in {head.k}"
    if not _is_block_size(head.block_size):
        return f"block size {head.block_size}"
    if not 0 < head.manifest_length <= MANIFEST_LIMIT or not 0 <= head.image_count <= IMAGES_LIMIT:
        return f"manifest of {head.manifest_length} bytes, {head.image_count} images"
    end = head.manifest_offset + head.manifest_length
    if head.body_offset % ALIGNMENT or not end <= head.body_offset <= PREFIX_LIMIT:
        return f"body offset {head.body_offset}, {end} bytes before it"
    if head.minor == MINOR and head.spare != SPARE:
        return "bytes 88 to 123 are not zero"
    return _id_fault(head.segment)


def _is_block_size(size: int) -> bool:
    """1.0 writes 65536 only; any power of two from a page to a payload costs a reader nothing."""
    return ALIGNMENT <= size <= PAYLOAD_LIMIT and size & (size - 1) == 0


def _id_fault(segment: UUID) -> str:
    try:
        id_time_ms(segment)
    except ValueError as error:
        return str(error)
    return ""


# Prefix: all that stands before the body ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prefix:
    """Head, checksum table (4 bytes a block) and manifest as stored; checksums verified by `parse_prefix`."""

    head: Head
    table: bytes
    manifest_packed: bytes

    def agreement(self) -> Hashable:
        """Equal exactly for shards that count together: all but index, table CRC and the head's own CRC."""
        return replace(self.head, index=0, table_crc=0), hashlib.sha256(self.manifest_packed).digest()

    def manifest(self) -> Manifest:
        """The manifest, parsed anew, and in agreement with the head; else ShardDamaged."""
        manifest, head = Manifest.parse(self.manifest_packed), self.head
        described = (manifest.array, manifest.segment, manifest.geometry, manifest.payload_length, len(manifest.images))
        if described != (head.array, head.segment, head.geometry, head.payload_length, head.image_count):
            raise ShardDamaged(f"shard {head.index} of segment {head.segment}: head and manifest contradict each other")
        return manifest

    def table_matches_manifest(self) -> bool:
        """True if the manifest lists this checksum table: the body is the one that was first written."""
        return self.manifest().tables[self.head.index] == table_digest(self.table)


def parse_prefix(data: Buffer) -> Prefix:
    """Head, table and manifest of file bytes [0, body offset) or more, verified, the zeros too. ShardDamaged."""
    head = parse_head(data)
    view = memoryview(data)
    if len(view) < head.prefix_length:
        raise ShardDamaged(f"a shard of {len(view)} bytes whose body begins at {head.prefix_length}")
    end = head.manifest_offset + head.manifest_length
    table = bytes(view[HEAD_SIZE : head.manifest_offset])
    manifest_packed = bytes(view[head.manifest_offset : end])
    if crc32c(table) != head.table_crc:
        raise ShardDamaged("checksum table: its checksum does not fit")
    if crc32c(manifest_packed) != head.manifest_crc:
        raise ShardDamaged("manifest: its checksum does not fit")
    if bytes(view[end : head.prefix_length]).count(0) != head.prefix_length - end:
        raise ShardDamaged("bytes before the body are not zero")
    return Prefix(head, table, manifest_packed)


def pack_prefix(prefix: Prefix) -> bytes:
    """The file's bytes before the body."""
    packed = b"".join((prefix.head.pack(), prefix.table, prefix.manifest_packed))
    return packed + bytes(prefix.head.prefix_length - len(packed))


def table_digest(table: bytes) -> str:
    """SHA-256 of a checksum table, in hexadecimal, as the manifest's ``tables`` list it."""
    return hashlib.sha256(table).hexdigest()


# Body -----------------------------------------------------------------------------------------------------------


def body_crcs(body: Buffer, block_size: int = BLOCK_SIZE) -> bytes:
    """The checksum table of a body: CRC-32C of each block, little-endian, the last over its real length."""
    view = memoryview(body)
    return b"".join(_CRC.pack(crc32c(view[start : start + block_size])) for start in range(0, len(view), block_size))


def damaged_blocks(prefix: Prefix, body: Buffer, first_block: int = 0) -> list[int]:
    """Numbers of the blocks in ``body`` (whole blocks from ``first_block`` on) that do not fit the table.

    A block cut short where the shard does not end is damaged. ValueError for bytes past the shard's end.
    """
    head, view = prefix.head, memoryview(body)
    start = first_block * head.block_size
    if first_block < 0 or start + len(view) > head.shard_length:
        raise ValueError(f"{len(view)} bytes from block {first_block} of a shard of {head.shard_length} bytes")
    found = body_crcs(view, head.block_size)
    listed = prefix.table[4 * first_block : 4 * first_block + len(found)]
    damaged = [] if found == listed else _unequal(found, listed, first_block)
    cut = len(view) % head.block_size and start + len(view) < head.shard_length
    last = first_block + len(found) // 4 - 1
    return [*damaged, last] if cut and last not in damaged else damaged


def _unequal(found: bytes, listed: bytes, first_block: int) -> list[int]:
    pairs = zip(_CRC.iter_unpack(found), _CRC.iter_unpack(listed), strict=True)
    return [first_block + number for number, (one, other) in enumerate(pairs) if one != other]


# Path -----------------------------------------------------------------------------------------------------------


def shard_path(segment: UUID, index: int) -> str:
    """Where a shard lies in its member folder: "segments/2026/11/24/<id>-00.shard", the date from the id, UTC."""
    if not 0 <= index < WIDTH_LIMIT:
        raise ValueError(f"shard index {index}")
    return f"{day_folder(segment)}/{segment}-{index:02}.shard"


def day_folder(segment: UUID) -> str:
    """The folder of a segment's shards: "segments/2026/11/24". ValueError for an id that is not a UUIDv7."""
    day = _EPOCH + timedelta(milliseconds=id_time_ms(segment))
    return f"segments/{day.year:04}/{day.month:02}/{day.day:02}"


def parse_shard_path(path: str) -> tuple[UUID, int]:
    """Segment and index from a path. ShardDamaged if it is not exactly what `shard_path` makes."""
    match = _PATH.fullmatch(path)
    if match is None:
        raise ShardDamaged(f"{path!r} is not a shard's path")
    segment, index = UUID(match[2]), int(match[3])
    if index >= WIDTH_LIMIT or _id_fault(segment) or shard_path(segment, index) != path:
        raise ShardDamaged(f"{path!r}: the path contradicts itself")
    return segment, index


def check_path(head: Head, path: str) -> None:
    """ShardDamaged unless the shard lies where its head belongs."""
    if parse_shard_path(path) != (head.segment, head.index):
        raise ShardDamaged(f"{path!r} holds shard {head.index} of segment {head.segment}")
