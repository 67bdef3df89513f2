"""`raidd`: the daemon, in the foreground. Opens the array, starts the threads, and ends with them.

    settings -> open_array (locks, labels, catalog) -> parts -> socket -> leftovers settled -> ingest, repairs, probe

The socket answers as soon as the array is open; images are taken in once leftovers of the last run are settled.
SIGTERM: the commit in flight is finished, no other begun; sockets and locks are released before anything that can
block (supervisor.py). `--check-config` reads the settings and says what is wrong with them.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import raidd
from raidd import config as settings
from raidd.array.members import Member
from raidd.codec.erasure import codec_name, self_test
from raidd.config import Config
from raidd.daemon import graph, logs
from raidd.daemon.administration import Administration
from raidd.daemon.control import build_app
from raidd.daemon.graph import Array
from raidd.daemon.logs import EventLog
from raidd.daemon.metrics import Distribution, Snapshot
from raidd.daemon.metrics_server import MetricsServer
from raidd.daemon.opening import lock_disk, now_text, open_array
from raidd.daemon.papers import contact_line, papers
from raidd.daemon.server import serve
from raidd.daemon.service import Service
from raidd.daemon.supervisor import Supervisor, Wake
from raidd.daemon.view import View
from raidd.errors import CatalogUnusable, RaiddError, StateDirFaulty
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
JOURNALED = frozenset({"member-away", "member-back", "image-conflict", "image-truncated", "shard-quarantined"})
LEVELS = {"info": LOG.info, "warning": LOG.warning, "critical": LOG.error, "emergency": LOG.critical}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `raidd`."""
    given = _parser().parse_args(arguments)
    logs.configure()
    path = settings.config_path(given.config)
    try:
        config = settings.load(path)
        if given.check_config:
            print(f"{path}: the settings are right")
            return 0
        return Daemon(config).run()
    except RaiddError as error:
        print(f"raidd: {error.message}", file=sys.stderr)
        print(f"next: {error.next_step}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
        opened = open_array(config)
        self.supervisor.on_exit("locks", opened.locks.unlock_all)
        self.array: Array = graph.build_array(opened, self._offered, self._event)
        self.store, self.repairs = self.array.store, self.array.repairs
        self._keep_contact(config)
        self.array.replicator.use(papers(opened.membership.roster, config.path))
        self.ingest = self._ingest()
        self.view = View(self.store, self.repairs, config.capacity.reserve_percent)
        self.repair_wake, self.probe_wake = Wake(), Wake()
        self.service = Service(self.store, self.view, self.repairs, self.ingest, self._administration())
        self.repairs.wake = self.repair_wake.set

    def run(self) -> int:
        """Until a signal or a crash; does not return but through the supervisor."""
        self.supervisor.on_exit("catalog", self._close)
        socket = serve(self.config.raidd.run_dir / "raidd.sock", build_app(self.service))
        socket.start()
        self.supervisor.on_exit("socket", socket.release)
        metrics = MetricsServer.on(self.config.metrics.listen, self.snapshot)
        failed = metrics.start_once()
        if failed:
            self._event("metrics-unserved", "warning", failed, [])
        self.supervisor.on_exit("metrics", metrics.stop)
        self.supervisor.on_reload(self.reload)
        self.supervisor.start("daemon/start", self._start, may_end=True)
        roster = self.array.opened.membership.roster
        LOG.info("started", array=roster.array_name, codec=codec_name(), version=raidd.__version__)
        self.supervisor.ready(f"array {roster.array_name}")
        self.supervisor.run()

    def _start(self, stopping: threading.Event) -> None:
        """Leftovers first; then everything that loops."""
        graph.make_whole(self.array)
        if stopping.is_set():
            return
        start = self.supervisor.loop
        probe = graph.make_probe(self.array)
        start("health/probe", probe.probe_once, self.config.health.probe_interval_s, self.probe_wake)
        start("array/welcome", lambda: graph.welcome_once(self.array), 0.0)
        start("array/replicate", self.array.replicator.replicate_once, REPLICATE_S)
        start("array/remember", self.array.opened.membership.remember_up, REPLICATE_S)
        start("repair", self.repairs.work_once, 5.0, self.repair_wake)
        start("inbox/prepare", self.ingest.prepare_once, 0.0)
        start("inbox/commit", self.ingest.commit_once, 0.0)

    # -- parts --------------------------------------------------------------------------------------------

    def _ingest(self) -> Ingest:
        config = self.config
        watcher = Watcher(self.roots, config.ingest.settle_s)
        custody = Custody(self.roots, keep_days=config.ingest.keep_days)
        limit = int(config.ingest.image_max_gib * (1 << 30))
        return Ingest(self.store, watcher, custody, image_max_bytes=limit)

    def _administration(self) -> Administration:
        opened = self.array.opened
        return Administration(
            self.config,
            self.store,
            self.view,
            lock_disk=lambda disk: lock_disk(opened.locks, disk),
            unlock_member=self._unlock,
            journal=self._journal,
            changed=self._members_changed,
        )

    def _members_changed(self) -> None:
        self.repair_wake.set()
        self.probe_wake.set()

    def _unlock(self, member: Member) -> None:
        operation = member.submit("probe", lambda disk, _c: graph.unlock_disk(self.array.opened, disk))
        operation.wait(5.0)

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
            self.array.opened.catalog.append_journal(now_text(), actor, action, objects, detail=detail)
        except (StateDirFaulty, CatalogUnusable) as error:
            self.supervisor.stop(f"the journal cannot be written: {error.message}", code=1)

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
        """SIGHUP: the file is checked whole; what can change while running does (repair's pace, the papers)."""
        config = settings.load(self.config.path or Path(settings.config_path()))
        self.repairs.set_pace(graph.pace_of(config))
        self._keep_contact(config)
        self.array.replicator.use(papers(self.array.opened.membership.roster, config.path))

    def _keep_contact(self, config: Config) -> None:
        """Whom to call stands on the labels too, for the person who finds a disk."""
        membership, contact = self.array.opened.membership, contact_line(config.contact)
        if contact != membership.roster.contact:
            membership.set_roster(membership.roster.successor(contact=contact))

    def _close(self) -> None:
        """After the drain: who is up is remembered for the next start; the catalog is checkpointed."""
        self.array.opened.membership.remember(stopping=True)
        if self.supervisor.drained:
            self.ingest.close()
            self.array.opened.catalog.close()


def _roots(config: Config) -> tuple[Root, ...]:
    inbox, spool = config.raidd.inbox, config.raidd.spool
    return inbox_root(inbox), spool_root(spool, inbox)


def _distribution(histogram: Histogram) -> Distribution:
    return Distribution(histogram.bounds, histogram.counts, histogram.total)


if __name__ == "__main__":
    sys.exit(main())
