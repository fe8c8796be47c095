"""Deaths as they are put on record: each once, when its record is closed.

The index is asked whose records were written since the last look, with some seconds of overlap, for
rows need not come in the order of their files' times; what was seen is remembered by its id. So a
record that is written again, because its core went say, is not told again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from collector.errors import StoreError
from collector.model import Record
from collector.store.store import Store

_OVERLAP_NS = 10_000_000_000


class Feed:
    """Of an open store. What is closed when it begins is not new."""

    def __init__(self, store: Store, clock: Callable[[], int] = time.time_ns) -> None:
        self._store = store
        self._clock = clock
        self._since = clock()
        self._seen = set(store.closed_since(0))

    def pass_over(self, ids: Iterable[str]) -> None:
        """These are known already."""
        self._seen.update(ids)

    def new(self, tell: Callable[[StoreError], None]) -> list[Record]:
        """Those that were closed since the last call, the oldest death first."""
        now = self._clock()
        ids = [id for id in self._store.closed_since(self._since - _OVERLAP_NS) if self._is_new(id)]
        self._since = now
        found = []
        for id in ids:
            try:
                record = self._store.get(id)
            except StoreError as error:
                tell(error)
                continue
            if record.reason is None:  # a user's own, of which no index says that it is open
                self._seen.discard(id)
                continue
            found.append(record)
        return sorted(found, key=lambda record: (record.time, record.id))

    def _is_new(self, id: str) -> bool:
        if id in self._seen:
            return False
        self._seen.add(id)
        return True
