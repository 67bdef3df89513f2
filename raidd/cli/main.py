"""raidctl: thin verbs around a socket. The daemon does the work; each module here holds the verbs of one idea.

This one joins them and owns how a command ends: every error as "raidctl: MESSAGE" and "next: STEP" on standard
error, and the exit code that scripts depend on:

    0 done                        status, check: 0 healthy, 1 warning, 2 critical or failed, 3 unknown,
    1 refused or failed           which is also what every error of these two is
    4 not reached in time         can-remove: 0 yes, 1 no, 3 unknown
    64 wrong usage                130 Ctrl-C, 141 the reader of a pipe went away
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TextIO

import typer
from typer.main import get_command

from raidd import __version__, config
from raidd.cli import catalog, images, looking, members, offline_child, terminal, verdict
from raidd.cli.invocation import Invocation
from raidd.errors import RaiddError

USAGE, INTERRUPTED, PIPE_CLOSED = 64, 130, 141

# Click's class for "the command line is wrong": typer re-exports only this child of it.
_UsageError: Final[Any] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="raidctl",
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        terminal.show(f"raidctl {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def raidctl(
    context: typer.Context,
    settings: Annotated[
        Path | None,
        typer.Option("--config", metavar="F", help="Settings file. [default: $RAIDD_CONFIG, /etc/raidd/raidd.toml]"),
    ] = None,
    version: Annotated[  # noqa: ARG001  (its callback does the work)
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """RAID for DICOM images: look at the array, get images back, look after its disks.

    MOUNT is the folder where a disk is mounted, SLOT its number in `raidctl status`.

    \b
    raidctl status                       how is it?
    raidctl list rex müller              where is that image?
    raidctl get UID -o rex.dcm           give it back
    raidctl replace 2 /srv/raidd/disks/77aa
    """
    if context.invoked_subcommand is None:
        raise terminal.Misuse("which command? They are listed by: raidctl --help")
    context.obj = Invocation(config.config_path(settings))


for _verbs in (offline_child, looking, images, members, catalog):
    _verbs.register(app)


def main() -> None:
    """The entry point."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; the exit code."""
    for stream in (sys.stdout, sys.stderr):
        _never_fail_on_a_letter(stream)
    verb = _verb(arguments)
    try:
        code = get_command(app).main(list(arguments), prog_name="raidctl", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except (BrokenPipeError, SystemExit) as error:
        # Typer itself turns a broken pipe into an exit with 1, which would read as a refusal.
        if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):
            raise
        _forget_output()
        return PIPE_CLOSED
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:
        return _ended(error, verb)


def _ended(error: Exception, verb: str) -> int:
    """Say what went wrong; the exit code of `verb` for it."""
    if isinstance(error, _UsageError):
        context = getattr(error, "ctx", None)
        message, code = error.format_message(), USAGE
        step = f"{context.command_path if context else 'raidctl'} --help"
    elif isinstance(error, RaiddError):
        message, step, code = error.message, error.next_step, error.exit_code
    elif isinstance(error, OSError):
        message, step, code = f"cannot write the output: {error.strerror}", "Give it a place with room.", 1
        _forget_output()
    else:
        traceback.print_exc()
        message, step, code = f"this is a fault of raidctl's: {error!r}", "Report it, with the lines above.", 1
    if verb == "check":
        looking.unknown(message)
    terminal.show_error(message, step)
    if verb in looking.CLEAR_EXIT_CODES or (verb == "can-remove" and code != USAGE):
        return verdict.UNKNOWN
    return code


def _verb(arguments: Sequence[str]) -> str:
    """The command asked for, found without the parser, which may be what fails."""
    words = iter(arguments)
    for word in words:
        if word == "--config":
            next(words, "")
        elif not word.startswith("-"):
            return word
    return ""


def _never_fail_on_a_letter(stream: TextIO) -> None:
    """A terminal that cannot show "ü" shows "?"; it is no reason for an error."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")


def _forget_output() -> None:
    """What is still buffered has nowhere to go; without this Python complains about it at its exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
