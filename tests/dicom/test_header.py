"""read_header takes what a DICOM reader opens, says what it is, and survives everything else."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raidd.dicom.elements import Budget, Encoding, NotAtHand, Window, element_at, end_of
from raidd.dicom.header import UID_LIMIT, Header, HeaderUnreadable, read_header
from tests.support.dicom_files import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    data_set,
    element,
    file_meta,
    sample_files,
    sequence,
    text,
)  # fmt: skip

# pytest shows warnings that the program itself filters; test_nothing_is_printed… proves that it does.
pytestmark = pytest.mark.filterwarnings("ignore")

CODES = {"not-dicom", "no-sop-instance-uid"}
PIXELS = element(0x7FE00010, "OW", bytes(64))


def read(data: bytes) -> Header:
    return read_header(data, len(data))


def outcome(data: bytes, size: int | None = None) -> str:
    """The refusal's code, or "accepted" once what was read proved to keep its promises."""
    size = len(data) if size is None else size
    try:
        header = read_header(data, size)
    except HeaderUnreadable as error:
        return error.code if error.sentence.endswith(".") else error.sentence
    assert 0 < len(header.sop_instance_uid) <= UID_LIMIT
    assert 0 <= header.dataset_offset <= max(size, len(data))
    str(header.identity.to_json()).encode()
    return "accepted"


def read_elements(*elements: bytes) -> Header:
    return read(file_meta() + data_set(elements))


# Against pydicom, on every file it tests itself with


