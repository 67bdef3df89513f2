"""The 1.0 file: its head byte by byte, its limits, its checksums, its path."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from raidd.codec.geometry import MANIFEST_LIMIT, PAYLOAD_LIMIT, PREFIX_LIMIT, Geometry
from raidd.codec.ids import TIME_LIMIT_MS, next_id
from raidd.codec.shard import (
    HEAD_SIZE,
    Head,
    Prefix,
    body_crcs,
    check_path,
    damaged_blocks,
    day_folder,
    pack_prefix,
    parse_head,
    parse_prefix,
    parse_shard_path,
    shard_path,
)
from raidd.errors import ShardDamaged, ShardUnsupported
from tests.support.sample_segment import payload_bytes, sample_segment, segment_id

BLOCK = 4096
OTHER = UUID("0f8fad5b-d9cb-469f-a165-70867728950e")  # a version 4
SEGMENT = sample_segment(Geometry(2, 1), [payload_bytes(5 * BLOCK)], block_size=BLOCK)
FILE = SEGMENT.file(1)
HEAD = parse_head(FILE)

# field: (offset, format), format.md's table
FIELDS = {
    "magic": (0, "8s"),
    "major": (8, "H"),
    "minor": (10, "H"),
    "k": (12, "B"),
    "m": (13, "B"),
    "index": (14, "B"),
    "codec": (15, "B"),
    "body_offset": (16, "I"),
    "block_size": (20, "I"),
    "shard_length": (24, "Q"),
    "payload_length": (32, "Q"),
    "segment": (40, "16s"),
    "array": (56, "16s"),
    "manifest_length": (72, "I"),
    "image_count": (76, "I"),
    "table_crc": (80, "I"),
    "manifest_crc": (84, "I"),
    "spare": (88, "36s"),
}


def resealed_head(**changes: Any) -> bytes:
    """FILE with fields of its head overwritten and the head's CRC made to fit: a hostile writer."""
    raw = bytearray(FILE)
    for field, value in changes.items():
        offset, form = FIELDS[field]
        struct.pack_into("<" + form, raw, offset, value)
    struct.pack_into("<I", raw, 124, crc32c(raw[:124]))
    return bytes(raw)


def test_head_fields_lie_where_the_format_says() -> None:
    assert len(HEAD.pack()) == HEAD_SIZE == 128
    for field, (offset, form) in FIELDS.items():
        (value,) = struct.unpack_from("<" + form, FILE, offset)
        expected = b"\x89RAIDD\r\n" if field == "magic" else getattr(HEAD, field)
        assert value == (expected.bytes if isinstance(expected, UUID) else expected)
    assert struct.unpack_from("<I", FILE, 124) == (crc32c(FILE[:124]),)


def test_head_survives_packing() -> None:
    assert parse_head(HEAD.pack()) == HEAD
    assert HEAD.pack() == FILE[:HEAD_SIZE]


def test_lengths_follow_from_the_head() -> None:
    assert HEAD.geometry == Geometry(2, 1)
    assert HEAD.block_count == 3  # ceil(5/2) pages of 4096
    assert HEAD.prefix_length == HEAD.body_offset == len(SEGMENT.shards[1].prefix)
    assert HEAD.file_length == len(FILE)


def test_head_reads_from_any_buffer() -> None:
    assert parse_head(bytearray(FILE)) == parse_head(memoryview(FILE)) == HEAD


@pytest.mark.parametrize("length", [0, 1, 127])
def test_a_file_shorter_than_its_head_is_damaged(length: int) -> None:
    with pytest.raises(ShardDamaged, match="no head"):
        parse_head(FILE[:length])


@pytest.mark.parametrize("position", range(128))
def test_a_flipped_bit_anywhere_in_the_head_is_damage(position: int) -> None:
    """Also in the version: that a newer program wrote it is believed only of a head whose CRC fits as it is."""
    for bit in range(8):
        raw = bytearray(FILE[:HEAD_SIZE])
        raw[position] ^= 1 << bit
        with pytest.raises(ShardDamaged):
            parse_head(raw)


