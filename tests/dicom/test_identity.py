"""Identity: bounded, valid, found again by what a person types."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raidd.dicom.header import read_header
from raidd.dicom.identity import JSON_LIMIT, TEXT_LIMIT, Identity, fold, safe_text, search_text
from tests.support.dicom_files import data_set, element, file_meta, sequence, text

# pytest shows warnings that the program itself filters; test_nothing_is_printed… proves that it does.
pytestmark = pytest.mark.filterwarnings("ignore")


def identity_of(*elements: bytes) -> Identity:
    data = file_meta() + data_set(elements)
    return read_header(data, len(data)).identity


# What animals have


@pytest.mark.parametrize("undefined", [True, False])
@pytest.mark.parametrize("vr", ["SQ", "UN"])
def test_veterinary_attributes_are_read_from_texts_and_sequences(undefined: bool, vr: str) -> None:
    inner = "" if vr == "UN" and undefined else "LO"
    chip = text(0x00100020, inner, "276098106123456") + text(0x00100022, inner and "CS", "RFID")
    second = text(0x00100020, inner, "DE-4711")
    identity = identity_of(
        text(0x00080005, "CS", "ISO_IR 192"),
        text(0x00100010, "PN", "Müller^Bärli"),
        text(0x00101000, "LO", "A1\\B2"),
        sequence(0x00101002, chip, second, undefined=undefined, vr=vr),
        text(0x00102201, "LO", "CANINE"),
        text(0x00102203, "CS", "ALTERED"),
        text(0x00102292, "LO", "Beagle"),
        sequence(0x00102294, text(0x00102295, inner, "VDH 99"), undefined=undefined, vr=vr),
        text(0x00102297, "PN", "Müller^Anna"),
        text(0x00102299, "LO", "Tierheim"),
    )
    assert identity.other_ids == ("A1", "B2", "276098106123456", "DE-4711", "VDH 99")
    assert (identity.species, identity.breed, identity.neutered) == ("CANINE", "Beagle", "ALTERED")
    assert (identity.responsible_person, identity.responsible_organization) == ("Müller^Anna", "Tierheim")
    assert identity.patient_name == "Müller^Bärli"


def test_species_and_breed_fall_back_to_their_codes() -> None:
    def code(value: str, meaning: str) -> bytes:
        return text(0x00080100, "SH", value) + text(0x00080104, "LO", meaning)

    identity = identity_of(
        sequence(0x00102202, code("L-80700", "Canis lupus familiaris")),
        sequence(0x00102293, code("L-8A1", "Beagle"), code("L-8A2", "")),
    )
    assert (identity.species, identity.breed) == ("Canis lupus familiaris", "Beagle, L-8A2")


def test_a_broken_item_loses_only_what_follows_it_in_its_sequence() -> None:
    good = element(0xFFFEE000, "", text(0x00100020, "LO", "chip"))
    broken = element(0xFFFEE000, "", b"\x10\0\x20\0LO\xff\x7f")
    identity = identity_of(element(0x00101002, "SQ", good + broken), text(0x00102201, "LO", "FELINE"))
    assert (identity.other_ids, identity.species) == (("chip",), "FELINE")


# Characters


@pytest.mark.parametrize(
    ("declared", "value", "name"),
    [
        ("ISO_IR 100", "Müller^Bär".encode("latin-1"), "Müller^Bär"),
        ("", "Müller^Bär".encode("latin-1"), "Müller^Bär"),
        ("", "Müller^Bär".encode(), "Müller^Bär"),
        ("ISO_IR 100", "Müller^Bär".encode(), "Müller^Bär"),
        ("ISO_IR 192", "Müller^Bär".encode("latin-1"), "Müller^Bär"),
        ("ISO_IR 100", b"\x8awit\x9e^Rex", "Šwitž^Rex"),
        ("ISO_IR 144", "Люкceмбypг".encode("iso8859_5"), "Люкceмбypг"),
        ("ISO_IR 192", "Wang^XiaoDong=王^小東".encode(), "Wang^XiaoDong=王^小東"),
        ("GB18030", "Wang^XiaoDong=王^小东=".encode("gb18030"), "Wang^XiaoDong=王^小东"),
        ("GB18030", "Жук^Rex".encode("koi8-r")[:1] + b"\xff", None),
        (
            "\\ISO 2022 IR 87",
            b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
            "Yamada^Tarou=山田^太郎=やまだ^たろう",
        ),
        ("\\ISO 2022 IR 149", b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7", "Hong^Gildong=洪^吉洞"),
        ("ISO_IR 13", b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
        ("ISO 2022 IR 87", b"\x1b$B;3\x1b", None),
        ("NONSENSE", b"Rex", "Rex"),
    ],
)
def test_names_are_decoded_as_meant(declared: str, value: bytes, name: str | None) -> None:
    identity = identity_of(text(0x00080005, "CS", declared), text(0x00100010, "PN", value))
    if name is not None:
        assert identity.patient_name == name
    identity.patient_name.encode()


@pytest.mark.parametrize("value", [b"\xed\xa0\x80", b"a\0b", b"a\rb\n", b"\x1b[31m", b"\xff" * 50, b"\0" * 10])
def test_no_value_brings_surrogates_or_controls_along(value: bytes) -> None:
    for declared in ("ISO_IR 192", "", "GB18030", "\\ISO 2022 IR 87"):
        identity = identity_of(text(0x00080005, "CS", declared), text(0x00100010, "PN", value))
        identity.patient_name.encode()
        assert not any(ord(c) < 32 for c in identity.patient_name)


def test_old_dates_become_dicom_dates() -> None:
    assert identity_of(text(0x00080020, "DA", "1997.04.24")).study_date == "19970424"
    assert identity_of(text(0x00080020, "DA", "around May")).study_date == "around May"


def test_the_image_s_own_side_beats_the_series() -> None:
    assert identity_of(text(0x00200060, "CS", "L")).laterality == "L"
    assert identity_of(text(0x00200060, "CS", "L"), text(0x00200062, "CS", "R")).laterality == "R"


# JSON


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = list(Identity.__dataclass_fields__)


@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), anything, max_size=8))
def test_from_json_takes_anything_and_round_trips(document: dict[str, object]) -> None:
    identity = Identity.from_json(document)
    written = identity.to_json()
    assert Identity.from_json(json.loads(json.dumps(written))) == identity
    json.dumps(written, ensure_ascii=False).encode()


@given(st.text(st.characters(exclude_categories=()), min_size=500, max_size=3000))
def test_an_identity_is_bounded_whatever_it_is_made_of(long: str) -> None:
    document = dict.fromkeys(KEYS, long) | {"other_ids": [long] * 100}
    written = Identity.from_json(document).to_json()
    assert len(json.dumps(written, ensure_ascii=False).encode()) <= JSON_LIMIT
    assert all(len(value) <= TEXT_LIMIT for value in written.values() if isinstance(value, str))


def test_only_what_is_said_is_written() -> None:
    assert Identity(patient_name="Rex", rows=0).to_json() == {"patient_name": "Rex", "rows": 0}
    assert Identity().to_json() == {}


def test_surrogates_become_replacement_characters() -> None:
    assert safe_text("a\ud800b") == "a\ufffdb"


# Search


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        ("muller", "MÜLLER^Bello"), ("Müller", "Muller"), ("strasse", "Straße"), ("STRASSE", "straße"),
        ("soren", "Sørensen"), ("aegir", "Ægir"), ("lodz", "Łódź"), ("istanbul", "İSTANBUL"), ("ilk", "ılk"),
        ("太郎", "Yamada^Tarou=山田^太郎"), ("バロン", "バロン"), ("ﾊﾞﾛﾝ", "バロン"), ("o'neil", "O'Neil"),
        ("bello", "Müller^BELLO"), ("e\u0301clair", "ÉCLAIR"), ("123", "１２３"),
    ],
)  # fmt: skip
def test_names_are_found_without_regard_to_case_and_accents(typed: str, stored: str) -> None:
    assert fold(typed) in fold(stored)


@given(st.text(st.characters(exclude_categories=())))
def test_folding_twice_changes_nothing(text_: str) -> None:
    assert fold(fold(text_)) == fold(text_)


def test_every_name_of_an_animal_is_searched() -> None:
    identity = Identity(
        patient_name="Müller^Bärli", responsible_person="Müller^Anna", responsible_organization="Tierheim Köln",
        patient_id="4711", other_ids=("276098",), species="CANINE", breed="Beagle", study_description="Thorax",
        accession_number="ACC-1", referring_vet="Dr. Weiß", institution="Klinik", modality="CT",
    )  # fmt: skip
    found = search_text(identity)
    for word in ("barli", "anna", "koln", "4711", "276098", "canine", "beagle", "thorax", "acc 1", "weiss", "klinik"):
        assert fold(word) in found
