"""The demo's stage: the folder ./demo, the settings in it, and the one raidd that runs on it.

Everything lies below that folder, so `rm -rf demo` leaves no trace. A folder of that name that no demo made is left
alone. Only the process that the demo started is ever ended: its pid is in `raidd.pid`, and its command line must name
these settings.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from raidd import api
from raidd.array.state_file import StateFile
from raidd.cli.client import Daemon
from raidd.errors import RaiddError
from tests.demo import screen
from tests.demo.screen import Failed

PATIENCE_S: Final = 90.0
SOCKET_PATH_LIMIT: Final = 107  # sun_path, unix(7)
MARK: Final = ".made-by-make-demo"

SETTINGS: Final = """\
# Made by `make demo`. Not an example to follow: an array of a practice has disks of their own.
[raidd]
state_dir = "{folder}/state"
run_dir = "{folder}/run"
inbox = "{folder}/inbox"
spool = "{folder}/spool"

[health]
probe_interval_s = 1        # a demo is watched; the default is 5

[capacity]
reserve_percent = 0         # so that it runs on a nearly full disk, too
state_reserve_mib = 64

[repair]
rate_mib_s = 4              # so slow that one can watch; the default is as fast as the disks are
floor_mib_s = 4

[metrics]
listen = "127.0.0.1:0"      # any free port
"""


@dataclass(slots=True)
class Stage:
    """``folder``: absolute. ``shown``: as it is written on the screen."""

    folder: Path
    shown: str
    daemon: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> Path:
        return self.folder / "raidd.toml"

    @property
    def inbox(self) -> Path:
        return self.folder / "inbox"

    @property
    def rejected(self) -> Path:
        return self.folder / "inbox-rejected"

    @property
    def log(self) -> Path:
        return self.folder / "raidd.log"

    def disk(self, number: int) -> Path:
        return self.folder / f"disk{number}"

    # -- the folder ------------------------------------------------------------------------------------------

    def set_up(self, disks: int) -> None:
        """A new folder, in place of that of an earlier demo."""
        socket = os.fsencode(self.folder / "run" / api.SOCKET_NAME)
        if len(socket) > SOCKET_PATH_LIMIT:
            raise Failed(f"the path {self.folder} is too long for a Unix socket: move this folder to a shorter one")
        self.clear()
        for number in range(disks):
            self.disk(number).mkdir(parents=True)
        (self.folder / MARK).touch()
        self.settings.write_text(SETTINGS.format(folder=self.folder), encoding="utf-8")

    def clear(self) -> None:
        """End and remove an earlier demo."""
        if not self.folder.exists():
            return
        if not (self.folder / MARK).exists():
            raise Failed(f"{self.shown} is there and was not made by a demo: move it away")
        self.stop()
        shutil.rmtree(self.folder)

    # -- raidd -----------------------------------------------------------------------------------------------

    def start(self) -> float:
        """A new raidd; seconds until it answers."""
        began = time.monotonic()
        with self.log.open("ab") as log:
            self.daemon = subprocess.Popen(
                [_program("raidd"), "--config", str(self.settings)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._pid_file.write_text(f"{self.daemon.pid}\n")
        self.until(self._answers, "raidd answers")
        return time.monotonic() - began

    def kill(self) -> int:
        """kill -9; its pid."""
        assert self.daemon is not None
        self.daemon.kill()
        self.daemon.wait(PATIENCE_S)
        return self.daemon.pid

    def stop(self) -> bool:
        """SIGTERM, and wait for its end; False if none runs."""
        pid = self._running()
        if not pid:
            return False
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE_S
        while self._running():
            if self.daemon is not None:
                self.daemon.poll()
            if time.monotonic() > deadline:
                raise Failed(f"raidd (pid {pid}) does not end; look into {self.shown}/raidd.log")
            time.sleep(0.05)
        self._pid_file.unlink(missing_ok=True)
        return True

    @property
    def _pid_file(self) -> Path:
        return self.folder / "raidd.pid"

    def _running(self) -> int:
        """The pid of this stage's raidd; 0 if it does not run. Another process may have got the number meanwhile."""
        try:
            pid = int(self._pid_file.read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return 0
        return pid if os.fsencode(self.settings) in words else 0

    def _answers(self) -> bool:
        assert self.daemon is not None
        if self.daemon.poll() is not None:
            raise Failed(f"raidd ended:\n{self.log.read_text(errors='replace')[-1500:]}")
        try:
            self.status()
        except RaiddError:
            return False
        return True

    def until(self, reached: Callable[[], bool], what: str) -> None:
        """Ask again and again."""
        deadline = time.monotonic() + PATIENCE_S
        while not reached():
            if time.monotonic() > deadline:
                raise Failed(f"waited {PATIENCE_S:.0f} s in vain until {what}; look into {self.shown}/raidd.log")
            time.sleep(0.05)

    # -- asking it -------------------------------------------------------------------------------------------

    def ask(self) -> Daemon:
        """Its socket."""
        return Daemon(self.folder / "run" / api.SOCKET_NAME)

    def status(self) -> api.Status:
        with self.ask() as asked:
            return asked.status()

    def has_noted_the_absence_of(self, members: Iterable[str]) -> bool:
        """Written down for the next start, which waits up to a minute for members that were there at the last stop."""
        remembered = StateFile(self.folder / "state").load()
        return remembered is not None and not {UUID(member) for member in members} & remembered.up_at_stop

    def raidctl(self, *words: str, accept: tuple[int, ...] = (0,)) -> None:
        """Show the command and what it prints."""
        screen.command(["raidctl", *(self._short(word) for word in words)])
        arguments = [str(_program("raidctl")), "--config", str(self.settings), *words]
        code = subprocess.run(arguments, check=False, stdin=subprocess.DEVNULL).returncode
        if code not in accept:
            raise Failed(f"raidctl {words[0]} ended with {code}, which is not as it must be")

    def show_status(self) -> None:
        """`raidctl status`: its exit code tells how the array is, so any of the first three is fine."""
        self.raidctl("status", accept=(0, 1, 2))

    def _short(self, word: str) -> str:
        return word.replace(str(self.folder), self.shown)


def _program(name: str) -> Path:
    """As installed beside this Python."""
    return Path(sys.executable).with_name(name)
