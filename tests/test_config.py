"""The settings: what they accept, and that a fault is never silent, alone, or without a way out."""

from __future__ import annotations

import re
import string
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raidd import config
from raidd.config import Config, load, parse
from raidd.config_rules import parse_window
from raidd.config_template import render_template, template, write_template
from raidd.errors import ConfigInvalid


def faults_of(document: str) -> tuple[str, ...]:
    with pytest.raises(ConfigInvalid) as caught:
        parse(document)
    return caught.value.faults


def with_mail(text: str) -> str:
    """The template with its mail table switched on."""
    return re.sub(r"(?m)^#(\[|\w+ = )", r"\1", text)


def test_template_parses_to_exactly_the_defaults() -> None:
    assert parse(template()) == Config()


def test_empty_file_means_the_defaults() -> None:
    assert parse("") == Config()


def test_template_names_every_key() -> None:
    named = tomllib.loads(with_mail(template()))
    assert {"raidd", *(name for name, _ in config._tables())} == _tables_in(named)
    for name, cls in config._tables():
        table: Any = named
        for part in name.split("."):
            table = table[part]
        expected = {f.name.rstrip("_") for f in config.dataclasses.fields(cls) if "rule" in f.metadata}
        assert expected == {key for key, value in table.items() if not isinstance(value, dict)}, name


def _tables_in(document: dict[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for key, value in document.items():
        if isinstance(value, dict):
            found |= {prefix + key} | _tables_in(value, f"{prefix}{key}.")
    return found


def test_template_explains_every_key_in_a_comment_above_it() -> None:
    lines = template().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"#?\w+ = ", line):
            above = [text for text in lines[:number] if not re.match(r"#?(\w+ = |\[)", text) and text]
            assert above[-1].startswith("# "), line


def test_mail_table_of_the_template_works_when_uncommented() -> None:
    mail = parse(with_mail(template())).alerts.mail
    assert mail is not None
    assert (mail.host, mail.from_, mail.to) == (
        "mail.clinic.example",
        "raidd@clinic.example",
        ("owner@clinic.example",),
    )


def test_render_template_changes_only_what_it_is_told() -> None:
    text = render_template({"raidd.inbox": '/data/"x"/inbox', "ingest.keep_days": 3, "health.self_heal": False})
    settings = parse(text)
    assert settings.raidd.inbox == Path('/data/"x"/inbox')
    assert (settings.ingest.keep_days, settings.health.self_heal) == (3, False)
    assert len(text.splitlines()) == len(template().splitlines())
    assert settings.raidd.spool == Config().raidd.spool


def test_render_template_refuses_a_key_it_does_not_set() -> None:
    with pytest.raises(KeyError):
        render_template({"raidd.settle_s": 1})


def test_write_template_never_touches_an_existing_file(tmp_path: Path) -> None:
    target = tmp_path / "etc" / "raidd.toml"
    assert write_template(target, {"contact.name": "Dr. Møller"})
    assert load(target).contact.name == "Dr. Møller"
    target.write_text("# mine")
    assert not write_template(target)
    assert target.read_text() == "# mine"
    assert [p.name for p in target.parent.iterdir()] == ["raidd.toml"]


def test_all_faults_are_named_at_once() -> None:
    faults = faults_of(
        """
        [raidd]
        inbx = "/x"
        [ingest]
        settle_s = "2"
        [repair]
        priority = "fast"
        [alerts.buzzer]
        device = "horn"
        """
    )
    assert len(faults) == 4
    assert 'raidd.inbx = "/x": unknown key; did you mean inbox?' in faults[0]
    assert "accepts state_dir, run_dir, inbox, spool" in faults[0]
    assert 'ingest.settle_s = "2": must be a number from 0 to 3600' in faults[1]
    assert 'repair.priority = "fast": must be one of "low", "normal", "high", "pause"' in faults[2]
    assert 'alerts.buzzer.device = "horn"' in faults[3]


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("[raidd]\nstate_dir = 'relative'", "raidd.state_dir"),
        ("[raidd]\nstate_dir = '/'", "raidd.state_dir"),
        ("[raidd]\nstate_dir = '/a/../b'", "raidd.state_dir"),
        ("[ingest]\nsettle_s = true", "ingest.settle_s"),
        ("[ingest]\nsettle_s = nan", "ingest.settle_s"),
        ("[ingest]\nsettle_s = inf", "ingest.settle_s"),
        ("[ingest]\nkeep_days = 1.5", "ingest.keep_days"),
        ("[ingest]\nkeep_days = -1", "ingest.keep_days"),
        ("[health]\nauto_replace = 1", "health.auto_replace"),
        ("[health]\ndeadline_s = 0", "health.deadline_s"),
        ("[repair]\nscrub_window = '20:00'", "repair.scrub_window"),
        ("[repair]\nscrub_window = '24:00-06:00'", "repair.scrub_window"),
        ("[repair]\nscrub_window = '06:00-06:00'", "repair.scrub_window"),
        ("[alerts]\nweekly = 'Monday 08:00'", "alerts.weekly"),
        ("[alerts]\nurls = 'ntfys://x'", "alerts.urls"),
        ("[alerts]\nurls = ['nonsense']", "alerts.urls"),
        ("[alerts]\nheartbeat_url = 'ftp://x'", "alerts.heartbeat_url"),
        ("[metrics]\nlisten = '9850'", "metrics.listen"),
        ("[metrics]\nlisten = 'example.org:9850'", "metrics.listen"),
        ("[metrics]\nlisten = '127.0.0.1:99999'", "metrics.listen"),
        ("[contact]\nname = 'a\\nb'\nphone = \"a\\u0007\"", "contact.phone"),
        ("contact = 'me'", "contact"),
        ("[alerts]\nmail = 'me'", "alerts.mail"),
        ("retention = 7", "retention"),
        ("[gateway]\nhttp = 80", "gateway.http"),
        ("[gateway]\nftp = {}", "gateway.ftp"),
    ],
)
def test_unacceptable_value_is_named_with_its_key(line: str, key: str) -> None:
    faults = faults_of(line)
    assert len(faults) == 1
    assert faults[0].startswith(f"raidd.toml: {key} = ")
    assert "must be" in faults[0] or "unknown" in faults[0]


