"""Where the memory of a core comes from: a process, and pieces of it that were given beforehand.

Pure but for what a `MemorySource` does.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from collector.arch.x86_64 import PAGE
from collector.elfcore.zeros import CHUNK, ZEROS
from collector.ranges import Range, outside, union


class MemorySource(Protocol):
    """Memory of one process, by address.

    `read_into` may be called from another thread than `ranges`, and while that one is at work;
    never twice at a time.
    """

    def ranges(self, start: int, end: int) -> Iterable[Range]:
        """Give the parts of [start, end) that may be non-zero, rising and disjoint."""

    def read_into(self, address: int, buffer: memoryview) -> int:
        """Read as much as there is at `address`; fewer bytes: the next one cannot be read.

        OSError is for the whole source having failed; it ends the writing.
        """


class Overrides:
    """Pieces of memory, by address. Where two overlap, the one given later wins."""

    def __init__(self, pieces: Iterable[tuple[int, bytes]]) -> None:
        numbered = enumerate(pieces)
        self._pieces = sorted((at, number, data) for number, (at, data) in numbered if data)
        self._starts = [piece[0] for piece in self._pieces]
        self._longest = max((len(piece[2]) for piece in self._pieces), default=0)

    def within(self, start: int, end: int) -> list[tuple[int, bytes]]:
        """Pieces that touch [start, end), in the order in which they were given."""
        first = bisect.bisect_right(self._starts, start - self._longest)
        last = bisect.bisect_left(self._starts, end)
        found = [piece for piece in self._pieces[first:last] if piece[0] + len(piece[2]) > start]
        return [(at, data) for at, _, data in sorted(found, key=lambda piece: piece[1])]

    def pages(self, start: int, end: int) -> list[Range]:
        """Pages of [start, end) that a piece touches, rising, possibly overlapping."""
        found = (
            (max(start, at & -PAGE), min(end, at + len(data) + PAGE - 1 & -PAGE))
            for at, data in self.within(start, end)
        )
        return sorted(found)

    def apply(self, start: int, view: memoryview) -> None:
        """Put the pieces into `view`, which holds the memory from `start` on."""
        end = start + len(view)
        for at, data in self.within(start, end):
            low, high = max(at, start), min(at + len(data), end)
            view[low - start : high - start] = data[low - at : high - at]

    def uncovered(self, start: int, end: int) -> list[Range]:
        """The parts of [start, end) that no piece covers."""
        covered = union((at, at + len(data)) for at, data in self.within(start, end))
        return outside([(start, end)], covered)


class Piece(NamedTuple):
    """Memory that is read in one go, at most CHUNK bytes; in the file it is at start + to_file."""

    start: int
    end: int
    to_file: int


class Source:
    """Memory with the pieces that replace what is read of it."""

    def __init__(self, memory: MemorySource, overrides: Overrides) -> None:
        self._memory, self._overrides = memory, overrides

    def ranges(self, start: int, end: int) -> Iterator[Range]:
        """The parts of [start, end) that may be non-zero, by their starts; they may overlap."""
        given = self._overrides.pages(start, end)
        return heapq.merge(self._memory.ranges(start, end), given)

    def pieces(self, start: int, end: int, to_file: int) -> Iterator[Piece]:
        """The same without overlaps, cut at multiples of CHUNK, so that pages stay whole."""
        for low, high in self.ranges(start, end):
            start = max(start, low)
            while start < min(high, end):
                stop = min(high, end, start + CHUNK & -CHUNK)
                yield Piece(start, stop, to_file)
                start = stop

    def read(self, start: int, view: memoryview) -> list[Range]:
        """Fill `view` with the memory from `start` on; the addresses that cannot be read, which
        are zero there."""
        unreadable: list[Range] = []
        done, size = 0, len(view)
        while done < size:
            done += self._memory.read_into(start + done, view[done:])
            if done < size:
                skip = min(size, (start + done + PAGE & -PAGE) - start)
                view[done:skip] = ZEROS[: skip - done]
                unreadable += self._overrides.uncovered(start + done, start + skip)
                done = skip
        self._overrides.apply(start, view)
        return unreadable
