"""What a segment says about itself: exact bytes, closed checks, bounded memory."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raidd.codec import manifest as manifest_module
from raidd.codec.geometry import IMAGES_LIMIT, INFLATED_LIMIT, MANIFEST_LIMIT, PAYLOAD_LIMIT, Geometry
from raidd.codec.manifest import STRUCTURE_LIMIT, Manifest, ManifestImage
from raidd.errors import ShardDamaged
from tests.support.sample_segment import member_ids, payload_bytes, sample_image, sample_segment

MIB = 1 << 20
DIGEST = "ab" * 32
ID = "0f8fad5b-d9cb-469f-a165-70867728950e"


def sample(**changes: Any) -> Manifest:
    manifest = sample_segment(Geometry(2, 1), [b"first", b"second"]).manifest
    return replace(manifest, **{"tables": (DIGEST,) * 3, **changes})


def document_of(manifest: Manifest) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(zlib.decompress(manifest.pack()))
    return document


def packed(document: object) -> bytes:
    return zlib.compress(json.dumps(document).encode())


# Hypothesis strategies for whole manifests

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 53), 1 << 53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
extras = st.dictionaries(texts.map(lambda key: f"x-{key}"), json_values, max_size=2)
moments = st.datetimes().map(lambda at: at.isoformat(timespec="milliseconds") + "Z")


@st.composite
def manifest_images(draw: st.DrawFn, payload_length: int) -> ManifestImage:
    offset = draw(st.integers(0, payload_length - 1))
    length = draw(st.integers(1, payload_length - offset))
    image_offset = draw(st.integers(0, 1 << 40))
    return ManifestImage(
        image=draw(st.uuids()),
        sop_instance_uid=draw(texts.filter(bool)),
        version=draw(st.integers(1, 99)),
        offset=offset,
        length=length,
        image_offset=image_offset,
        part_sha256=draw(digests),
        size=draw(st.none() | st.integers(image_offset + length, 1 << 41)),
        sha256=draw(st.none() | digests),
        received_at=draw(moments),
        source=draw(texts),
        identity=draw(st.dictionaries(texts, json_values, max_size=3)),
        extra=draw(extras),
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    k = draw(st.integers(1, 31))
    geometry = Geometry(k, draw(st.integers(1, 32 - k)))
    payload_length = draw(st.integers(1, PAYLOAD_LIMIT))
    return Manifest(
        array=draw(st.uuids()),
        segment=draw(st.uuids()),
        written_at=draw(moments),
        geometry=geometry,
        payload_length=payload_length,
        members=member_ids(geometry.n),
        replaces=tuple(draw(st.lists(st.uuids(), max_size=3))),
        journal_sequence=draw(st.integers(0, 1 << 60)),
        journal_hash=draw(digests | st.just("")),
        tables=(DIGEST,) * geometry.n,
        images=tuple(draw(st.lists(manifest_images(payload_length), max_size=4))),
        extra=draw(extras),
    )


@settings(deadline=None)
@given(manifests())
def test_what_is_packed_is_parsed_unchanged(manifest: Manifest) -> None:
    assert Manifest.parse(manifest.pack()) == manifest


def test_text_is_canonical_json() -> None:
    image = sample_image(1, 0, b"first", identity={"b": "é", "a": 1})
    text = zlib.decompress(sample(images=(image,)).pack()).decode()
    document = json.loads(text)
    assert text == json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert '"identity":{"a":1,"b":"é"}' in text
    assert text.startswith('{"array":"')
    assert list(document) == sorted(
        [
            "array",
            "segment",
            "written_at",
            "k",
            "m",
            "payload_length",
            "members",
            "replaces",
            "journal",
            "tables",
            "images",
        ]
    )
    assert sorted(document["images"][0]) == sorted(
        {"image", "sop_instance_uid", "version", "offset", "length", "image_offset", "part_sha256", "size", "sha256"}
        | {"received_at", "source", "identity"}
    )


def test_packing_twice_gives_the_same_bytes() -> None:
    assert sample().pack() == sample().pack()


def test_unknown_keys_are_carried_along() -> None:
    document = document_of(sample())
    document["colour"] = {"of": ["manifest"]}
    document["journal"]["signature"] = "abc"
    document["images"][1]["mood"] = None
    manifest = Manifest.parse(packed(document))
    assert manifest.extra == {"colour": {"of": ["manifest"]}, "journal": {"signature": "abc"}}
    assert manifest.images[1].extra == {"mood": None}
    assert document_of(manifest) == document


def test_extra_keys_cannot_overrule_known_ones() -> None:
    with pytest.raises(ValueError, match="payload_length"):
        sample(extra={"payload_length": 1}).pack()


def test_invalid_unicode_becomes_the_replacement_character() -> None:
    image = sample_image(1, 0, b"first", source="inbox:\udce9.dcm", identity={"patient_name": "\ud83d^\udfff"})
    parsed = Manifest.parse(sample(images=(image,)).pack()).images[0]
    assert parsed.source == "inbox:\ufffd.dcm"
    assert parsed.identity == {"patient_name": "\ufffd^\ufffd"}


# Refusals: one corruptor per key


def corrupt(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        *folders, key = path.split(".")
        for folder in folders:
            document = document[int(folder)] if isinstance(document, list) else document[folder]
        document[key] = value

    return change


WRONG = [
    *[(key, value) for key in ("array", "segment") for value in (None, 7, "x", ID.upper(), ID.replace("-", ""))],
    *[("written_at", value) for value in ("2026-11-24", "2026-11-24T08:00:00Z", "2026-11-24T08:00:00.000+00:00", 5)],
    *[("k", value) for value in (0, 32, -1, True, 2.0, "2", None, 3)],
    *[("m", value) for value in (0, 31, None, 2)],
    *[("payload_length", value) for value in (0, PAYLOAD_LIMIT + 1, 10, -1, "11", 11.0)],
    *[("members", value) for value in ([], None, {}, [ID] * 4, ["x"] * 3)],
    *[("replaces", value) for value in (None, [5], "x")],
    *[("journal", value) for value in (None, [], {"sequence": 1}, {"hash": ""}, {"sequence": -1, "hash": ""})],
    ("journal.sequence", 1 << 63),
    *[("tables", value) for value in ([], [DIGEST] * 2, [DIGEST.upper()] * 3, [DIGEST[:-1]] * 3)],
    *[("images", value) for value in (None, {}, [5], [[]], [{}])],
    *[("images.0.image", value) for value in (None, "x")],
    *[("images.0.sop_instance_uid", value) for value in (None, "", 5)],
    *[("images.0.version", value) for value in (0, -1, None, True)],
    *[("images.0.offset", value) for value in (-1, 7, 1 << 62, None)],
    *[("images.0.length", value) for value in (0, 12, None)],
    *[("images.0.image_offset", value) for value in (-1, 1, None)],
    *[("images.0.part_sha256", value) for value in (None, "", "g" * 64)],
    *[("images.0.size", value) for value in (4, -1, "5")],
    *[("images.0.sha256", value) for value in ("", 5, "AB" * 32)],
    *[("images.0.received_at", value) for value in (None, "yesterday")],
    *[("images.0.source", value) for value in (None, 5)],
    *[("images.0.identity", value) for value in (None, [], "x")],
]


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_every_wrong_value_is_damage(path: str, value: object) -> None:
    document = document_of(sample())
    corrupt(path, value)(document)
    with pytest.raises(ShardDamaged, match="manifest"):
        Manifest.parse(packed(document))


def test_every_key_is_required() -> None:
    for key in document_of(sample()):
        document = document_of(sample())
        del document[key]
        with pytest.raises(ShardDamaged, match=f"without '{key}'"):
            Manifest.parse(packed(document))
    for key in document_of(sample())["images"][0]:
        document = document_of(sample())
        del document["images"][0][key]
        with pytest.raises(ShardDamaged, match=f"without '{key}'"):
            Manifest.parse(packed(document))


def test_what_a_reader_would_refuse_is_not_written() -> None:
    bad = sample_image(1, 7, b"first")
    for manifest in (
        sample(images=(bad,)),
        sample(images=(replace(bad, offset=0, identity={"x": float("nan")}),)),
        sample(images=(replace(bad, offset=0, identity={"x": object()}),)),
        sample(images=(replace(bad, offset=0),) * (IMAGES_LIMIT + 1)),
        sample(members=member_ids(2)),
        sample(written_at="now"),
        sample(tables=()),
    ):
        with pytest.raises(ValueError):  # noqa: PT011 (each its own words)
            manifest.pack()


def test_as_many_images_as_the_limit_are_written_and_read() -> None:
    images = tuple(sample_image(number, 0, b"first") for number in range(IMAGES_LIMIT))
    assert len(Manifest.parse(sample(images=images).pack()).images) == IMAGES_LIMIT


def test_a_manifest_that_does_not_compress_into_the_limit_is_not_written() -> None:
    image = sample_image(1, 0, b"first", identity={"noise": payload_bytes(10 * MIB).hex()})
    with pytest.raises(ValueError, match=f"{MANIFEST_LIMIT} are allowed"):
        sample(images=(image,)).pack()


def test_an_identity_too_large_to_read_back_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    image = sample_image(1, 0, b"first", identity={"x": "y" * 5000})
    monkeypatch.setattr(manifest_module, "INFLATED_LIMIT", 4000)
    with pytest.raises(ValueError, match="4000 bytes"):
        sample(images=(image,)).pack()


# Hostile bytes


def peak_bytes(parse: Callable[[], object]) -> int:
    """Peak of Python's allocations while ``parse`` refuses what it is given."""
    tracemalloc.start()
    try:
        with pytest.raises(ShardDamaged):
            parse()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_compression_bomb_is_refused_in_bounded_memory() -> None:
    bomb = zlib.compress(b" " * (256 * MIB), 9)
    assert len(bomb) < MANIFEST_LIMIT
    assert peak_bytes(lambda: Manifest.parse(bomb)) < 3 * INFLATED_LIMIT


