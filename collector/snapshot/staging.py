"""Memory on its way into a core: copied piece by piece while the process runs, patched at the end.

A `Staging` is a file without a name in the folder where the core will be: addresses get room in it
when they are first seen, and later copies overwrite them. A `StagedMemory` is what the core writer
reads then (a MemorySource): which pages there were at the instant, and their contents from the
staging file. An area that was never staged, because it does not change or is shared, is read from
the process itself. Deciding when a copy is consistent is the caller's job.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from collector.capture.memory import ProcessMemory
from collector.ranges import Range


class Extent(NamedTuple):
    """[start, end) of the process is at `offset` of the staging file."""

    start: int
    end: int
    offset: int


class Staging:
    """A file for memory by address. A context manager."""

    def __init__(self, folder: Path) -> None:
        """Make the file in `folder`; it has no name and vanishes with us. OSError as open(2)."""
        self._fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self._extents: list[Extent] = []
        self._starts: list[int] = []
        self._size = 0

    def place(self, start: int, end: int) -> None:
        """Make room for the parts of [start, end) that have none yet."""
        new, at = [], start
        for extent in self._touching(start, end):
            if at < extent.start:
                new.append((at, extent.start))
            at = extent.end
        if at < end:
            new.append((at, end))
        for low, high in new:
            index = bisect.bisect_left(self._starts, low)
            self._extents.insert(index, Extent(low, high, self._size))
            self._starts.insert(index, low)
            self._size += high - low

    def _touching(self, start: int, end: int) -> list[Extent]:
        first = max(bisect.bisect_right(self._starts, start) - 1, 0)
        last = bisect.bisect_left(self._starts, end)
        return [extent for extent in self._extents[first:last] if extent.end > start]

    def pieces(self, start: int, end: int) -> Iterator[Extent]:
        """Where [start, end) is in the file; parts without room are left out."""
        for extent in self._touching(start, end):
            low, high = max(start, extent.start), min(end, extent.end)
            yield Extent(low, high, extent.offset + low - extent.start)

    def write(self, address: int, data: memoryview) -> None:
        """Put memory where there is room for it. OSError as pwrite(2)."""
        for piece in self.pieces(address, address + len(data)):
            view, offset = data[piece.start - address : piece.end - address], piece.offset
            while view:
                done = os.pwrite(self._fd, view, offset)
                view, offset = view[done:], offset + done

    def read_into(self, address: int, buffer: memoryview) -> int:
        """Read the memory at `address` as far as there is room for it in one piece."""
        done = 0
        for piece in self.pieces(address, address + len(buffer)):
            if piece.start != address + done:
                break
            size = piece.end - piece.start
            view = buffer[done : done + size]
            got = os.preadv(self._fd, [view], piece.offset)
            view[got:] = bytes(size - got)  # behind the end of the file: never written, zero
            done += size
        return done

    def close(self) -> None:
        """Give the file up. Safe to call again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Area(NamedTuple):
    """[start, end) of one mapping that is staged."""

    start: int
    end: int
    whole: bool  # all of it is staged, also what was not present (files)


class StagedMemory:
    """The memory of a process at one instant. A MemorySource.

    areas: the staged mappings; present: populated ranges in them; unreadable: what could not be
    copied. All at the instant, sorted and disjoint. live: the process itself, for all else.
    """

    def __init__(
        self,
        staging: Staging,
        areas: Sequence[Area],
        present: Sequence[Range],
        unreadable: Sequence[Range],
        live: ProcessMemory,
    ) -> None:
        self._staging, self._live = staging, live
        self._areas, self._present, self._unreadable = areas, present, unreadable
        self._starts = [area.start for area in areas]
        self._present_ends = [end for _, end in present]
        self._unreadable_ends = [end for _, end in unreadable]

    def ranges(self, start: int, end: int) -> Iterable[Range]:
        """Populated ranges of [start, end), which must lie inside one mapping."""
        area = self._area(start)
        if area is None:
            return self._live.ranges(start, end)
        if area.whole:
            return [(start, end)]
        return self._populated(start, end)

    def unknown(self, start: int, end: int) -> Iterable[Range]:
        """What of [start, end) may be non-zero beside that: only in files."""
        return self._live.unknown(start, end) if self._area(start) is None else ()

    def _populated(self, start: int, end: int) -> Iterator[Range]:
        index = bisect.bisect_right(self._present_ends, start)
        while index < len(self._present) and self._present[index][0] < end:
            low, high = self._present[index]
            yield max(low, start), min(high, end)
            index += 1

    def read_into(self, address: int, buffer: memoryview) -> int:
        """Bytes read from `address` on; fewer than asked where memory could not be copied."""
        done = 0
        while done < len(buffer):
            at = address + done
            area = self._area(at)
            end = area.end if area else self._next_start(at)
            view = buffer[done : done + end - at]
            got = self._staged(area, at, view) if area else self._live.read_into(at, view)
            done += got
            if got < len(view):
                break
        return done

    def _staged(self, area: Area, address: int, view: memoryview) -> int:
        index = bisect.bisect_right(self._unreadable_ends, address)
        if index < len(self._unreadable):
            view = view[: max(0, self._unreadable[index][0] - address)]
        done = self._staging.read_into(address, view)
        if not area.whole:  # the file may hold what was there before
            at = address
            for low, high in self._populated(address, address + done):
                view[at - address : low - address] = bytes(low - at)
                at = high
            view[at - address : done] = bytes(address + done - at)
        return done

    def read(self, address: int, size: int) -> bytes:
        """Up to `size` bytes at an address; for look-ups, not for copying."""
        buffer = bytearray(size)
        return bytes(buffer[: self.read_into(address, memoryview(buffer))])

    def _area(self, address: int) -> Area | None:
        index = bisect.bisect_right(self._starts, address) - 1
        if index >= 0 and address < self._areas[index].end:
            return self._areas[index]
        return None

    def _next_start(self, address: int) -> int:
        index = bisect.bisect_right(self._starts, address)
        return self._starts[index] if index < len(self._starts) else 1 << 64
