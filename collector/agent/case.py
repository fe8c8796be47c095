"""A case: the record of one death while it grows.

A case has parts that are worked on at the same time (the core, the explanation). When the last of
them is done the case is closed, once. The record is on disk when the case opens, when its core is
there, and when it closes; between these it grows in memory.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import msgspec

from collector.agent.facts import Facts, Sampled
from collector.errors import CorewardError
from collector.explain.facts import with_explanation
from collector.explain.types import Explanation
from collector.model import Record, SamplesFacts
from collector.store.store import Store

log = logging.getLogger(__name__)


class Case:
    """Thread-safe. `closed` is called with the final record."""

    def __init__(self, record: Record, store: Store, closed: Callable[[Record], None]) -> None:
        self.record = record
        self._store = store
        self._closed = closed
        self._lock = threading.Lock()
        self._open: set[str] = set()

    def begin(self, part: str) -> None:
        """Something is still to be learnt: the case stays open until `end(part)`."""
        with self._lock:
            self._open.add(part)

    def learn(self, facts: Facts) -> None:
        """Add what a stage knows."""
        with self._lock:
            self.record = facts.added_to(self.record)

    def explained(self, explanation: Explanation) -> None:
        """Add what its core said."""
        with self._lock:
            self.record = with_explanation(self.record, explanation)

    def sampled(self, samples: SamplesFacts) -> None:
        """Add what the flight recorder had of it."""
        self.learn(Sampled(samples=samples))

    def lose(self, part: str, why: str) -> None:
        """Name a part that could not be had."""
        with self._lock:
            lost = {**self.record.lost, part: why}
            self.record = msgspec.structs.replace(self.record, lost=lost)

    def keep(self) -> bool:
        """Put the record on disk as far as it goes; whether it is there."""
        with self._lock:
            try:
                self._store.put(self.record)
            except (CorewardError, OSError) as error:  # a full disk must not stop the agent
                log.error("record %s cannot be stored: %s", self.record.id, error)
                return False
            return True

    def end(self, part: str) -> None:
        """A part is done; closes the case if it was the last."""
        with self._lock:
            self._open.discard(part)
            if self._open:
                return
        self._closed(self.record)
