"""The code against its definition, and against losses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raidd.codec import erasure as erasure_module
from raidd.codec.erasure import SLICE_SIZE, Erasure, codec_name, erasure, self_test
from raidd.codec.geometry import WIDTH_LIMIT, Geometry
from raidd.errors import ImageUnreadable, RaiddError
from tests.codec import reference

geometries = st.integers(1, WIDTH_LIMIT - 1).flatmap(
    lambda k: st.builds(Geometry, st.just(k), st.integers(1, WIDTH_LIMIT - k))
)
ALL = [Geometry(k, m) for k in range(1, WIDTH_LIMIT) for m in range(1, WIDTH_LIMIT - k + 1)]
LEVELS = [Geometry(1, 1), Geometry(1, 2), Geometry(2, 1), Geometry(4, 2), Geometry(3, 3), Geometry(5, 3)]


def pieces(count: int, length: int, seed: int = 0) -> list[bytes]:
    random = Random(f"{count} {length} {seed}")
    return [random.randbytes(length) for _ in range(count)]


def as_bytes(found: Sequence[bytes | memoryview]) -> list[bytes]:
    return [bytes(piece) for piece in found]


@pytest.mark.parametrize("geometry", ALL, ids=str)
def test_the_generator_is_the_one_of_the_format(geometry: Geometry) -> None:
    """Unit vectors: byte c of piece c is 1, so parity piece r *is* row r of G."""
    unit = [bytes(int(row == column) for column in range(geometry.k)) for row in range(geometry.k)]
    expected = [bytes(row) for row in reference.generator(geometry.k, geometry.n)[geometry.k :]]
    assert as_bytes(erasure(geometry).encode(unit)) == expected


@settings(max_examples=40, deadline=None)
@given(geometries, st.integers(1, 40), st.integers(0, 1000))
def test_parity_is_that_of_the_slow_reference(geometry: Geometry, length: int, seed: int) -> None:
    data = pieces(geometry.k, length, seed)
    assert as_bytes(erasure(geometry).encode(data)) == reference.encode(geometry.k, geometry.m, data)


def test_reference_multiplies_as_the_field_does() -> None:
    assert reference.multiply(0x80, 2) == 0x1D
    assert all(reference.multiply(a, reference.inverse(a)) == 1 for a in range(1, 256))
    assert len({reference.power(2, exponent) for exponent in range(255)}) == 255


@pytest.mark.parametrize("geometry", LEVELS, ids=str)
@pytest.mark.parametrize("length", [1, SLICE_SIZE - 1, SLICE_SIZE, SLICE_SIZE + 1, 3 * SLICE_SIZE + 5])
def test_any_k_pieces_give_every_other(geometry: Geometry, length: int) -> None:
    code = erasure(geometry)
    data = pieces(geometry.k, length)
    shards = data + as_bytes(code.encode(data))
    for kept in combinations(range(geometry.n), geometry.k):
        found = code.reconstruct({index: shards[index] for index in kept}, range(geometry.n))
        assert {index: bytes(piece) for index, piece in found.items()} == dict(enumerate(shards))


@settings(max_examples=60, deadline=None)
@given(geometries, st.integers(0, 300), st.data())
def test_a_sample_of_all_geometries_survives_any_m_losses(geometry: Geometry, length: int, data: st.DataObject) -> None:
    code = erasure(geometry)
    shards = pieces(geometry.k, length)
    shards += as_bytes(code.encode(shards))
    kept = data.draw(st.permutations(range(geometry.n)))[: data.draw(st.integers(geometry.k, geometry.n))]
    wanted = data.draw(st.lists(st.integers(0, geometry.n - 1), max_size=geometry.n))
    found = code.reconstruct({index: shards[index] for index in kept}, wanted)
    assert {index: bytes(piece) for index, piece in found.items()} == {index: shards[index] for index in wanted}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(LEVELS), st.integers(0, 4000), st.integers(1, 4000), st.data())
def test_a_byte_range_decodes_from_the_same_range(
    geometry: Geometry, start: int, length: int, data: st.DataObject
) -> None:
    shards = pieces(geometry.k, 5000)
    shards += as_bytes(erasure(geometry).encode(shards))
    kept = data.draw(st.permutations(range(geometry.n)))[: geometry.k]
    found = erasure(geometry).reconstruct(
        {index: memoryview(shards[index])[start : start + length] for index in kept}, range(geometry.n)
    )
    assert all(found[index] == shards[index][start : start + length] for index in range(geometry.n))


@pytest.mark.parametrize("geometry", LEVELS, ids=str)
def test_encode_into_fills_the_given_buffers_like_encode(geometry: Geometry) -> None:
    data = pieces(geometry.k, SLICE_SIZE + 123)
    buffer = bytearray(b"\xff" * geometry.m * len(data[0]))
    views = [memoryview(buffer)[start : start + len(data[0])] for start in range(0, len(buffer), len(data[0]))]
    erasure(geometry).encode_into(data, views)
    assert bytes(buffer) == b"".join(erasure(geometry).encode(data))


def test_copies_are_not_copied() -> None:
    data = bytearray(b"payload")
    copies = erasure(Geometry(1, 2)).encode([memoryview(data)])
    data[0:1] = b"P"
    assert as_bytes(copies) == [b"Payload"] * 2


def test_nothing_given_is_changed() -> None:
    """zfec's decode swaps entries of the very sequences it is given; callers must not notice."""
    code = erasure(Geometry(3, 2))
    data = [bytearray(piece) for piece in pieces(3, 50)]
    before = as_bytes([bytes(piece) for piece in data])
    parity = code.encode(data)
    present = {4: parity[1], 1: data[1], 3: parity[0]}
    order = list(present)
    wanted = (2, 0)
    assert code.reconstruct(present, wanted)[0] == before[0]
    assert list(present) == order
    assert [bytes(piece) for piece in data] == before
    assert wanted == (2, 0)


