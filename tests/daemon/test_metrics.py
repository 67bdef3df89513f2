"""A real scrape over HTTP, read with Prometheus' own parser, against the table."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from raidd import api
from raidd.daemon.metrics import LATENCY_BOUNDS, METRICS, Distribution, Snapshot, table
from raidd.daemon.metrics_server import MetricsServer
from raidd.errors import CatalogUnusable
from tests.support.fake_services import AT, member, status

FULL = Snapshot(
    status=status(
        members=[
            member(0, errors=3),
            member(1, "missing", used_bytes=None),
            member(2, "failed", errors=17, size_bytes=8000, used_bytes=None),
            member(2, "rebuilding", size_bytes=9000, used_bytes=25),
        ],
        spares=[member(None, "spare")],
        images=api.ImagesInfo(count=1000, studies=9, bytes=5, raw_bytes=8, unprotected=4, unreadable=2),
        inbox=api.InboxInfo(waiting=6, rejected=2),
        activities=[
            api.Activity(kind="rebuild", slot=2, progress=0.61, rate_mib_s=212.0),
            api.Activity(kind="reindex", progress=0.1),
        ],
        alerts=[api.AlertInfo(code="member-failed", severity="warning", slot=2, since=AT, message="m")],
    ),
    segments=12,
    absent_shards=13,
    dropped=30,
    stored=20,
    duplicates=7,
    rejected={"not-dicom": 2, "empty": 1},
    shard_errors={"damaged": 5},
    acknowledge_s=Distribution.of(LATENCY_BOUNDS, [0.01, 0.011, 0.03, 1000.0]),
    last_stored_time=1.5e9,
)


class Source:
    """The snapshot that the next scrape gets, or the error."""

    def __init__(self) -> None:
        self.shot: Snapshot | Exception = FULL

    def __call__(self) -> Snapshot:
        if isinstance(self.shot, Exception):
            raise self.shot
        return self.shot


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def server(source: Source) -> Iterator[MetricsServer]:
    server = MetricsServer.on("127.0.0.1:0", source)
    assert server.start_once() == ""
    yield server
    server.stop()


def scrape(server: MetricsServer, accept: str = "text/plain") -> str:
    request = Request(f"http://127.0.0.1:{server.port}/metrics", headers={"Accept": accept})
    with urlopen(request, timeout=20) as reply:
        return reply.read().decode()  # type: ignore[no-any-return]


def families(server: MetricsServer) -> dict[str, Metric]:
    return {family.name: family for family in parse(scrape(server))}


def samples(family: Metric) -> dict[tuple[str, ...], float]:
    return {tuple(sample.labels.values()): sample.value for sample in family.samples}


def test_a_scrape_and_the_table_name_the_same_metrics(server: MetricsServer) -> None:
    scraped = {(family.name, family.type, family.documentation) for family in families(server).values()}
    assert scraped == {(row.name.removesuffix("_total"), row.type, row.help) for row in METRICS}


def test_labels_are_only_the_four_and_as_the_table_says(server: MetricsServer) -> None:
    found = families(server)
    for row in METRICS:
        assert set(row.labels) <= {"slot", "state", "code", "kind"}
        for sample in found[row.name.removesuffix("_total")].samples:
            assert set(sample.labels) - {"le"} == set(row.labels)


def test_names_follow_prometheus_conventions() -> None:
    for row in METRICS:
        assert re.fullmatch(r"raidd_[a-z_]+", row.name)
        assert row.name.endswith("_total") == (row.type == "counter")
    assert len({row.name for row in METRICS}) == len(METRICS)


def test_the_readme_table_has_every_metric_once() -> None:
    assert re.findall(r"^\| `(\w+)` \|", table(), re.MULTILINE) == [row.name for row in METRICS]


def test_values_are_those_of_the_snapshot(server: MetricsServer) -> None:
    found = families(server)
    expected = {
        "raidd_failures_tolerated": {(): 2},
        "raidd_member_errors": {("0",): 3, ("1",): 0, ("2",): 17},
        "raidd_member_size_bytes": {("0",): 1000, ("1",): 1000, ("2",): 9000},
        "raidd_member_used_bytes": {("0",): 10, ("2",): 25},
        "raidd_images": {(): 1000},
        "raidd_images_unprotected": {(): 4},
        "raidd_shards_absent": {(): 13},
        "raidd_shard_errors": {("damaged",): 5},
        "raidd_inbox_rejected": {("empty",): 1, ("not-dicom",): 2},
        "raidd_activity_progress": {("rebuild", "2"): 0.61, ("reindex", ""): 0.1},
        "raidd_alerts": {("member-failed", "2"): 1},
        "raidd_inbox_last_stored_timestamp_seconds": {(): 1.5e9},
    }
    assert {name: samples(found[name]) for name in expected} == expected
    states = {labels for labels, held in samples(found["raidd_member_state"]).items() if held}
    assert states == {("0", "online"), ("1", "missing"), ("2", "failed"), ("2", "rebuilding")}
    assert samples(found["raidd_members"])[("spare",)] == 1
    assert samples(found["raidd_array_state"]) == {("healthy",): 1, ("degraded",): 0, ("critical",): 0, ("failed",): 0}


def test_a_histogram_is_cumulative(server: MetricsServer) -> None:
    found = {(s.name, s.labels.get("le")): s.value for s in families(server)["raidd_acknowledge_seconds"].samples}
    assert found[("raidd_acknowledge_seconds_bucket", "0.01")] == 1
    assert found[("raidd_acknowledge_seconds_bucket", "0.02")] == 2
    assert found[("raidd_acknowledge_seconds_bucket", "300")] == 3
    assert found[("raidd_acknowledge_seconds_bucket", "+Inf")] == 4
    assert found[("raidd_acknowledge_seconds_count", None)] == 4
    assert found[("raidd_acknowledge_seconds_sum", None)] == pytest.approx(1000.051)


def test_openmetrics_is_spoken_when_asked_for(server: MetricsServer) -> None:
    text = scrape(server, "application/openmetrics-text; version=1.0.0")
    assert {family.name for family in parse_openmetrics(text)} >= {"raidd_images", "raidd_inbox_rejected"}


def test_an_empty_array_is_scraped_too(server: MetricsServer, source: Source) -> None:
    source.shot = Snapshot(status=status())
    assert samples(families(server)["raidd_images"]) == {(): 0}


@pytest.mark.parametrize(("fault", "code"), [(CatalogUnusable("corrupt"), 503), (ZeroDivisionError("bug"), 500)])
def test_a_snapshot_that_fails_fails_its_scrape_only(
    server: MetricsServer, source: Source, fault: Exception, code: int
) -> None:
    source.shot = fault
    with pytest.raises(HTTPError) as caught:
        scrape(server)
    caught.value.close()
    assert caught.value.code == code
    source.shot = FULL
    assert families(server)


def test_other_paths_are_not_found(server: MetricsServer) -> None:
    with pytest.raises(HTTPError) as caught:
        urlopen(f"http://127.0.0.1:{server.port}/etc/passwd", timeout=20)
    caught.value.close()
    assert caught.value.code == 404


def test_a_taken_port_is_a_warning_and_is_taken_up_when_it_is_free(source: Source) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = MetricsServer("127.0.0.1", port, source)
        warning = server.start_once()
        assert f"127.0.0.1:{port}" in warning
        assert "in use" in warning
        assert server.port == 0
    assert server.start_once() == ""
    assert server.start_once() == ""
    assert families(server)
    server.stop()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


def test_a_scraper_that_hangs_or_leaves_does_not_keep_others_waiting(server: MetricsServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port)):
        assert families(server)


@given(st.lists(st.floats(0, 1e4)))
def test_a_distribution_counts_every_value_once(values: list[float]) -> None:
    made = Distribution.of(LATENCY_BOUNDS, values)
    buckets = made.cumulative()
    assert buckets[-1] == ("+Inf", len(values))
    for bound, (name, count) in zip(LATENCY_BOUNDS, buckets, strict=False):
        assert float(name) == bound
        assert count == sum(value <= bound for value in values)
