"""A payload's way into shards and back, whatever is lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raidd.codec.erasure import erasure
from raidd.codec.geometry import BLOCK_SIZE, WIDTH_LIMIT, Geometry, Level, extents, level_geometry, shard_length
from raidd.codec.segment import data_bodies, reseal, seal
from raidd.codec.shard import Prefix, damaged_blocks, parse_prefix
from raidd.errors import ImageUnreadable, RaiddError, ShardDamaged
from tests.support.sample_segment import SampleSegment, payload_bytes, sample_image, sample_segment

BLOCK = 4096
LEVELS = {
    "mirror": level_geometry(Level("mirror"), 2),
    "mirror of 3": level_geometry(Level("mirror", copies=3), 3),
    "raid5": level_geometry(Level("raid5"), 3),
    "raid6": level_geometry(Level("raid6"), 6),
    "raid7": level_geometry(Level("raid7"), 8),
    "raid50": level_geometry(Level("raid50", width=3), 6),
    "raid60": level_geometry(Level("raid60", width=5), 10),
    "custom 3+3": level_geometry(Level("custom", data=3, parity=3), 6),
    "widest": level_geometry(Level("raid6"), 32),
}
# payloads that end around a block of one shard, of all shards, and a page
SIZES = [1, 4095, 4096, 4097, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 5 * BLOCK_SIZE + 3]


def read_back(files: Iterable[bytes | None]) -> bytes:
    """The payload from shard files, as a reader does it: agreeing heads, block checksums, decode, no shortcuts.

    None is a lost file. Raises a RaiddError when fewer than k blocks of a range are good.
    """
    good: dict[int, tuple[Prefix, bytes]] = {}
    for file in files:
        if file is None:
            continue
        try:
            prefix = parse_prefix(file)
        except ShardDamaged:
            continue
        good[prefix.head.index] = prefix, file[prefix.head.body_offset :]
    if not good:
        raise ImageUnreadable("no shard is left")
    assert len({prefix.agreement() for prefix, _ in good.values()}) == 1
    head = next(iter(good.values()))[0].head
    damaged = {index: set(damaged_blocks(*shard)) for index, shard in good.items()}
    payload = bytearray()
    for shard in range(head.k):
        for block in range(head.block_count):
            span = slice(block * head.block_size, min((block + 1) * head.block_size, head.shard_length))
            pieces = {index: body[span] for index, (_, body) in good.items() if block not in damaged[index]}
            pieces = {index: piece for index, piece in pieces.items() if len(piece) == span.stop - span.start}
            payload += erasure(head.geometry).reconstruct(pieces, [shard])[shard]
    return bytes(payload[: head.payload_length])


@pytest.mark.parametrize("geometry", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize("size", SIZES)
def test_payload_survives_losing_the_first_m_or_the_last_m_shards(geometry: Geometry, size: int) -> None:
    segment = sample_segment(geometry, [payload_bytes(size)])
    files = [segment.file(index) for index in range(geometry.n)]
    lost: list[bytes | None] = [None] * geometry.m
    assert read_back(files) == segment.payload
    assert read_back(lost + files[geometry.m :]) == segment.payload
    assert read_back(files[: geometry.k] + lost) == segment.payload


@st.composite
def harmed_segments(draw: st.DrawFn, most: int | None = None) -> tuple[SampleSegment, list[bytes | None]]:
    """A segment, and its files with up to m (or ``most``) of them lost, cut short or changed in some bytes."""
    geometry = draw(st.sampled_from(list(LEVELS.values())))
    sizes = draw(st.lists(st.integers(1, 3 * BLOCK), min_size=1, max_size=4))
    segment = sample_segment(geometry, [payload_bytes(size, str(size)) for size in sizes], block_size=BLOCK)
    files: list[bytes | None] = [segment.file(index) for index in range(geometry.n)]
    victims = draw(st.sets(st.integers(0, geometry.n - 1), max_size=geometry.m if most is None else most))
    for victim in victims:
        files[victim] = draw(harmed(segment.file(victim)))
    return segment, files


def harmed(file: bytes) -> st.SearchStrategy[bytes | None]:
    positions = st.lists(st.integers(0, len(file) - 1), min_size=1, max_size=5)
    return st.one_of(
        st.none(),
        st.integers(0, len(file) - 1).map(lambda length: file[:length]),
        st.tuples(positions, st.integers(1, 255)).map(lambda change: _changed(file, *change)),
        st.tuples(st.integers(0, len(file) - 1)).map(lambda start: file[: start[0]] + bytes(len(file) - start[0])),
    )


def _changed(file: bytes, positions: list[int], mask: int) -> bytes:
    raw = bytearray(file)
    for position in positions:
        raw[position] ^= mask
    return bytes(raw)


@settings(max_examples=150, deadline=None)
@given(harmed_segments())
def test_any_m_shards_lost_or_corrupted_give_the_same_bytes(case: tuple[SampleSegment, list[bytes | None]]) -> None:
    segment, files = case
    assert read_back(files) == segment.payload


@settings(max_examples=150, deadline=None)
@given(harmed_segments(most=WIDTH_LIMIT))
def test_more_harm_gives_the_same_bytes_or_a_clear_error(case: tuple[SampleSegment, list[bytes | None]]) -> None:
    segment, files = case
    try:
        found = read_back(files)
    except RaiddError:
        return
    assert found == segment.payload


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(list(LEVELS.values())), st.data())
def test_a_range_is_read_from_any_k_shards(geometry: Geometry, data: st.DataObject) -> None:
    segment = sample_segment(geometry, [payload_bytes(7 * BLOCK + 11)], block_size=BLOCK)
    start = data.draw(st.integers(0, len(segment.payload)))
    length = data.draw(st.integers(0, len(segment.payload) - start))
    kept = data.draw(st.permutations(range(geometry.n)))[: geometry.k]
    found = bytearray()
    for extent in extents(start, length, shard_length(len(segment.payload), geometry.k)):
        span = slice(extent.offset, extent.offset + extent.length)
        pieces = {index: memoryview(segment.shards[index].body)[span] for index in kept}
        found += erasure(geometry).reconstruct(pieces, [extent.shard])[extent.shard]
    assert found == segment.payload[start : start + length]


# Sealing


def test_bodies_are_not_copied() -> None:
    segment = sample_segment(Geometry(2, 1), [payload_bytes(9000)])
    bodies = [memoryview(bytearray(bytes(shard.body))) for shard in segment.shards]
    sealed = seal(segment.manifest, bodies)
    assert all(shard.body is body for shard, body in zip(sealed, bodies, strict=True))
    assert [shard.index for shard in sealed] == [0, 1, 2]


def test_data_bodies_are_views_of_the_payloads_buffer() -> None:
    buffer = bytearray(b"\xff" * 5 * 4096)
    bodies = data_bodies(memoryview(buffer), 5000, 2)
    assert [len(body) for body in bodies] == [4096, 4096]
    assert buffer[5000:8192] == bytes(3192)
    assert buffer[:5000] + buffer[8192:] == b"\xff" * (5000 + 3 * 4096)
    bodies[1][0] = 7
    assert buffer[4096] == 7


def test_a_buffer_too_small_for_the_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="8192 are needed"):
        data_bodies(memoryview(bytearray(8191)), 5000, 2)


def test_a_body_begins_on_a_page_and_the_file_ends_with_it() -> None:
    for shard in sample_segment(Geometry(4, 2), [payload_bytes(100_000)]).shards:
        head = parse_prefix(shard.prefix).head
        assert len(shard.prefix) == head.body_offset
        assert head.body_offset % 4096 == 0
        assert shard.file_length == head.file_length == len(shard.prefix) + len(shard.body)


def test_a_prefix_that_ends_on_a_page_gets_no_padding() -> None:
    """Identities of every length, until the manifest happens to end on a page's border."""
    noise = payload_bytes(6000).hex()
    for length in range(12_000):
        image = sample_image(1, 0, b"image", identity={"noise": noise[:length]})
        shard = sample_segment(Geometry(1, 1), [b"image"], parts=[image]).shards[0]
        head = parse_prefix(shard.prefix).head
        if (head.manifest_offset + head.manifest_length) % 4096 == 0:
            assert head.body_offset == head.manifest_offset + head.manifest_length == len(shard.prefix)
            return
    pytest.fail("no manifest ended on a page's border")


