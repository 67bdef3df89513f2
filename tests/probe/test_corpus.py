"""Every file of pydicom's own tests and of pydicom-data through a real daemon: images of forty makers, several broken
on purpose, and things that are no images at all.

One array of six members (4+2) takes them all in at once; then each test asks something else of it. The tests run in
the order written: the last one takes members away.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pydicom
import pytest

from raidd import api
from raidd.inbox.refusals import RefusalCode
from tests.support.real_daemon import PATIENCE_S, RealDaemon, member_folders, real_daemon

pytestmark = [pytest.mark.xdist_group("corpus"), pytest.mark.timeout(600)]


def corpus() -> dict[str, Path]:
    """Name in the inbox -> file: all that lies in both packages' data folders, Python's own caches left out."""
    places = {"pydicom": _package("pydicom") / "data", "pydicom-data": _package("data_store") / "data"}
    return {
        f"{label}/{path.relative_to(top)}": path
        for label, top in places.items()
        for path in sorted(top.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def _package(name: str) -> Path:
    found = find_spec(name)
    assert found is not None
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0])


def sop_instance_uid(path: Path) -> str:
    """What pydicom finds when asked to open it whatever it is; "" for nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return str(pydicom.dcmread(path, force=True).get("SOPInstanceUID") or "")
        except Exception:  # whatever it raises: it does not open this file
            return ""


@dataclass(frozen=True, slots=True)
class Taken:
    """The daemon after everything was dropped and it came to rest. `digests`: by name in the inbox."""

    raidd: RealDaemon
    files: dict[str, Path]
    digests: dict[str, str]
    rows: list[dict[str, Any]]
    metrics: dict[str, float]

    @property
    def refused(self) -> dict[str, Path]:
        """Name in the inbox -> where it lies now."""
        return {str(path.relative_to(self.raidd.rejected)): path for path in self.raidd.deliveries.refused()}


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Taken]:
    home = tmp_path_factory.mktemp("corpus")
    with real_daemon(home / "home", member_folders(home, 6), trial=True) as raidd:
        files = corpus()
        ready = home / "ready"
        for name, path in files.items():
            target = ready / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        for folder in ready.iterdir():
            folder.rename(raidd.inbox / folder.name)
        raidd.wait_idle()
        digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
        yield Taken(raidd, files, digests, raidd.images(), raidd.metrics())


def test_the_corpus_is_the_whole_of_both_packages() -> None:
    names = corpus()
    assert len([name for name in names if name.startswith("pydicom/")]) >= 180
    assert len([name for name in names if name.startswith("pydicom-data/")]) >= 60


def test_dropped_is_stored_and_duplicates_and_rejected(taken: Taken) -> None:
    count = taken.metrics
    rejected = sum(value for name, value in count.items() if name.startswith("raidd_inbox_rejected_total{"))
    assert count["raidd_inbox_dropped_total"] == len(taken.files)
    stored, duplicates = count["raidd_inbox_stored_total"], count["raidd_inbox_duplicates_total"]
    assert stored + duplicates + rejected == len(taken.files)
    assert stored == len(taken.rows) == count["raidd_images"]
    assert rejected == len(taken.refused)


def test_the_inbox_is_empty(taken: Taken) -> None:
    assert taken.raidd.deliveries.waiting() == []
    assert taken.metrics["raidd_inbox_waiting"] == 0


def test_each_refusal_carries_a_code_of_the_closed_list(taken: Taken) -> None:
    assert taken.refused
    for path in taken.refused.values():
        reason = path.with_name(path.name + ".reason.txt").read_text().splitlines()
        assert reason[0].removeprefix("code: ") in set(RefusalCode), reason
    codes = {name for name in taken.metrics if name.startswith("raidd_inbox_rejected_total{")}
    assert {name.split("{")[1].rstrip("}") for name in codes} <= set(RefusalCode)


def test_a_refused_file_is_still_whole(taken: Taken) -> None:
    for name, path in taken.refused.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == taken.digests[name]


