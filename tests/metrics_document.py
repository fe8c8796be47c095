"""The table of docs/metrics.md, from an agent's registry: `python -m tests.metrics_document`.

A unit test says whether the document is current, a system test whether a real scrape has the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from prometheus_client.core import Metric

from collector.cli.run import watch, watch_sinks, watch_store
from collector.export.metrics import MOST_UNITS, Metrics
from collector.policy.holder import PolicyHolder
from collector.sinks.sinks import Sinks

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"
_BEGIN, _END = "<!-- made by `python -m tests.metrics_document` -->\n", "<!-- end -->\n"
# how many series, where it depends
_SERIES = {
    "coreward_unit_deaths": f"4 a service that had a death, {MOST_UNITS} services at most",
    "coreward_triggers": "3 a trigger of policy's `watch` rules",
}


class Row(NamedTuple):
    """A metric as people read of it."""

    name: str
    type: str
    labels: str
    series: str
    meaning: str


class _Counters:
    """The probe's, with 0 everywhere."""

    def __getattr__(self, name: str) -> int:
        return 0


def full() -> Metrics:
    """The metrics of an agent that has BPF and a hand-off."""
    metrics = Metrics()
    probe: Any = SimpleNamespace(loader="core", counters=_Counters)
    backend: Any = SimpleNamespace(
        backend="socket",
        refused=0,
        late=0,
        is_in_place=lambda: True,
        overwrites=SimpleNamespace(counts={"kept": 0, "yielded": 0}),
    )
    watch(metrics, probe, backend, SimpleNamespace(untold=0, left_behind=0))  # type: ignore[arg-type]
    store: Any = SimpleNamespace(path=Path("/nonexistent"))
    watch_store(metrics, store, PolicyHolder(None))
    watch_sinks(metrics, Sinks(store))
    return metrics


def rows(metrics: Metrics) -> Iterator[Row]:
    labels = sample_labels(metrics)
    for family in metrics.registry.collect():
        yield Row(
            _name(family),
            family.type,
            ", ".join(sorted(labels[family.name])),
            _SERIES.get(family.name, str(_series(family))),
            re.sub(r"\s+", " ", family.documentation),
        )


def _name(family: Metric) -> str:
    """As its samples are called, without a histogram's suffixes."""
    suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
    return family.name + suffix


def _series(family: Metric) -> int:
    """Buckets count as well."""
    return len(family.samples)


def sample_labels(metrics: Metrics) -> dict[str, set[str]]:
    """Names of labels by metric, but for `le`; one that has no sample yet says them itself."""
    found: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        names = {name for sample in family.samples for name in sample.labels}
        found[family.name] = names - {"le"}
    found["coreward_triggers"] = set(metrics.triggers._labelnames)
    return found


def table(metrics: Metrics) -> str:
    lines = ["| metric | type | labels | series | meaning |", "|---|---|---|---|---|"]
    for row in sorted(rows(metrics)):
        name, labels = f"`{row.name}`", f"`{row.labels}`" if row.labels else ""
        lines.append(f"| {name} | {row.type} | {labels} | {row.series} | {row.meaning} |")
    return "\n".join(lines) + "\n"


def made(text: str) -> str:
    """The document with the table of today."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return before + _BEGIN + table(full()) + _END + after


def documented() -> set[str]:
    """Names of all metrics that the document tells of."""
    return set(re.findall(r"^\| `(\w+)` \|", DOCUMENT.read_text(), re.MULTILINE))


if __name__ == "__main__":
    DOCUMENT.write_text(made(DOCUMENT.read_text()))
