"""A real raidd to measure: `python -m raidd.daemon.main` and `raidctl`, as an operator runs them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import httpx
from prometheus_client.parser import text_string_to_metric_families

from raidd import api

RAIDCTL = (sys.executable, "-c", "import sys; from raidd.cli.main import main; sys.exit(main())")
SETTINGS = """
[raidd]
state_dir = "{home}/state"
run_dir = "{home}/run"
inbox = "{home}/inbox"
spool = "{home}/spool"
[health]
auto_replace = false
self_heal = false
[metrics]
listen = "127.0.0.1:{port}"
"""


@dataclass(frozen=True, slots=True)
class Running:
    """A daemon whose array is open. Files enter by a rename into `inbox` from beside it."""

    home: Path
    config: Path
    pid: int
    port: int

    @property
    def inbox(self) -> Path:
        return self.home / "inbox"

    def raidctl(self, *arguments: str) -> str:
        return raidctl(self.config, *arguments)

    def status(self) -> dict[str, Any]:
        """`raidctl status --json`; its exit code only says how healthy the array is."""
        command = [*RAIDCTL, "--config", str(self.config), "status", "--json"]
        return json.loads(subprocess.run(command, check=False, stdout=subprocess.PIPE).stdout)  # type: ignore[no-any-return]

    def http(self) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=str(self.home / "run" / api.SOCKET_NAME))
        return httpx.Client(transport=transport, base_url="http://raidd", timeout=120)

    def latencies(self) -> dict[float, float]:
        """Acknowledged images by upper bound of the time they took, cumulative, since the start."""
        with urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=20) as reply:
            text = reply.read().decode()
        return {
            float(sample.labels["le"]): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "raidd_acknowledge_seconds_bucket"
        }


def raidctl(config: Path, *arguments: str) -> str:
    command = [*RAIDCTL, "--config", str(config), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"raidctl {' '.join(arguments)}: {done.stdout}{done.stderr}")
    return done.stdout


@contextmanager
def daemon(home: Path, state: Path, members: Sequence[Path]) -> Iterator[Running]:
    """An array raid6 over `members`, its inbox in `home`, its state on the disk mounted at `state`."""
    for name in ("run", "inbox", "spool"):
        (home / name).mkdir()
    (state / "raidd").mkdir()
    (home / "state").symlink_to(state / "raidd")
    config, port = home / "raidd.toml", _free_port()
    config.write_text(SETTINGS.format(home=home, port=port))
    raidctl(config, "init", "--name", "bench", "--level", "raid6", *map(str, members))
    with (home / "raidd.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "raidd.daemon.main", "--config", str(config)], stderr=log)
    try:
        running = Running(home, config, process.pid, port)
        _wait_until_open(running, process)
        yield running
    finally:
        process.terminate()
        process.wait(timeout=60)


def _wait_until_open(running: Running, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            with running.http() as asking:
                if asking.get(api.STATUS).json()["array"]["state"] == "healthy":
                    return
        except (httpx.HTTPError, KeyError, ValueError):
            pass
        time.sleep(0.1)
    raise SystemExit(f"raidd ended: {(running.home / 'raidd.log').read_text()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
