"""`status`, `check`, `wait`: how is the array, and when is it as I want it?"""

from __future__ import annotations

import math
import sys
import time
from typing import Annotated, Final

import typer
from rich.live import Live
from rich.text import Text

from raidd import api
from raidd.cli import render, tables, terminal, verdict
from raidd.cli.client import Daemon
from raidd.cli.invocation import daemon
from raidd.cli.terminal import Bar, Misuse
from raidd.cli.wording import clean, count
from raidd.errors import DaemonUnreachable

WATCH_S: Final = 2.0
CLEAR_EXIT_CODES: Final = frozenset(("status", "check"))  # commands whose every failure is 3, "unknown"


def register(app: typer.Typer) -> None:
    app.command("status")(status)
    app.command("check")(check)
    app.command("wait")(wait)


def status(
    context: typer.Context,
    wrong: Annotated[bool, typer.Option("-x", "--wrong", help="Only what is wrong; else one short line.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every 2 s, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts; with --watch, one line a look.")] = False,
) -> None:
    """Show the array at a glance.

    Exit code: 0 healthy, 1 warning (degraded), 2 critical or failed, 3 unknown (raidd cannot be reached,
    wrong usage).

    \b
    raidctl status            everything on one screen
    raidctl status -x         "clinic-1 is healthy", or only what is wrong
    raidctl status --json     stable: keys are added, never renamed
    """
    with daemon(context) as asked:
        if watch:
            raise typer.Exit(_watch(asked, wrong=wrong, as_json=as_json))
        found = asked.status()
    if as_json:
        terminal.show_json(found)
    else:
        terminal.show(_text(found, wrong))
    raise typer.Exit(verdict.exit_code(found))


def check(context: typer.Context) -> None:
    """Print one line for a monitoring system.

    As Nagios, Icinga, Checkmk and Zabbix read it, with performance data.

    Exit code: 0 healthy, 1 warning (degraded), 2 critical or failed, 3 unknown.

    \b
    raidctl check
    """
    with daemon(context) as asked:
        found = asked.status()
    terminal.show(tables.monitoring_line(found))
    raise typer.Exit(verdict.exit_code(found))


def wait(
    context: typer.Context,
    idle: Annotated[bool, typer.Option("--idle", help="Until all that was dropped is stored or refused.")] = False,
    healthy: Annotated[bool, typer.Option("--healthy", help="Until no repair is needed.")] = False,
    timeout_s: Annotated[
        float | None, typer.Option("--timeout", min=0, metavar="S", help="Give up after S seconds: exit code 4.")
    ] = None,
) -> None:
    """Return when all is stored and mended.

    That is, when everything dropped is acknowledged or refused, and nothing needs repair. Without --idle or
    --healthy it waits for both. --idle begins with its own look at inbox and spool.

    \b
    raidctl wait --idle                     after copying images into the inbox
    raidctl wait --healthy --timeout 3600   after replacing a disk
    """
    ever = timeout_s is None or math.isinf(timeout_s)
    request = api.WaitRequest(
        idle=idle or not healthy, healthy=healthy or not idle, timeout_s=None if ever else timeout_s
    )
    with daemon(context) as asked, Bar("waiting") as bar:
        asked.wait(request, lambda seen: bar.at(0, label=_awaited(seen)))


def _awaited(seen: api.WaitProgress) -> str:
    parts = [count(seen.waiting, "image") + " waiting"] if seen.waiting else []
    parts += [count(seen.repairs, "segment") + " to repair"] if seen.repairs else []
    return seen.message or ", ".join(parts) or "waiting"


def _text(found: api.Status, wrong: bool) -> Text:
    return render.only_wrong(found, None) if wrong else render.sheet(found, None)


def _watch(asked: Daemon, *, wrong: bool, as_json: bool) -> int:
    """Until Ctrl-C, which is how it is meant to end; the exit code is that of the last look."""
    if as_json and wrong:
        raise Misuse("--json shows everything: leave out -x")
    code = verdict.UNKNOWN
    first = asked.status()  # if there is nobody to watch, say so and end
    on_screen = sys.stdout.isatty() and not as_json
    try:
        with Live(console=terminal.console(sys.stdout), auto_refresh=False, screen=on_screen) as live:
            found: api.Status | None = first
            while True:
                code = verdict.UNKNOWN if found is None else verdict.exit_code(found)
                _show_look(found, live if on_screen else None, wrong, as_json)
                time.sleep(WATCH_S)
                found = _look(asked)
    except KeyboardInterrupt:
        return code


def _look(asked: Daemon) -> api.Status | None:
    try:
        return asked.status()
    except DaemonUnreachable:
        return None  # restarted, perhaps: go on looking


def _show_look(found: api.Status | None, live: Live | None, wrong: bool, as_json: bool) -> None:
    if as_json:
        terminal.show_json({"array": None} if found is None else found, lines=True)
        return
    text = Text("raidd does not answer; looking again …") if found is None else _text(found, wrong)
    if live is None:
        terminal.show(text)
    else:
        live.update(text, refresh=True)


def unknown(message: str) -> None:
    """`check` speaks its one line on standard output also when it knows nothing."""
    terminal.show(clean(tables.unknown_line(message)))
