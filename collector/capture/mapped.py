"""What a file behind a mapping holds beyond the pages that are in memory already.

A core has the bytes of a private file mapping that its process never touched as well, as the
kernel's has. They are the file's, and a file can have terabytes of holes, or stand on a file system
that answers when its owner likes. So they are read only where the file is one of the kernel's own
file systems, and holes never are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from collector.arch.x86_64 import PAGE
from collector.elfcore.types import Mapping
from collector.linux.filesystems import open_cached, own_devices
from collector.ranges import Range

SMALL = 1 << 20  # bytes of a mapping that is read sooner than asked about
BLIND = 64 << 20  # that is read whole where its file cannot be asked, for it has no name any more
_MAX_OPEN = 256  # files


class MappedFiles:
    """The files behind a process's mappings. root_fd: its root folder; None: none is opened."""

    def __init__(self, root_fd: int | None) -> None:
        self._root = root_fd
        self._own: frozenset[int] | None = None
        self._open: dict[tuple[int, int], int | None] = {}

    def is_own(self, mapping: Mapping) -> bool:
        """Whether nobody can make us wait for what the file holds."""
        if self._own is None:
            self._own = own_devices()
        return mapping.device in self._own

    def data(self, mapping: Mapping, start: int, end: int) -> Iterator[Range] | None:
        """The parts of [start, end) that the file has data for, rising; None: not known."""
        if not self.is_own(mapping):
            return None
        if end - start <= SMALL:
            return iter([(start, end)])
        fd = self._file(mapping)
        if fd is not None:
            return data_ranges(fd, mapping, start, end)
        return iter([(start, end)]) if end - start <= BLIND else None

    def _file(self, mapping: Mapping) -> int | None:
        if self._root is None or not mapping.path:
            return None
        key = (mapping.device, mapping.inode)
        if key not in self._open:
            if len(self._open) >= _MAX_OPEN:
                self.close()
            self._open[key] = open_cached(self._root, mapping.path, *key)
        return self._open[key]

    def close(self) -> None:
        """Close all files; more may be opened."""
        for fd in self._open.values():
            if fd is not None:
                os.close(fd)
        self._open.clear()

    def __del__(self) -> None:
        self.close()


def data_ranges(fd: int, mapping: Mapping, start: int, end: int) -> Iterator[Range]:
    """Where the file behind a mapping has data (lseek(2), SEEK_DATA)."""
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
