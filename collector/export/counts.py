"""A counter with many label sets, most of which never count.

prometheus_client keeps objects of a kilobyte for each label set. Here a set is a key of a mapping,
so that all that can be known beforehand are there from the start, with 0: increase() of a series
that appears with 1 is 0, and the first event of each kind would raise no alert.

A set that cannot be known beforehand is there from its first event on. There are at most so many;
what comes after that counts under the label value `other`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator

from prometheus_client.core import Exemplar, Metric, Sample

Values = tuple[str, ...]  # of the labels
OTHER = "other"
EXEMPLAR = "crash_id"  # the label by which an exemplar names the record of the crash


class Counts:
    """A counter for a CollectorRegistry. Counting is thread-safe, and never fails."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: tuple[str, ...],
        known: Iterable[Values] = (),
        most: int | None = None,
    ) -> None:
        """name: without `_total`. known: values of `labels` that are there from the start.
        most: of first values that have sets of their own; None: callers see to it."""
        self.name, self.labels = name, labels
        self._text, self._most = text, most
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(known, 0)
        self._firsts = {values[0] for values in self._counts}
        self._last: dict[Values, tuple[str, float]] = {}  # the crash's id, and when

    def inc(self, values: Values, count: int = 1, crash_id: str | None = None) -> None:
        """crash_id: an example of what was counted."""
        with self._lock:
            if values[0] not in self._firsts:
                if self._most is not None and len(self._firsts) >= self._most:
                    values = (OTHER, *values[1:])
                self._firsts.add(values[0])
            self._counts[values] = self._counts.get(values, 0) + count
            if crash_id is not None:
                self._last[values] = crash_id, time.time()

    def collect(self) -> Iterable[Metric]:
        """For the registry, at each scrape."""
        family = Metric(self.name, self._text, "counter")
        with self._lock:
            family.samples = _Samples(self, self._counts.copy(), self._last.copy())  # type: ignore[assignment]
        yield family


class _Samples:
    """Samples that are made as they are read: a list of all would take more than the counts."""

    def __init__(
        self, of: Counts, counts: dict[Values, int], last: dict[Values, tuple[str, float]]
    ) -> None:
        self._labels, self._total = of.labels, f"{of.name}_total"
        self._counts, self._last = counts, last

    def __len__(self) -> int:
        return len(self._counts)

    def __iter__(self) -> Iterator[Sample]:
        for values, count in self._counts.items():
            exemplar = None
            if values in self._last:
                crash_id, at = self._last[values]
                exemplar = Exemplar({EXEMPLAR: crash_id}, 1.0, at)
            labels = dict(zip(self._labels, values, strict=True))
            yield Sample(self._total, labels, count, None, exemplar)
