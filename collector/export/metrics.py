"""Prometheus metrics of the agent, and the endpoint that serves them.

Labels take values from small fixed sets, from the policy, or are names of services, which are
root's, and bounded in number: no name from a crashing process becomes a label. Every set that can
be known is there from the start, with 0. docs/metrics.md has them all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics import Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.openmetrics import exposition as open_metrics
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import CollectorRegistry

from collector import __version__
from collector.errors import CorewardError
from collector.export.counts import OTHER, Counts
from collector.export.endpoint import Endpoint
from collector.export.known import CAUSES, LIMITS, death_labels, signal_label, unit_label
from collector.linux import children
from collector.model import Cause, Outcome, Release

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
MOST_UNITS = 64  # services that have series of their own
_CAPTURE_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Every metric of the agent. Counting is thread-safe."""

    def __init__(self) -> None:  # noqa: PLR0915 - it has as many parts as there are metrics
        self.registry = CollectorRegistry()
        self._kept: dict[str, tuple[float, bytes]] = {}  # by type: until when, and the document
        disable_created_metrics()  # type: ignore[no-untyped-call] # they would double the number of series
        ProcessCollector(registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"coreward_{name}", text, labels, registry=self.registry)

        def counts(name: str, text: str, label: str, *known: str) -> Counter:
            """With one label, whose values are all known."""
            made = counter(name, text, label)
            for value in known:
                made.labels(value)
            return made

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"coreward_{name}", text, registry=self.registry)

        def info(name: str, text: str, **labels: str) -> Info:
            made = Info(f"coreward_{name}", text, registry=self.registry)
            made.info(labels)
            return made

        info("build", "The version of the agent; always 1", version=__version__)
        self.agent = info(
            "agent",
            "How deaths are seen: loader of the BPF programs, way of the hand-off; always 1",
            bpf="none",
            handoff="none",
        )
        self.deaths = Counts(
            "coreward_deaths",
            "Deaths seen, by what became of their capture",
            ("cause", "signal", "outcome"),
            death_labels(),
        )
        self.unit_deaths = Counts(
            "coreward_unit_deaths",
            "Deaths with a record, by the service that they were of",
            ("unit", "cause"),
            [(OTHER, cause) for cause in CAUSES],
            MOST_UNITS,
        )
        self.registry.register(self.deaths)
        self.registry.register(self.unit_deaths)
        self.routine_ends = counts(
            "routine_ends",
            "Ends of processes that were no crashes, by who or what brought them about; these are "
            "not among the deaths",
            "by",
            *("parent", "manager", "terminal", "pipe"),
        )
        self.last_death = gauge(
            "last_death_timestamp_seconds", "When a death was last counted; 0: none was"
        )
        self.last_capture = gauge(
            "last_capture_timestamp_seconds", "When a core was last written whole; 0: none was"
        )
        self.hold = Histogram(
            "coreward_hold_duration_seconds",
            "Time from the kernel's hand-off of a dying process to its release",
            ("release",),
            buckets=_HOLD_BUCKETS,
            registry=self.registry,
        )
        for release in Release:
            self.hold.labels(release.value)
        self.capture = Histogram(
            "coreward_capture_duration_seconds",
            "Time from the hand-off until the core was visible",
            buckets=_CAPTURE_BUCKETS,
            registry=self.registry,
        )
        self.written = counter("core_written_bytes", "Bytes of cores written to disk")
        self.elided = counter("core_elided_bytes", "Bytes of absent or zero pages not written")
        self.limited = counts(
            "captures_limited",
            "Captures made smaller by a limit, by what they became",
            "capture",
            *("stacks", "threads", "record"),
        )
        self.signatures = counts(
            "signatures",
            "Deaths with a signature: new, seen again, or back although noted as fixed",
            "seen",
            *("new", "again", "regression"),
        )
        self.crowded = counter(
            "captures_crowded",
            "Cores given up so that no process waits: too many of its user died at a time",
        )
        self.queue_full = counter("captures_queue_full", "Captures given up: the queue was full")
        self.errors = counts(
            "errors",
            "Deaths that an error of the agent left incomplete, by the stage that it was in",
            "stage",
            *("arm", "handoff", "record", "retention", "spool", "stop", "store", "watch", "write"),
        )
        self.cores_removed = counts(
            "store_cores_removed",
            "Cores that retention removed, by the limit of the policy's `store`; records stay",
            "limit",
            *LIMITS,
        )
        self.records_removed = counts(
            "store_records_removed", "Records that retention removed", "limit", *LIMITS
        )
        self.removed_bytes = counter("store_removed_bytes", "Bytes of disk that retention freed")
        self.hook_runs = counts(
            "hook_runs",
            "Runs of the policy's hooks, by what became of them; dropped: there were too many",
            "outcome",
            *("done", "failed", "hung", "dropped"),
        )
        self.queued = gauge("captures_queued", "Captures that wait for a worker")
        hanging = gauge("hanging_processes", "Killed helpers that hang in the kernel")
        hanging.set_function(children.hanging)
        self.dumps = counts(
            "dumps",
            "Processes that dumpers of others had, by what became of them",
            "outcome",
            *("handled", "failed", "hung"),
        )
        self.bids_missed = counter("bids_missed", "Bids of dumpers that did not come in time")
        self.dumpers = gauge("dumpers", "Dumpers of others that are registered")
        self.pins = gauge("pins_open", "Address spaces kept alive after their process has gone")
        self.armed = gauge("armed_processes", "Processes whose memory is pinned while they live")
        self.arm_refused = counts(
            "arm_refused",
            "Processes that an arm rule names but that are not armed: there are `arm.max` already, "
            "it failed, or one hangs who looks at it",
            "why",
            *("max", "failed", "hangs"),
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
            "Threads of the agent that a dying process keeps waiting, for ever maybe",
        )
        self._reloaded = gauge(
            "config_last_reload_successful", "1 if the last file was taken, 0 if it was refused"
        )
        self._reloaded_at = gauge(
            "config_last_reload_success_timestamp_seconds", "When a file was last taken"
        )
        self.reloaded(True)

    def died(
        self,
        cause: Cause,
        signo: int | None,
        outcome: Outcome,
        count: int = 1,
        crash_id: str | None = None,
    ) -> None:
        """Count a death, or so many alike. crash_id: of its record, if it has one."""
        self.deaths.inc((cause.value, signal_label(cause, signo), outcome.value), count, crash_id)
        self.last_death.set_to_current_time()

    def died_in(self, unit: str | None, cause: Cause, crash_id: str) -> None:
        """Count a death that has a record by its service."""
        self.unit_deaths.inc((unit_label(unit), cause.value), crash_id=crash_id)

    def reloaded(self, taken: bool) -> None:
        """The configuration was read again; whether it is in force."""
        self._reloaded.set(taken)
        if taken:
            self._reloaded_at.set_to_current_time()

    def fires(self, rule: str, trigger: str) -> None:
        """This trigger may fire from now on."""
        for outcome in ("snapshot", "limited", "failed"):
            self.triggers.labels(rule, trigger, outcome)

    def read(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Export a value that is read at each scrape."""
        Gauge(f"coreward_{name}", text, registry=self.registry).set_function(read)

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
        encoder, kind = _encoder(accept)
        until, document = self._kept.get(kind, (0.0, b""))
        if time.monotonic() >= until:
            document = encoder(self.registry)
            self._kept[kind] = time.monotonic() + KEPT_S, document
        return kind, document


def _encoder(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    """For who sent this Accept header, and what it makes (Content-Type)."""
    if _OPEN_METRICS in accept:
        return open_metrics.generate_latest, open_metrics.CONTENT_TYPE_LATEST
    # with all that prometheus_client serves metrics with; Prometheus asks for OpenMetrics
    from prometheus_client.exposition import choose_encoder  # noqa: PLC0415

    return choose_encoder("")


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