def test_every_shard_describes_itself() -> None:
    segment = sample_segment(Geometry(3, 2), [b"one", b"two"])
    for index in range(5):
        prefix = parse_prefix(segment.file(index))
        assert prefix.head.index == index
        assert prefix.table_matches_manifest()
        assert replace(prefix.manifest(), tables=()) == segment.manifest


def bad_bodies(case: str) -> list[Any]:
    bodies: list[Any] = [bytearray(bytes(shard.body)) for shard in sample_segment(Geometry(2, 1), [b"x" * 5000]).shards]
    if case == "one too few":
        return bodies[:2]
    if case == "one short":
        return [bodies[0], bodies[1][:-1], bodies[2]]
    if case == "all long":
        return [body + bytes(4096) for body in bodies]
    bodies[1][-1] = 1
    return bodies


@pytest.mark.parametrize("case", ["one too few", "one short", "all long", "padding not zero"])
def test_bodies_that_do_not_fit_the_manifest_are_refused(case: str) -> None:
    manifest = sample_segment(Geometry(2, 1), [b"x" * 5000]).manifest
    with pytest.raises(ValueError, match=r"bodies|not zero"):
        seal(manifest, bad_bodies(case))


def test_a_segment_needs_a_time_ordered_id() -> None:
    segment = sample_segment(Geometry(2, 1), [b"x"])
    with pytest.raises(ValueError, match="UUIDv7"):
        seal(replace(segment.manifest, segment=segment.manifest.array), [shard.body for shard in segment.shards])


