#!/usr/bin/env python3
"""Get every image back from the disks of a raidd array, with nothing but Python 3.8 or newer and this one file.

    python3 recover.py --out DIR MOUNT...          restore all images below DIR (run again after a break: it goes on)
    python3 recover.py --list MOUNT...             only show what is there
    python3 recover.py --out DIR --sop UID MOUNT...    only this image

MOUNT is the folder where a disk of the array is mounted, or the folder raidd-<id> on it. Mount the disks read-only if
you can (mount -o ro): nothing is ever written to them. Is raidd running on them, that is said, and no more. Any k of
the k+m disks are enough; damaged places are found by their checksums and decoded around. Each image is checked against
its SHA-256 before it gets its final name, so a file that is there is the image as it was received. Exit code: 0
everything was restored, 1 not everything (what is missing is listed, and why), 64 wrong usage.

This is an independent reader of the format described in README.txt beside this file and in raidd's format.md; it
shares no code with raidd on purpose. Parts of it: numbers (CRC-32C, GF(2^8)), shards, members and journals, segments,
images, payloads, output, the program. Memory: some segments (32 MiB each) and 1.3 KiB per image.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import struct
import sys
import time
import unicodedata
import uuid
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import NoReturn

    Matrix = list[list[int]]
    Source = tuple[int, int, bytes]  # shard index, descriptor, checksum table

try:
    import fcntl
except ImportError:  # not on Windows, where these file systems cannot be mounted anyway
    sys.exit("recover.py needs Linux, macOS or another Unix")
numpy: Any = None
with contextlib.suppress(Exception):  # faster with it; a broken or missing one must not matter
    import numpy

# --- Numbers: CRC-32C ------------------------------------------------------------------------------------------------
#
# A table a byte at a time does 10 MB/s in Python. A CRC is linear, so the first half of a message can be multiplied by
# x^(bits behind it) mod P, a polynomial of 32 bits, and laid over the second half: some 16 shifts and XORs of one big
# integer halve the message. That does over 100 MB/s, all of it inside the interpreter's C code.

_POLYNOMIAL = 0x82F63B78  # Castagnoli, bits reversed


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_CRC_TABLE = _crc_table()
_SHIFTS: dict[int, list[int]] = {}


def _crc_times(one: int, other: int) -> int:
    """The product of two polynomials modulo P; bit 31 is x^0."""
    product = 0
    for bit in range(31, -1, -1):
        if one >> bit & 1:
            product ^= other
        other = other >> 1 ^ (_POLYNOMIAL if other & 1 else 0)
    return product


def _exponents(length: int) -> list[int]:
    """The powers j of x in x^(8·length) mod P."""
    if length not in _SHIFTS:
        power, square, rest = 1 << 31, 1 << 23, length  # x^0, x^8
        while rest:
            power = _crc_times(power, square) if rest & 1 else power
            square, rest = _crc_times(square, square), rest >> 1
        _SHIFTS[length] = [31 - bit for bit in range(32) if power >> bit & 1]
    return _SHIFTS[length]


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720 appendix B.4), as in every checksum of the format."""
    length = len(data)
    if length < 4:
        return _crc_bytes(0xFFFFFFFF, data) ^ 0xFFFFFFFF
    value = int.from_bytes(data, "little") ^ 0xFFFFFFFF  # bit 0 is the highest power of x
    while length > 192:
        half = length // 2
        first, base = value & ((1 << 8 * half) - 1), 8 * (length - 2 * half) + 32
        value = value >> 8 * half << 32
        for exponent in _exponents(length - half):
            value ^= first << (base - exponent)
        length += 4 - half
    return _crc_bytes(0, value.to_bytes(length, "little")) ^ 0xFFFFFFFF


def _crc_bytes(crc: int, data: bytes) -> int:
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc


# --- Numbers: the erasure code ---------------------------------------------------------------------------------------
#
# GF(2^8) modulo 0x11d, alpha = 2. V has k columns; row 0 is 1,0,...,0; row r >= 1 is alpha^((r-1)c). The generator is
# V · (first k rows of V)^-1: its first k rows are the identity, so data shards hold the payload as it is.

_EXP, _LOG = [0] * 510, [0] * 256


def _fill_logarithms() -> None:
    value = 1
    for power in range(255):
        _EXP[power] = _EXP[power + 255] = value
        _LOG[value] = power
        value = value << 1 ^ (0x11D if value & 0x80 else 0)


_fill_logarithms()


def gf_times(one: int, other: int) -> int:
    return _EXP[_LOG[one] + _LOG[other]] if one and other else 0


def _matrix_times(one: Matrix, other: Matrix) -> Matrix:
    product = [[0] * len(other[0]) for _ in one]
    for i, row in enumerate(one):
        for j in range(len(other[0])):
            for x, factor in enumerate(row):
                product[i][j] ^= gf_times(factor, other[x][j])
    return product


