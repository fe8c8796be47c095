"""Memory on its way into a core: copied piece by piece while the process runs, patched at the end.

A `Staging` is the file of the core itself, behind room for its head, or one without a name in the
folder where the core will be: addresses get room in it when they are first written, and later
copies overwrite them. A `StagedMemory` is what the core writer reads then (a MemorySource): which
pages there were at the instant, and their contents from the staging file. An area that was never
staged, because it does not change or is shared, is read from the process itself. Deciding when a
copy is consistent is the caller's job.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from collector.capture.memory import ProcessMemory
from collector.linux.holes import punch
from collector.ranges import Range, inside, outside, union

WINDOW = 64 << 20  # bytes of a large area that get room together


class Extent(NamedTuple):
    """[start, end) of the process is at `offset` of the staging file."""

    start: int
    end: int
    offset: int


class Staging:
    """A file for memory by address. A context manager."""

    def __init__(self, place: Path | int, start: int = 0) -> None:
        """place: a folder, to make a file in that has no name and vanishes with us; or a file of
        the caller's, of which bytes from `start` (a page) on are used. OSError as open(2)."""
        if isinstance(place, Path):
            self.fd = os.open(place, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        else:
            self.fd = os.dup(place)
        self.start = self.end = start  # what it takes of the file
        self._extents: list[Extent] = []
        self._starts: list[int] = []

    def place(self, start: int, end: int, area: Range | None = None) -> None:
        """Make room for the parts of [start, end) that have none yet.

        area: that they are of; with them the windows around them get room, or all of a small one:
        so there are few pieces.
        """
        if area is not None:
            low, high = area
            start = max(low, start - (start - low) % WINDOW)
            end = min(high, end + (low - end) % WINDOW)
        new, at = [], start
        for extent in self._touching(start, end):
            if at < extent.start:
                new.append((at, extent.start))
            at = extent.end
        if at < end:
            new.append((at, end))
        for low, high in new:
            index = bisect.bisect_left(self._starts, low)
            before = self._extents[index - 1] if index else Extent(0, 0, -1)
            if (before.end, before.offset + before.end - before.start) == (low, self.end):
                self._extents[index - 1] = before._replace(end=high)
            else:
                self._extents.insert(index, Extent(low, high, self.end))
                self._starts.insert(index, low)
            self.end += high - low

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
                done = os.pwrite(self.fd, view, offset)
                view, offset = view[done:], offset + done

    def parts(self, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
        """As `elfcore.image.InFile` has it."""
        at = start
        for piece in self.pieces(start, end):
            if at < piece.start:
                yield at, piece.start, None
            yield piece
            at = piece.end
        if at < end:
            yield at, end, None

    def blank(self, ranges: Iterable[Range]) -> None:
        """Make this memory zero, as far as there is room for it. OSError as fallocate(2)."""
        for start, end in ranges:
            for piece in self.pieces(start, end):
                punch(self.fd, piece.offset, piece.end - piece.start)

    def space(self) -> int:
        """Bytes of the disk that the whole file takes."""
        return os.fstat(self.fd).st_blocks * 512

    def read_into(self, address: int, buffer: memoryview) -> int:
        """Read the memory at `address` as far as there is room for it in one piece."""
        done = 0
        for piece in self.pieces(address, address + len(buffer)):
            if piece.start != address + done:
                break
            size = piece.end - piece.start
            view = buffer[done : done + size]
            got = os.preadv(self.fd, [view], piece.offset)
            view[got:] = bytes(size - got)  # behind the end of the file: never written, zero
            done += size
        return done

    def close(self) -> None:
        """Give the file up. Safe to call again."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

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
    copied: all that was ever written to the staging file.
    """

    def __init__(
        self,
        staging: Staging,
        areas: Sequence[Area],
        present: Sequence[Range],
        unreadable: Sequence[Range],
        live: ProcessMemory,
        copied: Iterable[Range] = (),
    ) -> None:
        self.staging, self._live = staging, live
        self.unreadable = unreadable
        self._areas, self._present = areas, present
        self._copied = copied
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
        if index < len(self.unreadable):
            view = view[: max(0, self.unreadable[index][0] - address)]
        done = len(view)
        for low, high, offset in self.staging.parts(address, address + done):
            part = view[low - address : high - address]
            if offset is None:  # never written
                part[:] = bytes(high - low)
            else:
                self.staging.read_into(low, part)
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

    def keep_only(self, wanted: Sequence[Range]) -> None:
        """Leave nothing in the staging file but these addresses, as they were at the instant.

        OSError as fallocate(2).
        """
        whole = ((area.start, area.end) for area in self._areas if area.whole)
        there = union((*self._present, *whole))
        kept = outside(inside(union(wanted), there), self.unreadable)
        self.staging.blank(outside(union(self._copied), kept))

    def _area(self, address: int) -> Area | None:
        index = bisect.bisect_right(self._starts, address) - 1
        if index >= 0 and address < self._areas[index].end:
            return self._areas[index]
        return None

    def _next_start(self, address: int) -> int:
        index = bisect.bisect_right(self._starts, address)
        return self._starts[index] if index < len(self._starts) else 1 << 64
