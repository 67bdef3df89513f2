"""What an array has on this machine: its settings file, its folders, what is remembered of it, and whose they are.

Run by root, all of it belongs to user raidd if there is one (operator.md, init): what `init` makes is given away, and
whoever writes as the daemon does becomes that user first. What exists already is left as it is, its owner excepted.
"""

from __future__ import annotations

import os
import pwd
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from raidd import config as settings
from raidd.array.state_file import StateFile
from raidd.config import Config
from raidd.config_template import render_template
from raidd.config_template import write_settings as write_new_settings
from raidd.errors import RequestRefused

USER = "raidd"
Owner = tuple[int, int] | None
"""User and group, None for whoever runs this."""


def owner_here() -> Owner:
    """User raidd if it exists and root runs this, else the caller."""
    if os.geteuid() != 0:
        return None
    try:
        user = pwd.getpwnam(USER)
    except KeyError:
        return None
    return user.pw_uid, user.pw_gid


def is_missing(path: Path) -> bool:
    """Not there. What cannot be looked at may be there: whoever opens it says why it cannot."""
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def load_or_template(path: Path) -> tuple[Config, str | None]:
    """The settings; if there is no file yet, the defaults and the text to write."""
    if not is_missing(path):
        return settings.load(path), None
    text = render_template()
    return replace(settings.parse(text, str(path)), path=path), text


def write_settings(path: Path, text: str | None, owner: Owner) -> None:
    if text is not None and write_new_settings(path, text):
        give(path, owner)


def nearest_existing(path: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    while is_missing(path):
        path = path.parent
    return path


def make_folders(config: Config, owner: Owner) -> None:
    """Those that are missing. The socket's can be passed by all (the socket itself cannot), state_dir by its owner."""
    places = config.raidd
    modes = {places.state_dir: 0o700, places.run_dir: 0o755, places.inbox: 0o770, places.spool: 0o770}
    for folder, mode in modes.items():
        try:
            if not os.path.isdir(folder):
                folder.mkdir(parents=True)
                folder.chmod(mode)
                if owner is not None:
                    os.chown(folder, *owner)
        except OSError as error:
            raise RequestRefused(
                f"{folder} cannot be made: {error.strerror}",
                next_step="Run it as root, or name folders of your own in the settings file (--config FILE).",
            ) from error


def refuse_other_array(config: Config, array: UUID | None = None) -> None:
    """``array``: the one that may be there already."""
    known = None if is_missing(config.raidd.state_dir) else StateFile(config.raidd.state_dir).load()
    if known is not None and known.roster.array != array:
        raise RequestRefused(
            f"{config.raidd.state_dir} already belongs to array {known.roster.array_name}",
            next_step="One array per state_dir: name another settings file, or add the disks: raidctl add MOUNT",
        )


def own(folder: Path, owner: Owner) -> None:
    """Give the folder and what lies in it away."""
    if owner is None:
        return
    try:
        inside = list(folder.iterdir())
    except OSError as error:
        raise RequestRefused(
            f"{folder} cannot be read: {error.strerror}", next_step=f"Look at it first: ls -la {folder}"
        ) from error
    for path in (folder, *inside):
        give(path, owner)


def give(path: Path, owner: Owner) -> None:
    if owner is None:
        return
    try:
        os.chown(path, *owner)
    except OSError as error:
        raise RequestRefused(
            f"{path} cannot be given to user {USER}: {error.strerror}", next_step=f"sudo chown {USER} {path}"
        ) from error


def become(owner: Owner) -> None:
    """From here on everything is written as user raidd. What is root's stays within reach of nobody else."""
    if owner is not None:
        os.initgroups(pwd.getpwuid(owner[0]).pw_name, owner[1])
        os.setegid(owner[1])
        os.seteuid(owner[0])
