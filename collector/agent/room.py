"""room: what cores in the making take on the store's disk, and who gives where it is full."""

from __future__ import annotations

import logging
import threading
from collections import Counter

from collector.errors import CorewardError
from collector.model import Record
from collector.store.store import Store
from collector.store.whose import owner_of

log = logging.getLogger(__name__)


class Room:
    """The account of one store. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()  # one after the other: what one removes may do for the next
        self._writing: dict[str, tuple[str, int]] = {}  # owner and bytes so far, by record

    def make(self, record: Record, written: int, free: int, reserve: int) -> bool:
        """Have `free` bytes free for a record's core, of which `written` are on the disk; whether
        they are. Others' cores may go for it (`Store.make_room`).

        reserve: bytes that no core takes. Where less is free, something else than cores has filled
        the disk, whose user could have others' removed by that: only the owner's own may go.
        """
        owner = owner_of(record)
        with self._lock:
            self._writing[record.id] = owner, written
            writing: Counter[str] = Counter()
            for other, size in self._writing.values():
                writing[other] += size
            try:
                there = self._store.free_bytes()
                wanted = free - there
                if wanted <= 0:
                    return True
                freed = self._store.make_room(owner, written, wanted, writing, own=there < reserve)
            except (CorewardError, OSError) as error:
                log.error("record %s: no room can be made: %s", record.id, error)
                return False
        if freed:
            log.warning(
                "%d MiB of cores removed for record %s of %s", freed >> 20, record.id, owner
            )
        return freed > 0

    def done(self, record: Record) -> None:
        """Its core is complete, or given up."""
        with self._lock:
            self._writing.pop(record.id, None)
