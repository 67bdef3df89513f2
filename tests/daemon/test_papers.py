"""README.txt, recover.py and the copy of the settings: true, up to date, and without secrets."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from raidd import config, recover
from raidd.config import Contact
from raidd.config_template import template
from raidd.daemon.papers import LEFT_OUT, contact_line, papers, without_secrets
from tests.support.rosters import roster_of

SECRETS = """
[alerts]
# urls = ["ntfys://commented"] stays
urls = ["tgram://123456:AAtoken/42", 'mailtos://me:password@host?a=b', "ntfys://to\\"pic"]
heartbeat_url = "https://hc-ping.com/4f8e-uuid"
escalate_to = ["pover://user@token"]
"""


def test_the_readme_names_array_disks_contact_and_the_way_back() -> None:
    roster = roster_of(6).successor(contact="Dr. Ä 0123")
    text = papers(roster, None)["README.txt"].decode()
    for words in (
        roster.array_name,
        str(roster.array),
        "6 disks",
        "any 4 of them",
        "Dr. Ä 0123",
        "4 data and 2 parity",
    ):
        assert words in text
    assert "python3 recover.py --out FOLDER MOUNT" in text


def test_the_readme_counts_right_where_the_width_is_below_the_disks() -> None:
    """Two copies on six disks: any five hold everything, any one does not."""
    assert "any 5 of them" in papers(roster_of(6, 1, 1, "mirror"), None)["README.txt"].decode()


def test_without_a_contact_nobody_is_named() -> None:
    assert "Whom to call" not in papers(roster_of(4), None)["README.txt"].decode()


def test_recover_is_this_versions() -> None:
    assert papers(roster_of(4), None)["recover.py"] == Path(recover.__file__).read_bytes()


def test_the_settings_are_copied_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "raidd.toml"
    file.write_text(template())
    assert papers(roster_of(4), file)["config/raidd.toml"].decode() == template()


def test_addresses_that_carry_secrets_are_left_out_of_the_copy(tmp_path: Path) -> None:
    file = tmp_path / "raidd.toml"
    file.write_text(SECRETS)
    copy = papers(roster_of(4), file)["config/raidd.toml"].decode()
    for secret in ("token", "password", "4f8e", "pic", "hc-ping"):
        assert secret not in copy
    assert "ntfys://commented" in copy
    settings = config.parse(copy)
    assert settings.alerts.urls == (f"tgram://{LEFT_OUT}", f"mailtos://{LEFT_OUT}", f"ntfys://{LEFT_OUT}")
    assert settings.alerts.heartbeat_url == f"https://{LEFT_OUT}"
    assert settings.alerts.escalate_to == (f"pover://{LEFT_OUT}",)


@pytest.mark.parametrize("text", [SECRETS, template(), "a = 1 # x://y\n", "", 'a = "é"\r\nb = "s://t"'])
def test_the_copy_is_still_a_settings_file(text: str) -> None:
    assert tomllib.loads(without_secrets(text)).keys() == tomllib.loads(text).keys()


def test_settings_that_cannot_be_read_leave_the_members_copy_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "latin1.toml").write_bytes(b'[contact]\nname = "M\xfcller"\n')
    for path in (tmp_path / "nowhere", tmp_path, tmp_path / "latin1.toml"):
        assert "config/raidd.toml" not in papers(roster_of(4), path)


def test_whom_to_call_is_one_line() -> None:
    assert contact_line(Contact("Dr. Ä", "0123")) == "Dr. Ä 0123"
    assert contact_line(Contact("", "0123")) == "0123"
    assert contact_line(Contact("", "")) == ""
