"""`init`, `assemble`, `catalog reindex`: what runs without the daemon.

These take the members' locks and write labels, so they are not raidctl's own work but that of
`python -P -m raidd.daemon.offline`, started as a child process with the standard streams inherited; its exit code
is raidctl's (killed by a signal: 128 + its number). The argument vectors, exactly; `[…]` is passed only when given:

    init --name=N [--level=L] [--copies=N] [--width=N] [--data=N] [--parity=N]
         [--allow-same-device] [--allow-filesystem] --config F MOUNT…          one MOUNT or more
    assemble --config F [MOUNT…]
    catalog reindex --config F

F is absolute and resolved (option, RAIDD_CONFIG, default) and may not exist; every MOUNT is absolute, `..` and
links left as they are. The child owes the operator what raidctl does: errors as "raidctl: MESSAGE" and "next: STEP"
on standard error, exit codes 0, 1, 64; progress on a terminal only. Ctrl-C reaches the child directly (same
foreground process group); raidctl waits for it to clean up and passes SIGTERM and SIGHUP on.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from raidd import config
from raidd.cli.invocation import invocation

MODULE = "raidd.daemon.offline"

Mounts = Annotated[list[Path], typer.Argument(metavar="MOUNT", help="The folders where the disks are mounted.")]
SomeMounts = Annotated[list[Path] | None, typer.Argument(metavar="MOUNT", help="Default: all that are mounted.")]


def register(app: typer.Typer) -> None:
    app.command("init")(init)
    app.command("assemble")(assemble)


def init(
    context: typer.Context,
    mounts: Mounts,
    name: Annotated[str, typer.Option(metavar="N", help="The array's name, such as clinic-1.")],
    level: Annotated[
        str | None, typer.Option(metavar="L", help="mirror, raid5, raid6, raid7, raid50, raid60, custom.")
    ] = None,
    copies: Annotated[int | None, typer.Option(min=2, metavar="N", help="mirror: copies of each image.")] = None,
    width: Annotated[int | None, typer.Option(min=2, metavar="N", help="raid50, raid60: disks a segment.")] = None,
    data: Annotated[int | None, typer.Option(min=1, metavar="N", help="custom: data shards.")] = None,
    parity: Annotated[int | None, typer.Option(min=1, metavar="N", help="custom: disks that may fail.")] = None,
    settings: Annotated[
        Path | None, typer.Option("--config", metavar="F", help="As before the command; written if missing.")
    ] = None,
    allow_same_device: Annotated[
        bool, typer.Option("--allow-same-device", help="For trials: several members on one disk protect nothing.")
    ] = False,
    allow_filesystem: Annotated[
        bool, typer.Option("--allow-filesystem", help="Other than ext4, xfs, btrfs, zfs.")
    ] = False,
) -> None:
    """Make a new array of blank disks.

    They get slots in the order given. raidd must not be running.

    Without --level: mirror on 2 disks, raid5 on 3, raid6 from 4 on. Prints what each level would give.

    \b
    sudo raidctl init --name clinic-1 /srv/raidd/disks/*
    raidctl init --name trial --config demo/raidd.toml --allow-same-device demo/disk1 demo/disk2 demo/disk3
    """
    path = config.config_path(settings) if settings else invocation(context).settings
    options = {"--name": name, "--level": level, "--copies": copies, "--width": width}
    options |= {"--data": data, "--parity": parity}
    arguments = [f"{key}={value}" for key, value in options.items() if value is not None]
    arguments += ["--allow-same-device"] * allow_same_device + ["--allow-filesystem"] * allow_filesystem
    raise typer.Exit(run(["init", *arguments, "--config", str(path), *_absolute(mounts)]))


def assemble(context: typer.Context, mounts: SomeMounts = None) -> None:
    """Bring an array back from its disks alone.

    After the loss of the system's disk, or on a new machine. Finds the disks by their labels and makes
    settings, journal and catalog again from them. Returns when the
    catalog is complete. raidd must not be running.

    \b
    sudo raidctl assemble
    sudo raidctl assemble /mnt/a /mnt/b /mnt/c
    """
    settings = str(invocation(context).settings)
    raise typer.Exit(run(["assemble", "--config", settings, *_absolute(mounts or [])]))


def reindex(context: typer.Context) -> None:
    """Make the catalog again from the disks.

    It is only an index: no image depends on it. raidd must be stopped.

    \b
    sudo systemctl stop raidd && sudo raidctl catalog reindex && sudo systemctl start raidd
    """
    raise typer.Exit(run(["catalog", "reindex", "--config", str(invocation(context).settings)]))


def run(arguments: Sequence[str]) -> int:
    """Start the child, wait for it, give its exit code."""
    # -P: the current folder, perhaps somebody else's, is no place to find a module called raidd.
    child = subprocess.Popen([sys.executable, "-P", "-m", MODULE, *arguments])
    with _signals_left_to(child):
        code = child.wait()
    return code if code >= 0 else 128 - code


@contextmanager
def _signals_left_to(child: subprocess.Popen[bytes]) -> Iterator[None]:
    def pass_on(number: int, _frame: FrameType | None) -> None:
        child.send_signal(number)

    handlers: dict[signal.Signals, signal.Handlers | Callable[[int, FrameType | None], None]]
    handlers = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: pass_on, signal.SIGHUP: pass_on}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _absolute(mounts: Sequence[Path]) -> list[str]:
    return [str(mount.absolute()) for mount in mounts]
