"""How fast images are read back, with all members there and with two of six gone; cold, over raidd's socket.

    sudo python benchmarks/bench_read.py [--rounds 5] [--only CT DX cine] [--scale 1.0] [--home /var/tmp] [--json F]

Healthy and degraded take turns on the same images. Before each turn the page cache forgets the members' files. Members
go by umount and come back by mount. Every byte is compared: a rate of wrong bytes is no rate.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.disks import cpu_seconds, ext4_disks, forget_pages, peak_rss_mib, settle
from benchmarks.running import Running, daemon
from benchmarks.workloads import WORKLOADS, Workload, write_set
from raidd import api
from tests.support.loop_disks import LoopDisk

MEMBERS = 6
GONE = (1, 4)  # both hold data shards of most segments
TO_REACH = 0.3  # degraded, of healthy


@dataclass(frozen=True, slots=True)
class Round:
    """The same images twice; seconds."""

    mib: float
    healthy_s: float
    degraded_s: float
    healthy_cpu_s: float
    degraded_cpu_s: float


def main() -> None:
    options = _options()
    with ExitStack() as stack:
        fast = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="raidd-bench-", dir="/dev/shm")))
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="raidd-bench-", dir=options.home)))
        names = [*(f"member{n}" for n in range(MEMBERS)), "state"]
        *members, state = stack.enter_context(ext4_disks(home, names, options.disk_mib))
        raidd = stack.enter_context(daemon(fast, state.folder, [disk.folder for disk in members]))
        found = {name: _rounds(WORKLOADS[name].scaled(options.scale), raidd, members, options) for name in options.only}
        peak_mib = peak_rss_mib(raidd.pid)
    print(f"raidd's peak resident memory {peak_mib:.0f} MiB (to stay under 400)")
    if options.json:
        rows = {name: [asdict(one) for one in rounds] for name, rounds in found.items()}
        options.json.write_text(json.dumps({"peak_rss_mib": peak_mib, "rounds": rows}, indent=1))


def _rounds(
    workload: Workload, raidd: Running, members: Sequence[LoopDisk], options: argparse.Namespace
) -> list[Round]:
    digests = _store(workload, raidd)
    rounds = [_round(digests, raidd, members) for _ in range(options.rounds)]
    healthy, degraded = (median(one.mib / getattr(one, name) for one in rounds) for name in ("healthy_s", "degraded_s"))
    ratio = median(one.healthy_s / one.degraded_s for one in rounds)
    print(f"{workload.name}: {workload.images} files, {rounds[0].mib:.0f} MiB, {len(rounds)} rounds")
    print(f"  MiB/s      healthy {healthy:7.1f}   two members gone {degraded:7.1f}")
    print(f"  degraded is {ratio:.2f} × healthy (to reach: {TO_REACH})")
    return rounds


def _store(workload: Workload, raidd: Running) -> dict[str, str]:
    """SHA-256 by SOP Instance UID of what was dropped."""
    files = write_set(workload, raidd.home / "set", seed=0)
    given = {hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    for path in files:
        path.rename(raidd.inbox / path.name)
    (raidd.home / "set").rmdir()
    raidd.raidctl("wait", "--idle", "--timeout", "600")
    listed = json.loads(raidd.raidctl("list", "--modality", workload.modality, "--limit", "100000", "--json"))
    digests = {row["sop_instance_uid"]: row["sha256"] for row in listed}
    if set(digests.values()) != given:
        raise SystemExit(f"{workload.name}: what is listed is not what was dropped")
    return digests


def _round(digests: dict[str, str], raidd: Running, members: Sequence[LoopDisk]) -> Round:
    mib, healthy_s, healthy_cpu_s = _read_all(digests, raidd, members)
    with _gone([members[n] for n in GONE], raidd):
        _, degraded_s, degraded_cpu_s = _read_all(digests, raidd, [m for n, m in enumerate(members) if n not in GONE])
    return Round(mib, healthy_s, degraded_s, healthy_cpu_s, degraded_cpu_s)


def _read_all(digests: dict[str, str], raidd: Running, present: Sequence[LoopDisk]) -> tuple[float, float, float]:
    """MiB, seconds (hashing here included, in both turns alike), raidd's CPU seconds."""
    settle([disk.folder for disk in present])
    for disk in present:
        forget_pages(disk.folder)
    count, cpu_before, begin = 0, cpu_seconds(raidd.pid), time.perf_counter()
    with raidd.http() as asking:
        for uid, sha256 in digests.items():
            got = hashlib.sha256()
            with asking.stream("GET", api.IMAGE_CONTENT.format(uid=quote(uid, safe=""))) as reply:
                reply.raise_for_status()
                for piece in reply.iter_bytes():
                    got.update(piece)
                    count += len(piece)
            if got.hexdigest() != sha256:
                raise SystemExit(f"{uid}: wrong bytes")
    return count / (1 << 20), time.perf_counter() - begin, cpu_seconds(raidd.pid) - cpu_before


@contextmanager
def _gone(disks: Sequence[LoopDisk], raidd: Running) -> Iterator[None]:
    """Unmounted, and known to be away; mounted again, and healthy, afterwards."""
    for disk in disks:
        disk.lazy_umount()  # a probe may be looking at it at this moment
    try:
        while sum(row["state"] == "missing" for row in raidd.status()["members"]) < len(disks):
            time.sleep(0.5)
        yield
    finally:
        for disk in disks:
            disk.mount()
        raidd.raidctl("wait", "--healthy", "--timeout", "120")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the files, for a quick look")
    parser.add_argument("--home", type=Path, default=Path("/var/tmp"), help="where the disks' images lie")
    parser.add_argument("--disk-mib", type=int, default=3072)
    parser.add_argument("--json", type=Path, help="write every round's figures there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
