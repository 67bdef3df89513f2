"""Find images by what a person knows of them: words of any name, patient, owner, species, modality, date, study.

Words are folded and matched anywhere in the folded text, in any order: "rex MULLER" finds Müller^Rex and Rex^Müller;
what is written together ("P-100_7") is found together.
What is special to LIKE in a person's words is taken literally. Newest images first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, select, true

from raidd.array.catalog_database import Row, rows
from raidd.array.catalog_rows import ImageQuery
from raidd.array.catalog_schema import IMAGES, SUBJECTS
from raidd.dicom.identity import fold
from raidd.errors import RequestRefused


def find(connection: Connection, query: ImageQuery) -> list[Row]:
    """Rows of the images that match. RequestRefused for a date that is none."""
    conditions = [*_subject_conditions(query), *_image_conditions(query)]
    newest = (IMAGES.c.received_at.desc(), IMAGES.c.uid, IMAGES.c.version.desc())
    return rows(connection, IMAGES, select(IMAGES).where(true(), *conditions).order_by(*newest).limit(query.limit))


def _subject_conditions(query: ImageQuery) -> list[ColumnElement[bool]]:
    texts = (
        *(_contains(SUBJECTS.c.words, words) for words in query.words),
        _contains(SUBJECTS.c.patient, query.patient),
        _contains(SUBJECTS.c.owner, query.owner),
        _contains(SUBJECTS.c.species, query.species),
    )
    wanted = [condition for some in texts for condition in some]
    return [IMAGES.c.subject.in_(select(SUBJECTS.c.id).where(*wanted))] if wanted else []


def _contains(column: Column[Any], text: str | None) -> Iterable[ColumnElement[bool]]:
    """Every word of the text is somewhere in the column. A text without a word in it matches nothing."""
    if text is None:
        return []
    words = [folded for folded in map(fold, re.split(r"[\s^=]+", text)) if folded]
    return [column.contains(word, autoescape=True) for word in words] or [column != column]


def _image_conditions(query: ImageQuery) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if query.modality is not None:
        conditions.append(IMAGES.c.modality == query.modality.strip().upper())
    if query.study is not None:
        conditions.append(IMAGES.c.study_uid == query.study)
    if query.date_from is not None:
        conditions.append(IMAGES.c.study_date >= _date(query.date_from))
    if query.date_to is not None:
        conditions.append(IMAGES.c.study_date <= _date(query.date_to))
        conditions.append(IMAGES.c.study_date != "")
    return conditions


def _date(text: str) -> str:
    try:
        return datetime.strptime(text, "%Y-%m-%d" if "-" in text else "%Y%m%d").strftime("%Y%m%d")
    except ValueError as error:
        raise RequestRefused(f"{text!r} is not a date", next_step="Give dates as 2026-11-24 or 20261124.") from error


def study_images(connection: Connection, study: str) -> list[Row]:
    """All images of a study, every version, in the order of series and UID."""
    order = (IMAGES.c.series_uid, IMAGES.c.uid, IMAGES.c.version)
    return rows(connection, IMAGES, select(IMAGES).where(IMAGES.c.study_uid == study).order_by(*order))
