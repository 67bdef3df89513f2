"""Whom and what an image shows, folded for search, and kept once for all images that say the same.

A practice has thousands of animals and millions of images: a search by name scans the former. Every text is folded
(`raidd.dicom.identity.fold`), so that case, accents and the order of owner and pet do not matter.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache

from sqlalchemy import Connection, insert

from raidd.array.catalog_counts import next_row
from raidd.array.catalog_database import row, sealed
from raidd.array.catalog_schema import SUBJECTS
from raidd.dicom.identity import Identity, fold, search_text

Subject = tuple[str, str, str, str]
_COLUMNS = ("words", "patient", "owner", "species")
_NOT_LOOKED_FOR = frozenset({"sop_class_uid", "transfer_syntax_uid", "instance_number", "frames", "rows", "columns"})


class Subjects:
    """The ids of subjects, made when new; for one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known: dict[Subject, int] = {}

    def id_of(self, subject: Subject) -> int:
        """The row id of a subject."""
        if subject not in self._known:
            key = dict(zip(_COLUMNS, subject, strict=True))
            found = row(self._connection, SUBJECTS, **key)
            self._known[subject] = self._insert(key) if found is None else found["id"]
        return self._known[subject]

    def _insert(self, key: dict[str, str]) -> int:
        number = next_row(self._connection, SUBJECTS)
        self._connection.execute(insert(SUBJECTS), [sealed(SUBJECTS, {"id": number, **key})])
        return number


def search_columns(identity: str) -> tuple[dict[str, str], Subject]:
    """The columns of an image's row that are looked for, and its subject; from the identity's JSON."""
    said = {key: value for key, value in json.loads(identity).items() if key not in _NOT_LOOKED_FOR}
    return _search_columns(json.dumps(said, sort_keys=True))


@lru_cache(maxsize=256)  # the images of a study say the same
def _search_columns(identity: str) -> tuple[dict[str, str], Subject]:
    known = Identity.from_json(json.loads(identity))
    columns = {
        "study_uid": known.study_instance_uid,
        "series_uid": known.series_instance_uid,
        "study_date": day(known.study_date),
        "modality": known.modality.upper(),
    }
    patient = " ".join(map(fold, (known.patient_name, known.patient_id, *known.other_ids)))
    # "owner^pet" in the patient's name: where no owner is given, it is there if anywhere
    owner = fold(known.responsible_person or known.patient_name)
    return columns, (search_text(known), patient, owner, fold(known.species))


def day(text: str) -> str:
    """YYYYMMDD from a DICOM or ISO date, "" from anything else."""
    digits = re.sub(r"[-./]", "", text.strip())[:8]
    return digits if re.fullmatch(r"[0-9]{8}", digits, re.ASCII) else ""
