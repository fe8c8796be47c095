"""The metrics as Prometheus reads them."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from collector.errors import CorewardError
from collector.export.counts import OTHER
from collector.export.metrics import MOST_UNITS, Metrics
from collector.model import Cause, Outcome
from tests.metrics_document import DOCUMENT, full, made


def exposition(metrics: Metrics) -> list[str]:
    return generate_latest(metrics.registry).decode().splitlines()


def test_each_metric_is_told_once_with_its_help() -> None:
    lines = exposition(Metrics())
    names = Counter(line.split()[2] for line in lines if line.startswith("# TYPE"))
    assert set(names.values()) == {1}
    assert {re.match(r"(coreward|process)_[a-z_]+$", name) is not None for name in names} == {True}
    assert {line.split()[2] for line in lines if line.startswith("# HELP")} == set(names)


def test_counts_that_something_else_keeps_are_read_at_each_scrape() -> None:
    # GIVEN counts of the probe
    metrics, dropped = Metrics(), {"deliver": 0}
    metrics.watch("probe_events_dropped", "Events lost", "program", lambda: dropped)
    line = 'coreward_probe_events_dropped_total{program="deliver"} '
    assert line + "0.0" in exposition(metrics)
    # WHEN they move THEN so does what is served
    dropped["deliver"] = 3
    assert line + "3.0" in exposition(metrics)


def test_every_metric_is_documented_as_it_is() -> None:
    text = DOCUMENT.read_text()
    assert made(text) == text, "run `python -m tests.metrics_document`"


def test_the_first_event_of_each_kind_is_a_rise() -> None:
    # GIVEN what an agent serves before anything happens
    before = {line.rpartition(" ")[0] for line in exposition(full()) if line[0] != "#"}
    # WHEN one of each kind is counted
    metrics = full()
    for cause, signals in (
        (Cause.SIGNAL, (6, 11, 13, 40)),
        (Cause.KILLED, (9, 15, 6, 10)),
        (Cause.OOM, (9,)),
        (Cause.EXIT, (None,)),
    ):
        for signo in signals:
            metrics.died(cause, signo, Outcome.RECORDED, crash_id="0123456789abcdef")
    for reduced in ("stacks", "threads", "record"):
        metrics.limited.labels(reduced).inc()
    for release in ("instant", "after-copy", "after-write"):
        metrics.hold.labels(release).observe(0.001)
    metrics.errors.labels("store").inc()
    # THEN no series is new
    assert {line.rpartition(" ")[0] for line in exposition(metrics) if line[0] != "#"} == before


def test_rare_signals_share_a_series() -> None:
    metrics = Metrics()
    value = metrics.registry.get_sample_value
    labels = {"cause": "signal", "signal": OTHER, "outcome": "recorded"}
    for signo in (10, 34, 63):
        metrics.died(Cause.SIGNAL, signo, Outcome.RECORDED)
    assert value("coreward_deaths_total", labels) == 3


def test_services_have_series_of_their_own_up_to_a_number() -> None:
    metrics = Metrics()

    def value(unit: str) -> float | None:
        labels = {"unit": unit, "cause": "signal"}
        return metrics.registry.get_sample_value("coreward_unit_deaths_total", labels)

    # GIVEN deaths in a service, in what a user and a container runtime have named, and in no unit
    metrics.died_in("db.service", Cause.SIGNAL, "0" * 16)
    metrics.died_in("user@1000.service/evil.service", Cause.SIGNAL, "0" * 16)
    for other in ("docker-5f.scope", None):
        metrics.died_in(other, Cause.SIGNAL, "0" * 16)
    # THEN only names of root's are labels
    units = ("db.service", "user@1000.service", "evil.service", "docker-5f.scope", OTHER)
    assert [value(unit) for unit in units] == [1, 1, None, None, 2]
    # AND WHEN there are very many services THEN what is beyond the bound counts together
    for number in range(1000):
        metrics.died_in(f"{number}.service", Cause.SIGNAL, "0" * 16)
    metrics.died_in("db.service", Cause.SIGNAL, "0" * 16)
    families = [f for f in metrics.registry.collect() if f.name == "coreward_unit_deaths"]
    assert len({s.labels["unit"] for s in families[0].samples}) == MOST_UNITS
    assert value("db.service") == 2
    assert sum(s.value for s in families[0].samples) == 1005


def test_open_metrics_names_the_crash_of_each_kind() -> None:
    # GIVEN a death of 2.2 ms
    metrics = full()
    metrics.died(Cause.SIGNAL, 11, Outcome.COMPLETE, crash_id="00112233445566aa")
    metrics.hold.labels("instant").observe(0.0022, {"crash_id": "00112233445566aa"})
    # WHEN it is read as OpenMetrics, by a parser that is strict
    _, document = metrics._exposition("application/openmetrics-text; version=1.0.0")
    families = text_string_to_metric_families(document.decode())
    found = {
        (sample.name, sample.labels.get("le")): sample.exemplar.labels
        for family in families
        for sample in family.samples
        if sample.exemplar is not None
    }
    # THEN the crash's id is where it was counted
    crash = {"crash_id": "00112233445566aa"}
    assert found == {
        ("coreward_deaths_total", None): crash,
        ("coreward_hold_duration_seconds_bucket", "0.005"): crash,
    }


def test_a_file_that_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN a policy that was taken at 1000, and a file that is refused at 2000
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    metrics = Metrics()
    monkeypatch.setattr(time, "time", lambda: 2000.0)
    metrics.reloaded(False)
    # THEN both is told
    value = metrics.registry.get_sample_value
    assert value("coreward_config_last_reload_successful") == 0
    assert value("coreward_config_last_reload_success_timestamp_seconds") == 1000
    metrics.reloaded(True)
    assert value("coreward_config_last_reload_successful") == 1
    assert value("coreward_config_last_reload_success_timestamp_seconds") == 2000


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


def test_what_serves_metrics_elsewhere_is_not_loaded() -> None:
    # GIVEN an interpreter that has the agent's metrics THEN it has not what it does not need
    script = """
import sys
from collector.export.metrics import Metrics
metrics = Metrics()
kind, document = metrics._exposition("application/openmetrics-text;version=1.0.0")
assert document.endswith(b"# EOF\\n")
assert not {"ssl", "http.server", "urllib.request"} & sys.modules.keys()
# AND whoever asks for the plain text has it
kind, document = metrics._exposition("*/*")
assert kind.startswith("text/plain") and b"coreward_build_info" in document
# AND the package is whole for others
from prometheus_client import REGISTRY, start_http_server
import prometheus_client
assert prometheus_client.core and callable(start_http_server)
try:
    prometheus_client.nothing
except AttributeError:
    print("done")
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("done\n", "")
