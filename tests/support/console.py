"""The README's console blocks: read, run in order by one shell, compared with what is written below each command.

    ```console
    $ raidctl status
    trial   raid6   HEALTHY: any two disks may fail, nothing is lost
    …
    ```

A line that begins with "$ " is a command, "> " goes on with it; what follows is what the screen shows. "…" stands for
anything within a line; alone on a line, for any lines. What differs from one machine or run to the next counts as
equal (`settled`): sizes, times, ids, a disk's serial and its errors, the file system; and the order of a list. The home
folder is the sandbox, written `/home/vet`.

`python -m tests.support.console README.md` prints the file with its blocks as the screen shows them today.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.sample_images import write_samples

HOME = "/home/vet"
PATIENCE_S = 90.0
LOOKING = ("raidctl status", "raidctl check", "raidctl list", "raidctl rebuild", "ls ")
"""Commands that only look: a person who types slower than a script sees the next state, so these are asked again."""
LISTING = ("raidctl list", "ls ", "find ")

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE_SYSTEM = r"(?:ext[234]|xfs|btrfs|zfs|tmpfs|overlay)"
_VARIES = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"  # a UUID
    r"|\b[0-9a-f]{64}\b"  # a SHA-256
    r"|\d{4}-\d\d-\d\dT[0-9:.]+(?:Z|\+00:00)|\b\d{8}T\d{6}\b|\b\d\d:\d\d\b"  # a time
    r"|\b\d+ segments?\b|\bsegments: \d+\b"  # images that come in together share one, if they come soon enough
    r"|\b(?:\d+ (?:s|min|h) ago|just now)"
    r"|\b\d[\d.,]* ?(?:[KMGT]i?B|[KMGT]|B)(?![\w])"  # a size
    r"|\b\d+ %|\babout [\d,]+"
    rf"|\b{_FILE_SYSTEM}\b"
    r"|\bpid \d+|\(serial \S+\)|\b\d+\.\d s\b"
)
_SERIAL = re.compile(r"(/disk\d+) (?:\S+ )?…\w{1,4}(?= )")
_ERRORS = re.compile(r"^((?:\d+|–) [a-z]+ .*[#–]) \d+(?= since |$)")
_WHY_MISSING = re.compile(r"^(\d+ missing .* since #): .*")
_ENDED = re.compile(r"(?:bash: line \d+:|\S+: line \d+:) +\d+ (?:Killed|Terminated) ")
"""What bash says of a job that was killed; elsewhere, and in other words, in a shell that somebody types into."""
_ON_FILE_SYSTEM = re.compile(rf",? on {_FILE_SYSTEM}$")


@dataclass(frozen=True, slots=True)
class Step:
    """One command, what is written below it, and in which line of the file it stands."""

    command: str
    shown: tuple[str, ...]
    line: int


def steps(document: str) -> list[Step]:
    """All commands of all blocks, in order."""
    found = []
    for block in _BLOCK.finditer(document):
        first = document.count("\n", 0, block.start(1)) + 1
        found += list(_steps(block.group(1).splitlines(), first))
    return found


def _steps(lines: Sequence[str], first: int) -> Iterator[Step]:
    command: list[str] = []
    shown: list[str] = []
    at = first
    for number, line in enumerate([*lines, "$ "]):
        if line.startswith("$ "):
            if command:
                yield Step("\n".join(command), tuple(shown), at)
            command, shown, at = [line[2:]], [], first + number
        elif (line == ">" or line.startswith("> ")) and not shown:
            command.append(line[2:])
        else:
            shown.append(line)


def settled(line: str) -> str:
    """A line without what differs from one machine or run to the next; runs of spaces are one."""
    line = _SERIAL.sub(r"\1", " ".join(line.split()))
    line = " ".join(_VARIES.sub("#", _ON_FILE_SYSTEM.sub("", line)).split())
    return _WHY_MISSING.sub(r"\1", _ERRORS.sub(r"\1 #", line))


def agree(shown: Sequence[str], seen: Sequence[str]) -> bool:
    """Is what was seen what is written?"""
    if not shown:
        return not seen
    if shown[0].strip() == "…":
        return any(agree(shown[1:], seen[skip:]) for skip in range(len(seen) + 1))
    return bool(seen) and _agrees(shown[0], seen[0]) and agree(shown[1:], seen[1:])


def _agrees(shown: str, seen: str) -> bool:
    pieces = [re.escape(piece) for piece in settled(shown).split("…")]
    return re.fullmatch(".*".join(pieces), settled(seen)) is not None


class Shell:
    """One bash for all commands, standard error in the same place, its folder `home`. Ended with all it started."""

    def __init__(self, home: Path) -> None:
        self._home = home
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {"HOME": str(home), "PATH": path, "LC_ALL": "C.UTF-8", "TZ": "UTC", "COLUMNS": "200"}
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=home,
            env=environment,
            start_new_session=True,
        )

    def run(self, command: str) -> list[str]:
        """Run a command; the lines that it printed, the sandbox written as /home/vet."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        mark = f"--- {time.monotonic_ns()} ---"
        self._bash.stdin.write(f"{command}\nprintf '\\n%s\\n' '{mark}'\n".replace(HOME, str(self._home)).encode())
        self._bash.stdin.flush()
        lines: list[str] = []
        for raw in self._bash.stdout:
            line = raw.decode(errors="replace").rstrip("\n")
            if line == mark:
                break
            if not _ENDED.match(line):
                lines.append(line.replace(str(self._home), HOME))
        return _without_padding(lines)

    def end(self) -> None:
        """bash and everything it left running: they are one process group of its own."""
        try:
            os.killpg(self._bash.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            self._bash.wait(30)


def _without_padding(lines: list[str]) -> list[str]:
    """Without the empty line before the mark (there is none after output that ends in the middle of a line)."""
    return lines[:-1] if lines and not lines[-1] else lines


@contextmanager
def sandbox(home: Path) -> Iterator[Shell]:
    """A shell in a home folder that holds the sample images."""
    home.mkdir(parents=True, exist_ok=True)
    write_samples(home / "images")
    shell = Shell(home)
    try:
        yield shell
    finally:
        shell.end()


def as_written(step: Step, seen: Sequence[str]) -> bool:
    """Does the screen show what is written?"""
    if step.command.startswith(LISTING):
        return agree(sorted(map(settled, step.shown)), sorted(map(settled, seen)))
    return agree(step.shown, seen)


def perform(shell: Shell, step: Step) -> list[str]:
    """Run a step; a command that only looks is asked again until it shows what is written, or patience ends."""
    seen = shell.run(step.command)
    deadline = time.monotonic() + PATIENCE_S
    while step.command.startswith(LOOKING) and not as_written(step, seen) and time.monotonic() < deadline:
        time.sleep(0.5)
        seen = shell.run(step.command)
    if step.command.rstrip().endswith("&"):
        _await_socket(shell)
    return seen


def _await_socket(shell: Shell) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while shell.run("raidctl status > /dev/null 2>&1; [ $? != 3 ] && echo yes") != ["yes"]:
        if time.monotonic() > deadline:
            raise AssertionError("raidd does not answer")
        time.sleep(0.2)


def captured(document: str) -> str:
    """The document with each block as the screen shows it now."""
    with tempfile.TemporaryDirectory() as home, sandbox(Path(home)) as shell:

        def shown(block: re.Match[str]) -> str:
            lines = []
            for step in _steps(block.group(1).splitlines(), 1):
                first, *rest = step.command.split("\n")
                time.sleep(2.5 if step.command.startswith(LOOKING) else 0)
                lines += [
                    f"$ {first}",
                    *(f"> {line}".rstrip() for line in rest),
                    *perform(shell, Step(step.command, ("…",), 0)),
                ]
            return "```console\n" + "\n".join(lines) + "\n```"

        return _BLOCK.sub(shown, document)


if __name__ == "__main__":
    sys.stdout.write(captured(Path(sys.argv[1]).read_text(encoding="utf-8")))