def test_key_in_the_wrong_table_is_sent_home() -> None:
    (fault,) = faults_of("[raidd]\nsettle_s = 1")
    assert "it belongs in [ingest]" in fault


def test_unknown_table_lists_the_tables() -> None:
    (fault,) = faults_of("[healt]\nx = 1")
    assert "unknown table; did you mean health?" in fault
    assert "[gateway.dicom]" in fault


def test_what_looks_like_a_secret_is_not_shown() -> None:
    assert "hunter2" not in "".join(faults_of("[alerts.mail]\nhost='h'\nfrom='a@b'\nto=['a@b']\npassword = 'hunter2'"))


def test_tables_of_parts_to_come_are_tolerated_and_told() -> None:
    settings = parse("[gateway.dicom]\nport = 11112\n[gateway.http]\n[retention]\nyears = 7\n[offsite]\n")
    assert settings == Config()
    assert settings.not_yet_used == ("gateway.dicom", "gateway.http", "retention", "offsite")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("inbox = '/var/lib/raidd/inbox'", "state_dir"),
        ("inbox = '/var/lib'", "state_dir"),
        ("inbox = '/run/raidd'", "run_dir"),
        ("inbox = '/srv/raidd/spool'", "spool"),
        ("spool = '/srv/raidd/inbox/net'", "inbox"),
        ("spool = '/srv/raidd/inbox-rejected'", "<inbox>-rejected"),
        ("state_dir = '/srv/raidd/inbox-stored/x'", "<inbox>-stored"),
    ],
)
def test_folders_that_would_feed_on_each_other_are_refused(first: str, second: str) -> None:
    assert any(second in fault and "inside" in fault for fault in faults_of(f"[raidd]\n{first}"))


