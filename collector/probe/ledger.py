"""Which deaths were read from a ring and are not on record yet, for the reader that comes next.

An event that was read stays in the ring until writers overwrite it. So a reader that is killed
needs to leave only a position: that of the oldest event whose death is not on record. The position
is kept in a map beside the ring, which lives as long as the ring. We do not delay the ring's own
consumer position for it: the kernel wakes pollers only when the consumer has caught up, and a
lagging consumer makes the ring look full.

A death whose events were overwritten cannot be read again; it is counted, and reported as lost.
"""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path

from collector.linux import libbpf
from collector.linux.ringbuf import Ring
from collector.model import ProcessKey

NAME = "ledger"
# position of the oldest event; deaths from there on; deaths whose events are overwritten
_LEFT = struct.Struct("<QII")


class Ledger:
    """The deaths of one ring, by their process. Thread-safe, but for `again`."""

    def __init__(self, directory: Path, ring: Ring) -> None:
        self._ring = ring
        self._lock = threading.Lock()
        self._open: dict[ProcessKey, int] = {}  # where its first event is; the oldest first
        self._overwritten: set[ProcessKey] = set()
        self._map: int | None = _opened(directory / NAME, ring.position)
        self._written = libbpf.read_array(self._map, 0, _LEFT.size)
        self.lost = 0  # deaths that an earlier reader took and did not record; see `again`

    def again(self) -> list[tuple[int, bytes]]:
        """(position, record) of what an earlier reader took for deaths that it did not record.

        Others that it has recorded may be among them. `lost` says afterwards how many deaths
        cannot be read again.
        """
        position, deaths, overwritten = _LEFT.unpack(self._written)
        found = self._ring.earlier(position)
        self.lost = overwritten + (deaths if found is None else 0)
        return found or []

    def take(self, key: ProcessKey, position: int) -> None:
        """An event of this process was read."""
        with self._lock:
            if key not in self._overwritten:
                self._open.setdefault(key, position)

    def recorded(self, key: ProcessKey) -> None:
        """Its death is on record, or is not to be; a later event of it begins anew."""
        with self._lock:
            self._open.pop(key, None)
            self._overwritten.discard(key)
        self.keep()

    @property
    def is_settled(self) -> bool:
        """Whether all that was taken is recorded."""
        with self._lock:
            return not self._open and not self._overwritten

    def keep(self) -> None:
        """Write down what the next reader must know."""
        with self._lock:
            if self._map is None:
                return
            oldest, position = self._ring.oldest, self._ring.position
            while self._open:
                key, first = next(iter(self._open.items()))
                if first >= oldest:
                    position = first
                    break
                del self._open[key]
                self._overwritten.add(key)
            left = _LEFT.pack(position, len(self._open), len(self._overwritten))
            if left != self._written:
                libbpf.write_array(self._map, 0, left)
                self._written = left

    def close(self) -> None:
        """Safe to call again."""
        with self._lock:
            if self._map is not None:
                os.close(self._map)
            self._map = None


def _opened(path: Path, position: int) -> int:
    """The map; made where programs were pinned by a version without one."""
    if path.exists():
        return libbpf.get_pin(str(path))
    made = libbpf.create_array(NAME, _LEFT.size, 1)
    libbpf.write_array(made, 0, _LEFT.pack(position, 0, 0))
    libbpf.pin(made, str(path))
    return made
