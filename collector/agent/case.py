"""A case: the record of one death while it grows, kept in the store at every step.

A case has parts that are worked on at the same time (the core, the explanation). When the last of
them is done the case is closed, once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import msgspec

from collector.errors import CorewardError
from collector.model import Record
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
        self.on_disk = False  # whether the store has it, in some state

    def begin(self, part: str) -> None:
        """Something is still to be learnt: the case stays open until `end(part)`."""
        with self._lock:
            self._open.add(part)

    def learn(self, *, lost: dict[str, str] | None = None, **facts: Any) -> None:
        """Add facts, and what could not be had, to the record; both are on disk afterwards."""
        with self._lock:
            merged = {**self.record.lost, **(lost or {})}
            self.record = msgspec.structs.replace(self.record, lost=merged, **facts)
            self._put()

    def end(self, part: str) -> None:
        """A part is done; closes the case if it was the last."""
        with self._lock:
            self._open.discard(part)
            if self._open:
                return
        self._closed(self.record)

    def _put(self) -> None:
        try:
            self._store.put(self.record)
            self.on_disk = True
        except (CorewardError, OSError) as error:  # a full disk must not stop the agent
            log.error("record %s can not be stored: %s", self.record.id, error)
