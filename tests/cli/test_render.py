"""What an operator reads: golden sheets in five conditions, and the rules that no golden file can show.

To accept a changed sheet: `RAIDD_GOLDEN=write pytest tests/cli/test_render.py`, then read the diff.
"""

from __future__ import annotations

import io
import os
from datetime import UTC, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from raidd.api import AlertInfo, ImageInfo, ImageList, InboxInfo, RebuildStatus, ReplaceReply, ScrubInfo, Status
from raidd.cli import render, tables, verdict, wording
from tests.cli import statuses
from tests.cli.statuses import CONDITIONS, EXIT_CODES

GOLDEN = Path(__file__).parent / "golden"


def compare(name: str, text: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("RAIDD_GOLDEN") == "write":
        path.write_text(text + "\n")
    assert text + "\n" == path.read_text()


@pytest.mark.parametrize("condition", CONDITIONS)
def test_sheet_looks_as_agreed(condition: str) -> None:
    compare(f"status-{condition}", render.sheet(CONDITIONS[condition](), UTC).plain)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_short_status_names_only_what_is_wrong(condition: str) -> None:
    text = render.only_wrong(CONDITIONS[condition](), UTC).plain
    compare(f"status-x-{condition}", text)
    assert " online " not in text


@pytest.mark.parametrize("condition", CONDITIONS)
def test_monitoring_line_is_one_line_with_performance_data(condition: str) -> None:
    line = tables.monitoring_line(CONDITIONS[condition]())
    compare(f"check-{condition}", line)
    assert line.count("|") == 1
    assert "\n" not in line


@pytest.mark.parametrize("condition", CONDITIONS)
def test_exit_code_follows_the_state(condition: str) -> None:
    assert verdict.exit_code(CONDITIONS[condition]()) == EXIT_CODES[condition]


def alert(severity: str, *, silenced: bool = False) -> AlertInfo:
    told = {"code": "c", "severity": severity, "since": statuses.AT_TWO, "message": "m", "silenced": silenced}
    return AlertInfo.model_validate(told)


def test_open_alert_of_a_healthy_array_is_never_reported_as_all_well() -> None:
    loud = statuses.status(alerts=[alert("emergency")])
    assert verdict.exit_code(loud) == 2
    assert "is healthy" not in render.only_wrong(loud, UTC).plain
    assert verdict.exit_code(statuses.status(alerts=[alert("warning")])) == 1
    assert verdict.exit_code(statuses.status(alerts=[alert("info"), alert("critical", silenced=True)])) == 0


def test_colours_say_nothing_that_words_do_not() -> None:
    text = render.sheet(statuses.degraded(), UTC)
    plain, coloured = io.StringIO(), io.StringIO()
    Console(file=plain, force_terminal=False).print(text, soft_wrap=True)
    Console(file=coloured, force_terminal=True, color_system="standard").print(text, soft_wrap=True)
    assert plain.getvalue().rstrip("\n") == text.plain
    assert "\x1b[" in coloured.getvalue()
    assert Text.from_ansi(coloured.getvalue()).plain.rstrip("\n") == text.plain


def test_times_are_shown_in_the_operators_zone() -> None:
    assert "since 15:02" in render.sheet(statuses.degraded(), timezone(timedelta(hours=1))).plain


def test_trial_and_strange_filesystems_are_shown() -> None:
    told = statuses.healthy().model_dump()
    told["array"]["trial"] = True
    told["members"][0]["filesystem"] = "tmpfs"
    text = render.sheet(Status.model_validate(told), UTC).plain
    assert "on tmpfs" in text
    assert "protects nothing" in text


def test_what_images_wait_for_is_said() -> None:
    full = statuses.status(inbox=InboxInfo(waiting=1, reason="the array is full"))
    assert " waiting        the array is full" in render.sheet(full, UTC).plain
    assert verdict.exit_code(full) == 1
    assert "is healthy" not in render.only_wrong(full, UTC).plain
    assert "the array is full |" in tables.monitoring_line(full)
    assert verdict.exit_code(statuses.status(inbox=InboxInfo(waiting=1))) == 0


def test_a_job_without_a_rebuilding_row_has_a_line_of_its_own() -> None:
    told = statuses.status(activities=[{"kind": "repair", "slot": 1, "progress": 0.5}], scrub=ScrubInfo(state="idle"))
    assert " repair         slot 1  50 %" in render.sheet(told, UTC).plain


HOSTILE = "Rex\x1b[2J\u202e^M\u00fcller\n\x9b31m"


def test_nothing_out_of_an_image_can_steer_the_terminal() -> None:
    image = ImageInfo(
        sop_instance_uid="1.2\x1b[0m",
        version=1,
        sha256="0" * 64,
        size=1,
        state="protected",
        received_at="",
        source="",
        patient_name=HOSTILE,
        study_date="2026112\x07",
    )
    text = tables.images(ImageList(images=[image])).plain
    assert "Müller" in text
    assert not any(c in text for c in "\x1b\u202e\x9b\x07")
    assert len(text.splitlines()) == 2


@given(st.text())
def test_clean_text_is_one_line_without_controls(text: str) -> None:
    cleaned = wording.clean(text)
    assert len(cleaned) == len(text)
    assert len(cleaned.splitlines()) <= 1
    assert "\x1b" not in cleaned


def test_image_list_says_when_it_was_cut() -> None:
    assert "--limit" in tables.images(ImageList(images=[], more=True)).plain


def test_plan_says_what_will_not_fit() -> None:
    old, new = statuses.member(2, "c3d4", "", state="failed"), statuses.member(2, "77aa", "")
    reply = ReplaceReply(slot=2, started=False, old=old, new=new, rebuild_bytes=1 << 40, unfit_bytes=1 << 30)
    text = tables.plan(reply).plain
    assert "slot 2: /srv/raidd/disks/c3d4 (failed, 7.3T) is replaced by /srv/raidd/disks/77aa (7.3T)" in text
    assert "1.0 GiB will NOT fit" in text


def test_rebuild_list_counts_what_waits_and_names_what_was_skipped() -> None:
    told = RebuildStatus(priority="high", paused=True, segments_waiting=1, skipped=["segment x: unreadable"])
    assert tables.rebuild(told).plain.splitlines() == [
        "nothing is being rebuilt",
        "1 segment misses shards; priority high, paused",
        "skipped: segment x: unreadable",
    ]


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KiB"), (524_288, "512 KiB"), (1 << 30, "1.0 GiB"), (10**15, "909 TiB")],
)
def test_sizes_have_two_or_three_digits(size_bytes: int, shown: str) -> None:
    assert wording.size(size_bytes) == shown


def test_progress_is_100_percent_only_when_it_is_done() -> None:
    assert wording.percent(0.9999) == "99 %"
    assert wording.percent(1.0) == "100 %"


def test_clock_set_back_is_no_negative_time() -> None:
    now = wording.moment_of(statuses.NOW)
    assert now is not None
    assert wording.ago("2027-01-01T00:00:00Z", now) == "just now"