@pytest.mark.parametrize("unit", [b"[],", b"{},", b"[[", b'{"":', b"0,", b'"",', b'{"a":"b"},'])
def test_a_bomb_of_small_values_is_refused_in_bounded_memory(unit: bytes) -> None:
    text = b"[" + unit * (INFLATED_LIMIT // len(unit) - 2)
    assert peak_bytes(lambda: Manifest.parse(zlib.compress(text, 1))) < 3 * INFLATED_LIMIT


def test_as_many_values_as_are_let_through_cost_bounded_memory() -> None:
    text = b"[" + b'{"a":"bc"},' * (STRUCTURE_LIMIT // 2 - 2) + b"0]"
    assert peak_bytes(lambda: Manifest.parse(zlib.compress(text, 1))) < 200 * MIB


def test_deep_nesting_is_damage() -> None:
    with pytest.raises(ShardDamaged):
        Manifest.parse(zlib.compress(b"[" * 400_000))


@pytest.mark.parametrize(
    "text", [b"", b"null", b"[]", b'"x"', b"{", b"{}", b"\xff\xfe", b"NaN", b'{"k":Infinity}', b"9" * 5000, b"{} x"]
)
def test_text_that_is_no_manifest_is_damage(text: bytes) -> None:
    with pytest.raises(ShardDamaged):
        Manifest.parse(zlib.compress(text))


def test_a_stream_cut_short_or_followed_by_bytes_is_damage() -> None:
    whole = sample().pack()
    for data in (b"", whole[:-1], whole[: len(whole) // 2], whole + b"\0", whole + whole, b"\0" * 100):
        with pytest.raises(ShardDamaged):
            Manifest.parse(data)


def test_more_than_the_limit_is_not_even_inflated() -> None:
    with pytest.raises(ShardDamaged, match="allowed"):
        Manifest.parse(bytes(MANIFEST_LIMIT + 1))


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_parse_or_are_damage(data: bytes) -> None:
    for candidate in (data, zlib.compress(data)):
        with pytest.raises(ShardDamaged):
            Manifest.parse(candidate)


@settings(deadline=None)
@given(json_values)
def test_any_json_is_a_manifest_or_damage(document: object) -> None:
    with pytest.raises(ShardDamaged):
        Manifest.parse(packed(document))


def test_ids_are_uuids() -> None:
    assert all(isinstance(member, UUID) for member in Manifest.parse(sample().pack()).members)
