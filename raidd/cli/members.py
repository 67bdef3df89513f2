"""`add`, `replace`, `offline`, `online`, `remove`, `can-remove`, `rebuild`: the disks of a running array."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from raidd import api
from raidd.cli import tables, terminal, verdict
from raidd.cli.client import Daemon
from raidd.cli.invocation import daemon
from raidd.cli.terminal import Bar, Misuse
from raidd.cli.wording import clean
from raidd.errors import RequestRefused

WATCH_S: Final = 2.0

Slot = Annotated[int, typer.Argument(min=0, metavar="SLOT", help="As raidctl status numbers them.")]
Mount = Annotated[Path, typer.Argument(metavar="MOUNT", help="The folder where the disk is mounted.")]
Bay = Annotated[str, typer.Option(metavar="TEXT", help="Where the disk sits, for whoever has to find it.")]
Enclosure = Annotated[str, typer.Option(metavar="TEXT", help="Disks that share a case: they may fail together.")]
SameDevice = Annotated[bool, typer.Option("--allow-same-device", help="For trials: protects nothing.")]
Filesystem = Annotated[bool, typer.Option("--allow-filesystem", help="Other than ext4, xfs, btrfs, zfs.")]
AsJson = Annotated[bool, typer.Option("--json", help="For scripts: keys are added, never renamed.")]

_CAN_REMOVE_EXIT: Final = {"yes": 0, "no": 1, "unknown": 3}


class RebuildAction(StrEnum):
    STATUS = "status"
    PAUSE = "pause"
    RESUME = "resume"


def register(app: typer.Typer) -> None:
    app.command("add")(add)
    app.command("replace")(replace)
    app.command("offline")(offline)
    app.command("online")(online)
    app.command("remove")(remove)
    app.command("can-remove")(can_remove)
    app.command("rebuild")(rebuild)


def add(
    context: typer.Context,
    mount: Mount,
    spare: Annotated[bool, typer.Option("--spare", help="It waits, empty, to take over from a failed disk.")] = False,
    bay: Bay = "",
    enclosure: Enclosure = "",
    allow_same_device: SameDevice = False,
    allow_filesystem: Filesystem = False,
    as_json: AsJson = False,
) -> None:
    """Add a blank disk, as a member or a spare.

    \b
    sudo raidctl add /srv/raidd/disks/77aa --bay "fourth"
    sudo raidctl add /srv/raidd/disks/77aa --spare
    """
    request = api.AddRequest(
        path=str(mount.absolute()),
        spare=spare,
        bay=bay,
        enclosure=enclosure,
        allow_same_device=allow_same_device,
        allow_filesystem=allow_filesystem,
    )
    with daemon(context) as asked:
        _show(asked.add(request), as_json)


def replace(
    context: typer.Context,
    slot: Slot,
    mount: Mount,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask, on a terminal either.")] = False,
    bay: Bay = "",
    enclosure: Enclosure = "",
    allow_same_device: SameDevice = False,
    allow_filesystem: Filesystem = False,
    as_json: AsJson = False,
) -> None:
    """Put a blank disk in the place of another.

    Of a failed, missing or suspect one, that is; what it held is rebuilt onto the new one. Says what will
    happen and asks, on a terminal only. Storing and reading go on meanwhile.

    \b
    sudo raidctl replace 2 /srv/raidd/disks/77aa
    raidctl wait --healthy
    """
    request = api.ReplaceRequest(
        path=str(mount.absolute()),
        bay=bay,
        enclosure=enclosure,
        allow_same_device=allow_same_device,
        allow_filesystem=allow_filesystem,
        dry_run=True,
    )
    with daemon(context) as asked:
        planned = asked.replace(slot, request)
        if not as_json:
            terminal.show(tables.plan(planned))
        if not dry_run:
            _ask(yes)
            planned = asked.replace(slot, request.model_copy(update={"dry_run": False}))
    if as_json:
        terminal.show_json(planned)
    elif planned.started:
        terminal.show("started; to watch it: raidctl rebuild --watch")


def _ask(yes: bool) -> None:
    if not yes and not terminal.confirmed("Go on?"):
        raise RequestRefused("not replaced: the answer was no", next_step="Nothing was changed.")


def offline(context: typer.Context, slot: Slot, as_json: AsJson = False) -> None:
    """Stop using a disk for now.

    It can then be unmounted; `online` takes it back.

    \b
    sudo raidctl offline 2
    """
    with daemon(context) as asked:
        _show(asked.offline(slot), as_json)


def online(context: typer.Context, slot: Slot, as_json: AsJson = False) -> None:
    """Use a disk again that is offline or had failed.

    It catches up on what it missed.

    \b
    sudo raidctl online 2
    """
    with daemon(context) as asked:
        _show(asked.online(slot), as_json)


def remove(context: typer.Context, slot: Slot, as_json: AsJson = False) -> None:
    """Take a disk out of the array for good.

    Refused while anything depends on it.

    \b
    raidctl can-remove 2 && sudo raidctl offline 2 && sudo raidctl remove 2
    """
    with daemon(context) as asked:
        _show(asked.remove(slot), as_json)


def can_remove(context: typer.Context, slot: Slot, as_json: AsJson = False) -> None:
    """May this disk be taken out now?

    Exit code: 0 yes, nothing would be lost; 1 no; 3 unknown.

    \b
    raidctl can-remove 2
    """
    with daemon(context) as asked:
        found = asked.can_remove(slot)
    if as_json:
        terminal.show_json(found)
    else:
        terminal.show(f"{found.answer}: {clean(found.reason)}" if found.reason else found.answer)
    raise typer.Exit(_CAN_REMOVE_EXIT.get(found.answer, verdict.UNKNOWN))


def rebuild(
    context: typer.Context,
    action: Annotated[RebuildAction, typer.Argument(help="Show, pause, or go on.")] = RebuildAction.STATUS,
    priority: Annotated[
        str | None, typer.Option(metavar="P", help="How much it may slow the daily work: low, normal, high, pause.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay until nothing is left to rebuild.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show, pause, resume, speed up a rebuild.

    \b
    raidctl rebuild
    sudo raidctl rebuild --priority high
    raidctl rebuild --watch
    """
    request = _rebuild_request(action, priority)
    with daemon(context) as asked:
        found = asked.rebuild() if request is None else asked.set_rebuild(request)
        if watch:
            found = _watch_rebuild(asked, found)
    if as_json:
        terminal.show_json(found)
    else:
        terminal.show(tables.rebuild(found))


def _rebuild_request(action: RebuildAction, priority: str | None) -> api.RebuildRequest | None:
    if priority not in (None, "low", "normal", "high", "pause"):
        raise Misuse(f"--priority '{priority}' is none of low, normal, high, pause")
    if action is RebuildAction.STATUS and priority is None:
        return None
    # The words were compared above; pydantic would say the same less well.
    told = {"action": None if action is RebuildAction.STATUS else action.value, "priority": priority}
    return api.RebuildRequest.model_validate(told)


def _watch_rebuild(asked: Daemon, found: api.RebuildStatus) -> api.RebuildStatus:
    with Bar("rebuilding") as bar:
        while found.activities or found.segments_waiting:
            jobs = found.activities
            done, total = sum(job.bytes_done for job in jobs), sum(job.bytes_total for job in jobs)
            bar.at(done, total or None, tables.rebuild(found).plain.splitlines()[0])
            time.sleep(WATCH_S)
            found = asked.rebuild()
    return found


def _show(reply: api.MemberReply, as_json: bool) -> None:
    if as_json:
        terminal.show_json(reply)
    else:
        terminal.show(tables.member(reply))