LIMITS: list[dict[str, Any]] = [
    {"magic": b"\x89RAIDD\n\n"},
    {"k": 0},
    {"m": 0},
    {"k": 31, "m": 2, "index": 0},
    {"k": 255, "m": 255},
    {"index": 3},
    {"index": 255},
    {"body_offset": 0},
    {"body_offset": HEAD.body_offset + 1},
    {"body_offset": HEAD.body_offset - 4096},
    {"body_offset": PREFIX_LIMIT + 4096},
    {"body_offset": 0xFFFFF000},
    {"block_size": 0},
    {"block_size": 1},
    {"block_size": 2048},
    {"block_size": 4096 + 512},
    {"block_size": 0x80000000},
    {"shard_length": 0},
    {"shard_length": HEAD.shard_length + 4096},
    {"shard_length": HEAD.shard_length - 1},
    {"shard_length": (1 << 64) - 4096},
    {"payload_length": 0},
    {"payload_length": PAYLOAD_LIMIT + 1},
    {"payload_length": (1 << 64) - 1},
    {"payload_length": 1},
    {"manifest_length": 0},
    {"manifest_length": MANIFEST_LIMIT + 1},
    {"manifest_length": 0xFFFFFFFF},
    {"manifest_length": HEAD.body_offset},
    {"image_count": 4097},
    {"image_count": 0xFFFFFFFF},
    {"segment": OTHER.bytes},
    {"segment": b"\xff" * 16},
    {"segment": UUID("ffffffff-ffff-7fff-bfff-ffffffffffff").bytes},
    {"spare": b"\1" + bytes(35)},
]


@pytest.mark.parametrize("changes", LIMITS, ids=str)
def test_a_limit_broken_under_a_valid_crc_is_damage(changes: dict[str, Any]) -> None:
    with pytest.raises(ShardDamaged):
        parse_prefix(resealed_head(**changes))


@pytest.mark.parametrize("changes", [change for change in LIMITS if "magic" not in change], ids=str)
def test_no_head_is_written_that_would_not_be_read(changes: dict[str, Any]) -> None:
    values = {name: UUID(bytes=value) if name == "segment" else value for name, value in changes.items()}
    with pytest.raises(ValueError, match="shard head"):
        replace(HEAD, **values).pack()


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from([name for name in FIELDS if name not in ("magic", "major", "codec")]), st.data())
)
def test_any_hostile_field_is_a_limit_broken_or_within_limits(choices: dict[str, st.DataObject]) -> None:
    changes: dict[str, Any] = {}
    for name, data in choices.items():
        size = struct.calcsize("<" + FIELDS[name][1])
        raw = data.draw(st.binary(min_size=size, max_size=size))
        changes[name] = raw if FIELDS[name][1].endswith("s") else int.from_bytes(raw, "little")
    try:
        head = parse_head(resealed_head(**changes))
    except ShardDamaged:
        return
    assert head.prefix_length <= PREFIX_LIMIT
    assert head.file_length <= PREFIX_LIMIT + PAYLOAD_LIMIT
    assert head.pack() == resealed_head(**changes)[:HEAD_SIZE]


# Versions


def test_an_unknown_minor_is_read_and_carried_along() -> None:
    raw = resealed_head(minor=7, spare=b"new" + bytes(33))
    head = parse_head(raw)
    assert (head.minor, head.spare) == (7, b"new" + bytes(33))
    assert pack_prefix(parse_prefix(raw)) == raw[: head.body_offset]


@pytest.mark.parametrize("change", [{"major": 2}, {"major": 0}, {"major": 0xFFFF}, {"codec": 0}, {"codec": 2}])
def test_an_unknown_major_or_codec_is_unsupported_not_damaged(change: dict[str, int]) -> None:
    with pytest.raises(ShardUnsupported):
        parse_head(resealed_head(**change))


def test_a_future_major_with_another_layout_is_unsupported() -> None:
    with pytest.raises(ShardUnsupported):
        parse_head(FILE[:8] + struct.pack("<HH", 2, 0) + payload_bytes(HEAD_SIZE))


