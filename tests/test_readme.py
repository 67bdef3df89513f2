"""The README is true: its screens are what the screen shows, its tables and help texts are what the program says.

The console blocks are run once, in order, in one shell and a sandbox, against a real raidd; the rest is compared with
what `tests/support/readme.py` makes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from raidd.daemon.metrics import METRICS
from raidd.inbox.refusals import RefusalCode
from tests.support import console, readme
from tests.support.console import Shell, Step

DOCUMENT = readme.README.read_text(encoding="utf-8")
PARTS = readme.parts(DOCUMENT)
STEPS = console.steps(DOCUMENT)

pytestmark = [pytest.mark.xdist_group("readme"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    with console.sandbox(tmp_path_factory.mktemp("vet")) as shell:
        yield shell


def test_every_console_block_shows_what_the_screen_shows(shell: Shell) -> None:
    assert len(STEPS) > 60
    for step in STEPS:
        seen = console.perform(shell, step)
        written, screen = "\n".join(step.shown), "\n".join(seen)
        assert console.as_written(step, seen), (
            f"README.md, line {step.line}: $ {step.command}\n--- written\n{written}\n--- on the screen\n{screen}"
        )


def test_every_part_that_can_be_made_is_there() -> None:
    assert set(PARTS) == set(readme.PARTS)


@pytest.mark.parametrize("name", [name for name in readme.PARTS if name != "help"])
def test_a_generated_part_is_up_to_date(name: str) -> None:
    """If not: python -m tests.support.readme."""
    assert PARTS[name] == readme.PARTS[name]().strip()


def test_the_help_texts_are_what_help_prints() -> None:
    """Word for word with the Typer they were made with; another lays them out in its own way: the same words then."""
    made_with = re.search(r"<!-- typer ([\d.]+) -->", DOCUMENT)
    assert made_with is not None
    written, printed = PARTS["help"], readme.help_part().strip()
    if made_with[1] == readme.typer_version():
        assert written == printed
    else:
        assert options(written) == options(printed)


def options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+|^### `.*`$", text, re.MULTILINE))


def test_every_metric_is_in_the_table_and_nothing_else() -> None:
    listed = re.findall(r"^\| `(raidd_\w+)` \|", DOCUMENT, re.MULTILINE)
    assert listed == [row.name for row in METRICS]


def test_every_refusal_code_is_in_the_table_and_nothing_else() -> None:
    listed = re.findall(r"^\| `([a-z-]+)` \|", PARTS["refusals"], re.MULTILINE)
    assert listed == list(RefusalCode)


def test_the_first_screen_names_the_two_commands() -> None:
    first = "\n".join(DOCUMENT.splitlines()[:15])
    assert "make demo" in first
    assert "make test" in first


def test_links_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", DOCUMENT, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)]+)\)", DOCUMENT):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        else:
            assert (readme.ROOT / target).exists(), target


# --- the comparison itself must be able to fail -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "seen"),
    [
        (["trial   raid6   HEALTHY"], ["trial raid6 DEGRADED"]),
        (["3 images verified, 0 failed"], ["2 images verified, 1 failed"]),
        (["a", "b"], ["a"]),
        (["a"], ["a", "b"]),
        ([], ["a"]),
        (["a", "…", "d"], ["a", "b", "c"]),
        ([" 0     online   /home/vet/trial/disk0"], [" 0     missing  /home/vet/trial/disk0"]),
    ],
)
def test_another_screen_is_noticed(shown: list[str], seen: list[str]) -> None:
    assert not console.agree(shown, seen)


@pytest.mark.parametrize(
    ("shown", "seen"),
    [
        (["a", "…", "d"], ["a", "b", "c", "d"]),
        (["a", "…"], ["a"]),
        (["x … z"], ["x y z"]),
        (["room for 149 GiB, last stored 2 s ago"], ["room for 1.9 TiB, last stored just now"]),
        (["  0  online  /d/disk0   …7355   252G  69 %  0"], ["0 online /d/disk0 1.8T 3 % 0"]),
        (["1 missing /d/disk1 252G – 1 since 06:00: gone"], ["1 missing /d/disk1 3.6T – 2 since 23:59: away on tmpfs"]),
        (["  slot 1  /d/disk1  ext4"], ["  slot 1  /d/disk1  overlay"]),
    ],
)
def test_what_differs_from_run_to_run_does_not_matter(shown: list[str], seen: list[str]) -> None:
    assert console.agree(shown, seen)


def test_commands_go_on_over_several_lines() -> None:
    text = "x\n```console\n$ cat <<E\n> a\n> E\na\n$ true\n$ ls\nb\nc\n```\n"
    found = console.steps(text)
    assert found == [Step("cat <<E\na\nE", ("a",), 3), Step("true", (), 7), Step("ls", ("b", "c"), 8)]


def test_a_command_that_prints_no_line_end_loses_nothing(tmp_path: Path) -> None:
    with console.sandbox(tmp_path) as shell:
        assert shell.run("printf 'a\\nb'") == ["a", "b"]
        assert shell.run("true") == []
        assert shell.run("echo; echo a") == ["", "a"]
        assert shell.run("pwd") == [console.HOME]
