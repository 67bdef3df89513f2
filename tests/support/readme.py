"""The README's generated parts: what `--help` prints, the settings, refusal codes, metrics, errors, the tree.

    <!-- metrics -->            begins a part; the next such line, `<!-- end -->`, ends it

`python -m tests.support.readme` writes them anew; tests/test_readme.py compares, both ways.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

import raidd
from raidd import config, config_template, errors, recover
from raidd.cli.main import app
from raidd.daemon import main as daemon_main
from raidd.daemon import metrics
from raidd.errors import RaiddError
from raidd.inbox.refusals import RefusalCode

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
WIDTH = 100
_PART = re.compile(r"^<!-- ([a-z]+) -->\n(.*?)^<!-- end -->$", re.DOTALL | re.MULTILINE)


# --- help -------------------------------------------------------------------------------------------------------------


def help_texts() -> dict[str, str]:
    """Command line -> what its --help prints, in the order of `raidctl --help`; raidd and recover.py last."""
    group: Any = get_command(app)
    found = {"raidctl": _help([])}
    for name, command in group.commands.items():
        found[f"raidctl {name}"] = _help([name])
        for child in getattr(command, "commands", {}):
            found[f"raidctl {name} {child}"] = _help([name, child])
    found["raidd"] = _of_parser(lambda: daemon_main.main(["--help"]))
    found["recover.py"] = _of_parser(lambda: recover.main(["--help"]))
    return found


def _help(words: list[str]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        get_command(app).main([*words, "--help"], prog_name="raidctl", standalone_mode=False, terminal_width=WIDTH)
    return _tidied(out.getvalue())


def _of_parser(run: Callable[[], object]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        run()
    return _tidied(out.getvalue())


def _tidied(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def help_part() -> str:
    return "".join(f"### `{words}`\n\n```text\n{text}\n```\n\n" for words, text in help_texts().items())


def typer_version() -> str:
    """Its layout of a help text changes from one minor version to the next."""
    return ".".join(typer.__version__.split(".")[:2])


# --- tables -----------------------------------------------------------------------------------------------------------


def settings_part() -> str:
    """Every key, in two tables: those that this version acts on, and those that it only checks."""
    comments, rows = _comments(), list(_keys(config.Config))
    used = [row for row in rows if _is_used(row[0])]
    later = [row for row in rows if not _is_used(row[0])]
    parts = [_settings_table(used, comments)]
    if later:
        parts += ["Accepted and checked already, acted on by later versions:\n", _settings_table(later, comments)]
    return "\n".join(parts)


def _keys(table: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(table):
        if "table" in field.metadata:
            yield from _keys(field.metadata["table"], f"{prefix}{field.name}.")
        elif "rule" in field.metadata:
            yield prefix + field.name.rstrip("_"), field.default


def _settings_table(rows: list[tuple[str, Any]], comments: dict[str, str]) -> str:
    """A row a comment: keys that share one stand together."""
    lines = ["| key | default | what |", "|---|---|---|"]
    for comment, group in itertools.groupby(rows, lambda row: comments[row[0]]):
        keys, defaults = zip(*group, strict=True)
        named = ", ".join(f"`{key}`" for key in keys)
        lines.append(f"| {named} | {', '.join(map(_shown, defaults))} | {comment} |")
    return "\n".join(lines) + "\n"


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if default is None or default in ("", ()):
        return "none"
    if isinstance(default, float) and default == int(default):
        return f"`{int(default)}`"
    return f"`{default}`" if isinstance(default, int | float) else f'`"{default}"`'


def _comments() -> dict[str, str]:
    """What the template says above each key; keys that follow each other share it."""
    found: dict[str, str] = {}
    table, done = "", True
    said: list[str] = []
    for line in config_template.template().splitlines():
        heading = re.fullmatch(r"#?\[([\w.]+)\]", line)
        key = re.match(r"#?(\w+) = ", line)
        if heading:
            table, said, done = heading[1], [], True
        elif key:
            found[f"{table}.{key[1]}"] = _sentence(said)
            done = True
        elif line.startswith("# "):
            said, done = ([] if done else said) + [line[2:]], False
        elif not line:
            done = True
    return found


def _sentence(lines: list[str]) -> str:
    """One line, without the "…" that ties a comment to the next key's."""
    text = " ".join(lines).strip("… ").removesuffix(",").replace("|", "\\|")
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


def _is_used(key: str) -> bool:
    """Does any module but the settings' own act on it? (papers.py only leaves secrets out of the copies on disks.)"""
    table, _, name = key.rpartition(".")
    wanted = re.compile(rf"\b{table.rpartition('.')[2]}\.{name}\b")
    sources = (p for p in (ROOT / "raidd").rglob("*.py") if not p.name.startswith(("config", "papers")))
    return any(wanted.search(path.read_text(encoding="utf-8")) for path in sources)


def refusals_part() -> str:
    lines = ["| code | what it means | a warning in the log |", "|---|---|---|"]
    lines += [f"| `{code}` | {code.sentence} | {'no' if code.silent else 'yes'} |" for code in RefusalCode]
    return "\n".join(lines) + "\n"


def errors_part() -> str:
    lines = ["| error | what it means | exit code | next |", "|---|---|---|---|"]
    for leaf in _leaves(RaiddError):
        said = (leaf.__doc__ or "").splitlines()[0].replace("``", "`")
        lines.append(f"| {leaf.__name__} | {said} | {leaf.exit_code} | {leaf.next_step} |")
    return "\n".join(lines) + "\n"


def _leaves(parent: type[RaiddError]) -> Iterator[type[RaiddError]]:
    for child in parent.__subclasses__():
        if child.__module__ == errors.__name__:
            below = list(_leaves(child))
            yield from below or [child]


def tree_part() -> str:
    lines = (raidd.__doc__ or "").strip().splitlines()[2:]
    return "```text\n" + "\n".join(lines) + "\n```\n"


# --- the file ---------------------------------------------------------------------------------------------------------


PARTS: dict[str, Callable[[], str]] = {
    "help": help_part,
    "settings": settings_part,
    "refusals": refusals_part,
    "metrics": metrics.table,
    "errors": errors_part,
    "tree": tree_part,
}


def parts(document: str) -> dict[str, str]:
    """Name -> what stands there."""
    return {match[1]: match[2].strip() for match in _PART.finditer(document)}


def written_anew(document: str) -> str:
    """The document with every part made again."""
    made = _PART.sub(lambda match: f"<!-- {match[1]} -->\n\n{PARTS[match[1]]().strip()}\n\n<!-- end -->", document)
    return re.sub(r"<!-- typer [\d.]+ -->", f"<!-- typer {typer_version()} -->", made)


if __name__ == "__main__":
    README.write_text(written_anew(README.read_text(encoding="utf-8")), encoding="utf-8")
