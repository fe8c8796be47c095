"""Bring the machine to the same state before each measurement."""

from __future__ import annotations

import mmap
import os

from collector.linux import procfs

_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, madvise(2), Linux >= 5.14
_KEEP = 2 << 30  # bytes of free memory that are left alone


def available_memory() -> int:
    """Bytes that can be had without swapping: MemAvailable of /proc/meminfo."""
    return procfs.size(procfs.read("/proc/meminfo") or b"", b"MemAvailable") or 0


def settle(size: int) -> None:
    """Nothing waits to be written, and `size` bytes of free memory have just been in use.

    A virtual machine may give free memory back to its host (free page reporting, balloon). The
    first use of such a page takes microseconds, so whoever comes first after a pause would pay for
    the page cache of all. Only free blocks of 2 MiB and more are given back, and small pages come
    from smaller ones first: so it is done with small pages and with huge ones.
    """
    os.sync()
    size = min(size, available_memory() - _KEEP) & ~(mmap.PAGESIZE - 1)
    if size > 0:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        mmap.mmap(-1, size, flags=flags | mmap.MAP_POPULATE).close()
        with mmap.mmap(-1, size, flags=flags) as huge:
            huge.madvise(mmap.MADV_HUGEPAGE)
            huge.madvise(_POPULATE_WRITE)
