"""Format 1.0 as it lies on disks: these bytes must read, and be made again, for ever.

The files were made once by tests/data/make_golden.py. When a test here fails, the format has changed: that needs a new
version and a new folder of golden files, never new bytes in this one.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c

from raidd.codec.erasure import erasure
from raidd.codec.segment import reseal
from raidd.codec.shard import check_path, damaged_blocks, parse_prefix, shard_path
from tests.codec import reference
from tests.data.make_golden import FOLDER, INDEX, cases
from tests.support.sample_segment import SampleSegment

GOLDEN: dict[str, Any] = json.loads(INDEX.read_text())
CASES = cases()
INDEX_SHA256 = "3e129df11598624099650c331c370e1322be8beb299a17b9d903a443bb9214f5"

each_case = pytest.mark.parametrize("name", sorted(GOLDEN))


def files_of(name: str) -> list[bytes]:
    return [(FOLDER / name / file).read_bytes() for file in sorted(GOLDEN[name]["files"])]


def test_nobody_touched_the_list_of_golden_files() -> None:
    assert hashlib.sha256(INDEX.read_bytes()).hexdigest() == INDEX_SHA256
    assert sorted(CASES) == sorted(GOLDEN)
    assert len(list(FOLDER.glob("*/*.shard"))) == sum(len(case["files"]) for case in GOLDEN.values())


@each_case
def test_golden_files_are_those_listed(name: str) -> None:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (FOLDER / name).iterdir()}
    assert found == GOLDEN[name]["files"]


@each_case
def test_golden_shards_read_and_agree(name: str) -> None:
    prefixes = [parse_prefix(file) for file in files_of(name)]
    assert len({prefix.agreement() for prefix in prefixes}) == 1
    for prefix, file, path in zip(prefixes, files_of(name), sorted(GOLDEN[name]["files"]), strict=True):
        assert len(file) == prefix.head.file_length
        assert damaged_blocks(prefix, file[prefix.head.body_offset :]) == []
        assert prefix.table_matches_manifest()
        assert Path(shard_path(prefix.head.segment, prefix.head.index)).name == path
        check_path(prefix.head, f"segments/2026/11/24/{path}")


@each_case
def test_golden_payload_comes_back_from_any_k_shards(name: str) -> None:
    files = files_of(name)
    head = parse_prefix(files[0]).head
    for kept in combinations(range(head.geometry.n), head.k):
        bodies = {index: files[index][head.body_offset :] for index in kept}
        found = erasure(head.geometry).reconstruct(bodies, range(head.k))
        payload = b"".join(found[index] for index in range(head.k))[: head.payload_length]
        assert hashlib.sha256(payload).hexdigest() == GOLDEN[name]["payload_sha256"]


@each_case
def test_golden_manifest_says_what_went_in(name: str) -> None:
    case: SampleSegment = CASES[name]
    manifest = parse_prefix(files_of(name)[0]).manifest()
    assert manifest.images == case.manifest.images
    assert (manifest.replaces, manifest.members) == (case.manifest.replaces, case.manifest.members)
    for image in manifest.images:
        part = case.payload[image.offset : image.offset + image.length]
        assert hashlib.sha256(part).hexdigest() == image.part_sha256


@each_case
def test_manifests_text_is_still_written_byte_for_byte(name: str) -> None:
    """The text, not its compressed form: another zlib may compress it otherwise, and readers do not care."""
    packed = parse_prefix(files_of(name)[0]).manifest_packed
    again = parse_prefix(files_of(name)[0]).manifest().pack()
    assert zlib.decompress(again) == zlib.decompress(packed)
    assert zlib.decompress(parse_prefix(CASES[name].file(0)).manifest_packed) == zlib.decompress(packed)


@each_case
def test_every_golden_shard_is_made_again_byte_for_byte(name: str) -> None:
    files = files_of(name)
    sibling = parse_prefix(files[-1])
    for index, file in enumerate(files):
        again = reseal(sibling, index, CASES[name].shards[index].body)
        assert bytes(again.prefix) + bytes(again.body) == file


@each_case
def test_sealing_the_same_segment_gives_the_golden_bytes(name: str) -> None:
    packed = parse_prefix(files_of(name)[0]).manifest_packed
    if zlib.compress(zlib.decompress(packed), 6) != packed:
        pytest.skip("this zlib compresses otherwise than the one that made the golden files")
    assert [CASES[name].file(index) for index in range(len(CASES[name].shards))] == files_of(name)


@each_case
def test_an_independent_reader_finds_everything_by_the_formats_table(name: str) -> None:
    """format.md read literally: struct, zlib, CRC-32C and the slow reference; nothing of raidd.codec."""
    files = files_of(name)
    bodies = []
    for index, file in enumerate(files):
        assert file[:8] == b"\x89RAIDD\r\n"
        assert struct.unpack_from("<HH", file, 8) == (1, 0)
        k, m, own_index, codec = file[12:16]
        assert (f"{k}+{m}", own_index, codec) == (GOLDEN[name]["geometry"], index, 1)
        body_offset, block_size, shard_length, payload_length = struct.unpack_from("<IIQQ", file, 16)
        manifest_length, images, table_crc, manifest_crc = struct.unpack_from("<IIII", file, 72)
        assert (block_size, len(file)) == (65536, body_offset + shard_length)
        assert shard_length % 4096 == 0
        assert 0 <= k * shard_length - payload_length < k * 4097
        assert file[88:124] == bytes(36)
        assert struct.unpack_from("<I", file, 124) == (crc32c(file[:124]),)
        body = file[body_offset:]
        bodies.append(body)
        blocks = [body[start : start + block_size] for start in range(0, shard_length, block_size)]
        table = b"".join(struct.pack("<I", crc32c(block)) for block in blocks)
        assert file[128 : 128 + len(table)] == table
        assert crc32c(table) == table_crc
        stored = file[128 + len(table) : 128 + len(table) + manifest_length]
        assert crc32c(stored) == manifest_crc
        assert file[128 + len(table) + manifest_length : body_offset].strip(b"\0") == b""
        manifest = json.loads(zlib.decompress(stored))
        assert len(manifest["images"]) == images
        assert manifest["tables"][index] == hashlib.sha256(table).hexdigest()
        assert manifest["segment"].replace("-", "") == file[40:56].hex()
        assert manifest["array"].replace("-", "") == file[56:72].hex()
    payload = b"".join(bodies[:k])
    assert payload[payload_length:].strip(b"\0") == b""
    assert hashlib.sha256(payload[:payload_length]).hexdigest() == GOLDEN[name]["payload_sha256"]
    samples = [body[:64] + body[-4160:-4032] for body in bodies]
    assert reference.encode(k, m, samples[:k]) == samples[k:]
