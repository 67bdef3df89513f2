"""`catalog reindex`, `catalog check`: the index of what is on the disks, and whether it is right."""

from __future__ import annotations

from typing import Annotated

import typer

from raidd.cli import tables, terminal
from raidd.cli.invocation import daemon
from raidd.cli.offline_child import reindex
from raidd.cli.terminal import Bar
from raidd.cli.wording import count
from raidd.errors import RaiddError


def register(app: typer.Typer) -> None:
    verbs = typer.Typer(rich_markup_mode=None, help="Check the index of the disks, or make it again.")
    verbs.command("reindex")(reindex)
    verbs.command("check")(check)
    app.add_typer(verbs, name="catalog")


def check(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts: keys are added, never renamed.")] = False,
) -> None:
    """Compare the catalog with the disks.

    And with itself. Exit code 1 if anything disagrees.

    \b
    raidctl catalog check
    """
    with daemon(context) as asked, Bar("checking the catalog") as bar:
        result = asked.check_catalog(lambda seen: bar.at(seen.progress, 1.0, seen.message))
    if as_json:
        terminal.show_json(result)
    else:
        terminal.show(tables.checked(result))
    if result.findings:
        raise _Disagrees(f"the catalog disagrees in {count(len(result.findings), 'point')}")


class _Disagrees(RaiddError):
    """Reported point by point already."""

    next_step = "Stop raidd, then make the catalog again from the members: raidctl catalog reindex"