# Making a lost shard again


@pytest.mark.parametrize("geometry", LEVELS.values(), ids=LEVELS)
def test_a_lost_shard_is_made_again_byte_for_byte_from_any_sibling(geometry: Geometry) -> None:
    segment = sample_segment(geometry, [payload_bytes(3 * BLOCK + 5), payload_bytes(99)], block_size=BLOCK)
    for lost in range(geometry.n):
        kept = {index: segment.shards[index].body for index in range(geometry.n) if index != lost}
        body = erasure(geometry).reconstruct(kept, [lost])[lost]
        sibling = parse_prefix(segment.file((lost + 1) % geometry.n))
        again = reseal(sibling, lost, body)
        assert bytes(again.prefix) + bytes(again.body) == segment.file(lost)


def test_a_shard_of_a_newer_minor_is_made_again_byte_for_byte() -> None:
    """Spare bytes of the head and unknown manifest keys are carried along."""
    segment = sample_segment(Geometry(2, 1), [b"image"], extra={"new": [1, 2]})
    prefixes = [parse_prefix(segment.file(index)) for index in range(3)]
    newer = [replace(prefix, head=replace(prefix.head, minor=9, spare=b"n" * 36)) for prefix in prefixes]
    again = reseal(newer[0], 2, segment.shards[2].body)
    assert parse_prefix(again.prefix) == newer[2]
    assert parse_prefix(again.prefix).manifest().extra == {"new": [1, 2]}


def test_a_wrong_body_is_never_sealed() -> None:
    segment = sample_segment(Geometry(2, 1), [payload_bytes(9000)])
    body = bytearray(segment.shards[2].body)
    body[17] ^= 1
    sibling = parse_prefix(segment.file(0))
    with pytest.raises(ShardDamaged, match="not what was written"):
        reseal(sibling, 2, body)
    with pytest.raises(ShardDamaged, match="not what was written"):
        reseal(sibling, 1, segment.shards[2].body)


@pytest.mark.parametrize(("index", "length"), [(3, 4096), (-1, 4096), (1, 4095), (1, 8192)])
def test_reseal_wants_a_shard_of_the_segment(index: int, length: int) -> None:
    sibling = parse_prefix(sample_segment(Geometry(2, 1), [b"image"]).file(0))
    with pytest.raises(ValueError, match="shard"):
        reseal(sibling, index, bytes(length))
