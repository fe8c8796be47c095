"""The metrics as Prometheus reads them."""

from __future__ import annotations

import re
import socket
import time
import urllib.request
from collections import Counter

import pytest
from prometheus_client import generate_latest

from collector.errors import CorewardError
from collector.export.metrics import Metrics


def exposition(metrics: Metrics) -> list[str]:
    return generate_latest(metrics.registry).decode().splitlines()


def test_each_metric_is_told_once_with_its_help() -> None:
    lines = exposition(Metrics())
    names = Counter(line.split()[2] for line in lines if line.startswith("# TYPE"))
    assert set(names.values()) == {1}
    assert {re.match(r"coreward_[a-z_]+$", name) is not None for name in names} == {True}
    assert {line.split()[2] for line in lines if line.startswith("# HELP")} == set(names)


def test_counts_that_something_else_keeps_are_read_at_each_scrape() -> None:
    # GIVEN counts of the probe
    metrics, dropped = Metrics(), {"deliver": 0}
    metrics.watch("probe_dropped", "Events lost", "program", lambda: dropped)
    line = 'coreward_probe_dropped_total{program="deliver"} '
    assert line + "0.0" in exposition(metrics)
    # WHEN they move THEN so does what is served
    dropped["deliver"] = 3
    assert line + "3.0" in exposition(metrics)


def test_serving() -> None:
    # GIVEN a port that is free
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    metrics = Metrics()
    metrics.written.inc(4096)
    stop = metrics.serve("127.0.0.1", port)
    try:
        # THEN the metrics are there, and a second agent is told what to do
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert b"\ncoreward_core_written_bytes_total 4096.0\n" in answer.read()
        with pytest.raises(CorewardError) as caught:
            Metrics().serve("127.0.0.1", port)
        assert str(caught.value) == (
            f"metrics: cannot listen on 127.0.0.1:{port}: Address already in use; "
            "change `metrics.listen` or set it to `off`"
        )
    finally:
        stop()
    # AND the port is free again
    with socket.create_server(("127.0.0.1", port)):
        pass


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain"),
        ("text/plain;version=abc", "text/plain"),
        ("application/openmetrics-text;version=1.0.0;q=0.6,*/*", "application/openmetrics-text"),
        ("application/openmetrics-text;version=" + "9" * 5000, "application/openmetrics-text"),
    ],
)
def test_whatever_is_asked_for_there_are_two_formats(accept: str, kind: str) -> None:
    metrics = Metrics()
    metrics.written.inc(4096)
    found, document = metrics._exposition(accept)
    assert found.split(";")[0] == kind and len(found) < 100
    assert b"\ncoreward_core_written_bytes_total 4096.0\n" in document


def test_who_asks_without_end_has_it_made_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN a document that was asked for
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    metrics = Metrics()
    first = metrics._exposition("")
    metrics.written.inc(4096)
    # WHEN it is asked for again at once THEN it is the same, in whatever words
    assert metrics._exposition("") == metrics._exposition("a/b") == first
    # AND a moment later it is a new one
    now[0] += 0.1
    assert metrics._exposition("") != first
