"""How much a store holds, for metrics: read now and then, and without keeping the store from work.

The index is asked over a connection of its own, with a small cache: of 100,000 records the agent
would else keep megabytes of pages.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path
from typing import NamedTuple

from collector.store.index import NAME

LOOK_S = 60.0  # a figure is not older
_BUSY_S = 0.5  # for whoever writes the index
_CACHE_KIB = 64


class Held(NamedTuple):
    """What a store holds."""

    records: int
    cores: int
    bytes: int  # of cores, on disk


class StoreSize:
    """The figures of the store at `path`. For one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held = Held(0, 0, 0)
        self._until = float("-inf")  # of time.monotonic

    def held(self) -> Held:
        """What it held a minute ago or later; what was known before, if it cannot be read."""
        now = time.monotonic()
        if now >= self._until:
            self._until = now + LOOK_S
            with contextlib.suppress(sqlite3.Error):
                self._held = self._look()
        return self._held

    def free(self) -> float:
        """Bytes that may still be written to its file system; NaN if nobody knows."""
        return self._space()[0]

    def whole(self) -> float:
        """Bytes of its file system; NaN if nobody knows."""
        return self._space()[1]

    def _space(self) -> tuple[float, float]:
        try:
            space = os.statvfs(self._path)
        except OSError:
            return float("nan"), float("nan")
        return space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize

    def _look(self) -> Held:
        uri = f"{(self._path / NAME).absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_S)) as index:
            index.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            query = "SELECT count(*), total(held > 0), total(held) FROM deaths"
            return Held(*map(int, index.execute(query).fetchone()))