def _inverse(matrix: Matrix) -> Matrix:
    """Gauss-Jordan. Any k rows of the generator are independent, so a pivot is always found."""
    size = len(matrix)
    rows = [list(row) + [int(i == j) for j in range(size)] for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = next(r for r in range(column, size) if rows[r][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        factor = _EXP[255 - _LOG[rows[column][column]]]
        rows[column] = [gf_times(factor, value) for value in rows[column]]
        for r in range(size):
            if r != column and rows[r][column]:
                factor = rows[r][column]
                rows[r] = [value ^ gf_times(factor, other) for value, other in zip(rows[r], rows[column])]  # noqa: B905
    return [row[size:] for row in rows]


def generator(k: int, n: int) -> Matrix:
    """n rows of k coefficients: shard i is row i applied to the data shards, byte by byte."""
    rows = [[1] + [0] * (k - 1)]
    rows += [[_EXP[(r - 1) * c % 255] for c in range(k)] for r in range(1, n)]
    return _matrix_times(rows, _inverse(rows[:k]))


def decoding_rows(k: int, n: int, present: Sequence[int], wanted: Sequence[int]) -> Matrix:
    """For each wanted data shard the coefficients to apply to the k present shards."""
    full = generator(k, n)
    inverse = _inverse([full[index] for index in present])
    return [inverse[index] for index in wanted]


_TIMES: dict[int, bytes] = {}


def _times_table(factor: int) -> bytes:
    if factor not in _TIMES:
        _TIMES[factor] = bytes(gf_times(factor, value) for value in range(256))
    return _TIMES[factor]


def combine(row: Sequence[int], pieces: Sequence[bytes]) -> bytes:
    """The sum of coefficient times piece; bytes.translate multiplies, one big XOR adds."""
    length = len(pieces[0])
    terms = [
        piece if factor == 1 else piece.translate(_times_table(factor))
        for factor, piece in zip(row, pieces)  # noqa: B905
        if factor
    ]
    if numpy is not None:
        total = numpy.zeros(length, dtype=numpy.uint8)
        for term in terms:
            total ^= numpy.frombuffer(term, dtype=numpy.uint8)
        return bytes(total.tobytes())
    value = 0
    for term in terms:
        value ^= int.from_bytes(term, "little")
    return value.to_bytes(length, "little")


# --- Shards: format 1.0 ----------------------------------------------------------------------------------------------

HEAD_SIZE, ALIGNMENT = 128, 4096
PAYLOAD_LIMIT, MANIFEST_LIMIT, INFLATED_LIMIT, IMAGES_LIMIT = 64 << 20, 4 << 20, 32 << 20, 4096
STRUCTURE_LIMIT = 1 << 20  # commas and brackets of a manifest: bounds what JSON builds of them
PREFIX_LIMIT = 8 << 20
MAGIC = b"\x89RAIDD\r\n"
_HEAD = struct.Struct("<8s HH BBBB II QQ 16s16s II II 36s I")
_SHARD_NAME = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-(\d\d)\.shard", re.ASCII)


class Damaged(Exception):
    """These bytes break the format."""


class Unsupported(Exception):
    """Written by a newer raidd: not damaged, and not readable with this program."""


class Head(NamedTuple):
    """The fields of the 128 bytes in their order."""

    magic: bytes
    major: int
    minor: int
    k: int
    m: int
    number: int  # of this shard
    codec: int
    body_offset: int
    block_size: int
    shard_length: int
    payload_length: int
    segment: bytes
    array: bytes
    manifest_length: int
    image_count: int
    table_crc: int
    manifest_crc: int
    spare: bytes
    crc: int

    @property
    def n(self) -> int:
        return self.k + self.m

    @property
    def table_end(self) -> int:
        return HEAD_SIZE + 4 * -(-self.shard_length // self.block_size)

    def common(self) -> Head:
        """What must be equal in shards that count together: all but index, table CRC and own CRC."""
        return self._replace(number=0, table_crc=0, crc=0)


def parse_head(raw: bytes) -> Head:
    """Damaged, Unsupported."""
    if len(raw) < HEAD_SIZE or not raw.startswith(MAGIC):
        raise Damaged("not a shard")
    head = Head(*_HEAD.unpack_from(raw))
    intact = crc32c(raw[: HEAD_SIZE - 4]) == head.crc
    if head.major != 1:
        raise Unsupported(f"format {head.major}.{head.minor}, this program reads 1.x")
    if not intact:
        raise Damaged("the head's checksum does not fit")
    if head.codec != 1:
        raise Unsupported(f"codec {head.codec}")
    fault = _fault(head)
    if fault:
        raise Damaged("head: " + fault)
    return head


def _fault(head: Head) -> str:
    """The first limit that the head breaks."""
    if head.k < 1 or head.n > 32 or head.number >= head.n:
        return f"shard {head.number} of {head.k}+{head.m}"
    if not 0 < head.payload_length <= PAYLOAD_LIMIT:
        return f"payload of {head.payload_length} bytes"
    share = -(-head.payload_length // head.k)
    if head.shard_length != -(-share // ALIGNMENT) * ALIGNMENT:
        return f"shard length {head.shard_length}"
    if not ALIGNMENT <= head.block_size <= PAYLOAD_LIMIT:
        return f"block size {head.block_size}"
    if not 0 < head.manifest_length <= MANIFEST_LIMIT or head.image_count > IMAGES_LIMIT:
        return f"manifest of {head.manifest_length} bytes, {head.image_count} images"
    if head.body_offset % ALIGNMENT or not head.table_end + head.manifest_length <= head.body_offset <= PREFIX_LIMIT:
        return f"body offset {head.body_offset}"
    return ""


class Shard(NamedTuple):
    """One shard file whose head, table and manifest are sound."""

    path: str
    torn: bool  # shorter than it must be: its blocks are still good for something
    number: int
    table_sha256: bytes


def open_regular(path: str) -> int:
    """A descriptor of a regular file, never of a link, FIFO or device."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return fd


def read_prefix(path: str) -> tuple[Head, bytes, bytes, int]:
    """Head, checksum table, manifest as stored, and the file's length. OSError, Damaged, Unsupported."""
    fd = open_regular(path)
    try:
        length = os.fstat(fd).st_size
        raw = os.pread(fd, 16384, 0)
        head = parse_head(raw)
        while len(raw) < head.body_offset:
            more = os.pread(fd, head.body_offset - len(raw), len(raw))
            if not more:
                raise Damaged("the file ends before its body")
            raw += more
    finally:
        os.close(fd)
    table_end, end = head.table_end, head.table_end + head.manifest_length
    table, manifest = raw[HEAD_SIZE:table_end], raw[table_end:end]
    if crc32c(table) != head.table_crc:
        raise Damaged("the checksum table's checksum does not fit")
    if raw.count(0, end, head.body_offset) != head.body_offset - end:
        raise Damaged("bytes before the body are not zero")
    return head, table, manifest, length


# --- Manifests -------------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """``length`` bytes at ``offset`` of a segment's payload that stand at ``image_offset`` of an image."""

    group: Group
    image: str
    uid: str
    offset: int
    length: int
    image_offset: int
    sha256: bytes


class Entry(NamedTuple):
    """One image of a manifest: its part here and what is said of the whole."""

    part: Part
    size: int  # -1: not said here
    sha256: bytes
    version: int
    place: tuple[str, ...]  # folders and file name, made safe


class Group:
    """The shards of one segment that agree with each other."""

    __slots__ = ("array", "entries", "head", "members", "replaces", "segment", "sequence", "shards", "state", "tables")

    def __init__(self, head: Head) -> None:
        self.head = head
        self.segment, self.array = str(uuid.UUID(bytes=head.segment)), str(uuid.UUID(bytes=head.array))
        self.shards: dict[int, list[Shard]] = {}
        self.entries: list[Entry] = []
        self.members: list[str] = []
        self.replaces: list[str] = []
        self.tables: list[bytes] = []
        self.sequence = 0
        self.state = LIVE

    def whole(self) -> int:
        return sum(any(not shard.torn for shard in shards) for shards in self.shards.values())

    def usable(self) -> bool:
        return len(self.shards) >= self.head.k

    def complaint(self) -> str:
        missing = (f"{i} (disk {self.members[i]})" for i in range(self.head.n) if i not in self.shards)
        found = f"{len(self.shards)} shards found, {self.head.k} needed"
        return f"segment {self.segment}: {found}; missing: {', '.join(missing)}"


LIVE, REPLACED = "live", "replaced"


def _inflate(packed: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(packed, INFLATED_LIMIT + 1)
    except zlib.error as error:
        raise Damaged(f"manifest: {error}") from error
    if len(data) > INFLATED_LIMIT or not inflater.eof or inflater.unused_data:
        raise Damaged("manifest: not one compressed text of at most 32 MiB")
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > STRUCTURE_LIMIT:
        raise Damaged("manifest: too many values")
    return data


def _integer(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def parse_manifest(packed: bytes, group: Group) -> None:
    """Fill the group from the manifest. Damaged if anything is off, or it contradicts the head."""
    head = group.head
    if crc32c(packed) != head.manifest_crc:
        raise Damaged("the manifest's checksum does not fit")
    try:
        document = json.loads(_inflate(packed).decode("utf-8"), parse_int=_integer)
        said = [document[key] for key in ("array", "segment", "k", "m", "payload_length")]
        if said != [group.array, group.segment, head.k, head.m, head.payload_length]:
            raise ValueError("head and manifest contradict each other")
        group.members = [sys.intern(_text(member)) for member in document["members"]]
        group.replaces = [_text(segment) for segment in document["replaces"]]
        group.tables = [bytes.fromhex(_text(digest)) for digest in document["tables"]]
        group.sequence = _count(document["journal"]["sequence"])
        group.entries = [_entry(image, group) for image in document["images"]]
        if (len(group.members), len(group.tables), len(group.entries)) != (head.n, head.n, head.image_count):
            raise ValueError("wrong number of members, tables or images")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise Damaged(f"manifest: {type(error).__name__}: {error}") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"not a text: {str(value)[:40]}")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"not a count: {str(value)[:40]}")
    return value


def _digest(value: Any) -> bytes:
    digest = bytes.fromhex(_text(value))
    if len(digest) != 32:
        raise ValueError("not a SHA-256")
    return digest


def _entry(image: dict[str, Any], group: Group) -> Entry:
    part = Part(
        group=group,
        image=_text(image["image"]),
        uid=_text(image["sop_instance_uid"]),
        offset=_count(image["offset"]),
        length=_count(image["length"]),
        image_offset=_count(image["image_offset"]),
        sha256=_digest(image["part_sha256"]),
    )
    if part.length < 1 or part.offset + part.length > group.head.payload_length:
        raise ValueError("an image beyond the payload")
    known = image["size"] is not None and image["sha256"] is not None
    size = _count(image["size"]) if known else -1
    sha256 = _digest(image["sha256"]) if known else b""
    sha256 = part.sha256 if sha256 == part.sha256 else sha256  # one object is enough
    if known and part.image_offset + part.length > size:
        raise ValueError("a part beyond its image")
    identity = image.get("identity")
    place = place_of(identity if isinstance(identity, dict) else {}, part.uid)
    return Entry(part, size, sha256, _count(image["version"]), place)


# --- Names -----------------------------------------------------------------------------------------------------------

_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f/\\:*?"<>|^=\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+')
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(\.|$)", re.IGNORECASE)


def safe_name(text: str, limit: int = 80) -> str:
    """One path component that every file system takes and that leads nowhere else; "" if nothing is left.

    At most ``limit`` characters and 180 bytes, so that suffixes still fit.
    """
    name = unicodedata.normalize("NFC", _UNSAFE.sub("_", text[: 4 * limit]))
    name = re.sub(r"\s+", " ", name).strip(" ._")[:limit]
    name = name.encode("utf-8", "replace")[:180].decode("utf-8", "ignore").strip(" ._")
    return "_" + name if _RESERVED.match(name) else name


def _joined(*texts: str) -> str:
    return "_".join(text for text in texts if text)


def place_of(identity: dict[str, Any], uid: str) -> tuple[str, ...]:
    """Patient, study, series and file name (without .dcm) for an image."""

    def said(key: str) -> str:
        value = identity.get(key)
        return safe_name(str(value)) if isinstance(value, (str, int)) else ""

    number = identity.get("instance_number")
    # Two over-long UIDs that begin alike must not take each other's name.
    name = safe_name(uid, 100)
    if name != uid:
        name = f"{name[:70]}~{hashlib.sha256(uid.encode('utf-8', 'replace')).hexdigest()[:12]}"
    series = _joined(said("series_number"), said("series_description"))
    place = (
        safe_name(_joined(said("patient_name"), said("patient_id")), 160) or "unknown patient",
        safe_name(_joined(said("study_date"), said("study_description")), 160) or "unknown study",
        safe_name(_joined(said("modality"), series or said("series_instance_uid")[-24:]), 160) or "unknown series",
        f"{number:04d}_{name}" if isinstance(number, int) and 0 <= number < 10**6 else name,
    )
    return tuple(sys.intern(part) for part in place[:3]) + place[3:]


# --- Members and journals --------------------------------------------------------------------------------------------


class Tombstones:
    """What was purged on purpose, by the highest journal sequence that says so (format.md, C6)."""

    def __init__(self) -> None:
        self.images: dict[str, int] = {}
        self.contents: dict[tuple[str, bytes], int] = {}
        self.segments: set[str] = set()
        self.emptied: dict[str, int] = {}  # segments deleted without a list of their images

    def add(self, entry: dict[str, Any]) -> None:
        sequence, detail = _count(entry["sequence"]), entry["detail"]
        images = [(_text(uid), _digest(sha256)) for uid, sha256 in detail["images"]]
        objects, segments = [_text(image) for image in entry["objects"]], [_text(x) for x in detail["segments"]]
        for image in objects:
            self.images[image] = max(sequence, self.images.get(image, 0))
        for content in images:
            self.contents[content] = max(sequence, self.contents.get(content, 0))
        for segment in segments:
            self.segments.add(segment)
            if not images and not objects:
                self.emptied[segment] = max(sequence, self.emptied.get(segment, 0))

    def bar(self, part: Part, sha256: bytes) -> bool:
        """True for an image deleted after its segment was written; delivered again later it is another matter.

        Judged by image: a segment is named also where only one of its images was deleted and the others went on in
        a new segment. If that one is lost, the old one is the last to have them.
        """
        by_image = max(self.images.get(part.image, 0), self.contents.get((part.uid, sha256), 0))
        return part.group.sequence < max(by_image, self.emptied.get(part.group.segment, 0))


class Member:
    """One raidd-<uuid> folder, and its label as far as it can be believed."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = os.path.basename(path)
        self.uuid = self.name[len("raidd-") :]
        self.label: dict[str, Any] = {}


_MEMBER_NAME = re.compile(r"raidd-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


def find_members(mounts: Iterable[str], report: Report) -> list[Member]:
    """Member folders at, in, or one level below the given folders, each once, that this program may read."""
    found: dict[tuple[int, int], Member] = {}
    for mount in mounts:
        paths = [mount] if _is_member(mount) else _members_in(mount, report)
        if not paths:
            paths = [path for folder in _folders(mount, report) for path in _members_in(folder, report)]
        if not paths:
            report.note(f"{mount}: no folder raidd-<id> here; is the disk mounted?")
        for path in paths:
            with contextlib.suppress(OSError):  # gone again: as if it had not been there
                status = os.stat(path)
                found.setdefault((status.st_dev, status.st_ino), Member(os.path.realpath(path)))
    members = [member for member in found.values() if _may_read(member, report)]
    if not members:
        report.fault("No disk of an array found in the folders given.")
    return members


def _is_member(path: str) -> bool:
    return bool(_MEMBER_NAME.fullmatch(os.path.basename(os.path.realpath(path)))) and os.path.isdir(path)


def _members_in(path: str, report: Report) -> list[str]:
    return [folder for folder in _folders(path, report) if _is_member(folder)]


def _folders(path: str, report: Report) -> list[str]:
    """Subfolders, sorted, links left out. What cannot be listed is said, and counts as empty."""
    try:
        with os.scandir(path) as entries:
            return sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []
    except OSError as error:
        report.note(f"{path}: cannot be listed: {error.strerror}")
        return []


def _names(folder: str, report: Report) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        report.note(f"{folder}: cannot be listed: {error.strerror}")
        return []


def _may_read(member: Member, report: Report) -> bool:
    """False if the label asks for more than this program knows. A damaged label asks for nothing."""
    try:
        with os.fdopen(open_regular(os.path.join(member.path, "label.json")), "rb") as file:
            label = json.loads(file.read(4 << 20).decode("utf-8"))
        said = label.pop("crc32c")
        if said != f"{crc32c(canonical(label)):08x}":
            raise ValueError("its checksum does not fit")
        requires, member.label = label["requires"], label
        if str(label["format"]).partition(".")[0] != "1":
            requires = [*requires, f"label format {label['format']}"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        report.note(f"{member.path}: label not readable ({error}); its shards speak for themselves")
        return True
    if requires:
        report.note(f"{member.path}: needs a newer recover.py ({requires}): left alone; use the one in that folder")
    return not requires


_LOCK_NAME = re.compile(r"lock(\.[0-9]+)?")


def check_unused(members: Iterable[Member], report: Report) -> None:
    """A note if a program holds the disks' lock files: raidd is running on them.

    No lock is kept here, and nobody is refused: only reading is done, shards never change once they are there, and the
    last resort must neither wait for a raidd that hangs nor keep one from starting.
    """
    used = [member.path for member in members if _is_used(member, report)]
    if used:
        report.note(
            f"raidd is running on these disks ({', '.join(used)}). Reading does no harm, but what it takes in, moves "
            "or deletes meanwhile may be missing here; raidctl get gives images from a running array"
        )


def _is_used(member: Member, report: Report) -> bool:
    for name in filter(_LOCK_NAME.fullmatch, _names(member.path, report)):
        with contextlib.suppress(OSError):  # not ours to read: then nobody knows
            fd = open_regular(os.path.join(member.path, name))
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(fd)
    return False


def check_complete(members: Iterable[Member], report: Report) -> None:
    """A fault if so many disks are missing that some segments may have all their shards on them, unseen."""
    members = list(members)
    newest: dict[str, dict[str, Any]] = {}
    for member in members:
        label = member.label
        with contextlib.suppress(TypeError, KeyError):
            if label and label["epoch"] > newest.get(label["array"], {"epoch": -1})["epoch"]:
                newest[label["array"]] = label
    for label in newest.values():
        with contextlib.suppress(TypeError, KeyError, AttributeError):
            here = {member.uuid for member in members}
            rows = [row for row in label["roster"] if row["slot"] is not None and row["state"] != "retired"]
            slots = {row["slot"] for row in rows} - {row["slot"] for row in rows if row["member"] in here}
            if len(slots) > label["m"]:
                named = ", ".join(sorted(f"{row['slot']} ({row['member']})" for row in rows if row["slot"] in slots))
                report.fault(
                    f"{len(slots)} disks are missing, {label['m']} may be: there may be images only on slots {named}"
                )


def canonical(document: Any) -> bytes:
    """JSON as the journal's hashes and the label's checksum are taken over it."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def read_journals(members: Iterable[Member], report: Report) -> Tombstones:
    """The purges in all replicas; a line whose hash is wrong is not believed (other members have it, too)."""
    tombstones = Tombstones()
    for member in members:
        folder = os.path.join(member.path, "journal")
        for name in _names(folder, report):
            if name.endswith(".jsonl"):
                _read_journal(os.path.join(folder, name), tombstones, report)
    return tombstones


def _read_journal(path: str, tombstones: Tombstones, report: Report) -> None:
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            for line in file:
                if b'"purge"' in line and line.endswith(b"\n"):
                    _believe(line, path, tombstones, report)
    except OSError as error:
        report.note(f"{path}: {error.strerror}")


def _believe(line: bytes, path: str, tombstones: Tombstones, report: Report) -> None:
    try:
        entry = json.loads(line.decode("utf-8"), parse_int=_integer)
        if entry["action"] != "purge":
            return
        said = entry.pop("hash")
        if hashlib.sha256(canonical(entry)).hexdigest() != said:
            raise ValueError("its hash is wrong")
        tombstones.add(entry)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        report.note(f"{path}: a deletion that cannot be believed: {error}")


# --- Segments --------------------------------------------------------------------------------------------------------


class Array:
    """All segments found, from the heads of all shards. Bodies are not read yet."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.groups: dict[str, dict[tuple[Head, bytes], Group]] = {}
        self.broken: dict[str, list[str]] = {}  # segment -> why shards of it are of no use
        self._bad_manifests: dict[tuple[Head, bytes], str] = {}

    def scan(self, member: Member) -> None:
        for number, path in enumerate(_shard_paths(member.path, self.report)):
            self.report.progress(f"reading {member.name}: {number} shards")
            name = _SHARD_NAME.fullmatch(os.path.basename(path))
            if not name:
                self.report.note(f"{path}: not a shard's name")
                continue
            try:
                self._add(path, name.group(1), int(name.group(2)))
            except (OSError, Damaged, Unsupported) as error:
                why = error.strerror if isinstance(error, OSError) else str(error)
                self.report.note(f"{path}: {why}")
                self.broken.setdefault(name.group(1), []).append(why or "cannot be read")

    def _add(self, path: str, segment: str, index: int) -> None:
        head, table, packed, length = read_prefix(path)
        if (str(uuid.UUID(bytes=head.segment)), head.number) != (segment, index):
            raise Damaged("its name and its head contradict each other")
        group = self._group(head, packed)
        if length > head.body_offset + head.shard_length:
            raise Damaged("longer than its head says")
        digest = hashlib.sha256(table).digest()
        if group.tables[index] != digest:
            raise Damaged("its checksum table is not the one that its manifest lists")
        shard = Shard(path, length < head.body_offset + head.shard_length, index, digest)
        if shard.torn:
            self.report.note(f"{path}: cut short; its whole blocks are still used")
        group.shards.setdefault(index, []).append(shard)
        group.shards[index].sort(key=lambda one: one.torn)

    def _group(self, head: Head, packed: bytes) -> Group:
        key = (head.common(), hashlib.sha256(packed).digest())
        if key in self._bad_manifests:
            raise Damaged(self._bad_manifests[key])
        group = Group(head.common())
        groups = self.groups.get(group.segment, {})
        if key not in groups:
            try:
                parse_manifest(packed, group)
            except Damaged as error:
                self._bad_manifests[key] = str(error)
                raise
            self.groups.setdefault(group.segment, {})[key] = group
            return group
        return groups[key]

    def all_groups(self) -> Iterator[Group]:
        for groups in self.groups.values():
            yield from groups.values()

    def settle(self) -> None:
        """Decide which segments are replaced by another that is there (format.md, C2), and name the doubtful.

        Along a chain, too: what was replaced by a segment that was replaced does not count again when the middle one
        is gone. A replacement always has the higher id, so that no ring of them can hide all of its segments.
        """
        for segment, groups in self.groups.items():
            if sum(group.usable() for group in groups.values()) > 1:
                self.report.fault(f"segment {segment}: two different ones under this id; images of both are restored")
        existing = [group for group in self.all_groups() if group.whole() >= group.head.k]
        chain = [(group.segment, segment) for group in existing for segment in group.replaces]
        seen = set(chain)
        while chain:
            newer, segment = chain.pop()
            if segment >= newer:
                continue
            self.broken.pop(segment, None)
            for old in self.groups.get(segment, {}).values():
                old.state = REPLACED
                further = {(segment, older) for older in old.replaces} - seen
                seen |= further
                chain += further

    def has_shards(self, segment: str) -> bool:
        return any(group.shards for group in self.groups[segment].values())

    def nameless(self, tombstones: Tombstones) -> Iterator[str]:
        """Segments of which no manifest can be read: nobody can say which images were in them."""
        for segment, reasons in sorted(self.broken.items()):
            if segment not in self.groups and segment not in tombstones.segments:
                yield "segment {}: no readable shard ({})".format(segment, "; ".join(sorted(set(reasons))))


def _shard_paths(member: str, report: Report) -> Iterator[str]:
    """Every *.shard below segments/, folders in order; links are not followed."""
    folders = [os.path.join(member, "segments")]
    while folders:
        folder = folders.pop()
        folders += reversed(_folders(folder, report))
        for name in _names(folder, report):
            if name.endswith(".shard"):
                yield os.path.join(folder, name)


# --- Images ----------------------------------------------------------------------------------------------------------


class Image:
    """Everything known of one image: the same bytes, however often they are stored."""

    __slots__ = ("name", "parts", "place", "sha256", "size", "uid", "version", "wanted")

    def __init__(self, uid: str, size: int, sha256: bytes, entry: Entry) -> None:
        self.uid, self.size, self.sha256 = uid, size, sha256
        self.version, self.place, self.name = entry.version, entry.place, ""
        self.parts: list[Part] = []
        self.wanted = False

    def first_segment(self) -> str:
        return min((part.group.segment for part in self.parts), default="")

    def chain(self) -> list[list[Part]]:
        """Parts that tile the image, in order, each with its equals; [] if none do. Live and readable ones first."""
        starts: dict[int, dict[tuple[int, bytes], list[Part]]] = {}
        for part in self.parts:
            starts.setdefault(part.image_offset, {}).setdefault((part.length, part.sha256), []).append(part)
        best: dict[int, tuple[int, list[Part]]] = {self.size: (0, [])}
        for start in sorted(starts, reverse=True):
            for (length, _), equals in starts[start].items():
                equals.sort(key=_rank)
                if start + length in best:
                    cost = best[start + length][0] + _rank(equals[0])
                    if start not in best or cost < best[start][0]:
                        best[start] = (cost, equals)
        chain, offset = [], 0
        while offset in best and offset < self.size:
            chain.append(best[offset][1])
            offset += chain[-1][0].length
        return chain if offset == self.size else []


def _rank(part: Part) -> int:
    return (0 if part.group.state == LIVE else 1) + (0 if part.group.usable() else 1000)


class Collection:
    """The images of an array, sorted into what is to be restored, what is deleted, and what is incomplete."""

    def __init__(self) -> None:
        self.images: dict[tuple[str, bytes], Image] = {}
        self.deleted: set[tuple[str, bytes]] = set()
        self.unfinished: dict[str, str] = {}  # image id -> UID: its last part is nowhere

    def gather(self, array: Array, tombstones: Tombstones, include_deleted: bool) -> None:
        """``include_deleted``: also what was purged, or left out when its segment was replaced."""
        stored: dict[tuple[str, str], list[Entry]] = {}
        for group in sorted(array.all_groups(), key=lambda group: group.segment):
            if group.shards or not array.has_shards(group.segment):
                for entry in group.entries:
                    stored.setdefault((entry.part.image, entry.part.uid), []).append(entry)
            group.entries = []  # thirty years of them would not fit twice
        for entries in stored.values():
            self._one_stored_image(entries, tombstones, include_deleted)
        self.images = {key: image for key, image in self.images.items() if image.wanted}
        self.deleted -= self.images.keys()
        self._number()

    def _one_stored_image(self, entries: list[Entry], tombstones: Tombstones, include_deleted: bool) -> None:
        # A part need not know the whole's digest: what was said of any other part of this image holds for it.
        wholes = {(entry.size, entry.sha256): entry for entry in entries if entry.size > 0}
        digests = [sha256 for _, sha256 in wholes] or [b""]
        uid = entries[0].part.uid
        kept = []
        for part in (entry.part for entry in entries):
            if include_deleted or not any(tombstones.bar(part, sha256) for sha256 in digests):
                kept.append(part)
            else:
                self.deleted.update((uid, sha256) for sha256 in digests)
        wanted = any(include_deleted or part.group.state == LIVE for part in kept)
        if not wholes and wanted:
            self.unfinished[entries[0].part.image] = uid
        for (size, sha256), entry in wholes.items():
            image = self.images.setdefault((uid, sha256), Image(uid, size, sha256, entry))
            image.parts += [part for part in kept if part.length < size or part.sha256 == sha256]
            image.version = min(image.version, entry.version)
            image.wanted = image.wanted or wanted

    def _number(self) -> None:
        """Versions of one UID in order; the newest has the plain name, the older ones say which they are."""
        versions: dict[str, list[Image]] = {}
        for image in self.images.values():
            versions.setdefault(image.uid, []).append(image)
        for same in versions.values():
            same.sort(key=lambda image: (image.version, image.first_segment(), image.sha256))
            number = 0
            for image in same:
                number = image.version = max(image.version, number + 1)
                image.name = image.place[-1] if image is same[-1] else f"{image.place[-1]}_v{number}"


# --- Payloads --------------------------------------------------------------------------------------------------------


class Payloads:
    """Segments' payloads, one at a time in memory, decoded where data shards are missing or damaged."""

    CHUNK = 256 << 10  # what fits the processor's cache

    def __init__(self, report: Report) -> None:
        self._report = report
        self._group: Group | None = None
        self._data = bytearray()
        self._mended = False

    def part(self, part: Part) -> memoryview | None:
        """The part's bytes, SHA-256 verified; None if they cannot be had from this segment."""
        if not part.group.usable():
            return None
        if part.group is not self._group:
            self._load(part.group)
        view = self._view(part)
        if view is None and not self._mended:
            self._mend(part.group)
            view = self._view(part)
        return view

    def _view(self, part: Part) -> memoryview | None:
        view = memoryview(self._data)[part.offset : part.offset + part.length]
        return view if hashlib.sha256(view).digest() == part.sha256 else None

    def _load(self, group: Group) -> None:
        """Read the data shards as they are; decode the missing ones. Nothing is verified here: the parts are."""
        head = group.head
        self._group, self._mended = group, False
        self._data = bytearray()  # give the old one back first
        self._data = bytearray(head.k * head.shard_length)
        bodies: dict[int, memoryview] = {}
        for index in sorted(group.shards):
            if len(bodies) == head.k:
                break
            start = index * head.shard_length
            view = memoryview(self._data)[start : start + head.shard_length] if index < head.k else None
            body = view if view is not None else memoryview(bytearray(head.shard_length))
            if any(_read_body(shard, head, body) for shard in group.shards[index]):
                bodies[index] = body
        if len(bodies) < head.k:
            self._mend(group)
            return
        wanted = [index for index in range(head.k) if index not in bodies]
        if wanted:
            present = sorted(bodies)
            self._decode(head, decoding_rows(head.k, head.n, present, wanted), [bodies[i] for i in present], wanted)

    def _decode(self, head: Head, rows: Matrix, bodies: list[memoryview], wanted: list[int]) -> None:
        for start in range(0, head.shard_length, self.CHUNK):
            pieces = [bytes(body[start : start + self.CHUNK]) for body in bodies]
            for row, index in zip(rows, wanted):  # noqa: B905
                target = index * head.shard_length + start
                self._data[target : target + len(pieces[0])] = combine(row, pieces)

    def _mend(self, group: Group) -> None:
        """Block by block: believe only what its CRC-32C proves, decode the rest from any k good blocks."""
        head, self._mended = group.head, True
        self._data = bytearray()
        self._data = bytearray(head.k * head.shard_length)
        sources = [source for i in sorted(group.shards) for source in map(_open_source, group.shards[i]) if source]
        lost = 0
        try:
            for block, start in enumerate(range(0, head.shard_length, head.block_size)):
                length = min(head.block_size, head.shard_length - start)
                lost += not self._mend_row(head, sources, block, start, length)
        finally:
            for _, fd, _ in sources:
                os.close(fd)
        beyond = f"; {lost} rows of blocks are beyond repair" if lost else ""
        self._report.note(f"segment {group.segment}: damaged, decoded block by block{beyond}")

    def _mend_row(self, head: Head, sources: list[Source], block: int, start: int, length: int) -> bool:
        good: dict[int, bytes] = {}
        # Data shards first: a row without damage needs no decoding, and no parity is read for it.
        for index, fd, table in sources:
            if index not in good and len(good) < head.k:
                data = _read_block(fd, head.body_offset + start, length)
                if len(data) == length and table[4 * block : 4 * block + 4] == struct.pack("<I", crc32c(data)):
                    good[index] = data
        for index, data in good.items():
            if index < head.k:
                target = index * head.shard_length + start
                self._data[target : target + length] = data
        wanted = [index for index in range(head.k) if index not in good]
        if wanted and len(good) < head.k:
            return False
        present = sorted(good)
        rows = decoding_rows(head.k, head.n, present, wanted) if wanted else []
        for row, index in zip(rows, wanted):  # noqa: B905
            target = index * head.shard_length + start
            self._data[target : target + length] = combine(row, [good[i] for i in present])
        return True


def _read_body(shard: Shard, head: Head, target: memoryview) -> bool:
    """Fill ``target`` with the shard's body; False if it cannot be read whole."""
    if shard.torn:
        return False
    try:
        with os.fdopen(open_regular(shard.path), "rb", buffering=0) as file:
            file.seek(head.body_offset)
            done = 0
            while done < len(target):
                count = file.readinto(target[done:])
                if not count:
                    return False
                done += count
    except OSError:
        return False
    return True


def _open_source(shard: Shard) -> Source | None:
    """The shard opened, with its checksum table if that is still the one seen before."""
    try:
        table = read_prefix(shard.path)[1]
        if hashlib.sha256(table).digest() != shard.table_sha256:
            return None
        return shard.number, open_regular(shard.path), table
    except (OSError, Damaged, Unsupported):
        return None


def _read_block(fd: int, offset: int, length: int) -> bytes:
    try:
        return os.pread(fd, length, offset)
    except OSError:  # an unreadable sector: the block counts as damaged
        return b""


# --- Output ----------------------------------------------------------------------------------------------------------


class OutputError(Exception):
    """OUT cannot be used, or not any longer."""


class Output:
    """The folder for the restored images. Every step below it goes by descriptor and follows no link.

    Names are given in UTF-8, whatever the locale of the machine that this runs on.
    """

    PART = b".recover.part"
    NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | getattr(os, "O_CLOEXEC", 0)
    FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | getattr(os, "O_CLOEXEC", 0)

    def __init__(self, path: str, members: Iterable[Member]) -> None:
        path = os.path.realpath(path)
        _refuse_member(path, members)
        try:
            os.makedirs(path, mode=0o700, exist_ok=True)
            self._root = os.open(path, self.FOLDER)
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror}") from error
        try:
            fcntl.flock(self._root, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise OutputError(f"{path}: another recover.py is writing there") from error
        self._folder: tuple[tuple[str, ...], int] | None = None

    def put(self, folders: Sequence[str], name: str, size: int, sha256: bytes, pieces: Iterator[memoryview]) -> bool:
        """Write ``pieces`` as <folders>/<name>.dcm; True if written, False if the very same file was there already.

        Never over a file that is there: other bytes under this name make it <name>~2.dcm. ``pieces`` are taken only
        when they are needed, and the name is given only after they proved to have this SHA-256 (else ValueError).
        """
        folder = self._enter(tuple(folders))
        for number in range(1, 10000):
            final = (f"{name}.dcm" if number == 1 else f"{name}~{number}.dcm").encode()
            taken = _compare(folder, final, size, sha256)
            if taken is None:
                self._write(folder, final, size, sha256, pieces)
                return True
            if taken:
                return False
        raise OutputError(f"{name}: ten thousand files of this name")

    def _write(self, folder: int, final: bytes, size: int, sha256: bytes, pieces: Iterator[memoryview]) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.PART, dir_fd=folder)  # of an earlier run that was interrupted
        fd = os.open(self.PART, self.NEW, 0o666, dir_fd=folder)
        try:
            digest, length = hashlib.sha256(), 0
            try:
                for piece in pieces:
                    digest.update(piece)
                    length += len(piece)
                    _write_all(fd, piece)
            finally:
                os.close(fd)
            if length != size or digest.digest() != sha256:
                raise ValueError("its parts do not have its SHA-256")
            _name(folder, self.PART, final)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(self.PART, dir_fd=folder)
            raise

    def _enter(self, folders: tuple[str, ...]) -> int:
        """A descriptor of the folder, made if need be; something else under a folder's name is walked around."""
        if self._folder and self._folder[0] == folders:
            return self._folder[1]
        if self._folder:
            os.close(self._folder[1])
            self._folder = None
        current = os.dup(self._root)
        for name in folders:
            inner = self._enter_one(current, name)
            os.close(current)
            current = inner
        self._folder = (folders, current)
        return current

    def _enter_one(self, parent: int, name: str) -> int:
        for number in range(1, 1000):
            candidate = (name if number == 1 else f"{name}~{number}").encode()
            with contextlib.suppress(FileExistsError):
                os.mkdir(candidate, 0o777, dir_fd=parent)
            try:
                return os.open(candidate, self.FOLDER, dir_fd=parent)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
                    raise
        raise OutputError(f"{name}: no folder can be made of this name")

    def sync(self) -> None:
        os.sync()


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data[: 8 << 20]) :]


_NO_LINKS = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOTSUP)


def _name(folder: int, part: bytes, final: bytes) -> None:
    """Give the finished file its name, never over another: link and unlink, or a rename where links are unknown."""
    try:
        os.link(part, final, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        os.unlink(part, dir_fd=folder)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.close(os.open(final, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666, dir_fd=folder))
        os.rename(part, final, src_dir_fd=folder, dst_dir_fd=folder)


def _compare(folder: int, name: bytes, size: int, sha256: bytes) -> bool | None:
    """None: the name is free; True: exactly this file is there; False: something else is."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode) or status.st_size != size:
        return False
    digest = hashlib.sha256()
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        with os.fdopen(fd, "rb", buffering=0) as file:
            for piece in iter(lambda: file.read(1 << 20), b""):
                digest.update(piece)
    except OSError:
        return False
    return digest.digest() == sha256


def _refuse_member(out: str, members: Iterable[Member]) -> None:
    """OutputError if ``out`` would lie on a member: in its folder, beside it, or anywhere on its file system."""
    while not os.path.lexists(out):
        out = os.path.dirname(out)
    device = os.stat(out).st_dev
    above = set()
    path = out
    while os.stat(path).st_dev == device:
        above.add((device, os.stat(path).st_ino))
        if path == os.path.dirname(path):
            break
        path = os.path.dirname(path)
    for member in members:
        mount = os.path.dirname(member.path)
        own = [os.stat(member.path)] + ([os.stat(mount)] if mount != "/" else [])
        whole_disk = mount != "/" and os.path.ismount(mount) and own[0].st_dev == device
        if whole_disk or any((status.st_dev, status.st_ino) in above for status in own):
            raise OutputError(f"{out} is on a disk of the array ({member.path}): choose a folder elsewhere")


# --- The program -----------------------------------------------------------------------------------------------------


class Report:
    """What the person sees: progress on a terminal, notes (harmless) and faults (something is missing)."""

    NOTES_SHOWN = 100

    def __init__(self) -> None:
        self.faults = 0
        self._notes = 0
        self._terminal = sys.stderr.isatty()
        self._shown = 0.0

    def progress(self, text: str, now: bool = False) -> None:
        if self._terminal and (now or time.monotonic() - self._shown > 0.2):
            self._shown = time.monotonic()
            sys.stderr.write("\r\x1b[K" + printable(text)[:100])
            sys.stderr.flush()

    def _clear(self) -> None:
        if self._terminal and self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def note(self, text: str) -> None:
        self._notes += 1
        if self._notes <= self.NOTES_SHOWN:
            self._clear()
            sys.stderr.write(f"note: {printable(text)}\n")
        elif self._notes == self.NOTES_SHOWN + 1:
            sys.stderr.write("note: further notes are not shown\n")

    def fault(self, text: str) -> None:
        self.faults += 1
        self._clear()
        sys.stderr.write(f"{printable(text)}\n")

    def say(self, text: str) -> None:
        self._clear()
        sys.stdout.write(printable(text) + "\n")
        sys.stdout.flush()


def printable(text: str) -> str:
    """What a hostile name could do to a terminal, or to an ASCII-only one, it does not do."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    encoding = sys.stdout.encoding or "ascii"
    return shown.encode(encoding, "replace").decode(encoding)


class Restorer:
    """Restores images one after the other, in the order of their segments."""

    def __init__(self, payloads: Payloads, output: Output, report: Report, total: int) -> None:
        self._payloads, self._output, self._report = payloads, output, report
        self._total, self._done, self._began = total, 0, time.monotonic()
        self.written = self.kept = self.written_bytes = 0

    def restore(self, image: Image) -> None:
        chain = image.chain()
        if not chain:
            self._report.fault(f"NOT RESTORED: {_title(image)}: {_gap(image)}")
            return
        try:
            written = self._output.put(image.place[:-1], image.name, image.size, image.sha256, self._pieces(chain))
        except ValueError as error:
            self._report.fault(f"NOT RESTORED: {_title(image)}: {error}")
            return
        self._done += image.size
        self.written += written
        self.kept += not written
        self.written_bytes += image.size if written else 0
        self._report.progress(self._pace())

    def _pieces(self, chain: list[list[Part]]) -> Iterator[memoryview]:
        for equals in chain:
            yield self._first_good(equals)

    def _first_good(self, equals: list[Part]) -> memoryview:
        """The bytes of these equal parts from the first segment that still has them. ValueError if none does."""
        for part in equals:
            view = self._payloads.part(part)
            if view is not None:
                return view
        unusable = [part.group for part in equals if not part.group.usable()]
        if len(unusable) == len(equals):
            raise ValueError(unusable[0].complaint())
        raise ValueError(f"segment {equals[0].group.segment}: too many of its blocks are damaged here")

    def _pace(self) -> str:
        seconds = max(time.monotonic() - self._began, 0.001)
        rate = max(self._done / seconds, 1.0)
        minutes = (self._total - self._done) / rate / 60
        done = f"{self.written + self.kept} images, {self._done / 1e9:.1f} of {self._total / 1e9:.1f} GB"
        return f"{done}, {rate / 1e6:.0f} MB/s, {minutes:.0f} min left"


def _title(image: Image) -> str:
    return f"image {image.uid} version {image.version} ({'/'.join(image.place[:3])})"


def _gap(image: Image) -> str:
    short = [part.group for part in image.parts if not part.group.usable()]
    return short[0].complaint() if short else "some of its parts are nowhere on these disks"


def list_images(images: list[Image], report: Report) -> None:
    """One line an image; what cannot be restored says why."""
    for image in images:
        chain = image.chain()
        short = [equals[0].group for equals in chain if not equals[0].group.usable()]
        why = short[0].complaint() if short else "" if chain else _gap(image)
        place = "/".join((*image.place[:-1], image.name + ".dcm"))
        verdict = "NO: " + why if why else "ok"
        report.say(f"{image.uid}  v{image.version}  {image.size} bytes  {place}  {verdict}")
        report.faults += bool(why)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(64, f"recover.py: {message}\n")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="recover.py", description="Get every image back from the disks of a raidd array, without raidd."
    )
    parser.add_argument("mounts", nargs="+", metavar="MOUNT", help="a mounted disk, or the folder raidd-<id> on it")
    parser.add_argument("--out", metavar="DIR", help="restore into this folder (made if missing, never on a member)")
    parser.add_argument("--list", action="store_true", help="only show what is there")
    parser.add_argument("--sop", metavar="UID", action="append", help="only this image (may be given several times)")
    parser.add_argument("--include-deleted", action="store_true", help="also what was deleted on purpose")
    options = parser.parse_args(argv)
    if not options.list and not options.out:
        parser.error("--out DIR is needed (or --list)")
    return options


def run(options: argparse.Namespace, report: Report) -> None:
    members = find_members(options.mounts, report)
    check_unused(members, report)
    output = Output(options.out, members) if not options.list else None
    array = Array(report)
    for member in members:
        array.scan(member)
    array.settle()
    check_complete(members, report)
    tombstones = read_journals(members, report)
    collection = Collection()
    collection.gather(array, tombstones, options.include_deleted)
    images = _chosen(collection, options.sop, report)
    if not options.sop:
        for problem in array.nameless(tombstones):
            report.fault(f"NOT RESTORED: {problem}")
    if output is None:
        list_images(images, report)
    else:
        restorer = Restorer(Payloads(report), output, report, sum(image.size for image in images))
        for image in images:
            restorer.restore(image)
        output.sync()
        done = f"{restorer.written} images restored ({restorer.written_bytes / 1e6:.1f} MB)"
        report.say(f"{done}, {restorer.kept} were there already")
    if collection.deleted and not options.include_deleted and not options.sop:
        report.say(f"{len(collection.deleted)} images were deleted on purpose and are left out (--include-deleted)")


def _chosen(collection: Collection, uids: list[str] | None, report: Report) -> list[Image]:
    images = [image for image in collection.images.values() if not uids or image.uid in uids]
    for uid in uids or ():
        if uid not in {image.uid for image in images}:
            report.fault(f"NOT RESTORED: image {uid}: not found on these disks")
    for image_id, uid in collection.unfinished.items():
        if not uids or uid in uids:
            report.fault(
                f"NOT RESTORED: image {uid} ({image_id}): its last part is nowhere; perhaps it never arrived whole"
            )
    return sorted(images, key=_place_on_disk)


def _place_on_disk(image: Image) -> tuple[str, int]:
    """Images of one segment one after the other, so that each segment is read and decoded once."""
    for equals in image.chain()[:1]:
        return equals[0].group.segment, equals[0].offset
    return "", 0


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    report = Report()
    try:
        run(options, report)
    except OutputError as error:
        report.fault(str(error))
    except OSError as error:
        report.fault("{}: {}; run again to go on from here".format(error.filename or "output", error.strerror))
    except KeyboardInterrupt:
        report.fault("interrupted; run again to go on from here")
    if report.faults:
        sys.stderr.write(f"Not everything was restored: {report.faults} faults, listed above.\n")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
