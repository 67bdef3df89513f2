"""People find images by whatever they know: any word of any name, in any spelling; and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raidd.array.catalog import Catalog, ImageQuery
from raidd.errors import RequestRefused
from tests.support.catalog_data import ARRAY, image, store

REX = {
    "patient_name": "Müller^Rex", "patient_id": "P-100_7", "species": "Canine", "breed": "Großer Münsterländer",
    "modality": "CT", "study_date": "20260105", "study_instance_uid": "7.1", "series_instance_uid": "7.1.1",
    "responsible_person": "Müller^Änne", "study_description": "Thorax 50%", "other_ids": ["276098106012345"],
}  # fmt: skip
MINKA = {
    "patient_name": "Minka^Øster", "species": "Feline", "modality": "DX", "study_date": "2026-02-10",
    "study_instance_uid": "7.2", "series_instance_uid": "7.2.1",
}  # fmt: skip
NOBODY = {"modality": "US", "study_instance_uid": "7.3"}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    opened = Catalog.open(tmp_path_factory.mktemp("search") / "catalog.sqlite", array=ARRAY)
    store(opened, [image("rex.1", "r1", identity=REX, received_at="2026-01-05T08:00:00.000Z")])
    store(
        opened, [image("rex.2", "r2", identity={**REX, "instance_number": 2}, received_at="2026-01-05T08:00:01.000Z")]
    )
    store(opened, [image("rex.2", "r2b", identity=REX, received_at="2026-01-07T08:00:00.000Z")])
    store(opened, [image("minka", "m", identity=MINKA, received_at="2026-02-10T08:00:00.000Z")])
    store(opened, [image("nobody", "n", identity=NOBODY, received_at="2026-03-01T08:00:00.000Z")])
    store(opened, [image("half", "h", identity=REX, size=20, part=(0, 10))])  # not listed
    yield opened
    assert opened.check() == []
    opened.close()


def found(catalog: Catalog, **query: object) -> list[str]:
    return sorted({row.sop_instance_uid for row in catalog.search(ImageQuery(**query))})  # type: ignore[arg-type]


BOTH = ["rex.1", "rex.2"]


@pytest.mark.parametrize(
    ("query", "uids"),
    [
        ({"words": ("rex",)}, BOTH),
        ({"words": ("MULLER", "rex")}, BOTH),
        ({"words": ("Rex Müller",)}, BOTH),
        ({"words": ("Rex^Muller",)}, BOTH),
        ({"words": ("anne",)}, BOTH),
        ({"words": ("grosser munster",)}, BOTH),
        ({"words": ("276098106012345",)}, BOTH),
        ({"words": ("oster", "minka")}, ["minka"]),
        ({"words": ("rex", "minka")}, []),
        ({"patient": "rex"}, BOTH),
        ({"patient": "P-100_7"}, BOTH),
        ({"patient": "anne"}, []),
        ({"owner": "ÄNNE müller"}, BOTH),
        ({"owner": "oster"}, ["minka"]),  # no owner is given: the name says "pet^owner" or "owner^pet"
        ({"owner": "rex"}, []),
        ({"species": "canine"}, BOTH),
        ({"modality": "ct"}, BOTH),
        ({"modality": "C"}, []),
        ({"study": "7.2"}, ["minka"]),
        ({"study": "7"}, []),
        ({"date_from": "2026-01-05", "date_to": "20260105"}, BOTH),
        ({"date_from": "2026-01-06"}, ["minka"]),
        ({"date_to": "2026-02-10"}, ["minka", *BOTH]),
        ({"words": ("rex",), "modality": "DX"}, []),
        ({}, ["minka", "nobody", *BOTH]),
    ],
)
def test_what_is_asked_for_is_found_and_nothing_else(
    catalog: Catalog, query: dict[str, object], uids: list[str]
) -> None:
    assert found(catalog, **query) == uids


@pytest.mark.parametrize("word", ["%", "_", "r_x", "re%x", "10_7", "\\", "'", '"', "*"])
def test_what_is_special_to_sql_is_not_special_here(catalog: Catalog, word: str) -> None:
    for field in ("patient", "owner", "species"):
        assert found(catalog, **{field: word}) == []
    assert found(catalog, words=(word,)) == []


def test_every_version_is_found_newest_first_up_to_the_limit(catalog: Catalog) -> None:
    rows = catalog.search(ImageQuery(words=("rex",)))
    assert [(row.sop_instance_uid, row.version) for row in rows] == [("rex.2", 2), ("rex.2", 1), ("rex.1", 1)]
    assert catalog.search(ImageQuery(words=("rex",), limit=2)) == rows[:2]


def test_a_study_is_listed_in_order(catalog: Catalog) -> None:
    rows = catalog.study_images("7.1")
    assert [(row.sop_instance_uid, row.version) for row in rows] == [("rex.1", 1), ("rex.2", 1), ("rex.2", 2)]


@pytest.mark.parametrize("date", ["yesterday", "2026-13-01", "2026-01-01x", "", "20261"])
def test_a_date_that_is_none_is_refused(catalog: Catalog, date: str) -> None:
    with pytest.raises(RequestRefused):
        catalog.search(ImageQuery(date_from=date))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.text(max_size=12), max_size=3), patient=st.none() | st.text(max_size=12))
def test_no_text_a_person_types_breaks_the_search(catalog: Catalog, words: list[str], patient: str | None) -> None:
    for row in catalog.search(ImageQuery(words=tuple(words), patient=patient)):
        assert row.sop_instance_uid in {"minka", "nobody", *BOTH}
