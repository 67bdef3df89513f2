"""Prometheus metrics: a snapshot is taken at each scrape and read through one table.

`METRICS` is the whole list: the README's table is generated from it (`table`) and a test compares it with what a
scrape gives, both ways. No counter is woven through the logic: whoever makes the `Snapshot` asks the parts for what
they know anyway. Labels are only `slot`, `state`, `code` and `kind`: nothing of a patient, nothing unbounded.

`metrics_server` serves it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, get_args

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from raidd.api import ArrayWord, MemberWord, Status

ARRAY_STATES: Final[tuple[str, ...]] = get_args(ArrayWord)
MEMBER_STATES: Final[tuple[str, ...]] = get_args(MemberWord)

Sample = tuple[tuple[str, ...], float]  # label values, value


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram: `counts[i]` values above `bounds[i-1]` and not above `bounds[i]`, the last count above all."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float = 0.0

    @classmethod
    def of(cls, bounds: Sequence[float], values: Sequence[float] = ()) -> Distribution:
        counts = Counter(bisect_left(bounds, value) for value in values)
        return cls(tuple(bounds), tuple(counts[i] for i in range(len(bounds) + 1)), float(sum(values)))

    def cumulative(self) -> list[tuple[str, float]]:
        """Prometheus' buckets: (upper bound, values not above it), the last one `+Inf`."""
        names = [*(f"{bound:g}" if bound < 1e6 else str(int(bound)) for bound in self.bounds), "+Inf"]
        return [(name, float(sum(self.counts[: i + 1]))) for i, name in enumerate(names)]


BATCH_IMAGES_BOUNDS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 4096.0)
BATCH_BYTES_BOUNDS: Final = tuple(float(1 << power) for power in range(12, 26))  # 4 KiB … 32 MiB
LATENCY_BOUNDS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a scrape shows. `status` is the one that `raidctl status` shows; the counts are since the start."""

    status: Status
    segments: int = 0
    absent_shards: int = 0  # missing or damaged, or on a member that is away
    dropped: int = 0
    stored: int = 0
    duplicates: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)  # by refusal code
    shard_errors: Mapping[str, int] = field(default_factory=dict)  # by kind: missing, damaged
    batch_images: Distribution = field(default_factory=partial(Distribution.of, BATCH_IMAGES_BOUNDS))
    batch_bytes: Distribution = field(default_factory=partial(Distribution.of, BATCH_BYTES_BOUNDS))
    acknowledge_s: Distribution = field(default_factory=partial(Distribution.of, LATENCY_BOUNDS))
    last_stored_time: float | None = None  # Unix time


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric: `read` gives its samples, or its distributions if it is a histogram."""

    name: str
    type: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...]
    read: Callable[[Snapshot], Any]


def gauge(name: str, text: str, read: Callable[[Snapshot], Any], *labels: str) -> MetricRow:
    return MetricRow(name, "gauge", text, labels, read)


def counter(name: str, text: str, read: Callable[[Snapshot], Any], *labels: str) -> MetricRow:
    return MetricRow(name, "counter", text, labels, read)


def histogram(name: str, text: str, read: Callable[[Snapshot], Distribution]) -> MetricRow:
    return MetricRow(name, "histogram", text, (), read)


def _members(shot: Snapshot) -> list[Sample]:
    counts = Counter(str(row.state) for row in [*shot.status.members, *shot.status.spares])
    return [((state,), float(counts[state])) for state in MEMBER_STATES]


def _slots(value: Callable[[Any], float | None]) -> Callable[[Snapshot], list[Sample]]:
    """A value a slot: of two rows (rebuilding) the later, which is the new member's."""

    def read(shot: Snapshot) -> list[Sample]:
        rows = {str(row.slot): value(row) for row in shot.status.members if row.slot is not None}
        return [((slot,), number) for slot, number in rows.items() if number is not None]

    return read


def _slot_states(shot: Snapshot) -> list[Sample]:
    held = {(str(row.slot), str(row.state)) for row in shot.status.members if row.slot is not None}
    slots = dict.fromkeys(str(row.slot) for row in shot.status.members if row.slot is not None)
    return [((slot, state), float((slot, state) in held)) for slot in slots for state in MEMBER_STATES]


def _slot_errors(shot: Snapshot) -> list[Sample]:
    totals: Counter[str] = Counter()
    for row in shot.status.members:
        totals[str(row.slot)] += row.errors
    return [((slot,), float(errors)) for slot, errors in totals.items()]


def _array_states(shot: Snapshot) -> list[Sample]:
    return [((state,), float(shot.status.array.state == state)) for state in ARRAY_STATES]


def _by(counts: Callable[[Snapshot], Mapping[str, int]]) -> Callable[[Snapshot], list[Sample]]:
    return lambda shot: [((key,), float(count)) for key, count in sorted(counts(shot).items())]


def _activities(value: Callable[[Any], float | None]) -> Callable[[Snapshot], list[Sample]]:
    """By kind and slot ("" = the whole array); of several alike the last."""

    def read(shot: Snapshot) -> list[Sample]:
        rows = {(job.kind, "" if job.slot is None else str(job.slot)): value(job) for job in shot.status.activities}
        return [(labels, number) for labels, number in rows.items() if number is not None]

    return read