def test_fewer_than_k_pieces_are_a_clear_error() -> None:
    with pytest.raises(ImageUnreadable, match="2 good shards"):
        erasure(Geometry(3, 2)).reconstruct({0: b"abc", 4: b"abc"}, [1])


@pytest.mark.parametrize(
    "present", [{0: b"abc", 1: b"ab"}, {0: b"", 1: b"ab"}, {0: b"abc", 3: b"abc"}, {-1: b"a", 1: b"a"}]
)
def test_pieces_that_would_overrun_the_c_code_are_refused(present: dict[int, bytes]) -> None:
    with pytest.raises(ValueError, match=r"unequal|shards"):
        erasure(Geometry(2, 1)).reconstruct(present, [2])


def test_wanted_shards_must_exist() -> None:
    with pytest.raises(ValueError, match="shards"):
        erasure(Geometry(2, 1)).reconstruct({0: b"a", 1: b"b"}, [3])


def test_data_pieces_must_be_k_of_one_length() -> None:
    code = erasure(Geometry(2, 1))
    for data in ([b"a"], [b"a", b"b", b"c"], [b"", b"b"], [b"ab", b"b"]):
        with pytest.raises(ValueError, match=r"pieces"):
            code.encode(data)
    for parity in ([], [memoryview(bytearray(2))], [memoryview(bytearray(1))] * 2):
        with pytest.raises(ValueError, match="parity views"):
            code.encode_into([b"a", b"b"], parity)


def test_codes_are_shared() -> None:
    assert erasure(Geometry(4, 2)) is erasure(Geometry(4, 2))
    assert codec_name() == "zfec"


# Self-test


def test_known_answers_are_those_of_the_definition() -> None:
    assert list(erasure_module._KNOWN_ANSWERS) == [reference.known_answer(k) for k in range(1, WIDTH_LIMIT)]


def test_self_test_passes_here() -> None:
    self_test()


def test_self_test_notices_a_wrong_parity_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Erasure.encode

    def wrong(self: Erasure, data: Sequence[bytes]) -> list[bytes | memoryview]:
        parity = [bytearray(piece) for piece in right(self, data)]
        parity[-1][-1] ^= 1
        return [bytes(piece) for piece in parity]

    monkeypatch.setattr(Erasure, "encode", wrong)
    with pytest.raises(RaiddError, match="the code 1"):
        self_test()


def test_self_test_notices_wrong_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Erasure._decode

    def wrong(self: Erasure, given: dict[int, memoryview], lost: list[int]) -> dict[int, memoryview]:
        return {index: memoryview(bytes(piece)[::-1]) for index, piece in right(self, given, lost).items()}

    monkeypatch.setattr(Erasure, "_decode", wrong)
    with pytest.raises(RaiddError, match="decoding"):
        self_test()


def test_self_test_notices_a_wrong_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure_module, "crc32c", lambda _data: 0)
    with pytest.raises(RaiddError, match="CRC-32C"):
        self_test()
