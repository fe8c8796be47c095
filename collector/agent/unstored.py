"""Records that the store could not take, for want of room or of descriptors: tried again."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict

from collector.errors import CorewardError
from collector.model import Record
from collector.store.store import Store

log = logging.getLogger(__name__)

MOST = 1024  # records; the deaths of those beyond stay in BPF's ring for the next agent


class Unstored:
    """The newest form of each, the oldest first. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, Record] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, record: Record) -> bool:
        """Keep it for later; False: too many wait already."""
        with self._lock:
            if len(self._waiting) >= MOST and record.id not in self._waiting:
                return False
            self._waiting[record.id] = record
            return True

    def again(self, store: Store) -> list[Record]:
        """Those that can be stored by now. They are tried until one cannot, which goes last."""
        stored: list[Record] = []
        while True:
            with self._lock:
                if not self._waiting:
                    return stored
                identity, record = next(iter(self._waiting.items()))
            try:
                store.put(record)
            except (CorewardError, OSError):
                with self._lock:
                    self._waiting.move_to_end(identity)
                return stored
            with self._lock:
                if self._waiting.get(identity) is record:
                    del self._waiting[identity]
            log.info("record %s is stored now", identity)
            stored.append(record)