def _alerts(shot: Snapshot) -> list[Sample]:
    counts = Counter((row.code, "" if row.slot is None else str(row.slot)) for row in shot.status.alerts)
    return [(labels, float(count)) for labels, count in counts.items()]


METRICS: Final[tuple[MetricRow, ...]] = (
    gauge("raidd_array_state", "1 for the state the array is in.", _array_states, "state"),
    gauge(
        "raidd_failures_tolerated",
        "Further members, whichever they are, that can die with nothing lost.",
        lambda shot: shot.status.array.failures_tolerated,
    ),
    gauge("raidd_members", "Members by state, spares included.", _members, "state"),
    gauge("raidd_member_state", "1 for each state a slot is in (two while rebuilding).", _slot_states, "slot", "state"),
    counter(
        "raidd_member_errors_total",
        "Failed operations and bad blocks since the slot's members were last put online.",
        _slot_errors,
        "slot",
    ),
    gauge("raidd_member_size_bytes", "Size of the slot's file system.", _slots(lambda row: row.size_bytes), "slot"),
    gauge("raidd_member_used_bytes", "Used on the slot's file system.", _slots(lambda row: row.used_bytes), "slot"),
    gauge("raidd_images", "Images in the array, every version.", lambda shot: shot.status.images.count),
    gauge("raidd_studies", "Studies in the array.", lambda shot: shot.status.images.studies),
    gauge("raidd_image_bytes", "The images' own bytes.", lambda shot: shot.status.images.bytes),
    gauge("raidd_raw_bytes", "What all shards take.", lambda shot: shot.status.images.raw_bytes),
    gauge(
        "raidd_images_unprotected",
        "Images that the loss of one more member could take.",
        lambda shot: shot.status.images.unprotected,
    ),
    gauge(
        "raidd_images_unreadable",
        "Images that cannot be read with the members present.",
        lambda shot: shot.status.images.unreadable,
    ),
    gauge("raidd_segments", "Segments in the array.", lambda shot: shot.segments),
    gauge(
        "raidd_shards_absent",
        "Shards missing, damaged, or on a member that is away.",
        lambda shot: shot.absent_shards,
    ),
    counter(
        "raidd_shard_errors_total",
        "Shards found missing or damaged, since the start.",
        _by(lambda shot: shot.shard_errors),
        "kind",
    ),
    gauge("raidd_inbox_waiting", "Images dropped, neither acknowledged nor refused.", lambda s: s.status.inbox.waiting),
    counter("raidd_inbox_dropped_total", "Files taken up, since the start.", lambda shot: shot.dropped),
    counter("raidd_inbox_stored_total", "Images acknowledged, since the start.", lambda shot: shot.stored),
    counter("raidd_inbox_duplicates_total", "Images that were there already.", lambda shot: shot.duplicates),
    counter("raidd_inbox_rejected_total", "Files refused.", _by(lambda shot: shot.rejected), "code"),
    gauge(
        "raidd_inbox_last_stored_timestamp_seconds",
        "When an image was last acknowledged.",
        lambda shot: shot.last_stored_time,
    ),
    histogram("raidd_batch_images", "Images a commit.", lambda shot: shot.batch_images),
    histogram("raidd_batch_bytes", "Bytes a commit.", lambda shot: shot.batch_bytes),
    histogram(
        "raidd_acknowledge_seconds",
        "From the moment an image's file was closed to its acknowledgement.",
        lambda shot: shot.acknowledge_s,
    ),
    gauge(
        "raidd_activity_progress",
        "Progress of a long job, 0 to 1.",
        _activities(lambda job: job.progress),
        "kind",
        "slot",
    ),
    gauge(
        "raidd_activity_bytes_per_second",
        "Pace of a long job.",
        _activities(lambda job: job.rate_mib_s * (1 << 20)),
        "kind",
        "slot",
    ),
    gauge("raidd_alerts", "Open alerts.", _alerts, "code", "slot"),
)


def table() -> str:
    """The README's table."""
    rows = [f"| `{row.name}` | {row.type} | {', '.join(row.labels)} | {row.help} |" for row in METRICS]
    return "\n".join(["| metric | type | labels | what |", "|---|---|---|---|", *rows]) + "\n"


class SnapshotCollector(Collector):
    """Takes one snapshot a scrape. `take` is called from the scrape's thread and may raise a RaiddError."""

    def __init__(self, take: Callable[[], Snapshot]) -> None:
        self._take = take

    def collect(self) -> Iterator[Metric]:
        shot = self._take()
        for row in METRICS:
            yield _family(row, row.read(shot))


def _family(row: MetricRow, read: Any) -> Metric:
    if isinstance(read, Distribution):
        return HistogramMetricFamily(row.name, row.help, buckets=read.cumulative(), sum_value=read.total)
    samples: list[Sample] = read if isinstance(read, list) else [] if read is None else [((), float(read))]
    metric = Metric(row.name.removesuffix("_total"), row.help, row.type)
    for values, number in samples:
        metric.add_sample(row.name, dict(zip(row.labels, values, strict=True)), number)
    return metric
