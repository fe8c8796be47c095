"""The memory of a held or pinned process, as the core writer wants it: present ranges, and reads.

Absent and zero pages of anonymous memory are never read: the page tables are asked first. Shared
memory without a lasting file is read through its own descriptor, where holes show. Everything
else is read whole, as the kernel does, which brings absent file pages in.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from collector.arch.x86_64 import PAGE
from collector.capture.image import mapping_at
from collector.capture.select import is_shm
from collector.elfcore import types
from collector.linux.pagemap import Pagemap

_PATH_READS = 1 << 47  # /proc/PID/mem takes no offset above the user half (the vsyscall page)


class Memory(Protocol):
    """A `MemorySource` of collector.elfcore that can also be looked into."""

    def ranges(self, start: int, end: int) -> Iterable[tuple[int, int]]:
        """Populated ranges of [start, end), which must lie inside one mapping."""

    def read_into(self, address: int, buffer: memoryview) -> int:
        """Bytes read from `address` on; fewer where memory is unreadable from there."""

    def read(self, address: int, size: int) -> bytes:
        """Up to `size` bytes at an address; for look-ups, not for copying."""


class ProcessMemory:
    """A `MemorySource` of collector.elfcore over open descriptors of /proc/PID."""

    def __init__(
        self,
        mem_fd: int,
        pagemap_fd: int,
        mappings: Sequence[types.Mapping],
        shared_fds: Mapping[int, int],
    ) -> None:
        self._mem = mem_fd
        self._pagemap = Pagemap(pagemap_fd)
        self._mappings = mappings
        self._starts = [m.start for m in mappings]
        self._shared = shared_fds

    def ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Populated ranges of [start, end), which must lie inside one mapping.

        Raises OSError when the address space is gone.
        """
        mapping = mapping_at(self._mappings, self._starts, start)
        if mapping is None or end > _PATH_READS:
            return
        fd = self._shared.get(mapping.start)
        if fd is not None and is_shm(mapping):
            yield from _data_ranges(fd, mapping, start, end)
        elif (mapping.inode and not is_shm(mapping)) or mapping.special or mapping.shared:
            yield start, end
        else:
            yield from self._pagemap.populated(start, end)

    def read_into(self, address: int, buffer: memoryview) -> int:
        """Bytes read from `address` on; fewer than asked where memory is unreadable from there."""
        fd, offset = self._mem, address
        mapping = mapping_at(self._mappings, self._starts, address)
        if mapping is not None and is_shm(mapping) and mapping.start in self._shared:
            fd, offset = self._shared[mapping.start], address - mapping.start + mapping.offset
        if address + len(buffer) > _PATH_READS:
            return 0
        done = 0
        with contextlib.suppress(OSError):  # EIO: unreadable from here on
            while done < len(buffer):
                count = os.preadv(fd, [buffer[done:]], offset + done)
                if count <= 0:
                    break
                done += count
        return done

    def read(self, address: int, size: int) -> bytes:
        """Up to `size` bytes at an address; for look-ups, not for copying."""
        buffer = bytearray(size)
        return bytes(buffer[: self.read_into(address, memoryview(buffer))])


def _data_ranges(
    fd: int, mapping: types.Mapping, start: int, end: int
) -> Iterator[tuple[int, int]]:
    """Where the file behind a shared mapping has data (lseek(2), SEEK_DATA)."""
    shift = mapping.start - mapping.offset
    at = start
    while at < end:
        try:
            data = os.lseek(fd, at - shift, os.SEEK_DATA)
            hole = os.lseek(fd, data, os.SEEK_HOLE)
        except OSError:  # ENXIO: no data behind this point
            return
        first, last = max(data + shift, at), min(hole + shift, end)
        if first < last:
            yield first & -PAGE, min(last + PAGE - 1 & -PAGE, end)
        at = max(hole + shift, at + PAGE)
