"""`raidd` as a process: how it begins, what it refuses, what it takes at SIGHUP, how it ends, who is recorded."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raidd.daemon.main import main
from tests.support.load import image
from tests.support.real_daemon import Answer, RealDaemon, member_folders, real_daemon

# -- the command line ------------------------------------------------------------------------------------------------


def run(*words: str) -> Answer:
    """`raidd` with these words, which has to end by itself."""
    done = subprocess.run(
        [sys.executable, "-m", "raidd.daemon.main", *words], capture_output=True, check=False, timeout=120
    )
    return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())


def checked(capsys: pytest.CaptureFixture[str], file: Path) -> Answer:
    code = main(["--check-config", "--config", str(file)])
    said = capsys.readouterr()
    return Answer(code, said.out, said.err)


def test_right_settings_are_called_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "raidd.toml"
    file.write_text("[ingest]\nkeep_days = 3\n[offsite]\nurl = 'later'\n")
    answer = checked(capsys, file).ok()
    assert answer.stdout.splitlines()[0] == f"{file}: the settings are right"
    assert "[offsite] is not used yet" in answer.stdout


def test_wrong_settings_are_all_named_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "raidd.toml"
    file.write_text('[ingest]\nsettle = 3\nkeep_days = "x"\n[repair]\npriority = "urgent"\n')
    answer = checked(capsys, file)
    assert answer.code == 64
    for words in ("ingest.settle = 3: unknown key; did you mean settle_s?", 'keep_days = "x"', '"urgent"'):
        assert words in answer.stderr
    assert answer.stderr.splitlines()[-1].startswith("next: ")
    assert answer.stdout == ""


@pytest.mark.parametrize("kind", ["missing", "folder", "latin-1", "not toml"])
def test_settings_that_cannot_be_read_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    file = tmp_path / "raidd.toml"
    if kind == "folder":
        file.mkdir()
    elif kind != "missing":
        file.write_bytes(b"[contact]\nname = 'M\xfcller'\n" if kind == "latin-1" else b"= =")
    answer = checked(capsys, file)
    assert answer.code == 64
    assert answer.stderr.startswith(f"raidd: {file}: ")
    assert "Traceback" not in answer.stderr


def test_a_wrong_word_is_wrong_usage(tmp_path: Path) -> None:
    answer = run("--bogus", str(tmp_path))
    assert (answer.code, answer.stderr.splitlines()[-1]) == (64, "next: raidd --help")


def test_without_an_array_it_says_how_to_get_one(tmp_path: Path) -> None:
    file = tmp_path / "raidd.toml"
    places = {"state_dir": "state", "run_dir": "run", "inbox": "inbox", "spool": "spool"}
    file.write_text("[raidd]\n" + "".join(f'{key} = "{tmp_path / name}"\n' for key, name in places.items()))
    answer = run("--config", str(file))
    assert answer.code == 1
    assert "no array is known on this machine" in answer.stderr
    assert "raidctl init" in answer.stderr.splitlines()[-1]
    assert "Traceback" not in answer.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["raidd.toml"], "nothing is made by a refused start"


# -- one daemon for what changes nothing -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealDaemon]:
    """A running array of three members with two images. Tests leave it as they find it."""
    home = tmp_path_factory.mktemp("shared")
    with real_daemon(home, member_folders(home, 3), level="raid5", trial=True, start=False) as raidd:
        shutil.rmtree(raidd.home / "run")  # as /run is after a boot
        raidd.start()
        for number in (1, 2):
            raidd.deliveries.drop(f"{number}.dcm", image(f"1.2.{number}", b"pixels" * 1000), f"1.2.{number}")
        raidd.wait_idle()
        yield raidd


def test_a_second_daemon_is_refused_and_the_first_goes_on(shared: RealDaemon) -> None:
    answer = run("--config", str(shared.config))
    assert answer.code == 1
    assert "in use by process" in answer.stderr
    assert "systemctl stop raidd" in answer.stderr.splitlines()[-1]
    assert shared.answers()
    shared.assert_reads_back(shared.deliveries.acknowledged())


@pytest.mark.parametrize("command", [("catalog", "reindex"), ("assemble",)])
def test_commands_that_run_without_the_daemon_are_refused_beside_it(shared: RealDaemon, command: list[str]) -> None:
    mounts = map(str, shared.members) if command == ("assemble",) else ()
    answer = shared.raidctl(*command, *mounts)
    assert answer.code == 1
    assert "in use by process" in answer.stderr
    assert "systemctl stop raidd" in answer.stderr.splitlines()[-1]
    shared.assert_reads_back(shared.deliveries.acknowledged())


def journal(raidd: RealDaemon, member: int = 0) -> list[dict[str, Any]]:
    files = sorted((raidd.member_folder(member) / "journal").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_bytes().splitlines() if line.endswith(b"}")]


def open_files(raidd: RealDaemon, member: int) -> list[Path]:
    """What the process has open on a member."""
    assert raidd.process is not None
    links = [Path(f"/proc/{raidd.process.pid}/fd/{name}") for name in os.listdir(f"/proc/{raidd.process.pid}/fd")]
    targets = [link.readlink() for link in links if link.is_symlink()]
    return [target for target in targets if target.is_relative_to(raidd.members[member])]


def test_taking_a_disk_offline_that_images_need_is_refused(shared: RealDaemon) -> None:
    refused = shared.raidctl("offline", "1")
    assert refused.code == 1, "raid5: two images would not survive another failure"
    assert "2 images would be lost with the next disk" in refused.stderr
    assert shared.states() == {0: "online", 1: "online", 2: "online"}


def test_the_journal_on_the_members_knows_who_changed_what(shared: RealDaemon) -> None:
    shared.raidctl("rebuild", "--priority", "high").ok()
    shared.raidctl("rebuild", "--priority", "normal").ok()
    me = subprocess.run(["id", "-un"], capture_output=True, check=True, text=True).stdout.strip()
    told = lambda: [(one["actor"], one["action"], one["detail"]) for one in journal(shared)]  # noqa: E731
    shared.until(lambda: (me, "rebuild", {"priority": "normal"}) in told(), "the journal is on the members")
    assert (me, "rebuild", {"priority": "high"}) in told()


def test_an_unknown_setting_at_sighup_is_refused_and_nothing_changes(shared: RealDaemon) -> None:
    before, text = shared.status()["array"], shared.config.read_text()
    try:
        shared.config.write_text(text + "\n[nonsense]\nx = 1\n")
        hang_up(shared)
        shared.until(lambda: "reload-refused" in shared.log_end(), "the reload is refused")
        assert "nonsense" in shared.log_end()
        assert shared.status()["array"] == before
    finally:
        shared.config.write_text(text)


def hang_up(raidd: RealDaemon) -> None:
    assert raidd.process is not None
    raidd.process.send_signal(signal.SIGHUP)


def test_a_changed_file_is_taken_at_sighup(shared: RealDaemon) -> None:
    """The repair's priority, whom to call (labels, README), and the reserve of the system disk; places need a start."""
    text = shared.config.read_text()
    try:
        shared.write_settings(
            {
                "repair": {"priority": "high"},
                "contact": {"name": "Dr. Ä"},
                "metrics": {"listen": "127.0.0.1:1"},
                "capacity": {"state_reserve_mib": 1_000_000},
            }
        )
        hang_up(shared)
        shared.until(lambda: shared.raidctl("rebuild", "--json").ok().json()["priority"] == "high", "it is taken")
        for number in range(3):
            folder = shared.member_folder(number)
            shared.until(lambda at=folder: "Dr. Ä" in (at / "README.txt").read_text(), "the README names the contact")
            assert json.loads((folder / "label.json").read_bytes())["contact"] == "Dr. Ä"
        assert "restart-needed" in shared.log_end()
        assert "settings=metrics" in shared.log_end()
        check_that_a_full_system_disk_stops_ingest_and_not_reads(shared)
    finally:
        shared.config.write_text(text)
        hang_up(shared)
    shared.wait_idle()
    shared.assert_reads_back(shared.deliveries.dropped.values())