def test_a_folder_whose_name_only_begins_alike_is_another_one() -> None:
    assert parse("[raidd]\ninbox = '/var/lib/raidd-inbox'").raidd.inbox == Path("/var/lib/raidd-inbox")


def test_contradicting_keys_are_refused() -> None:
    assert "repair.floor_mib_s" in faults_of("[repair]\nrate_mib_s = 4")[0]
    assert "reserve_percent" in faults_of("[capacity]\nwarn_percent = 99\nreserve_percent = 5")[0]
    assert "[alerts.mail]" in faults_of("[alerts]\nescalate_to = ['a@b']")[0]
    assert parse("[alerts]\nescalate_to = ['ntfys://x']").alerts.escalate_to == ("ntfys://x",)


def test_a_mail_table_must_be_able_to_send() -> None:
    faults = faults_of("[alerts.mail]\nport = 25")
    assert [re.search(r"alerts\.mail\.(\w+)", fault)[1] for fault in faults] == ["host", "from", "to"]  # type: ignore[index]


def test_password_that_others_can_read_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    settings = tmp_path / "raidd.toml"
    settings.write_text(f"[alerts.mail]\nhost='h'\nfrom='a@b'\nto=['c@d']\npassword_file='{secret}'\n")
    secret.chmod(0o644)
    with pytest.raises(ConfigInvalid, match=r"others can read it; chmod o="):
        load(settings)
    secret.chmod(0o640)
    assert load(settings).alerts.mail is not None
    secret.unlink()
    with pytest.raises(ConfigInvalid, match="password_file"):
        load(settings)


def test_load_says_what_is_wrong_with_the_file_itself(tmp_path: Path) -> None:
    path = tmp_path / "raidd.toml"
    with pytest.raises(ConfigInvalid, match="no such settings file"):
        load(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigInvalid, match="UTF-8"):
        load(path)
    path.write_text("[raidd\n")
    with pytest.raises(ConfigInvalid, match="line 1"):
        load(path)
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        load(tmp_path)


def test_run_dir_is_found_whatever_else_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "raidd.toml"
    path.write_text("[raidd]\nrun_dir = '/tmp/here'\nbogus = 1\n[ingest]\nsettle_s = 'x'\n")
    assert config.run_dir(path) == Path("/tmp/here")
    path.write_text("[raidd]\nrun_dir = 'here'\n")
    with pytest.raises(ConfigInvalid, match=r"raidd\.run_dir"):
        config.run_dir(path)


def test_config_path_prefers_the_option_then_the_variable() -> None:
    assert config.config_path("/a", {"RAIDD_CONFIG": "/b"}) == Path("/a")
    assert config.config_path(None, {"RAIDD_CONFIG": "/b"}) == Path("/b")
    assert config.config_path(None, {"RAIDD_CONFIG": ""}) == config.DEFAULT_PATH
    assert config.config_path("a", {}).is_absolute()


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Config().ingest.settle_s = 3.0  # type: ignore[misc]


def test_window_is_read_as_times_of_day() -> None:
    window = parse_window("20:00-06:00")
    assert window is not None
    assert (window[0].hour, window[1].hour) == (20, 6)
    assert parse_window("") is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(string.printable, max_size=8),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["mail", "x", "to"]), inner, max_size=2)
    ),
    max_leaves=4,
)
TABLES = [name for name, _ in config._tables()] + ["gateway", "retention", "x"]
KEYS = [*sorted({f.name.rstrip("_") for _, cls in config._tables() for f in config.dataclasses.fields(cls)}), "x"]


@given(
    st.dictionaries(
        st.sampled_from([t.partition(".")[0] for t in TABLES]),
        VALUES | st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4),
        max_size=4,
    )
)
def test_any_document_gives_settings_or_faults_that_name_something(document: dict[str, Any]) -> None:
    faults: list[str] = []
    list(config._take_not_yet_used(document, faults))
    settings = config._table(Config, document, "", faults)
    faults += config._path_faults(settings) + config._relation_faults(settings, document)
    assert all(re.match(r'["\w<]', fault) and ": " in fault for fault in faults)
