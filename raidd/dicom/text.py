"""Element values as text and numbers: character sets (PS3.5 section 6.1), padding, wrong declarations.

What a clinic's machines declare in (0008,0005) and what they write often differ: German ultrasound units
send UTF-8 under ISO_IR 6, older stations Windows-1252 under UTF-8. A name that a person cannot type is not
found, so bytes that are valid UTF-8 win over an undeclared or Latin-1 declaration, and bytes that
contradict a declaration of UTF-8 or GB18030 are read as Windows-1252. pydicom decodes everything else.

Promise: whatever the bytes, a text without surrogates and control characters, or None for a number; nothing
raises, nothing is printed.
"""

from __future__ import annotations

import logging
import re
import warnings

from pydicom.charset import convert_encodings, decode_bytes

from raidd.dicom.identity import NUMBER_LIMIT, TEXT_LIMIT, safe_text

# pydicom warns through both channels about what is everyday life here; the identity speaks for itself.
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

DEFAULT_ENCODINGS = ("iso8859",)
_LATIN = frozenset({"iso8859", "latin_1", "ascii"})
_SELF_CHECKING = frozenset({"utf8", "gb18030", "gbk", "gb2312"})
_TEXT_VRS = frozenset({b"IS", b"DS", b"LO", b"SH", b"CS", b"ST", b"LT", b"UT", b"UC"})
_CUT = 4 * TEXT_LIMIT - 4
_PN_DELIMITERS = frozenset(b"\n\f\r\t^=\\")
_DATE = re.compile(r"(\d{4})[.\-/](\d{2})[.\-/](\d{2})$")
_INTEGER = re.compile(r"\s*([+-]?\d{1,17})(?:\.0*)?\s*$")


def encodings_of(declared: bytes) -> tuple[str, ...]:
    """Python's names for the value of (0008,0005); unknown terms count as not declared."""
    terms = [term.strip(" \0") for term in declared[:256].decode("ascii", "replace").split("\\")]
    try:
        return tuple(convert_encodings(terms)) or DEFAULT_ENCODINGS
    except Exception:  # pydicom's table lookups raise several kinds; none may cost the image
        return DEFAULT_ENCODINGS


def text_of(value: bytes, encodings: tuple[str, ...] = DEFAULT_ENCODINGS) -> str:
    """A text element's value; all values of a multi-valued one, person names with all their groups."""
    value = value.rstrip(b" \0")
    return safe_text(value.decode("ascii") if value.isascii() and b"\x1b" not in value else _decoded(value, encodings))


def _decoded(value: bytes, encodings: tuple[str, ...]) -> str:
    first = encodings[0].lower()
    if b"\x1b" not in value and (first in _LATIN or first in _SELF_CHECKING):
        return _guessed(value, first)
    try:
        return decode_bytes(value, list(encodings), set(_PN_DELIMITERS))
    except Exception:  # malformed escapes reach codecs in ways pydicom does not expect
        return value.decode("latin-1")


def _guessed(value: bytes, declared: str) -> str:
    """The first that fits of: UTF-8 where Latin is declared (it proves itself), what is declared, Windows-1252."""
    for encoding in dict.fromkeys((declared, "utf-8") if declared in _SELF_CHECKING else ("utf-8",)):
        try:
            return value.decode(encoding)
        except UnicodeDecodeError as error:
            if error.start > _CUT:  # the reader's own limit cut a character; nobody keeps what is there
                return value[: error.start].decode(encoding)
    return value.decode("cp1252", "replace")


def name_of(value: bytes, encodings: tuple[str, ...] = DEFAULT_ENCODINGS) -> str:
    """A person name with its alphabetic, ideographic and phonetic groups, without empty components at its end."""
    return text_of(value, encodings).rstrip("^= ")


def uid_text(value: bytes) -> str:
    """A UID's characters as sent, padding taken off; not judged here."""
    return value.strip(b" \0").decode("latin-1")


def date_of(text: str) -> str:
    """ACR-NEMA's 2024.01.31 (and 2024-01-31) as DICOM's 20240131; anything else as it is."""
    match = _DATE.match(text)
    return "".join(match.groups()) if match else text


def integer_of(text: str) -> int | None:
    """The first value of an integer string, also when written as a decimal; None if it is no number."""
    match = _INTEGER.match(text.split("\\", 1)[0].strip("\0 "))
    number = int(match.group(1)) if match else None
    return number if number is not None and abs(number) < NUMBER_LIMIT else None


def binary_integer(value: bytes, vr: bytes, little: bool) -> int | None:
    """An US or UL value; digits where a sender wrote, and declared, a text. ``vr`` is empty if not written."""
    if vr in _TEXT_VRS or len(value) not in (2, 4):
        return integer_of(value.decode("latin-1"))
    return int.from_bytes(value, "little" if little else "big")
