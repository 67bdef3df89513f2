"""What raidd keeps of an image's header so that people can find the image again (design, section 8).

An `Identity` is plain, bounded, valid Unicode: it goes into every manifest and into the catalog, so a
hostile or broken header must not be able to blow up either. The image's own bytes are never touched by
what is cleaned up here.

Promises: `Identity.from_json(identity.to_json())` is the same identity; `from_json` takes anything
(unknown keys, wrong types, damage by hand) and keeps what fits; texts are at most `TEXT_LIMIT` characters
each and one identity at most `JSON_LIMIT` bytes of JSON; no text holds a lone surrogate or a control
character; `fold` maps names that a person would type alike to the same words.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

TEXT_LIMIT = 1024
OTHER_IDS_LIMIT = 32
NUMBER_LIMIT = 2**53
# 4096 images of a full manifest must fit the 32 MiB it may inflate to, with what else it says of each.
JSON_LIMIT = 6144

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_SURROGATES = re.compile("[\ud800-\udfff]")
_SEPARATORS = re.compile(r"[\W_]+")
# What NFKD leaves whole although a person on another keyboard types it in plain letters.
_PLAIN = str.maketrans({"ø": "o", "æ": "ae", "œ": "oe", "đ": "d", "ð": "d", "þ": "th", "ł": "l", "ħ": "h", "ı": "i"})


def safe_text(text: str, limit: int = TEXT_LIMIT) -> str:
    """``text`` as storable Unicode: surrogates become U+FFFD, control characters one space, ends trimmed."""
    text = _SURROGATES.sub("\ufffd", text[: 4 * limit])
    return _UNPRINTABLE.sub(" ", text).strip()[:limit].rstrip()


def fold(text: str) -> str:
    """The words of ``text`` for search: no case, no accents, no punctuation, one space between words.

    >>> fold("Müller^Bärli=ミュラー")
    'muller barli ミュラー'
    """
    decomposed = unicodedata.normalize("NFKD", safe_text(text, 4 * TEXT_LIMIT).casefold())
    bare = "".join(c for c in decomposed if not "\u0300" <= c <= "\u036f").translate(_PLAIN)
    # Recomposed, or kana and hangul would be torn into marks and letters that nobody types.
    return _SEPARATORS.sub(" ", unicodedata.normalize("NFKC", bare).casefold()).strip()


@dataclass(frozen=True, slots=True)
class Identity:
    """One image's attributes; empty texts and None mean "not said". Keys are those of ``raidctl list --json``."""

    sop_class_uid: str = ""
    transfer_syntax_uid: str = ""
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    study_description: str = ""
    series_description: str = ""
    study_date: str = ""
    study_time: str = ""
    accession_number: str = ""
    modality: str = ""
    body_part: str = ""
    laterality: str = ""
    series_number: int | None = None
    instance_number: int | None = None
    frames: int | None = None
    rows: int | None = None
    columns: int | None = None
    institution: str = ""
    referring_vet: str = ""
    patient_name: str = ""
    patient_id: str = ""
    birth_date: str = ""
    sex: str = ""
    species: str = ""
    breed: str = ""
    neutered: str = ""
    responsible_person: str = ""
    responsible_organization: str = ""
    other_ids: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The attributes that are said, ready for canonical JSON; over-long ones shortened to fit the limits."""
        document = _document(self, TEXT_LIMIT)
        limit = TEXT_LIMIT
        while len(json.dumps(document, ensure_ascii=False).encode()) > JSON_LIMIT:
            limit //= 2
            document = _document(self, limit)
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Keep what is of the right kind, silently drop the rest: an identity never refuses an image."""
        accepted: dict[str, Any] = {}
        for field in fields(cls):
            value = _accepted(field.default, document.get(field.name))
            if value is not None:
                accepted[field.name] = value
        return cls(**accepted)


def _document(identity: Identity, limit: int) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for field in fields(identity):
        value = getattr(identity, field.name)
        if isinstance(value, str):
            value = safe_text(value, limit)
        elif isinstance(value, tuple):
            value = [text for text in (safe_text(text, limit) for text in value[:OTHER_IDS_LIMIT]) if text]
        if value not in ("", [], None):
            document[field.name] = value
    return document


def _accepted(default: object, value: object) -> str | int | tuple[str, ...] | None:
    """``value`` if it fits the field whose default is ``default``, else None."""
    if isinstance(default, str):
        return safe_text(value) if isinstance(value, str) else None
    if isinstance(default, tuple):
        texts = value[:OTHER_IDS_LIMIT] if isinstance(value, list | tuple) else ()
        return tuple(safe_text(text) for text in texts if isinstance(text, str) and safe_text(text))
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < NUMBER_LIMIT:
        return value
    return None


def search_text(identity: Identity) -> str:
    """Everything a person may look an image up by, folded; ``fold(word) in search_text(identity)`` is a hit."""
    said = (
        identity.patient_name,
        identity.responsible_person,
        identity.responsible_organization,
        identity.patient_id,
        *identity.other_ids,
        identity.species,
        identity.breed,
        identity.study_description,
        identity.series_description,
        identity.accession_number,
        identity.modality,
        identity.body_part,
        identity.referring_vet,
        identity.institution,
    )
    return " ".join(folded for folded in map(fold, said) if folded)
