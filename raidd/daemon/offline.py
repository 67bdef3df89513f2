"""What runs without the daemon: init, assemble, catalog reindex. raidctl starts this module as a child process
(cli/offline_child.py says with which arguments); the work is in birth.py and recovery.py.

It owes the operator what raidctl does: an error is "raidctl: MESSAGE" and "next: STEP" on standard error, and the exit
code says whether it was refused (1) or wrongly asked for (64).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from raidd.daemon import birth, logs, recovery
from raidd.daemon.advice import one_line
from raidd.errors import RaiddError


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of the child process; returns its exit code."""
    given = _parser().parse_args(arguments)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # results and notes in order, in a file, too
    logs.configure_notes()
    try:
        given.run(given)
    except RaiddError as error:
        for line in error.message.splitlines():
            print(f"raidctl: {one_line(line)}", file=sys.stderr)
        print(f"next: {one_line(error.next_step)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("raidctl: stopped; what was begun can be begun again", file=sys.stderr)
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    """A wrong command line ends as that of raidctl does."""

    def error(self, message: str) -> NoReturn:
        self.exit(64, f"raidctl: {message}\nnext: raidctl --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="raidctl")
    commands = parser.add_subparsers(required=True)
    init_ = commands.add_parser("init")
    init_.add_argument("--name", required=True)
    init_.add_argument("--level")
    for number in ("--copies", "--width", "--data", "--parity"):
        init_.add_argument(number, type=int)
    init_.add_argument("--allow-same-device", action="store_true")
    init_.add_argument("--allow-filesystem", action="store_true")
    init_.add_argument("--config", required=True, type=Path)
    init_.add_argument("mounts", nargs="+")
    init_.set_defaults(run=birth.init)
    assemble_ = commands.add_parser("assemble")
    assemble_.add_argument("--config", required=True, type=Path)
    assemble_.add_argument("mounts", nargs="*")
    assemble_.set_defaults(run=recovery.assemble)
    catalog = commands.add_parser("catalog").add_subparsers(required=True).add_parser("reindex")
    catalog.add_argument("--config", required=True, type=Path)
    catalog.set_defaults(run=recovery.reindex)
    return parser


if __name__ == "__main__":
    sys.exit(main())