def test_a_version_overwritten_whole_is_damage() -> None:
    with pytest.raises(ShardDamaged, match="overwritten"):
        parse_head(FILE[:8] + b"\xff\xff\xff\xff" + FILE[12:])


# Prefix


def test_prefix_holds_what_was_sealed() -> None:
    prefix = parse_prefix(FILE)
    assert prefix == parse_prefix(FILE[: HEAD.body_offset])
    assert prefix.head == HEAD
    assert prefix.table == body_crcs(SEGMENT.shards[1].body, BLOCK)
    assert prefix.manifest().images == SEGMENT.manifest.images
    assert prefix.table_matches_manifest()
    assert pack_prefix(prefix) == SEGMENT.shards[1].prefix


@pytest.mark.parametrize("length", [HEAD_SIZE, HEAD_SIZE + 5, HEAD.body_offset - 1])
def test_a_prefix_cut_short_is_damage(length: int) -> None:
    with pytest.raises(ShardDamaged, match="begins at"):
        parse_prefix(FILE[:length])


@pytest.mark.parametrize(
    ("position", "said"),
    [
        (HEAD_SIZE, "checksum table"),
        (HEAD.manifest_offset - 1, "checksum table"),
        (HEAD.manifest_offset, "manifest"),
        (HEAD.manifest_offset + HEAD.manifest_length - 1, "manifest"),
        (HEAD.manifest_offset + HEAD.manifest_length, "not zero"),
        (HEAD.body_offset - 1, "not zero"),
    ],
)
def test_a_changed_byte_before_the_body_is_damage(position: int, said: str) -> None:
    raw = bytearray(FILE)
    raw[position] ^= 0x40
    with pytest.raises(ShardDamaged, match=said):
        parse_prefix(raw)


def test_all_shards_of_a_segment_agree() -> None:
    assert len({parse_prefix(SEGMENT.file(index)).agreement() for index in range(3)}) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"array": OTHER},
        {"segment": segment_id(2)},
        {"minor": 1},
        {"minor": 1, "spare": b"x" * 36},
        {"image_count": 5},
        {"body_offset": HEAD.body_offset + 4096},
        {"block_size": 65536},
        {"manifest_crc": 1},
        {"m": 2},
    ],
    ids=str,
)
def test_shards_that_differ_in_the_head_do_not_agree(change: dict[str, Any]) -> None:
    prefix = parse_prefix(FILE)
    assert replace(prefix, head=replace(HEAD, **change)).agreement() != prefix.agreement()


def test_shards_that_differ_in_the_manifests_bytes_do_not_agree() -> None:
    prefix = parse_prefix(FILE)
    other = prefix.manifest_packed[:-1] + bytes([prefix.manifest_packed[-1] ^ 1])
    assert replace(prefix, manifest_packed=other).agreement() != prefix.agreement()


@pytest.mark.parametrize(
    "change",
    [{"array": OTHER}, {"segment": segment_id(2)}, {"m": 2}, {"image_count": 2}, {"payload_length": 5 * BLOCK - 1}],
    ids=str,
)
def test_a_head_that_contradicts_its_manifest_is_damage(change: dict[str, Any]) -> None:
    prefix = parse_prefix(FILE)
    with pytest.raises(ShardDamaged, match="contradict"):
        Prefix(replace(HEAD, **change), prefix.table, prefix.manifest_packed).manifest()


def test_a_table_that_is_not_the_first_written_is_noticed() -> None:
    prefix = parse_prefix(FILE)
    assert not replace(prefix, table=bytes(len(prefix.table))).table_matches_manifest()


# Body


def test_checksum_of_the_last_block_covers_its_real_length() -> None:
    body = payload_bytes(2 * BLOCK + 17)
    expected = [crc32c(body[:BLOCK]), crc32c(body[BLOCK : 2 * BLOCK]), crc32c(body[2 * BLOCK :])]
    assert body_crcs(body, BLOCK) == struct.pack("<3I", *expected)


