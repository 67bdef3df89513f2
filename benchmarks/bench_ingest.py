"""How fast images are stored, acknowledged before counted; beside it the same files onto one disk and onto btrfs raid6.

    sudo python benchmarks/bench_ingest.py [--rounds 5] [--only CT DX cine] [--scale 1.0] [--home /var/tmp] [--json F]

Three subjects take turns on each set of files, which lies in a folder in memory:
- raidd: 4+2 on six ext4 disks, state on a seventh; files are renamed into the inbox, the clock runs until the last one
  is acknowledged (`last_stored_at`);
- plain: one ext4 disk, each file copied and fsynced: no redundancy;
- btrfs: raid6 over six devices, each file copied and fsynced.
A figure is the median over rounds; a ratio is the median of the rounds' ratios, so that a busy hour cancels out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.disks import Pool, btrfs_raid6, cost_of, ext4_disks, peak_rss_mib, settle
from benchmarks.running import Running, daemon
from benchmarks.workloads import WORKLOADS, Workload, write_set

MEMBERS = 6
TO_REACH = {"CT": (0.7, 1.8), "DX": (0.6, 1.3)}  # of plain, of btrfs


@dataclass(frozen=True, slots=True)
class Round:
    """One set through all three; seconds."""

    mib: float
    raidd_s: float
    plain_s: float
    btrfs_s: float
    raidd_cpu_s: float
    raidd_flushes: int
    plain_flushes: int
    btrfs_flushes: int


@dataclass(frozen=True, slots=True)
class Subjects:
    raidd: Running
    members: Pool  # all six, and the state's disk: what a commit flushes
    plain: Pool
    btrfs: Pool


def main() -> None:
    options = _options()
    with ExitStack() as stack:
        fast = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="raidd-bench-", dir="/dev/shm")))
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="raidd-bench-", dir=options.home)))
        subjects = _subjects(stack, fast, home, options.disk_mib)
        found = {name: _rounds(WORKLOADS[name], subjects, fast, options) for name in options.only}
        peak_mib = peak_rss_mib(subjects.raidd.pid)
    print(f"raidd's peak resident memory {peak_mib:.0f} MiB (to stay under 400)")
    if options.json:
        rows = {name: [asdict(one) for one in rounds] for name, rounds in found.items()}
        options.json.write_text(json.dumps({"peak_rss_mib": peak_mib, "rounds": rows}, indent=1))


def _subjects(stack: ExitStack, fast: Path, home: Path, disk_mib: int) -> Subjects:
    names = [*(f"member{n}" for n in range(MEMBERS)), "state", "plain"]
    disks = stack.enter_context(ext4_disks(home, names, disk_mib))
    btrfs = stack.enter_context(btrfs_raid6(home, MEMBERS, disk_mib))
    *members, state, plain = disks
    raidd = stack.enter_context(daemon(fast, state.folder, [disk.folder for disk in members]))
    return Subjects(
        raidd,
        Pool(members[0].folder, tuple(disk.device for disk in [*members, state])),
        Pool(plain.folder, (plain.device,)),
        btrfs,
    )


def _rounds(workload: Workload, subjects: Subjects, fast: Path, options: argparse.Namespace) -> list[Round]:
    scaled = workload.scaled(options.scale)
    before = subjects.raidd.latencies()
    rounds = [_round(scaled, subjects, fast, number) for number in range(options.rounds)]
    _report(scaled, rounds, _gained(before, subjects.raidd.latencies()))
    return rounds


def _round(workload: Workload, subjects: Subjects, fast: Path, number: int) -> Round:
    files = write_set(workload, fast / "set", number)
    mib = sum(path.stat().st_size for path in files) / (1 << 20)
    try:
        settle([subjects.plain.folder, subjects.btrfs.folder])
        plain_s, plain_flushes = _copy_all(files, subjects.plain)
        btrfs_s, btrfs_flushes = _copy_all(files, subjects.btrfs)
        seconds: list[float] = []
        cost = cost_of(
            lambda: seconds.append(_drop(files, subjects.raidd)), subjects.raidd.pid, subjects.members.devices
        )
    finally:
        shutil.rmtree(fast / "set")
    return Round(mib, seconds[0], plain_s, btrfs_s, cost.cpu_s, cost.flushes, plain_flushes, btrfs_flushes)


def _drop(files: Sequence[Path], raidd: Running) -> float:
    """Rename all into the inbox; seconds until the last is acknowledged."""
    stored_before = raidd.status()["images"]["count"]
    begin = time.time()
    for path in files:
        path.rename(raidd.inbox / path.name)
    raidd.raidctl("wait", "--idle", "--timeout", "600")
    status = raidd.status()
    stored = status["images"]["count"] - stored_before
    if stored != len(files) or status["images"]["unprotected"]:
        raise SystemExit(f"Of {len(files)} images {stored} were stored: {status['inbox']} {status['alerts']}")
    return datetime.fromisoformat(status["inbox"]["last_stored_at"]).timestamp() - begin


def _copy_all(files: Sequence[Path], pool: Pool) -> tuple[float, int]:
    """`cp` and fsync, one file after the other; the copies are taken away outside the clock."""
    target = pool.folder / "copies"
    target.mkdir()
    flushes_before, begin = pool.flushes(), time.perf_counter()
    for path in files:
        _copy(path, target / path.name)
    seconds, flushes = time.perf_counter() - begin, pool.flushes() - flushes_before
    shutil.rmtree(target)
    settle([pool.folder])
    return seconds, flushes


def _copy(source: Path, target: Path) -> None:
    with source.open("rb", buffering=0) as reading, target.open("xb", buffering=0) as writing:
        left = os.fstat(reading.fileno()).st_size
        while left > 0:
            left -= os.sendfile(writing.fileno(), reading.fileno(), None, left)
        os.fsync(writing.fileno())


def _gained(before: dict[float, float], after: dict[float, float]) -> dict[float, float]:
    return {bound: count - before.get(bound, 0.0) for bound, count in after.items()}


def _quantile(buckets: dict[float, float], share: float) -> float:
    """The upper bound of the bucket in which that share of the images was acknowledged."""
    wanted = share * max(buckets.values(), default=0.0)
    return min((bound for bound, count in buckets.items() if count >= wanted), default=float("nan"))


def _report(workload: Workload, rounds: Sequence[Round], buckets: dict[float, float]) -> None:
    def rate(seconds: str) -> float:
        return float(median(one.mib / getattr(one, seconds) for one in rounds))

    of_plain = median(one.plain_s / one.raidd_s for one in rounds)
    of_btrfs = median(one.btrfs_s / one.raidd_s for one in rounds)
    images = workload.images
    print(f"{workload.name}: {images} files, {rounds[0].mib:.0f} MiB, {len(rounds)} rounds")
    print(f"  MiB/s      raidd {rate('raidd_s'):7.1f}   plain {rate('plain_s'):7.1f}   btrfs {rate('btrfs_s'):7.1f}")
    need = TO_REACH.get(workload.name)
    wanted = f"   (to reach: {need[0]} and {need[1]})" if need else ""
    print(f"  raidd is   {of_plain:.2f} × plain, {of_btrfs:.2f} × btrfs raid6{wanted}")
    per_image = [median(getattr(one, name) / images for one in rounds) for name in _FLUSHES]
    print("  flushes an image   " + "   ".join(f"{n:.2f}" for n in per_image) + "   (raidd, plain, btrfs)")
    cpu = median(one.raidd_cpu_s for one in rounds) * 1000 / images
    print(f"  CPU {cpu:.2f} s per 1000 images; acknowledged within {_quantile(buckets, 0.5):g} s (p50), ", end="")
    print(f"{_quantile(buckets, 0.99):g} s (p99)")


_FLUSHES = ("raidd_flushes", "plain_flushes", "btrfs_flushes")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the files, for a quick look")
    parser.add_argument("--home", type=Path, default=Path("/var/tmp"), help="where the disks' images lie")
    parser.add_argument("--disk-mib", type=int, default=6144)
    parser.add_argument("--json", type=Path, help="write every round's figures there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