def opened_by_pydicom(path: Path) -> pydicom.Dataset | None:
    """What the promise is about: pydicom opens it with force, and it has a SOP Instance UID."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True)
            return dataset if dataset.get("SOPInstanceUID") else None
        except Exception:
            return None


@pytest.mark.parametrize("path", sample_files(), ids=lambda path: path.name)
def test_whatever_pydicom_opens_with_a_uid_is_accepted_under_that_uid(path: Path) -> None:
    dataset = opened_by_pydicom(path)
    data = path.read_bytes()
    if dataset is not None:
        assert read(data).sop_instance_uid == str(dataset.SOPInstanceUID)
        return
    assert outcome(data) in CODES | {"accepted"}  # accepted: known from the file meta alone


FIELDS = {
    "PatientID": "patient_id", "PatientSex": "sex", "StudyDescription": "study_description", "Modality": "modality",
    "SeriesDescription": "series_description", "StudyInstanceUID": "study_instance_uid", "Rows": "rows",
    "SeriesInstanceUID": "series_instance_uid", "Columns": "columns", "AccessionNumber": "accession_number",
    "StudyTime": "study_time", "InstitutionName": "institution", "BodyPartExamined": "body_part",
}  # fmt: skip


def test_the_identity_says_what_pydicom_says() -> None:
    compared = 0
    for path in sample_files():
        dataset = opened_by_pydicom(path)
        if dataset is None:
            continue
        identity = read(path.read_bytes()).identity
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for keyword, field in FIELDS.items():
                value = dataset.get(keyword)
                expected = "\\".join(value) if isinstance(value, pydicom.multival.MultiValue) else value
                assert str(getattr(identity, field) or "") == str(expected or "").strip(), (path.name, keyword)
                compared += 1
            name = str(dataset.get("PatientName") or "").rstrip("^= ")
            assert identity.patient_name == name, path.name
    assert compared > 2000


def test_the_data_set_begins_where_pydicom_says() -> None:
    for path in sample_files():
        if opened_by_pydicom(path) is None:
            continue
        data = path.read_bytes()
        stream = io.BytesIO(data)
        pydicom.filereader.read_preamble(stream, force=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pydicom.filereader._read_file_meta_info(stream)
        assert read(data).dataset_offset == stream.tell(), path.name


def test_only_the_files_that_are_cut_short_are_called_truncated() -> None:
    truncated = set()
    for path in sample_files():
        try:
            if read(path.read_bytes()).truncated:
                truncated.add(path.name)
        except HeaderUnreadable:
            pass
    assert truncated == {"MR_truncated.dcm", "rtplan_truncated.dcm", "emri_small_jpeg_2k_lossless_too_short.dcm"}


def test_directories_of_media_are_flagged() -> None:
    flagged = {path.name for path in sample_files() if path.suffix != ".py" and is_directory(path)}
    assert flagged == {path.name for path in sample_files() if path.name.startswith("DICOMDIR")}


def is_directory(path: Path) -> bool:
    try:
        return read(path.read_bytes()).dicomdir
    except HeaderUnreadable:
        return False


def test_nothing_is_printed_whatever_the_file() -> None:
    program = (
        "import sys, logging; logging.basicConfig(level=0)\n"
        "from raidd.dicom.header import read_header, HeaderUnreadable\n"
        "for name in sys.argv[1:]:\n"
        "    data = open(name, 'rb').read()\n"
        "    for cut in (data, data[:400], data[132:], data[::-1]):\n"
        "        try: read_header(cut, len(cut))\n"
        "        except HeaderUnreadable: pass\n"
    )
    names = [str(path) for path in sample_files() if path.stat().st_size < 200_000]
    done = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


# Encodings


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(file_meta() + data_set([PIXELS]), id="as the standard has it"),
        pytest.param(file_meta()[132:] + data_set([PIXELS]), id="no preamble"),
        pytest.param(data_set([PIXELS]), id="no file meta"),
        pytest.param(bytes(128) + b"DICM" + data_set([PIXELS]), id="preamble, no group 0002"),
        pytest.param(file_meta(IMPLICIT) + data_set([PIXELS]), id="declared implicit, is explicit"),
        pytest.param(file_meta(BIG_ENDIAN) + data_set([PIXELS]), id="declared big endian, is little"),
        pytest.param(file_meta("1.2.840.113619.5.2") + data_set([PIXELS]), id="private transfer syntax"),
        pytest.param(file_meta(DEFLATED) + data_set([PIXELS]), id="declared deflated, is not"),
        pytest.param(
            element(0, "", struct.pack("<I", 10)) + text(0x00000002, "", "1.2") + data_set([PIXELS]), id="command set"
        ),
    ],
)
def test_the_uid_is_read_however_the_file_is_written(data: bytes) -> None:
    header = read(data)
    assert (header.sop_instance_uid, header.truncated) == ("1.2.3", False)


@pytest.mark.parametrize("transfer_syntax", [IMPLICIT, EXPLICIT, BIG_ENDIAN])
@pytest.mark.parametrize("meta", [True, False])
def test_numbers_and_texts_in_every_plain_encoding(transfer_syntax: str, meta: bool) -> None:
    little = transfer_syntax != BIG_ENDIAN
    vrs = ("", "", "") if transfer_syntax == IMPLICIT else ("UI", "PN", "US")
    order = "<H" if little else ">H"
    data = (
        text(0x00080018, vrs[0], "1.2.3", little=little)
        + text(0x00100010, vrs[1], "Maier^Bello", little=little)
        + element(0x00280010, vrs[2], struct.pack(order, 300), little=little)
    )
    header = read((file_meta(transfer_syntax) if meta else b"") + data)
    assert (header.sop_instance_uid, header.identity.patient_name, header.identity.rows) == (
        "1.2.3", "Maier^Bello", 300,
    )  # fmt: skip


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return file_meta(DEFLATED) + packer.compress(data) + packer.flush()


def test_a_deflated_data_set_is_read_and_its_end_is_noticed() -> None:
    whole = deflated(
        data_set([text(0x00100010, "PN", "Maier^Bello"), element(0x7FE00010, "OW", bytes(range(256)) * 8)])
    )
    assert read(whole).identity.patient_name == "Maier^Bello"
    assert not read(whole).truncated
    assert read(whole[:-20]).truncated


def test_a_deflate_bomb_costs_bounded_memory() -> None:
    bomb = deflated(data_set([element(0x7FE00010, "OW", bytes(1 << 28))]))
    tracemalloc.start()
    assert read(bomb).sop_instance_uid == "1.2.3"
    assert tracemalloc.get_traced_memory()[1] < 40 << 20
    tracemalloc.stop()


# One bad element costs only itself


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(element(0x00080005, "CS", b"NO SUCH SET\0"), id="unknown character set"),
        pytest.param(element(0x00080020, "OB", b"\xff" * 8), id="date as bytes"),
        pytest.param(element(0x00080050, "SQ", b"garbage!"), id="text as sequence"),
        pytest.param(element(0x00080060, "XX", b"CT"), id="unknown VR"),
        pytest.param(element(0x00081030, "LO", b""), id="empty"),
        pytest.param(element(0x00090010, "UN", b"ab", length=0x7FFFFFF0), id="impossible length"),
        pytest.param(element(0x0009_1001, "LO", b"ab", length=0xFFFE), id="impossible short length"),
        pytest.param(sequence(0x00081140, b"\x08"), id="broken item"),
        pytest.param(text(0x00081030, "", "implicit amid explicit"), id="implicit element"),
        pytest.param(text(0x00081030, "LO", b"\0\0\xff\xfe\x1b$"), id="bytes of no character set"),
    ],
)
def test_a_broken_optional_element_loses_no_other(bad: bytes) -> None:
    good = [
        text(0x00100010, "PN", "Maier^Bello"), text(0x00100020, "LO", "4711"), text(0x00102201, "LO", "CANINE"),
        text(0x00200013, "IS", "12"), element(0x00280010, "US", b"\x2c\x01"), PIXELS,
    ]  # fmt: skip
    header = read_elements(bad, *good)
    identity = header.identity
    assert header.sop_instance_uid == "1.2.3"
    assert (identity.patient_name, identity.patient_id, identity.species) == ("Maier^Bello", "4711", "CANINE")
    assert (identity.instance_number, identity.rows) == (12, 300)


@pytest.mark.parametrize("value", ["abc", "1e400", "9" * 30, "", "\0\0", "1A", "--1", "0x10", "NaN"])
def test_a_number_that_is_none_is_left_out(value: str) -> None:
    assert read_elements(text(0x00200013, "IS", value)).identity.instance_number is None


@pytest.mark.parametrize(("value", "number"), [("12", 12), (" 012 ", 12), ("12.0", 12), ("7\\8", 7), ("-3", -3)])
def test_a_number_written_oddly_is_understood(value: str, number: int) -> None:
    assert read_elements(text(0x00200013, "IS", value)).identity.instance_number == number


def test_rows_written_as_text_are_understood() -> None:
    assert read_elements(text(0x00280010, "IS", "10")).identity.rows == 10
    assert read_elements(element(0x00280010, "US", b"10")).identity.rows == 0x3031


# Truncation


def test_a_file_shorter_than_its_elements_say_is_flagged_at_any_cut() -> None:
    whole = file_meta() + data_set([text(0x00100010, "PN", "Maier^Bello"), PIXELS])
    begin = len(file_meta()) + len(data_set())
    assert not read(whole).truncated
    for end in range(begin + 1, len(whole)):
        if end != len(whole) - len(PIXELS):  # a cut just between two elements cannot be seen
            assert read(whole[:end]).truncated, end


def test_cut_pixels_far_behind_the_head_are_seen_by_their_length_alone() -> None:
    head = file_meta() + data_set([element(0x7FE00010, "OW", b"", length=1 << 30)])
    assert read_header(head, len(head) + (1 << 30)).truncated is False
    assert read_header(head, len(head) + (1 << 30) - 1).truncated is True


def encapsulated(fragments: int, end: bool = True) -> bytes:
    body = element(0xFFFEE000, "", b"") + b"".join(element(0xFFFEE000, "", bytes(1000)) for _ in range(fragments))
    last = element(0xFFFEE0DD, "", b"") if end else b""
    return file_meta() + data_set([element(0x7FE00010, "OB", body + last, length=0xFFFFFFFF)])


def test_fragments_behind_the_head_are_followed_with_more() -> None:
    asked = []

    def more_of(data: bytes, offset: int) -> bytes:
        asked.append(offset)
        return data[offset : offset + 64]

    for data, truncated in ((encapsulated(50), False), (encapsulated(50, end=False), True)):
        head = data[:600]
        assert read_header(head, len(data), lambda offset, data=data: more_of(data, offset)).truncated is truncated
        assert read_header(head, len(data)).truncated is False  # not known is not accused
    assert len(asked) < 200


def test_padding_and_garbage_behind_the_pixels_are_no_truncation() -> None:
    whole = file_meta() + data_set([PIXELS])
    for tail in (b"\0", bytes(7), bytes(100), b"\r\n", b"trailing words of a careless sender"):
        assert not read(whole + tail).truncated, tail


# UIDs


@pytest.mark.parametrize(
    ("value", "uid"),
    [
        (b"1.2.3\0", "1.2.3"), (b"1.2.3  \0\0", "1.2.3"), (b" 1.2.3", "1.2.3"),
        (b"../../etc/passwd", "../../etc/passwd"),
        (b"1.2\\3.4", "1.2\\3.4"), (b"not a uid", "not a uid"), (b"1." * 32, "1." * 32), (b"\xe4.1", "ä.1"),
        (b"9" * UID_LIMIT, "9" * UID_LIMIT),
    ],
)  # fmt: skip
def test_a_uid_is_taken_as_it_was_sent(value: bytes, uid: str) -> None:
    assert read(file_meta() + element(0x00080018, "UI", value)).sop_instance_uid == uid


def test_monstrous_uids_are_bounded_and_stay_apart() -> None:
    values = [b"1." + b"2" * 200, b"1." + b"2" * 201, b"1.2\x003", b"1.2\n3", b"1.2\x1b[2J3", b"1" * 60_000]
    uids = [read(file_meta() + element(0x00080018, "UI", value)).sop_instance_uid for value in values]
    assert len(set(uids)) == len(values)
    assert all(len(uid) <= UID_LIMIT and uid.isprintable() for uid in uids)


def test_the_file_metas_uid_stands_in_for_a_missing_one() -> None:
    assert read(file_meta(uid="1.9") + text(0x00100010, "PN", "Maier^Bello")).sop_instance_uid == "1.9"
    assert read(file_meta(uid="1.9") + data_set()).sop_instance_uid == "1.2.3"


# What is no image


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "not-dicom"), (b"hello world, this is a letter to nobody in particular", "not-dicom"),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), "not-dicom"), (bytes(5000), "not-dicom"), (b"PK\3\4" * 100, "not-dicom"),
        (bytes(128) + b"DICM", "no-sop-instance-uid"), (file_meta(), "no-sop-instance-uid"),
        (file_meta() + text(0x00100010, "PN", "Maier^Bello"), "no-sop-instance-uid"),
        (file_meta() + element(0x00080018, "UI", b"\0\0 "), "no-sop-instance-uid"),
    ],
)  # fmt: skip
def test_everything_else_gets_a_code_and_a_sentence(data: bytes, code: str) -> None:
    with pytest.raises(HeaderUnreadable) as caught:
        read(data)
    assert caught.value.code == code
    assert caught.value.sentence


# Bounds


def test_a_header_of_many_tiny_elements_costs_bounded_memory() -> None:
    count = 30_000
    hostile = [
        data_set() + element(0x00091001, "", b"") * count,
        data_set() + element(0x00081140, "SQ", b"", length=0xFFFFFFFF) + element(0xFFFEE000, "", b"") * count,
        data_set() + element(0x00081140, "SQ", b"", length=0xFFFFFFFF) * count,
        element(0x00102202, "SQ", b"", length=0xFFFFFFFF) + element(0xFFFEE000, "", b"") * count,
    ]
    for body in hostile:
        data = file_meta(uid="1.9") + body
        read(data)
        tracemalloc.start()
        assert read(data).sop_instance_uid in ("1.2.3", "1.9")
        assert tracemalloc.get_traced_memory()[1] < 6 << 20  # pydicom takes up to 32 MB
        tracemalloc.stop()


def test_a_header_without_end_is_left_after_a_bounded_number_of_steps() -> None:
    budget = Budget(1000)
    opened = element(0x00081140, "SQ", b"", length=0xFFFFFFFF) + element(0xFFFEE000, "", b"") * 2000
    encoding = Encoding(explicit=True, little=True)
    window = Window(opened, len(opened))
    with pytest.raises(NotAtHand):
        end_of(window, element_at(window, 0, encoding), encoding, budget)


def test_a_huge_element_before_the_pixels_is_stepped_over() -> None:
    data = file_meta() + data_set([element(0x00090010, "OB", bytes(1 << 20)), text(0x00100010, "PN", "Maier^Bello")])
    head = data[:4096]
    header = read_header(head, len(data), lambda offset: data[offset : offset + 100])
    assert header.identity.patient_name == "Maier^Bello"
    assert read_header(head, len(data)).sop_instance_uid == "1.2.3"


# Arbitrary and mutated bytes


SEEDS = [path.read_bytes()[:6000] for path in sample_files() if path.suffix == ".dcm"][::9]


@given(st.binary(max_size=400), st.integers(0, 1 << 40))
@settings(max_examples=300, deadline=None)
def test_arbitrary_bytes_raise_nothing_else(data: bytes, size: int) -> None:
    for start in (b"", bytes(128) + b"DICM", file_meta(), file_meta(DEFLATED), file_meta() + data_set()):
        assert outcome(start + data, size) in CODES | {"accepted"}


@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 5999), st.binary(min_size=1, max_size=6)), max_size=8))
@settings(max_examples=400, deadline=None)
def test_mutated_files_raise_nothing_else(seed: bytes, changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(seed)
    for offset, replacement in changes:
        data[offset % len(data) : offset % len(data) + len(replacement)] = replacement
    assert outcome(bytes(data)) in CODES | {"accepted"}


@given(st.sampled_from(SEEDS), st.integers(0, 6000))
@settings(max_examples=200, deadline=None)
def test_every_cut_raises_nothing_else(seed: bytes, cut: int) -> None:
    assert outcome(seed[:cut]) in CODES | {"accepted"}
