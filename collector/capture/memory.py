"""The memory of a held or pinned process, as the core writer wants it: present ranges, and reads.

Absent and zero pages of anonymous memory are never read: the page tables are asked first. Shared
memory without a lasting file is read through its own descriptor, where holes show. Of other files
all that is in memory is read, and what the file holds besides (see mapped.py).
"""

from __future__ import annotations

import contextlib
import heapq
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from collector.capture.image import mapping_at
from collector.capture.mapped import BLIND, SMALL, MappedFiles, data_ranges
from collector.capture.parts import Kind, Part
from collector.capture.select import is_shm
from collector.elfcore import types
from collector.linux.pagemap import Pagemap, resident_part
from collector.ranges import Range, outside

_ANONYMOUS = ("/anon_hugepage", "/dev/zero")  # only by name files, where the mapping is private
_PATH_READS = 1 << 47  # /proc/PID/mem takes no offset above the user half (the vsyscall page)


class Memory(Protocol):
    """A `MemorySource` of collector.elfcore that can also be looked into."""

    def ranges(self, start: int, end: int) -> Iterable[tuple[int, int]]:
        """Populated ranges of [start, end), which must lie inside one mapping."""

    def unknown(self, start: int, end: int) -> Iterable[tuple[int, int]]:
        """The parts of [start, end) that `ranges` has not, and that may be non-zero."""

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
        root_fd: int | None = None,
    ) -> None:
        """shared_fds: as OpenProcess.open_shared gives them. root_fd: the process's root."""
        self._mem = mem_fd
        self._pagemap_fd = pagemap_fd
        self._pagemap = Pagemap(pagemap_fd)
        self._files = MappedFiles(root_fd)
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
            yield from data_ranges(fd, mapping, start, end)
        elif mapping.special:
            yield start, end
        elif not _has_file(mapping):
            yield from self._pagemap.populated(start, end)
        else:
            yield from self._file_ranges(mapping, start, end)

    def _file_ranges(self, mapping: types.Mapping, start: int, end: int) -> Iterator[Range]:
        found = self._in_file(mapping, start, end)
        if found is not None and end - start <= SMALL:
            yield from found
            return
        at = start
        for low, high in heapq.merge(self._pagemap.populated(start, end), found or ()):
            if high > at:
                yield max(low, at), high
                at = high

    def _in_file(self, mapping: types.Mapping, start: int, end: int) -> Iterator[Range] | None:
        if not is_shm(mapping):
            return self._files.data(mapping, start, end)
        # the kernel's own, but it could not be opened
        return iter([(start, end)]) if end - start <= BLIND else None

    def unknown(self, start: int, end: int) -> list[Range]:
        """The parts of [start, end), which lie inside one mapping, that are only in a file which is
        not to be read, or not to be found."""
        if self.is_known(start, end):
            return []
        return outside([(start, end)], list(self._pagemap.populated(start, end)))

    def parts(self, start: int, end: int) -> Iterator[Part]:
        """How [start, end), which must lie inside one mapping, is copied; but for `unknown`."""
        mapping = mapping_at(self._mappings, self._starts, start)
        if mapping is None or end > _PATH_READS:
            return
        fd = self._shared.get(mapping.start)
        if fd is not None and is_shm(mapping):
            yield Part(start, end, Kind.OF_FILE, fd, start - mapping.start + mapping.offset)
        elif mapping.special:
            yield Part(start, end, Kind.ALL)
        else:
            yield Part(start, end, Kind.IN_MEMORY)
            if _has_file(mapping):
                for low, high in self._in_file(mapping, start, end) or ():
                    yield Part(low, high, Kind.ABSENT)

    def is_known(self, start: int, end: int) -> bool:
        """Whether `unknown` has nothing of [start, end), without a look at the process."""
        mapping = mapping_at(self._mappings, self._starts, start)
        if mapping is None or mapping.special or not _has_file(mapping):
            return True
        if is_shm(mapping) and mapping.start in self._shared:
            return True
        return self._in_file(mapping, start, end) is not None

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

    def is_gone(self) -> bool:
        """Whether the address space is not there any more: its last user has ended, or runs another
        program. What is absent and what cannot be read is not to be told from it before.
        """
        try:
            return not os.pread(self._mem, 1, 0)  # mem_read() of fs/proc/base.c: 0 without users
        except OSError:  # EIO: nothing is mapped there
            return False

    def read(self, address: int, size: int) -> bytes:
        """Up to `size` bytes at an address; for look-ups, not for copying."""
        mapping = mapping_at(self._mappings, self._starts, address)
        if mapping is not None and self._may_wait(mapping):
            size = resident_part(self._pagemap_fd, address, size)
        buffer = bytearray(size)
        return bytes(buffer[: self.read_into(address, memoryview(buffer))])

    def _may_wait(self, mapping: types.Mapping) -> bool:
        """Whether what is not in memory comes from where somebody can keep us waiting."""
        if mapping.special or is_shm(mapping) or not _has_file(mapping):
            return False
        return not self._files.is_own(mapping)


def _has_file(mapping: types.Mapping) -> bool:
    """Whether what was never touched is a file's, and not zero."""
    if mapping.shared:
        return True
    return bool(mapping.inode) and not (mapping.path or "").startswith(_ANONYMOUS)
