"""Prometheus metrics of the agent, and the endpoint that serves them.

Labels take values from small fixed sets, or from the policy: no name from a crashing process
becomes a label.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import choose_encoder

from collector.errors import CorewardError
from collector.export.endpoint import Endpoint
from collector.linux import children

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_HOLD_BUCKETS = (
    0.0005,
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
)
# A document is given again for so long: who asks without end has it made 20 times a second
KEPT_S = 0.05
_OPEN_METRICS = "application/openmetrics-text"
_CAPTURE_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Every metric of the agent. Counting is thread-safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._kept: dict[str, tuple[float, bytes]] = {}  # by type: until when, and the document

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"coreward_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"coreward_{name}", text, registry=self.registry)

        self.deaths = counter(
            "deaths", "Deaths seen, by what became of their capture", "cause", "signal", "outcome"
        )
        self.hold = Histogram(
            "coreward_hold_seconds",
            "Time from the kernel's hand-off of a dying process to its release",
            ("release",),
            buckets=_HOLD_BUCKETS,
            registry=self.registry,
        )
        self.capture = Histogram(
            "coreward_capture_seconds",
            "Time from the hand-off until the core was visible",
            buckets=_CAPTURE_BUCKETS,
            registry=self.registry,
        )
        self.written = counter("core_written_bytes", "Bytes of cores written to disk")
        self.elided = counter("core_elided_bytes", "Bytes of absent or zero pages not written")
        self.limited = counter("limited", "Captures made smaller by a limit", "capture")
        self.crowded = counter(
            "crowded", "Cores given up so that no process waits: too many died at a time"
        )
        self.queue_full = counter("capture_queue_full", "Captures given up: the queue was full")
        self.errors = counter(
            "errors", "Deaths that an error of the agent left incomplete", "stage"
        )
        self.queued = gauge("captures_queued", "Captures that wait for a worker")
        hanging = gauge("hanging_processes", "Killed helpers that hang in the kernel")
        hanging.set_function(children.hanging)
        self.dumps = counter(
            "dumps", "Processes that dumpers of others had, by what became of them", "outcome"
        )
        self.bids_missed = counter("bids_missed", "Bids of dumpers that did not come in time")
        self.dumpers = gauge("dumpers", "Dumpers of others that are registered")
        self.pins = gauge("pins_open", "Address spaces kept alive after their process has gone")
        self.armed = gauge("armed_processes", "Processes whose memory is pinned while they live")
        self.arm_refused = counter(
            "arm_refused",
            "Processes named by an arm rule, but not armed: there are `arm.max`, or it failed",
            "why",
        )
        self.lent = gauge("lent_bytes", "Bytes by which limits of memory cgroups are raised")
        self.pinned = gauge("pinned_bytes", "Bytes of memory in pinned address spaces")
        self.triggers = counter(
            "triggers", "Health triggers fired, by what came of it", "rule", "trigger", "outcome"
        )
        self.watched = gauge("watched_processes", "Processes whose threads are sampled")
        self.watched_bytes = gauge("watch_samples_bytes", "Memory that kept samples take")
        self.samples = counter("watch_samples", "Samples of watched processes taken")
        self.watch_refused = counter(
            "watch_refused",
            "Processes named by a watch rule, but left out: no room, or they keep readers waiting",
        )
        self.traced = gauge("traced_threads", "Threads that keep their last system calls")
        self.left_behind = gauge(
            "handoff_threads_left_behind",
            "Threads that a dying process keeps waiting, for ever maybe",
        )
        self.policy_bad = gauge("policy_reload_failed", "1 while the last reload was refused")

    def watch(
        self, name: str, text: str, label: str, read: Callable[[], Mapping[str, int]]
    ) -> None:
        """Export counts that something else keeps; `read` gives label value -> total."""
        self.registry.register(_Watched(f"coreward_{name}", text, label, read))

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Serve `/metrics`; returns what stops it. Raises CorewardError if the port is taken."""
        try:
            return Endpoint(host, port, self._exposition).close
        except OSError as error:
            number = error.errno or 0  # below 0: the name cannot be resolved
            why = os.strerror(number) if number > 0 else error.strerror or error
            raise CorewardError(
                f"metrics: cannot listen on {host}:{port}: {why}; "
                "change `metrics.listen` or set it to `off`"
            ) from error

    def _exposition(self, accept: str) -> tuple[str, bytes]:
        """All metrics, in the format that a request's `Accept` asks for.

        Of each of the two formats there is one version: what else is asked for makes no document
        of its own, and no error.
        """
        encoder, kind = choose_encoder(_OPEN_METRICS if _OPEN_METRICS in accept else "")
        until, document = self._kept.get(kind, (0.0, b""))
        if time.monotonic() >= until:
            document = encoder(self.registry)
            self._kept[kind] = time.monotonic() + KEPT_S, document
        return kind, document


class _Watched:
    """Counters that are read at each scrape."""

    def __init__(
        self, name: str, text: str, label: str, read: Callable[[], Mapping[str, int]]
    ) -> None:
        self._name, self._text, self._label, self._read = name, text, label, read

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=(self._label,))
        for value, count in self._read().items():
            family.add_metric((value,), count)
        yield family
