"""A child process under a `Supervisor`, made of a few lines of code; its events come as lines on stdout."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from types import TracebackType

BEFORE = """
import os, signal, sys, threading, time
from raidd.daemon import logs
from raidd.daemon.supervisor import Supervisor, Wake
from raidd.errors import ConfigInvalid, StateDirFaulty

def say(word):
    os.write(1, (word + "\\n").encode())

def stuck(stopping):
    threading.Event().wait()

logs.configure()
supervisor = Supervisor(**{settings})
supervisor.watch()
"""
AFTER = """
say("running")
supervisor.run()
"""


class Supervised:
    """`with Supervised(code) as child`: killed at the end, whatever happened."""

    def __init__(self, code: str, *, environ: dict[str, str] | None = None, **settings: object) -> None:
        source = BEFORE.replace("{settings}", repr(settings)) + textwrap.dedent(code) + AFTER
        self.process = subprocess.Popen(
            [sys.executable, "-c", source],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
        )

    def expect(self, word: str) -> None:
        assert self.process.stdout is not None
        said = []
        while word not in said:
            line = self.process.stdout.readline()
            assert line, f"no {word!r} after {said}, but: {self.process.communicate()[1]}"
            said.append(line.strip())

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, list[str], str]:
        """Exit code, what it said since, and its log."""
        out, log = self.process.communicate(timeout=120)
        return self.process.returncode, out.split(), log

    def __enter__(self) -> Supervised:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.process.kill()
        self.process.communicate()
