"""Golden files, mutated: a clear error in bounded memory, never a wrong byte, never a crash."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from contextlib import suppress
from typing import Any

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from raidd.codec.geometry import PREFIX_LIMIT
from raidd.codec.segment import reseal
from raidd.codec.shard import Prefix, damaged_blocks, parse_head, parse_prefix
from raidd.errors import ShardDamaged, ShardError, ShardUnsupported
from tests.data.make_golden import FOLDER

MIB = 1 << 20
FILES = {str(path.relative_to(FOLDER)): path.read_bytes() for path in sorted(FOLDER.glob("*/*.shard"))}
files = st.sampled_from(sorted(FILES)).map(FILES.__getitem__)


def with_crcs(raw: bytearray) -> bytes:
    """The CRCs of table, manifest and head made to fit, as far as the head's own lengths lie within the file."""
    shard, block, manifest = (
        struct.unpack_from("<Q", raw, 24)[0], struct.unpack_from("<I", raw, 20)[0], struct.unpack_from("<I", raw, 72)[0]
    )  # fmt: skip
    end = 128 + 4 * (-(-shard // block) if block else 0)
    struct.pack_into("<I", raw, 80, crc32c(raw[128 : min(end, len(raw))]))
    struct.pack_into("<I", raw, 84, crc32c(raw[min(end, len(raw)) : min(end + manifest, len(raw))]))
    struct.pack_into("<I", raw, 124, crc32c(raw[:124]))
    return bytes(raw)


def use_up(file: bytes) -> Prefix:
    """Everything a reader does with one shard; returns its prefix if all of it passed."""
    prefix = parse_prefix(file)
    prefix.manifest()
    prefix.agreement()
    prefix.table_matches_manifest()
    body = file[prefix.head.body_offset : prefix.head.file_length]
    if damaged_blocks(prefix, body) or len(file) != prefix.head.file_length:
        raise ShardDamaged("body")
    reseal(prefix, prefix.head.index, body)
    return prefix


@pytest.mark.parametrize("name", FILES)
def test_golden_files_pass_whole(name: str) -> None:
    use_up(FILES[name])


@settings(max_examples=300, deadline=None)
@given(files, st.data())
def test_any_changed_byte_of_a_file_is_noticed(file: bytes, data: st.DataObject) -> None:
    raw = bytearray(file)
    in_prefix = st.integers(0, parse_head(file).body_offset - 1)
    raw[data.draw(in_prefix | st.integers(0, len(file) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ShardDamaged):
        use_up(bytes(raw))


@settings(max_examples=100, deadline=None)
@given(files, st.data())
def test_any_changed_byte_of_a_body_names_its_block(file: bytes, data: st.DataObject) -> None:
    prefix = parse_prefix(file)
    body = bytearray(file[prefix.head.body_offset :])
    position = data.draw(st.integers(0, len(body) - 1))
    body[position] ^= data.draw(st.integers(1, 255))
    assert damaged_blocks(prefix, body) == [position // 65536]


@settings(max_examples=100, deadline=None)
@given(files, st.data())
def test_any_file_cut_short_is_noticed(file: bytes, data: st.DataObject) -> None:
    with pytest.raises(ShardDamaged):
        use_up(file[: data.draw(st.integers(0, len(file) - 1))])


@settings(max_examples=400, deadline=None)
@given(files, st.data())
def test_a_writer_that_lies_under_valid_checksums_gets_a_clear_error(file: bytes, data: st.DataObject) -> None:
    """Bytes of head, table and manifest replaced, all CRCs recomputed; what still passes is in bounds."""
    raw = bytearray(file)
    end = parse_head(file).manifest_offset + 200
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(8, 87) | st.integers(8, end))
        new = data.draw(st.binary(min_size=1, max_size=8))
        raw[position : position + len(new)] = new
    tracemalloc.start()
    try:
        with suppress(ShardError):
            use_up(with_crcs(raw))
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 16 * MIB


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=128, max_size=400), st.booleans())
def test_random_bytes_are_damaged_or_of_another_version(noise: bytes, magic: bool) -> None:
    raw = bytearray(noise)
    if magic:
        raw[:12] = b"\x89RAIDD\r\n\1\0\0\0"
        struct.pack_into("<I", raw, 124, crc32c(raw[:124]))
    with pytest.raises((ShardDamaged, ShardUnsupported)):
        parse_prefix(bytes(raw))


def hostile(**fields: tuple[int, str, Any]) -> bytes:
    raw = bytearray(FILES["images-4+2/" + sorted(name.split("/")[1] for name in FILES if "images" in name)[0]])
    for offset, form, value in fields.values():
        struct.pack_into("<" + form, raw, offset, value)
    struct.pack_into("<I", raw, 124, crc32c(raw[:124]))
    return bytes(raw)


@pytest.mark.parametrize(
    "file",
    [
        hostile(body_offset=(16, "I", 0xFFFFF000)),
        hostile(shard_length=(24, "Q", (1 << 64) - 4096), payload_length=(32, "Q", (1 << 64) - 4096)),
        hostile(shard_length=(24, "Q", 1 << 62), block_size=(20, "I", 1)),
        hostile(manifest_length=(72, "I", 0xFFFFFFFF), body_offset=(16, "I", 0xFFFFF000)),
        hostile(block_size=(20, "I", 0)),
    ],
)
def test_enormous_lengths_are_refused_before_anything_is_allocated(file: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ShardDamaged):
            parse_head(file)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()


def test_a_reader_never_needs_more_than_the_prefix_limit_before_the_body() -> None:
    file = hostile(body_offset=(16, "I", PREFIX_LIMIT))
    assert parse_head(file).prefix_length == PREFIX_LIMIT
    with pytest.raises(ShardDamaged, match="begins at"):
        parse_prefix(file)


def test_a_bomb_in_a_shard_is_damage() -> None:
    file = FILES[sorted(FILES)[0]]
    head = parse_head(file)
    bomb = zlib.compress(b'{"images":"' + b"A" * (48 * MIB), 9)
    raw = bytearray(file[: head.manifest_offset] + bomb)
    struct.pack_into("<I", raw, 72, len(bomb))
    struct.pack_into("<I", raw, 16, -(-len(raw) // 4096) * 4096)
    raw += bytes(-len(raw) % 4096)
    prefix = parse_prefix(with_crcs(raw))
    with pytest.raises(ShardDamaged, match="more than"):
        prefix.manifest()
