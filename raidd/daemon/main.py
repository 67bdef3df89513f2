"""`raidd`: the daemon, in the foreground. Opens the array, starts the threads, and ends with them.

    settings -> open_array (locks, labels, catalog) -> parts -> socket -> leftovers settled -> ingest, repairs, probe

The socket answers as soon as the array is open; images are taken in once leftovers of the last run are settled.
SIGTERM: the commit in flight is finished, no other begun; sockets and locks are released before anything that can
block (supervisor.py). SIGHUP: the settings file is read again, and what can change while running does.
`--check-config` reads the settings and says what is wrong with them.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import NoReturn

import raidd
from raidd import config as settings
from raidd.api import SOCKET_NAME
from raidd.codec.erasure import codec_name, self_test
from raidd.config import Config
from raidd.daemon import graph, logs
from raidd.daemon.administration import Administration
from raidd.daemon.beginning import Beginning
from raidd.daemon.control import build_app
from raidd.daemon.graph import Array
from raidd.daemon.logs import EventLog
from raidd.daemon.metrics import Distribution, Snapshot
from raidd.daemon.metrics_server import MetricsServer
from raidd.daemon.opening import LOOK_S, now_text, open_array
from raidd.daemon.papers import contact_line, papers
from raidd.daemon.recorder import Recorder
from raidd.daemon.server import serve
from raidd.daemon.service import Service
from raidd.daemon.supervisor import Supervisor, Wake
from raidd.daemon.view import View
from raidd.errors import FATAL, ConfigInvalid, RaiddError
from raidd.inbox.batch import Ingest
from raidd.inbox.custody import Custody
from raidd.inbox.folders import Root, inbox_root, spool_root
from raidd.inbox.intake import still_offered
from raidd.inbox.tally import Histogram
from raidd.inbox.watch import Watcher

LOG = EventLog("daemon")
SWITCH_S = 0.001
"""Threads give the interpreter to each other this often: a commit's many short waits must not wait for a parser."""
REPLICATE_S = 5.0
METRICS_S = 30.0
"""A port that somebody else has is tried again after this time."""
JOURNALED = frozenset({"member-away", "member-back", "image-conflict", "image-truncated", "shard-quarantined"})
PLACES = ("raidd", "metrics")
"""Tables of the settings that only a start takes."""
LEVELS = {"info": LOG.info, "warning": LOG.warning, "critical": LOG.error, "emergency": LOG.critical}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `raidd`."""
    given = _parser().parse_args(arguments)
    logs.configure()
    path = settings.config_path(given.config)
    try:
        config = settings.load(path)
        if given.check_config:
            print("\n".join([f"{path}: the settings are right", *_without_effect(config)]))
            return 0
        return Daemon(config).run()
    except RaiddError as error:
        print(f"raidd: {error.message}", file=sys.stderr)
        print(f"next: {error.next_step}", file=sys.stderr)
        return error.exit_code


class _Parser(argparse.ArgumentParser):
    """A wrong command line ends as that of raidctl does (operator.md, exit codes)."""

    def error(self, message: str) -> NoReturn:
        self.exit(64, f"raidd: {message}\nnext: raidd --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="raidd", description="Keeps DICOM images safe on several disks. Runs in the foreground until SIGTERM."
    )
    parser.add_argument(
        "--config", metavar="FILE", help="the settings (default: /etc/raidd/raidd.toml, or $RAIDD_CONFIG)"
    )
    parser.add_argument("--check-config", action="store_true", help="say what is wrong with the settings, and end")
    parser.add_argument("--version", action="version", version=f"raidd {raidd.__version__}")
    return parser


class Daemon:
    """All parts of the running daemon. Made and run by the main thread."""

    def __init__(self, config: Config) -> None:
        self_test()
        sys.setswitchinterval(SWITCH_S)
        self.config = config
        self.supervisor = Supervisor()
        self.supervisor.watch()
        self.roots = _roots(config)
        self._catalog_closed = False
        opened = open_array(config)
        self.supervisor.on_exit("locks", self._unlock)
        self.recorder = Recorder(opened.catalog, now_text, wait=bool(opened.reindex_because))
        self.array: Array = graph.build_array(opened, self._offered, self._event)
        self.store, self.repairs = self.array.store, self.array.repairs
        self._keep_contact(config)
        self._give_papers()
        self.custody = Custody(self.roots, keep_days=config.ingest.keep_days)
        self.watcher = Watcher(self.roots, config.ingest.settle_s)
        self.ingest = Ingest(self.store, self.watcher, self.custody, image_max_bytes=_image_max_bytes(config))
        self.probe = graph.make_probe(self.array)
        self.beginning = Beginning(reindexing=bool(opened.reindex_because))
        self.view = View(self.store, self.repairs, self.beginning)
        self.repair_wake, self.probe_wake = Wake(), Wake()
        self.administration = self._administration()
        self.service = Service(
            self.store, self.view, self.repairs, self.ingest, self.administration, self.beginning, self._journal
        )
        self.repairs.wake = self.repair_wake.set

    def run(self) -> int:
        """Until a signal or a crash; does not return but through the supervisor."""
        self.supervisor.on_exit("catalog", self._close)
        _make_run_dir(self.config.raidd.run_dir)
        socket = serve(self.config.raidd.run_dir / SOCKET_NAME, build_app(self.service))
        socket.start()
        self.supervisor.on_exit("socket", socket.release)
        self._serve_metrics()
        self.supervisor.on_reload(self.reload)
        self.supervisor.start("daemon/start", self._start, may_end=True)
        roster = self.array.opened.membership.roster
        LOG.info("started", array=roster.array_name, codec=codec_name(), version=raidd.__version__)
        for line in _without_effect(self.config):
            LOG.warning("settings-without-effect", message=line)
        self.supervisor.ready(f"array {roster.array_name}")
        self.supervisor.run()

    def _start(self, stopping: threading.Event) -> None:
        """Leftovers first; then everything that loops."""
        graph.tell_absent(self.array, self._event)
        start = self.supervisor.loop
        interval = lambda: self.config.health.probe_interval_s  # noqa: E731  (may change at a reload)
        start("health/probe", self.probe.probe_once, interval, self.probe_wake)  # who comes meanwhile is used at once
        graph.make_whole(self.array, self.beginning.progress, self.recorder.begin)
        if stopping.is_set():
            return
        self.store.may_begin()
        self.beginning.ended()
        start("array/welcome", lambda: graph.welcome_once(self.array), 0.0)
        start("array/replicate", self.array.replicator.replicate_once, REPLICATE_S)
        start("array/remember", self.array.opened.membership.remember_up, REPLICATE_S)
        start("repair", self.repairs.work_once, 5.0, self.repair_wake)
        start("inbox/prepare", self.ingest.prepare_once, 0.0)
        start("inbox/commit", self.ingest.commit_once, 0.0)

    # -- parts --------------------------------------------------------------------------------------------

    def _serve_metrics(self) -> None:
        """A taken port is a warning; it is tried again now and then."""
        metrics = MetricsServer.on(self.config.metrics.listen, self.snapshot)
        self.supervisor.on_exit("metrics", metrics.stop)
        failed = metrics.start_once()
        if failed:
            self._event("metrics-unserved", "warning", failed, [])
            self.supervisor.loop("daemon/metrics", metrics.start_once, METRICS_S)

    def _administration(self) -> Administration:
        opened = self.array.opened
        return Administration(
            self.config,
            self.store,
            self.view,
            lock_disk=opened.locks.take,
            journal=self._journal,
            changed=self._members_changed,
            give_up=self._give_up,
        )

    def _members_changed(self) -> None:
        self.repairs.look_again()
        self._give_papers()
        self.repair_wake.set()
        self.probe_wake.set()

    def _give_papers(self) -> None:
        """The README on each member tells how many there are, and whom to call."""
        self.array.replicator.use(papers(self.array.opened.membership.roster, self.config.path))

    def _give_up(self, error: RaiddError) -> None:
        """A state_dir that fails: the process ends rather than go on guessing."""
        self.supervisor.stop(f"{error.message}; {error.next_step}", code=1)

    def _offered(self, source: str, sha256: str | None) -> bool:
        return still_offered(self.roots, source, sha256)

    # -- events -------------------------------------------------------------------------------------------

    def _event(self, code: str, severity: str, message: str, objects: Sequence[str]) -> None:
        LEVELS[severity](code, message=message, objects=",".join(objects))
        if code in JOURNALED:
            self._journal("raidd", code, tuple(objects), {"message": message})

    def _journal(self, actor: str, action: str, objects: tuple[str, ...], detail: dict[str, object]) -> None:
        """A journal that cannot be written means a system disk that cannot be trusted: the process ends."""
        try:
            self.recorder.write(actor, action, objects, detail)
        except FATAL as error:
            self._give_up(error)

    # -- snapshots ----------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """For a scrape."""
        counters = self.ingest.counters()
        counts = self.store.standing().counts
        last = counters.last_stored_at
        return Snapshot(
            status=self.service.status(),
            segments=counts.segments,
            absent_shards=counts.absent_shards,
            dropped=counters.dropped,
            stored=counters.stored,
            duplicates=counters.duplicates,
            rejected=counters.rejected,
            shard_errors=dict(self.array.shard_errors),
            batch_images=_distribution(counters.batch_images),
            batch_bytes=_distribution(counters.batch_bytes),
            acknowledge_s=_distribution(counters.acknowledge_s),
            last_stored_time=None if last is None else datetime.fromisoformat(last).timestamp(),
        )

    # -- reload and end -----------------------------------------------------------------------------------

    def reload(self) -> None:
        """SIGHUP: the file is checked whole, then all of it counts but the places: these are named in the log."""
        config = settings.load(self.config.path or Path(settings.config_path()))
        fixed = [key for key in PLACES if getattr(config, key) != getattr(self.config, key)]
        if fixed:
            LOG.warning("restart-needed", settings=",".join(fixed), next="systemctl restart raidd")
        self._use(replace(config, **{key: getattr(self.config, key) for key in PLACES}))

    def _use(self, config: Config) -> None:
        """Change what runs to these settings."""
        before, self.config = self.config, config
        self.array.opened.config = config
        self.administration.use(config)
        self.watcher.settle_s, self.custody.keep_days = config.ingest.settle_s, config.ingest.keep_days
        self.ingest.limit_images(_image_max_bytes(config))
        self.probe.recent_write_s = config.health.probe_interval_s
        self.store.state_reserve_bytes = config.capacity.state_reserve_mib << 20
        self.store.membership.reserve_percent = config.capacity.reserve_percent
        for member in self.store.membership.members():
            member.use_deadline(config.health.deadline_s)
        if config.repair != before.repair:  # else what was asked for with raidctl stays
            self.repairs.set_pace(graph.pace_of(config))
        self._keep_contact(config)
        self._give_papers()
        self.probe_wake.set()

    def _keep_contact(self, config: Config) -> None:
        """Whom to call stands on the labels too, for the person who finds a disk."""
        membership, contact = self.array.opened.membership, contact_line(config.contact)
        with membership.changing:
            if contact != membership.roster.contact:
                membership.set_roster(membership.roster.successor(contact=contact), within_s=LOOK_S)

    def _close(self) -> None:
        """After the drain: who is up is remembered for the next start; the catalog is checkpointed."""
        self.array.opened.membership.remember(stopping=True)
        if self.supervisor.drained:
            self.ingest.close()
            self.array.opened.catalog.close()
            self._catalog_closed = True

    def _unlock(self) -> None:
        """While a hung disk keeps this process from ending, SQLite's locks of a catalog that was not closed stay, too:
        then so does state_dir's, by which the next start knows that it has to take the catalog over."""
        self.array.opened.locks.unlock_all(keep_folders=not self._catalog_closed)


def _roots(config: Config) -> tuple[Root, ...]:
    inbox, spool = config.raidd.inbox, config.raidd.spool
    return inbox_root(inbox), spool_root(spool, inbox)


def _make_run_dir(folder: Path) -> None:
    """/run is empty after a boot, and not everybody starts raidd by its unit."""
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigInvalid([f'raidd.run_dir = "{folder}": cannot be made: {error.strerror}']) from error


def _image_max_bytes(config: Config) -> int:
    return int(config.ingest.image_max_gib * (1 << 30))


def _without_effect(config: Config) -> list[str]:
    return [f"[{name}] is not used yet by raidd {raidd.__version__}" for name in config.not_yet_used]


def _distribution(histogram: Histogram) -> Distribution:
    return Distribution(histogram.bounds, histogram.counts, histogram.total)


if __name__ == "__main__":
    sys.exit(main())
