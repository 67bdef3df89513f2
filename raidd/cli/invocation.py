"""What was said before the command, and the way from there to the daemon."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from raidd import api, config
from raidd.cli.client import Daemon


@dataclass(frozen=True, slots=True)
class Invocation:
    """``settings``: the settings file that was asked for, absolute; it may not be there."""

    settings: Path


def invocation(context: typer.Context) -> Invocation:
    found = context.find_object(Invocation)
    assert found is not None, "main.py's callback runs before any command"
    return found


def daemon(context: typer.Context) -> Daemon:
    """A client for the daemon of these settings. ConfigInvalid if they do not say where its socket is."""
    return Daemon(config.run_dir(invocation(context).settings) / api.SOCKET_NAME)
