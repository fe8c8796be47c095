"""Three counts in memory that the agent and the worker of a sink share.

The agent reads them at each scrape, and knows what a worker that was killed had in hand.
"""

from __future__ import annotations

import mmap
import os
import struct

_COUNTS = struct.Struct("=QQQ")


class Tally:
    """taken: records read from the queue; of these sent, or lost. One writes at a time."""

    def __init__(self, fd: int) -> None:
        """fd: of `new`; it need not stay open."""
        self._memory = mmap.mmap(fd, mmap.PAGESIZE)

    @staticmethod
    def new() -> int:
        """A descriptor of memory with zeros."""
        fd = os.memfd_create("coreward-tally", os.MFD_CLOEXEC)
        os.ftruncate(fd, mmap.PAGESIZE)
        return fd

    @property
    def counts(self) -> tuple[int, int, int]:
        """taken, sent, lost."""
        taken, sent, lost = _COUNTS.unpack_from(self._memory)
        return taken, sent, lost

    def add(self, *, taken: int = 0, sent: int = 0, lost: int = 0) -> None:
        before = self.counts
        added = zip(before, (taken, sent, lost), strict=True)
        _COUNTS.pack_into(self._memory, 0, *(was + more for was, more in added))

    def close(self) -> None:
        self._memory.close()
