"""Sets of addresses (or of bytes of a file) as lists of ranges. Pure.

A range is [start, end): its end is exclusive. "Rising" lists have starts that never decrease;
"disjoint" ones are rising and do not overlap, though they may adjoin.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

Range = tuple[int, int]
_Span = tuple[int, ...]  # a range, or something that begins with its start and end


def union(ranges: Iterable[Range]) -> list[Range]:
    """The same addresses as disjoint ranges of which no two adjoin."""
    out: list[Range] = []
    for start, end in sorted(ranges):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def inside(ranges: Sequence[Range], areas: Sequence[_Span]) -> list[Range]:
    """The parts of rising ranges that lie in areas (disjoint)."""
    out: list[Range] = []
    index = _first(ranges, areas)
    for start, end in ranges:
        while index < len(areas) and areas[index][1] <= start:
            index += 1
        at = index
        while at < len(areas) and areas[at][0] < end:
            low, high = max(start, areas[at][0]), min(end, areas[at][1])
            if low < high:
                out.append((low, high))
            at += 1
    return out


def outside(ranges: Sequence[Range], areas: Sequence[_Span]) -> list[Range]:
    """The parts of rising ranges that lie in no area (disjoint)."""
    out: list[Range] = []
    index = _first(ranges, areas)
    for start, end in ranges:
        while index < len(areas) and areas[index][1] <= start:
            index += 1
        low, at = start, index
        while at < len(areas) and areas[at][0] < end:
            if low < areas[at][0]:
                out.append((low, areas[at][0]))
            low = max(low, areas[at][1])
            at += 1
        if low < end:
            out.append((low, end))
    return out


def holds(areas: Sequence[Range], address: int) -> bool:
    """Whether an address lies in one of the areas (disjoint)."""
    index = bisect.bisect_right(areas, address, key=lambda area: area[0]) - 1
    return index >= 0 and address < areas[index][1]


def _first(ranges: Sequence[Range], areas: Sequence[_Span]) -> int:
    """Index of the first area that may touch any range: callers often ask for one range of many."""
    return bisect.bisect_right(areas, ranges[0][0], key=lambda area: area[1]) if ranges else 0
