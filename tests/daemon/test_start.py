"""Starts of a real daemon while not everything is there: what is looked at first, what waits, what is remembered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.load import image
from tests.support.real_daemon import RealDaemon, member_folders, real_daemon


def drop(raidd: RealDaemon, first: int, count: int = 3) -> None:
    for number in range(first, first + count):
        uid = f"1.2.3.{number}"
        raidd.deliveries.drop(f"{number}.dcm", image(uid, b"pixels" * 100), uid)
    raidd.wait_idle()


def journal(raidd: RealDaemon, member: int) -> list[dict[str, Any]]:
    files = sorted((raidd.member_folder(member) / "journal").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]


def forget_catalog(raidd: RealDaemon) -> None:
    for file in raidd.state.glob("catalog.sqlite*"):
        file.unlink()


def test_the_journal_goes_on_where_it_ended_though_a_disk_is_away_when_the_catalog_is_made_again(
    tmp_path: Path,
) -> None:
    """That a disk is away is journaled at the start: after what the members' journals tell, never instead of it."""
    with real_daemon(tmp_path / "home", member_folders(tmp_path, 4), trial=True) as raidd:
        drop(raidd, 1)
        raidd.until(lambda: len(journal(raidd, 0)) == len(journal(raidd, 1)) >= 2, "the journal is on the members")
        assert raidd.stop() == 0
        before = journal(raidd, 0)
        away = raidd.members[3].rename(tmp_path / "away")
        forget_catalog(raidd)
        raidd.start()
        raidd.until(lambda: len(journal(raidd, 0)) > len(before) + 2, "the new entries are on the members")
        after = journal(raidd, 0)
        assert after[: len(before)] == before
        actions = [entry["action"] for entry in after[len(before) :]]
        assert "merge" not in actions
        assert actions.count("member-away") == 1
        away.rename(raidd.members[3])
        raidd.wait_healthy()
        assert len(raidd.images()) == 3


def test_a_disk_that_comes_while_the_start_is_busy_is_used_when_images_come_in(tmp_path: Path) -> None:
    """Ingest waits for members that were up at the last stop; the probe finds them before leftovers are settled."""
    with real_daemon(tmp_path / "home", member_folders(tmp_path, 4), trial=True) as raidd:
        drop(raidd, 1)
        assert raidd.stop() == 0
        away = raidd.members[3].rename(tmp_path / "away")
        raidd.start()
        raidd.deliveries.drop("9.dcm", image("1.2.3.9", b"pixels" * 100), "1.2.3.9")
        raidd.until(lambda: "waiting" in raidd.status()["inbox"]["reason"], "it waits for the disk")
        away.rename(raidd.members[3])
        raidd.wait_idle()
        assert raidd.states() == dict.fromkeys(range(4), "online")
        raidd.assert_reads_back(raidd.deliveries.acknowledged())
