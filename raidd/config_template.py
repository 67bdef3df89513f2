"""The explained settings file that `init` writes: `systemd/raidd.toml` with some of its values changed.

The text is package data (`raidd/raidd.toml` in an installed wheel); in a source tree it is read from `systemd/`,
so there is one copy to edit. A test holds it to `config.py`: it parses to exactly the defaults and names every key.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raidd.errors import RaiddError, RequestRefused

_PLACES = (Path(__file__).with_name("raidd.toml"), Path(__file__).parent.parent / "systemd" / "raidd.toml")


def template() -> str:
    """The explained file as it is delivered, all defaults."""
    for place in _PLACES:
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise RaiddError(
        f"the settings template is missing from this installation ({_PLACES[0]})", next_step="Install raidd again."
    )


def render_template(values: Mapping[str, Any] | None = None) -> str:
    """The template with `values` put in: ``{"raidd.inbox": "/data/inbox", "ingest.keep_days": 3}``.

    Explanations stay. KeyError for a key that the template does not set (a mistake of the caller's).
    """
    text = template()
    for key, value in (values or {}).items():
        table, _, name = key.rpartition(".")
        text = _with_value(text, table, name, value)
    return text


def write_template(path: Path, values: Mapping[str, Any] | None = None) -> bool:
    """Write the rendered template to `path`, durably and whole, mode 0644; False if something is there already.

    The file holds no secret (passwords are in files of their own), and raidctl reads it as any user. Folders that
    are missing above it are made. RequestRefused when it cannot be written.
    """
    return write_settings(path, render_template(values))


def write_settings(path: Path, text: str) -> bool:
    """The same with a text of one's own: the copy that a member kept."""
    if path.exists():
        return False
    try:
        return _write_new(path, text.encode())
    except OSError as error:
        raise RequestRefused(
            f"cannot write the settings file {path}: {error.strerror}",
            next_step="Use sudo, or name a place that you may write: --config FILE",
        ) from error


def _with_value(text: str, table: str, name: str, value: Any) -> str:
    start = text.find(f"\n[{table}]")
    end = text.find("\n[", start + 1)
    section = text[start : end if end >= 0 else len(text)]
    changed, count = re.subn(rf"(?m)^{re.escape(name)} = .*$", lambda _: f"{name} = {_toml_value(value)}", section)
    if start < 0 or count != 1:
        raise KeyError(f"{table}.{name}")
    return text.replace(section, changed, 1)


def _toml_value(value: Any) -> str:
    """A TOML literal. JSON's strings are TOML's basic strings, but for DEL."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _write_new(path: Path, content: bytes) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # never over a file that came meanwhile
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    _sync_folder(path.parent)
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