def check_that_a_full_system_disk_stops_ingest_and_not_reads(raidd: RealDaemon) -> None:
    """state_dir is below its reserve: images wait, it is said why and what to do, and what is stored can be read."""
    stored = raidd.deliveries.acknowledged()
    raidd.deliveries.drop("3.dcm", image("1.2.3", b"pixels"), "1.2.3")
    late = raidd.raidctl("wait", "--idle", "--timeout", "3")
    assert late.code == 4
    assert "1 image waits" in late.stderr
    assert "make room there" in late.stderr
    assert len(raidd.deliveries.waiting()) == 1
    raidd.assert_reads_back(stored)
    checked = raidd.raidctl("check")
    assert checked.code == 1, "images that wait are a warning"
    assert "the system disk has" in checked.stdout


# -- ends ------------------------------------------------------------------------------------------------------------


def test_sigterm_amid_a_delivery_ends_it_in_time_and_loses_nothing(tmp_path: Path) -> None:
    with real_daemon(tmp_path / "home", member_folders(tmp_path, 3), level="raid5", trial=True) as raidd:
        for number in range(60):
            raidd.deliveries.drop(f"{number}.dcm", image(f"1.2.{number}", b"p%d" % number * 50_000), f"1.2.{number}")
        raidd.until(lambda: raidd.status()["images"]["count"] > 0, "some are stored")
        assert raidd.stop() == 0
        assert "stopped-without" not in raidd.log_end()
        assert not raidd.socket.exists()
        assert [path for folder in raidd.members for path in folder.glob("raidd-*/tmp/*")] == []
        owed = raidd.deliveries.acknowledged()
        raidd.start()
        raidd.assert_reads_back(owed)
        raidd.wait_idle()
        raidd.assert_reads_back(raidd.deliveries.dropped.values())
        raidd.raidctl("catalog", "check").ok()


