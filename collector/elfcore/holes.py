"""Large holes in memory cost a core nothing: they become segments that share one place in the file.

A program header names any offset, and several may name the same one. So what is absent for long is
cut out of its segment as segments of its own, whose bytes are all in one short area of zeros behind
the head. All tools read zeros there, as from the kernel's own core, and neither the file nor its
compressed form grows with the address space: 8 TiB of untouched memory take 70 KB and 4,096
headers. Smaller holes stay holes of the file, for debuggers are faster with few segments.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from collector.arch.x86_64 import PAGE
from collector.elfcore.types import Segment
from collector.ranges import Range

MIN_HOLE = 64 << 20  # bytes; in the file it would cost 2 KB when compressed
MAX_HOLES = 1 << 16  # that are cut out; the largest ones
_PIECES = 1 << 12  # segments, beside one for each hole, that all holes together are cut into

Populated = Callable[[int, int], Iterable[Range]]


def cut_holes(segments: Sequence[Segment], populated: Populated) -> list[Segment]:
    """The same memory, large holes as segments of their own, marked `zeros`.

    populated: the parts of [start, end) that may be non-zero, rising; only asked of segments that
    have room for a large hole.
    """
    holes = _largest(
        (hole, number)
        for number, s in enumerate(segments)
        if s.filesz >= MIN_HOLE
        for hole in _holes(s, populated)
    )
    if not holes:
        return list(segments)
    most = _piece_size(end - start for found in holes.values() for start, end in found)
    out: list[Segment] = []
    for number, segment in enumerate(segments):
        out += _cut(segment, sorted(holes[number]), most) if number in holes else [segment]
    return out


def _holes(segment: Segment, populated: Populated) -> Iterator[Range]:
    at, end = segment.vaddr, segment.vaddr + segment.filesz
    for low, high in populated(at, end):
        if low - at >= MIN_HOLE:
            yield at, low
        at = max(at, high)
    if end - at >= MIN_HOLE:
        yield at, end


def _largest(found: Iterable[tuple[Range, int]]) -> dict[int, list[Range]]:
    """At most MAX_HOLES holes, by the number of their segment."""
    kept: list[tuple[int, Range, int]] = []
    for (start, end), number in found:
        entry = (end - start, (start, end), number)
        if len(kept) < MAX_HOLES:
            heapq.heappush(kept, entry)
        else:
            heapq.heappushpop(kept, entry)
    holes: dict[int, list[Range]] = {}
    for _, hole, number in kept:
        holes.setdefault(number, []).append(hole)
    return holes


def _piece_size(sizes: Iterable[int]) -> int:
    """How long the shared area must be, for not too many segments."""
    return max(MIN_HOLE, sum(sizes) // _PIECES + PAGE & -PAGE)


def _cut(segment: Segment, holes: Sequence[Range], most: int) -> Iterator[Segment]:
    at, end = segment.vaddr, segment.vaddr + segment.filesz
    beyond = segment.memsz - segment.filesz  # not in the core; stays with the last part
    for start, stop in holes:
        if at < start:
            yield _part(segment, at, start, False, 0)
        for low in range(start, stop, most):
            at = min(stop, low + most)
            yield _part(segment, low, at, True, beyond if at == end else 0)
    if at < end:
        yield _part(segment, at, end, False, beyond)


def _part(segment: Segment, start: int, end: int, zeros: bool, beyond: int) -> Segment:
    return msgspec.structs.replace(
        segment, vaddr=start, filesz=end - start, memsz=end - start + beyond, zeros=zeros
    )