@pytest.mark.parametrize("position", [0, BLOCK - 1, BLOCK, 2 * BLOCK, 3 * BLOCK - 1])
def test_a_changed_byte_names_its_block(position: int) -> None:
    prefix, body = parse_prefix(FILE), bytearray(SEGMENT.shards[1].body)
    assert damaged_blocks(prefix, body) == []
    body[position] ^= 1
    assert damaged_blocks(prefix, body) == [position // BLOCK]
    for first in range(3):
        expected = [position // BLOCK] if position // BLOCK >= first else []
        assert damaged_blocks(prefix, memoryview(body)[first * BLOCK :], first) == expected


def test_a_body_cut_short_is_damaged_in_its_last_block() -> None:
    body = bytes(SEGMENT.shards[1].body)
    assert damaged_blocks(parse_prefix(FILE), body[: BLOCK + 5]) == [1]
    assert damaged_blocks(parse_prefix(FILE), body[:-1]) == [2]
    assert damaged_blocks(parse_prefix(FILE), body[: 2 * BLOCK]) == []
    assert damaged_blocks(parse_prefix(FILE), b"") == []


@pytest.mark.parametrize(("first", "length"), [(0, 3 * BLOCK + 1), (1, 3 * BLOCK), (4, 1), (-1, BLOCK)])
def test_bytes_past_the_shards_end_are_a_mistake_of_the_caller(first: int, length: int) -> None:
    with pytest.raises(ValueError, match="bytes from block"):
        damaged_blocks(parse_prefix(FILE), bytes(length), first)


# Path


def test_path_is_the_ids_date_in_utc() -> None:
    late = next_id(1_795_564_799_999, None, 3)  # 2026-11-24T23:59:59.999Z
    assert shard_path(late, 7) == f"segments/2026/11/24/{late}-07.shard"
    assert day_folder(next_id(1_795_564_800_000, None, 3)) == "segments/2026/11/25"


@settings(deadline=None)
@given(st.integers(0, TIME_LIMIT_MS - 1), st.integers(0, (1 << 74) - 1), st.integers(0, 31))
def test_path_and_back(at_ms: int, random_bits: int, index: int) -> None:
    segment = next_id(at_ms, None, random_bits)
    assert parse_shard_path(shard_path(segment, index)) == (segment, index)


PATH = shard_path(segment_id(1), 1)


@pytest.mark.parametrize(
    "path",
    [
        "",
        PATH[1:],
        "/" + PATH,
        "./" + PATH,
        PATH + "\n",
        PATH.upper(),
        PATH.replace("/24/", "/25/"),
        PATH.replace("/2026/", "/2026/../2026/"),
        PATH.replace("-01.", "-1."),
        PATH.replace("-01.", "-32."),
        PATH.replace("-01.", "-٠١."),
        PATH.replace("-01.", "-001."),
        PATH.replace("-7000-", "-4000-"),
        PATH.replace(".shard", ".tmp"),
        "segments/9999/12/31/ffffffff-ffff-7fff-bfff-ffffffffffff-00.shard",
    ],
)
def test_a_path_that_is_not_exactly_a_shards_is_refused(path: str) -> None:
    with pytest.raises(ShardDamaged):
        parse_shard_path(path)


def test_a_path_must_agree_with_the_head() -> None:
    check_path(HEAD, PATH)
    for path in (shard_path(segment_id(1), 2), shard_path(segment_id(2), 1)):
        with pytest.raises(ShardDamaged, match="holds shard 1"):
            check_path(HEAD, path)


@pytest.mark.parametrize("index", [-1, 32])
def test_no_path_for_an_index_out_of_range(index: int) -> None:
    with pytest.raises(ValueError, match="index"):
        shard_path(segment_id(1), index)


def test_head_has_no_positional_arguments() -> None:
    """Eighteen integers in a row would be mixed up one day."""
    with pytest.raises(TypeError):
        Head(1, 1, 0)  # type: ignore[call-arg, misc]