def test_a_taken_metrics_port_is_an_event_and_no_stop(tmp_path: Path) -> None:
    with (
        socket.socket() as taken,
        real_daemon(tmp_path / "home", member_folders(tmp_path, 2), level="mirror", trial=True, start=False) as raidd,
    ):
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", raidd.port))
        taken.listen()
        raidd.start()
        assert "metrics-unserved" in raidd.log_end()
        assert f"127.0.0.1:{raidd.port}" in raidd.log_end()
        raidd.deliveries.drop("1.dcm", image("1.2.1", b"pixels"), "1.2.1")
        raidd.wait_idle()
        raidd.assert_reads_back(raidd.deliveries.dropped.values())


def test_an_offline_member_can_be_unmounted_also_after_a_restart(tmp_path: Path) -> None:
    with real_daemon(tmp_path / "home", member_folders(tmp_path, 4), level="raid6", trial=True) as raidd:
        raidd.raidctl("offline", "1").ok()
        raidd.until(lambda: open_files(raidd, 1) == [], "its lock is closed")
        raidd.restart()
        assert raidd.states()[1] == "offline"
        assert open_files(raidd, 1) == []
        assert open_files(raidd, 0) != []
        row = next(row for row in raidd.status()["members"] if row["slot"] == 1)
        assert row["reason"] == "taken offline by the operator"
        raidd.raidctl("online", "1").ok()
        raidd.wait_healthy()
        assert open_files(raidd, 1) != []
        assert [one["action"] for one in journal(raidd) if one["action"] in ("offline", "online")][:1] == ["offline"]


def test_a_state_dir_that_fails_ends_the_process_with_the_reason(tmp_path: Path) -> None:
    """array.json cannot be replaced any more: an operator's change is answered with the error, and raidd ends."""
    with real_daemon(tmp_path / "home", member_folders(tmp_path, 4), level="raid6", trial=True) as raidd:
        (raidd.state / "array.json").unlink()
        (raidd.state / "array.json").mkdir()
        answer = raidd.raidctl("offline", "1")
        assert answer.code == 1
        assert "array.json" in answer.stderr
        assert raidd.process is not None
        assert raidd.process.wait(90) == 1
        assert "Check the system's disk" in raidd.log_end()