def test_what_pydicom_opens_with_a_sop_instance_uid_is_not_refused(taken: Taken) -> None:
    images = {name for name, path in taken.files.items() if sop_instance_uid(path)}
    assert len(images) > 150
    assert not images & taken.refused.keys()


def test_each_file_that_was_not_refused_is_there_under_its_own_digest_or_is_a_copy_of_one(taken: Taken) -> None:
    stored = {row["sha256"] for row in taken.rows}
    assert len(stored) == len(taken.rows), "something was stored twice"
    others = [name for name in taken.files if name not in taken.refused and taken.digests[name] not in stored]
    # The same data set under another file meta header is the same image (design, section 5).
    assert all(_data_set(taken.files[name]) in _data_sets(taken) for name in others), others


def _data_sets(taken: Taken) -> set[bytes]:
    stored = {row["sha256"] for row in taken.rows}
    return {_data_set(path) for name, path in taken.files.items() if taken.digests[name] in stored}


def _data_set(path: Path) -> bytes:
    """Digest of the bytes after group 0002, found by pydicom."""
    with path.open("rb") as file:
        pydicom.filereader.read_preamble(file, force=True)
        pydicom.filereader._read_file_meta_info(file)
        return hashlib.sha256(file.read()).digest()


def test_pydicom_and_raidd_agree_on_each_uid(taken: Taken) -> None:
    """UIDs beyond the standard's length are shortened by a rule of their own, so only the others can be compared."""
    uids = {row["sha256"]: row["sop_instance_uid"] for row in taken.rows}
    for name, path in taken.files.items():
        uid = sop_instance_uid(path)
        if uid and taken.digests[name] in uids and len(uid) <= 64:
            assert uids[taken.digests[name]] == uid, name


def test_verify_finds_everything_right(taken: Taken) -> None:
    result = taken.raidd.raidctl("verify", "--all", "--json").ok().json()
    assert result["verified"] == len(taken.rows)
    assert result["failed"] == []


def test_catalog_and_members_agree(taken: Taken) -> None:
    taken.raidd.raidctl("catalog", "check").ok()


def test_every_image_reads_back_with_its_digest(taken: Taken) -> None:
    _assert_all_read_back(taken)


def test_every_image_reads_back_with_any_two_members_away(taken: Taken) -> None:
    """1. Move two of the six member folders out of their places. 2. raidd sees exactly these two away.
    3. Read everything. 4. Go on to the next pair, one member moved at a time, until all 15 were away together."""
    raidd, away = taken.raidd, set[int]()
    folders = {number: raidd.member_folder(number) for number in range(6)}
    for pair in itertools.combinations(range(6), 2):
        for number in sorted(away - set(pair)):
            _hidden(folders[number]).rename(folders[number])
        for number in sorted(set(pair) - away):
            folders[number].rename(_hidden(folders[number]))
        away = set(pair)
        _wait_for_states(raidd, {number: "missing" if number in away else "online" for number in range(6)})
        _assert_all_read_back(taken)
    for number in away:
        _hidden(folders[number]).rename(folders[number])
    _wait_for_states(raidd, dict.fromkeys(range(6), "online"))
    raidd.wait_healthy()


def _hidden(folder: Path) -> Path:
    return folder.with_name("moved-away")


def _wait_for_states(raidd: RealDaemon, wanted: dict[int, str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (states := raidd.states()) != wanted:
        assert time.monotonic() < deadline, f"{states}, not {wanted}\n{raidd.log_end()}"
        time.sleep(0.1)


def _assert_all_read_back(taken: Taken) -> None:
    with taken.raidd.http() as asking:
        for row in taken.rows:
            assert _digest(asking, row) == row["sha256"], row
    assert {row["sha256"] for row in taken.rows} <= set(taken.digests.values())


def _digest(asking: httpx.Client, row: dict[str, Any]) -> str:
    path = api.IMAGE_CONTENT.format(uid=quote(row["sop_instance_uid"], safe=""))
    with asking.stream("GET", path, params={"version": row["version"]}) as reply:
        reply.raise_for_status()
        digest = hashlib.sha256()
        for piece in reply.iter_bytes():
            digest.update(piece)
    return digest.hexdigest()
