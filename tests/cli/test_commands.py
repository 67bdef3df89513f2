"""`raidctl` as a process against a daemon on a real socket: what it asks, prints, and how it ends."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from raidd import api
from raidd.errors import ImageNotFound, PermissionRefused, RequestRefused, TimedOut
from tests.cli import statuses
from tests.cli.conftest import Raidctl
from tests.cli.statuses import CONDITIONS, EXIT_CODES
from tests.support.fake_daemon import FakeDaemon, stored_image

# --- status and check -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", CONDITIONS)
def test_status_and_check_end_as_monitoring_plugins_do(condition: str, raidctl: Raidctl, daemon: FakeDaemon) -> None:
    daemon.status = CONDITIONS[condition]()
    shown, checked = raidctl("status"), raidctl("check")
    assert (shown.code, checked.code) == (EXIT_CODES[condition], EXIT_CODES[condition])
    golden = Path(__file__).parent / "golden"
    assert shown.out == (golden / f"status-{condition}.txt").read_text()
    assert checked.out == (golden / f"check-{condition}.txt").read_text()
    assert shown.err == checked.err == ""


def test_status_json_has_the_shape_that_scripts_depend_on(raidctl: Raidctl, daemon: FakeDaemon) -> None:
    daemon.status = statuses.rebuilding()
    ended = raidctl("status", "--json")
    told = json.loads(ended.out)
    assert ended.code == 1
    assert set(told) >= {
        *("array", "members", "spares", "images", "inbox", "activities", "scrub", "alerts", "codec"),
    }
    assert set(told["members"][0]) >= {
        *("slot", "state", "path", "uuid", "bay", "size_bytes", "used_bytes"),
        *("errors", "since", "reason", "model", "serial"),
    }
    assert [m["slot"] for m in told["members"]] == [0, 1, 2, 2, 3]
    assert api.Status.model_validate(told) == daemon.status


def test_status_passes_on_keys_of_a_newer_daemon(raidctl: Raidctl, daemon: FakeDaemon) -> None:
    daemon.status = api.Status.model_validate({**statuses.healthy().model_dump(), "novel": 1})
    assert json.loads(raidctl("status", "--json").out)["novel"] == 1


@pytest.mark.usefixtures("daemon")
def test_short_status_of_a_healthy_array_is_one_line(raidctl: Raidctl) -> None:
    assert raidctl("status", "-x").out == "clinic-1 is healthy\n"


@pytest.mark.parametrize("verb", ["status", "check"])
def test_unreachable_daemon_is_unknown_not_critical(verb: str, raidctl: Raidctl) -> None:
    ended = raidctl(verb)
    assert ended.code == 3
    assert ended.err.splitlines()[0].startswith("raidctl: no daemon answers on ")
    assert ended.err.splitlines()[1].startswith("next: ")
    assert ended.out.startswith("RAIDD UNKNOWN - no daemon answers") if verb == "check" else ended.out == ""


@pytest.mark.parametrize("arguments", [["status", "--bogus"], ["check", "extra"], ["status", "x", "--json"]])
def test_wrong_usage_of_status_and_check_is_unknown(arguments: list[str], raidctl: Raidctl) -> None:
    ended = raidctl(*arguments)
    assert ended.code == 3
    assert f"next: raidctl {arguments[0]} --help" in ended.err


def test_stale_socket_file_is_an_unreachable_daemon(raidctl: Raidctl, tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / api.SOCKET_NAME))
    listener.close()
    assert raidctl("status").code == 3
    assert raidctl("list").code == 1


def test_something_else_on_the_socket_is_said_so(raidctl: Raidctl, daemon: FakeDaemon) -> None:
    daemon.replies[api.STATUS] = api.WaitResult()
    ended = raidctl("status")
    assert ended.code == 3
    assert "do not understand each other" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.usefixtures("daemon")
def test_wrong_settings_do_not_hide_the_daemon(raidctl: Raidctl, settings: Path) -> None:
    settings.write_text(settings.read_text() + "bogus = 1\n[ingest]\nsettle_s = 'x'\n")
    assert raidctl("status").code == 0


def test_missing_settings_file_is_a_usage_error(raidctl: Raidctl, settings: Path) -> None:
    settings.unlink()
    assert raidctl("list").code == 64
    assert raidctl("status").code == 3
    assert "there is no such settings file" in raidctl("list").err


# --- wait -------------------------------------------------------------------------------------------------------------


def test_wait_returns_when_the_daemon_says_so(raidctl: Raidctl, daemon: FakeDaemon) -> None:
    daemon.lines[api.WAIT] = [api.WaitProgress(waiting=3), api.WaitResult()]
    assert raidctl("wait", "--idle").code == 0
    assert raidctl("wait", "--healthy", "--timeout", "9").code == 0
    assert raidctl("wait").code == 0
    assert [asked[2] for asked in daemon.asked] == [
        {"idle": True, "healthy": False},
        {"idle": False, "healthy": True, "timeout_s": 9.0},
        {"idle": True, "healthy": True},
    ]


def test_wait_ends_with_4_on_timeout(raidctl: Raidctl, daemon: FakeDaemon) -> None:
    late = TimedOut("2 images still wait after 5 s")
    daemon.lines[api.WAIT] = [api.WaitProgress(waiting=2), api.error_reply(late)]
    ended = raidctl("wait", "--idle", "--timeout", "5")
    assert ended.code == 4
    assert ended.err == f"raidctl: {late.message}\nnext: {late.next_step}\n"


def test_wait_for_an_infinite_time_is_wait_without_a_limit(raidctl: Raidctl, daemon: FakeDaemon) -> None:
    daemon.lines[api.WAIT] = [api.WaitResult()]
    assert raidctl("wait", "--timeout", "inf").code == 0
    assert daemon.asked[-1][2] == {"idle": True, "healthy": True}


def test_wait_that_is_cut_off_is_no_success(raidctl: Raidctl, daemon: FakeDaemon) -> None:
    daemon.lines[api.WAIT] = [api.WaitProgress(waiting=2)]
    assert raidctl("wait").code == 1


# --- list and verify --------------------------------------------------------------------------------------------------


def test_list_sends_the_search_and_shows_whole_uids(raidctl: Raidctl, daemon: FakeDaemon) -> None:
    uid = "1.2.840.113619.2.1.1.2702429029.716.860087205.471.1234567890"
    daemon.images = [stored_image(uid, b"x", patient_name="Rex^Müller", modality="CT", study_date="20261124")]
    ended = raidctl("list", "rex", "müller", "--modality", "CT", "--date", "2026-11..", "--limit", "5")
    assert ended.code == 0
    assert uid in ended.out
    assert "2026-11-24" in ended.out
    asked = {"words": ["rex", "müller"], "modality": ["CT"], "date_from": ["20261101"], "limit": ["5"]}
    assert daemon.asked == [("GET", api.IMAGES, asked)]


def test_list_json_is_a_list_with_the_agreed_keys(raidctl: Raidctl, daemon: FakeDaemon) -> None:
    daemon.images = [stored_image("1.2", b"x", patient_name="Rex", laterality="L")]
    (told,) = json.loads(raidctl("list", "--json").out)
    assert set(told) >= {
        *("sop_instance_uid", "version", "sha256", "size", "state", "received_at", "source", "study_instance_uid"),
        *("series_instance_uid", "patient_name", "patient_id", "responsible_person", "species", "breed"),
        *("modality", "study_date", "study_description"),
    }
    assert told["laterality"] == "L"
    daemon.images = []
    assert json.loads(raidctl("list", "--json").out) == []


@pytest.mark.usefixtures("daemon")
def test_list_of_nothing_is_no_error_and_an_empty_pipe(raidctl: Raidctl) -> None:
    ended = raidctl("list", "nobody")
    assert (ended.code, ended.out, ended.err) == (0, "", "no image matches\n")


def test_list_refuses_what_is_no_date(raidctl: Raidctl, daemon: FakeDaemon) -> None:
    ended = raidctl("list", "--date", "soon")
    assert ended.code == 64
    assert "write 2026-11-24" in ended.err
    assert daemon.asked == []


def test_verify_ends_with_1_when_an_image_is_not_what_went_in(raidctl: Raidctl, daemon: FakeDaemon) -> None:
    bad = api.VerifyFailure(sop_instance_uid="1.2", version=1, error="ImageUnreadable", message="only 1 of 2 shards")
    daemon.lines[api.VERIFY] = [api.VerifyProgress(images_total=2), api.VerifyResult(verified=1, failed=[bad])]
    ended = raidctl("verify", "--all")
    assert ended.code == 1
    assert "1.2 version 1: only 1 of 2 shards" in ended.out
    assert json.loads(raidctl("verify", "1.2", "--json").out)["failed"][0]["sop_instance_uid"] == "1.2"
    daemon.lines[api.VERIFY] = [api.VerifyResult(verified=2)]
    assert raidctl("verify", "1.2", "1.3").code == 0
    assert [asked[2] for asked in daemon.asked][::2] == [
        {"uids": [], "all": True},
        {"uids": ["1.2", "1.3"], "all": False},
    ]


# --- members ----------------------------------------------------------------------------------------------------------


def test_add_sends_an_absolute_path(raidctl: Raidctl, daemon: FakeDaemon, tmp_path: Path) -> None:
    daemon.replies[api.MEMBERS] = api.MemberReply(member=statuses.member(4, "77aa", "fourth"), warnings=["look"])
    ended = raidctl("add", "disk", "--spare", "--bay", "fourth", "--allow-same-device", cwd=tmp_path)
    assert ended.code == 0
    assert ended.out == "slot 4, /srv/raidd/disks/77aa, is online\nwarning: look\n"
    asked = daemon.asked[0][2]
    assert asked["path"] == str(tmp_path / "disk")
    assert (asked["spare"], asked["bay"], asked["allow_same_device"]) == (True, "fourth", True)


def replace_reply(*, started: bool) -> api.ReplaceReply:
    old, new = statuses.member(2, "c3d4", "", state="failed"), statuses.member(2, "77aa", "")
    return api.ReplaceReply(slot=2, started=started, old=old, new=new, rebuild_bytes=1 << 40)


def test_replace_shows_the_plan_then_starts_without_asking_a_script(raidctl: Raidctl, daemon: FakeDaemon) -> None:
    daemon.replies["/v1/slots/2/replace"] = replace_reply(started=True)
    ended = raidctl("replace", "2", "/srv/raidd/disks/77aa")
    assert ended.code == 0
    assert "1.0 TiB will be re-created" in ended.out
    assert [asked[2]["dry_run"] for asked in daemon.asked] == [True, False]


def test_replace_dry_run_changes_nothing(raidctl: Raidctl, daemon: FakeDaemon) -> None:
    daemon.replies["/v1/slots/2/replace"] = replace_reply(started=False)
    ended = raidctl("replace", "2", "/x", "--dry-run", "--json")
    assert json.loads(ended.out)["rebuild_bytes"] == 1 << 40
    assert [asked[2]["dry_run"] for asked in daemon.asked] == [True]


@pytest.mark.parametrize("verb", ["offline", "online", "remove"])
def test_slot_verbs_ask_for_their_path(verb: str, raidctl: Raidctl, daemon: FakeDaemon) -> None:
    daemon.replies[f"/v1/slots/1/{verb}"] = api.MemberReply(member=statuses.member(1, "b2c3", ""), message="done")
    ended = raidctl(verb, "1")
    assert (ended.code, ended.out) == (0, "slot 1, /srv/raidd/disks/b2c3, is online: done\n")
    assert daemon.asked[0][:2] == ("POST", f"/v1/slots/1/{verb}")


@pytest.mark.parametrize(("answer", "code"), [("yes", 0), ("no", 1), ("unknown", 3)])
def test_can_remove_answers_by_its_exit_code(answer: str, code: int, raidctl: Raidctl, daemon: FakeDaemon) -> None:
    told = {"slot": 1, "answer": answer, "reason": "because"}
    daemon.replies["/v1/slots/1/can-remove"] = api.CanRemove.model_validate(told)
    ended = raidctl("can-remove", "1")
    assert (ended.code, ended.out) == (code, f"{answer}: because\n")


def test_can_remove_that_cannot_be_answered_is_unknown_not_no(raidctl: Raidctl) -> None:
    assert raidctl("can-remove", "1").code == 3
    assert raidctl("can-remove", "x").code == 64


def test_rebuild_shows_pauses_and_sets_the_priority(raidctl: Raidctl, daemon: FakeDaemon) -> None:
    daemon.replies[api.REBUILD] = api.RebuildStatus(priority="high", segments_waiting=2)
    assert "2 segments miss shards; priority high" in raidctl("rebuild").out
    raidctl("rebuild", "pause")
    raidctl("rebuild", "--priority", "high")
    assert json.loads(raidctl("rebuild", "status", "--json").out)["priority"] == "high"
    assert [(a[0], a[2]) for a in daemon.asked][:3] == [
        ("GET", {}),
        ("POST", {"action": "pause"}),
        ("POST", {"priority": "high"}),
    ]
    assert raidctl("rebuild", "--priority", "fast").code == 64
    assert raidctl("rebuild", "stop").code == 64


# --- catalog ----------------------------------------------------------------------------------------------------------


def test_catalog_check_ends_with_1_when_something_disagrees(raidctl: Raidctl, daemon: FakeDaemon) -> None:
    daemon.lines[api.CATALOG_CHECK] = [api.CheckProgress(progress=0.5), api.CheckResult(segments=3, images=9)]
    ended = raidctl("catalog", "check")
    assert (ended.code, ended.out) == (0, "3 segments and 9 images compared, all agree\n")
    daemon.lines[api.CATALOG_CHECK] = [api.CheckResult(findings=["segment x has no parts"])]
    ended = raidctl("catalog", "check")
    assert ended.code == 1
    assert ended.out.startswith("segment x has no parts\n")
    assert "next: " in ended.err


# --- how commands end -------------------------------------------------------------------------------------------------


def test_error_of_the_daemon_is_printed_with_its_own_next_step(raidctl: Raidctl, daemon: FakeDaemon) -> None:
    daemon.errors[api.MEMBERS] = RequestRefused("/x is not blank:\nit holds 3 files", next_step="Empty it first.")
    ended = raidctl("add", "/x")
    assert ended.code == 1
    assert ended.out == ""
    assert ended.err == "raidctl: /x is not blank:\nraidctl: it holds 3 files\nnext: Empty it first.\n"


def test_caller_who_may_only_look_is_told_how_to_change_that(raidctl: Raidctl, daemon: FakeDaemon) -> None:
    daemon.errors["/v1/slots/1/offline"] = PermissionRefused("only raidd-admin may do this")
    ended = raidctl("offline", "1")
    assert ended.code == 1
    assert "usermod -aG raidd-admin" in ended.err


def test_unknown_image_ends_with_1(raidctl: Raidctl, daemon: FakeDaemon) -> None:
    daemon.errors[api.VERIFY] = ImageNotFound("no image 9")
    assert raidctl("verify", "9").code == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["bogus"],
        ["--bogus"],
        ["list", "--bogus"],
        ["get"],
        ["get", "1", "--study", "2"],
        ["get", "--study", "2"],
        ["get", "--study", "2", "-o", "-"],
        ["verify"],
        ["verify", "1", "--all"],
        ["add"],
        ["replace", "2"],
        ["replace", "two", "/x"],
        ["offline", "-1"],
        ["wait", "--timeout", "soon"],
        ["catalog"],
        ["catalog", "bogus"],
        ["init", "/x"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_64_and_points_to_the_help(arguments: list[str], raidctl: Raidctl) -> None:
    ended = raidctl(*arguments)
    assert ended.code == 64
    assert ended.err.startswith("raidctl: ")
    assert "--help" in ended.err.splitlines()[-1]
    assert ended.err.splitlines()[-1].startswith("next: raidctl")


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize(
    "arguments",
    [["get", "\udcff"], ["list", "\udcff"], ["verify", "\udcff"], ["add", "/x\udcff"], ["replace", "1", "/x\udcff"]],
    ids=lambda arguments: arguments[0],
)
def test_words_that_are_no_text_are_wrong_usage_and_no_traceback(arguments: list[str], raidctl: Raidctl) -> None:
    ended = raidctl(*arguments)
    assert ended.code == 64
    assert "is not valid text (UTF-8)" in ended.err
    assert "Traceback" not in ended.err


def test_every_command_has_a_help_text_with_an_example(raidctl: Raidctl) -> None:
    top = raidctl("--help")
    assert top.code == 0
    verbs = [line.split()[0] for line in top.out.partition("Commands:")[2].splitlines() if line.strip()]
    assert {"init", "assemble", "status", "check", "wait", "list", "get", "verify", "catalog"} <= set(verbs)
    assert {"add", "replace", "offline", "online", "remove", "can-remove", "rebuild"} <= set(verbs)
    for words in [[verb] for verb in verbs if verb != "catalog"] + [["catalog", "check"], ["catalog", "reindex"]]:
        text = raidctl(*words, "--help").out
        assert f"raidctl {' '.join(words)}" in text.split("\n", 1)[1], words
        assert "..." not in text.partition("Options:")[2], words


def test_completion_knows_the_commands(raidctl: Raidctl) -> None:
    ended = raidctl(_RAIDCTL_COMPLETE="complete_bash", COMP_WORDS="raidctl re", COMP_CWORD="1")
    assert set(ended.out.split()) == {"replace", "remove", "rebuild"}
