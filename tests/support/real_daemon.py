"""A real raidd to break: `python -m raidd.daemon.main` on real folders, `raidctl` beside it as an operator runs it.

    with real_daemon(tmp_path, members) as raidd:          init, start, socket answers
        raidd.deliveries.drop("a.dcm", data)               write and close, as a sender does
        raidd.raidctl("wait", "--idle").ok()
        raidd.kill(); raidd.start()                        kill -9 and a new process
        raidd.deliveries.acknowledged()                    what raidd owes from now on
        raidd.assert_reads_back(raidd.deliveries.acknowledged())

`members` are mounts of disks, or plain folders (with `trial=True`). Each process started here is ended by its own pid
when the block is left, whatever happened; one that cannot end, since a disk hangs, is left to the disk's `thaw`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import httpx
from prometheus_client.parser import text_string_to_metric_families

from raidd import api

RAIDCTL = (sys.executable, "-c", "import sys; from raidd.cli.main import main; sys.exit(main())")
PATIENCE_S = 90.0
"""For what has to happen at some time: generous, since other tests share the processors."""

Settings = Mapping[str, Mapping[str, object]]
BRISK: Settings = {
    "ingest": {"settle_s": 0.2},
    "health": {"probe_interval_s": 0.5, "deadline_s": 3, "missing_delay_s": 0},
    "capacity": {"state_reserve_mib": 8},
}
"""Short waits, so that tests are; and a `state_dir` on a small disk will do."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command said: exit code, standard output (as text), standard error."""

    code: int
    stdout: str
    stderr: str

    def ok(self) -> Answer:
        """Itself, if the exit code is 0."""
        assert self.code == 0, f"exit code {self.code}\n{self.stdout[-2000:]}\n{self.stderr[-2000:]}"
        return self

    def json(self) -> Any:
        return json.loads(self.stdout)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A file that was dropped. Its bytes are known by their digest and can be made again by `data`."""

    name: str
    uid: str
    sha256: str
    size: int


class Deliveries:
    """Remembers what was dropped into an inbox, and tells what has been acknowledged of it. Thread-safe.

    *Acknowledged* is what is neither in the inbox, under whatever name, nor refused. Ask when raidd is dead or idle:
    a file that is just being renamed can be overlooked by whoever lists the folder.
    """

    def __init__(self, inbox: Path, rejected: Path) -> None:
        self.inbox, self.rejected = inbox, rejected
        self.dropped: dict[str, Delivery] = {}
        self._lock = threading.Lock()

    def drop(self, name: str, data: bytes, uid: str = "") -> Delivery:
        """Write a file and close it."""
        delivery = Delivery(name, uid, hashlib.sha256(data).hexdigest(), len(data))
        path = self.inbox / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            self.dropped[delivery.sha256] = delivery
        path.write_bytes(data)
        return delivery

    def drop_file(self, source: Path, name: str = "", uid: str = "") -> Delivery:
        """Copy a file in (large ones, without holding them)."""
        delivery = Delivery(name or source.name, uid, _digest(source), source.stat().st_size)
        with self._lock:
            self.dropped[delivery.sha256] = delivery
        target = self.inbox / delivery.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return delivery

    def acknowledged(self) -> list[Delivery]:
        """What raidd owes."""
        left = self._digests(self.inbox) | self._digests(self.rejected)
        with self._lock:
            return [one for one in self.dropped.values() if one.sha256 not in left]

    def waiting(self) -> list[Path]:
        """Every file in the inbox, whatever its name."""
        return _files(self.inbox)

    def refused(self) -> list[Path]:
        """Refused files, without their reasons."""
        return [path for path in _files(self.rejected) if not path.name.endswith(".reason.txt")]

    @staticmethod
    def _digests(folder: Path) -> set[str]:
        return {digest for path in _files(folder) if (digest := _digest_or_gone(path))}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []


def _digest_or_gone(path: Path) -> str:
    try:
        return _digest(path)
    except FileNotFoundError:
        return ""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(slots=True)
class RealDaemon:
    """One array and the process that serves it, or does not just now. `home` holds everything but the members."""

    home: Path
    members: Sequence[Path]
    settings: Settings = field(default_factory=dict)
    state_dir: Path | None = None
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    deliveries: Deliveries = field(init=False)
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.deliveries = Deliveries(self.inbox, self.rejected)

    # -- places ---------------------------------------------------------------------------------------------

    @property
    def config(self) -> Path:
        return self.home / "raidd.toml"

    @property
    def inbox(self) -> Path:
        return self.home / "inbox"

    @property
    def rejected(self) -> Path:
        return self.home / "inbox-rejected"

    @property
    def log(self) -> Path:
        return self.home / "raidd.log"

    @property
    def socket(self) -> Path:
        return self.home / "run" / api.SOCKET_NAME

    @property
    def state(self) -> Path:
        return self.state_dir or self.home / "state"

    def member_folder(self, member: int) -> Path:
        """`raidd-<uuid>` of the member at `members[member]`."""
        return next(self.members[member].glob("raidd-*"))

    # -- making ---------------------------------------------------------------------------------------------

    def write_settings(self, settings: Settings = {}) -> None:  # noqa: B006  (never changed)
        """The settings file: places of its own, then BRISK, then the daemon's, then these."""
        self.port = self.port or free_port()
        own: Settings = {
            "raidd": {
                "state_dir": str(self.state),
                "run_dir": str(self.home / "run"),
                "inbox": str(self.inbox),
                "spool": str(self.home / "spool"),
            },
            "metrics": {"listen": f"127.0.0.1:{self.port}"},
        }
        self.config.write_text(_toml(_merged(own, BRISK, self.settings, settings)))

    def init(self, *options: str) -> Answer:
        """Make the settings and the array."""
        self.home.mkdir(parents=True, exist_ok=True)
        self.write_settings()
        return self.raidctl("init", "--name", "clinic-1", *options, *map(str, self.members)).ok()

    # -- the process ----------------------------------------------------------------------------------------

    def start(self, *, patience_s: float = PATIENCE_S) -> None:
        """A new process; returns when the socket answers. AssertionError, with the log's end, if it ends instead."""
        self.spawn()
        self.until(self.answers, "the socket answers", patience_s)

    def spawn(self) -> subprocess.Popen[bytes]:
        """A new process, and no waiting."""
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "raidd.daemon.main", "--config", str(self.config)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._started.append(self.process)
        return self.process

    def stop(self, timeout_s: float = PATIENCE_S) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def kill(self, *, wait: bool = True) -> None:
        """kill -9. `wait=False` when a disk hangs: such a process cannot finish."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        if wait:
            self.process.wait(PATIENCE_S)

    def restart(self) -> None:
        """A clean stop and a start."""
        assert self.stop() == 0, self.log_end()
        self.start()

    def end(self) -> None:
        """Every process started here, whatever state it is in."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
        for process in self._started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)

    # -- asking ---------------------------------------------------------------------------------------------

    def raidctl(self, *arguments: str, timeout_s: float = PATIENCE_S * 2) -> Answer:
        """Run a command as an operator does."""
        command = [*RAIDCTL, "--config", str(self.config), *arguments]
        done = subprocess.run(command, check=False, capture_output=True, timeout=timeout_s, stdin=subprocess.DEVNULL)
        return Answer(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def http(self, timeout_s: float = PATIENCE_S) -> httpx.Client:
        """The socket itself, for many questions."""
        transport = httpx.HTTPTransport(uds=str(self.socket))
        return httpx.Client(transport=transport, base_url="http://raidd", timeout=timeout_s)

    def answers(self) -> bool:
        """Does the socket give a status?"""
        try:
            with self.http(5) as asking:
                return asking.get(api.STATUS).status_code == 200
        except httpx.HTTPError:
            return False

    def status(self) -> Any:
        """What `raidctl status --json` prints."""
        with self.http() as asking:
            return asking.get(api.STATUS).raise_for_status().json()

    def states(self) -> dict[int, str]:
        """The state of each slot; of two rows (rebuilding) the later."""
        return {row["slot"]: row["state"] for row in self.status()["members"] if row["slot"] is not None}

    def wait_idle(self) -> None:
        """Everything dropped is acknowledged or refused."""
        self.raidctl("wait", "--idle", "--timeout", str(int(PATIENCE_S))).ok()

    def wait_healthy(self) -> None:
        """No repair is needed."""
        self.raidctl("wait", "--healthy", "--timeout", str(int(PATIENCE_S))).ok()

    def metrics(self) -> dict[str, float]:
        """Samples by name, or `name{label}` where there are labels."""
        with urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=PATIENCE_S) as reply:
            families = text_string_to_metric_families(reply.read().decode())
        samples = [sample for family in families for sample in family.samples]
        return {_sample_name(sample.name, sample.labels): sample.value for sample in samples}

    def images(self) -> list[dict[str, Any]]:
        """`raidctl list --json`, every version of every image."""
        with self.http() as asking:
            found = asking.get(api.IMAGES, params={"limit": 100_000}).raise_for_status().json()
        assert not found.get("more")
        return found["images"]  # type: ignore[no-any-return]

    def read(self, uid: str, version: int | None = None) -> bytes:
        """An image's bytes. httpx.HTTPError if it is not given whole."""
        with self.http() as asking:
            return content(asking, uid, version)

    def assert_reads_back(self, deliveries: Iterable[Delivery]) -> None:
        """Each is listed exactly once and comes back with the digest it was dropped with."""
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in self.images():
            rows.setdefault(row["sha256"], []).append(row)
        with self.http() as asking:
            for one in deliveries:
                found = rows.get(one.sha256, [])
                assert len(found) == 1, f"{one} is listed {len(found)} times"
                data = content(asking, found[0]["sop_instance_uid"], found[0]["version"])
                assert hashlib.sha256(data).hexdigest() == one.sha256, f"{one} reads back as other bytes"

    def until(self, reached: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
        """Ask again and again. AssertionError when it never comes, or the process ends meanwhile."""
        deadline = time.monotonic() + patience_s
        while not reached():
            ended = self.process is not None and self.process.poll() is not None
            assert not ended, f"raidd ended while waiting until {what}\n{self.log_end()}"
            assert time.monotonic() < deadline, f"never came: {what}\n{self.log_end()}"
            time.sleep(0.1)

    def log_end(self, size: int = 3000) -> str:
        return self.log.read_text(errors="replace")[-size:] if self.log.exists() else ""

    def peak_rss_mib(self) -> float:
        """The most that was ever resident of the process (VmHWM)."""
        assert self.process is not None
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


@contextmanager
def real_daemon(
    home: Path,
    members: Sequence[Path],
    *,
    level: str = "raid6",
    trial: bool = False,
    settings: Settings | None = None,
    state_dir: Path | None = None,
    start: bool = True,
) -> Iterator[RealDaemon]:
    """A new array over `members`, its daemon running. `trial`: the members are folders of one disk."""
    raidd = RealDaemon(home, list(members), settings or {}, state_dir)
    options = ("--allow-same-device", "--allow-filesystem") if trial else ()
    try:
        for member in raidd.members:
            member.mkdir(parents=True, exist_ok=True)
        raidd.init("--level", level, *options)
        if start:
            raidd.start()
        yield raidd
    finally:
        raidd.end()


def member_folders(home: Path, count: int) -> list[Path]:
    """Places for the members of a trial array."""
    return [home / f"disk{number}" for number in range(count)]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def process_state(pid: int) -> str:
    """The letter of proc(5): R, S, D, Z; "" when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def content(asking: httpx.Client, uid: str, version: int | None = None) -> bytes:
    """An image's bytes over an open client."""
    params = {} if version is None else {"version": version}
    return asking.get(api.IMAGE_CONTENT.format(uid=quote(uid, safe="")), params=params).raise_for_status().content


def _sample_name(name: str, labels: Mapping[str, str]) -> str:
    return name + ("{" + ",".join(labels.values()) + "}" if labels else "")


def _merged(*settings: Settings) -> dict[str, dict[str, object]]:
    tables: dict[str, dict[str, object]] = {}
    for layer in settings:
        for table, values in layer.items():
            tables.setdefault(table, {}).update(values)
    return tables


def _toml(tables: Mapping[str, Mapping[str, object]]) -> str:
    """Flat tables of texts, numbers and flags: JSON writes these as TOML does."""
    lines = []
    for table, values in tables.items():
        lines += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"
