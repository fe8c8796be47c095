"""Chunks of glibc's heap that were given back, although their neighbours call them in use: those in
threads' caches (tcache) and in fast bins. Source: malloc/malloc.c.

Since 2.32 the links of these lists are mixed with their own addresses (PROTECT_PTR).
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Sequence

from collector.heap.glibc_chunks import HEADER
from collector.heap.memory import Memory, NotInCore

_CACHE_BINS = 64  # TCACHE_MAX_BINS
_COUNTS_SIZE = {0x290: 2, 0x250: 1}  # bytes of each of its counts, by the size of its chunk
_MAX_FREED = 1 << 20  # chunks


class Freed:
    """What was found, of each arena: its chunks of [begin, end) are those that can be meant.

    ranges: (begin, end, number of the arena). No chunk counts twice.
    """

    def __init__(self, ranges: Iterable[tuple[int, int, int]]) -> None:
        self._ranges = sorted(ranges)
        self._chunks: set[int] = set()
        self.sizes: Counter[int] = Counter()
        self.count: Counter[int] = Counter()  # by the number of the arena
        self.bytes: Counter[int] = Counter()
        self.doubtful = 0  # what could be a cache, but leads elsewhere
        self.lost: str | None = None

    def arena_of(self, address: int) -> int | None:
        """The number of the arena that has this chunk."""
        number = bisect.bisect_right(self._ranges, (address, 1 << 64, 0)) - 1
        if number < 0 or address >= self._ranges[number][1]:
            return None
        return self._ranges[number][2]

    def add(self, found: dict[int, int]) -> None:
        """Chunks by address, with their sizes."""
        if len(self._chunks) + len(found) > _MAX_FREED:
            raise ValueError(f"more than {_MAX_FREED} chunks are in caches")
        for chunk, size in found.items():
            arena = self.arena_of(chunk)
            if arena is not None and chunk not in self._chunks:
                self._chunks.add(chunk)
                self.sizes[size] += 1
                self.count[arena] += 1
                self.bytes[arena] += size


def thread_caches(memory: Memory, candidates: Sequence[int], freed: Freed) -> None:
    """Add what is in the threads' caches among the `candidates`, chunks of the right size.

    One of which a count does not fit its list is another thing of that size, and passed over.
    """
    for chunk in candidates:
        size = memory.word(chunk + 8) & ~7
        width = _COUNTS_SIZE[size]
        counts = memory.read(chunk + HEADER, width * _CACHE_BINS)
        heads = memory.words(chunk + HEADER + width * _CACHE_BINS, _CACHE_BINS)
        found: dict[int, int] = {}
        for number, head in enumerate(heads):
            count = int.from_bytes(counts[number * width : (number + 1) * width], "little")
            entries = _cached(memory, head, count, 32 + 16 * number, freed)
            if entries is None:
                freed.doubtful += 1
                break
            found |= entries
        else:
            freed.add(found)


def _cached(
    memory: Memory, head: int, count: int, size: int, freed: Freed
) -> dict[int, int] | None:
    """The chunks of one list of exactly `count` entries; None: it is not one."""
    found: dict[int, int] = {}
    at = head
    while at and len(found) < count:
        chunk = at - HEADER
        if at % 16 or chunk in found or freed.arena_of(chunk) is None:
            return None
        try:
            word, link = memory.words(at - 8, 2)
            if word & ~7 != size:
                return None
            found[chunk] = size
            at = _link(at, link, freed)
        except NotInCore:
            return None
    return found if at == 0 and len(found) == count else None


def fast_chunks(memory: Memory, heads: Sequence[int], freed: Freed) -> None:
    """Add what is in the fast bins. ValueError if a list is damaged."""
    for number, head in enumerate(heads):
        found: dict[int, int] = {}
        chunk, size = head, 32 + 16 * number
        while chunk:
            if chunk % 16 or chunk in found or freed.arena_of(chunk) is None:
                raise ValueError(f"a fast bin is damaged at {chunk:#x}")
            word, link = memory.words(chunk + 8, 2)
            if word & ~7 != size or len(found) > _MAX_FREED:
                raise ValueError(f"a fast bin is damaged at {chunk:#x}")
            found[chunk] = size
            chunk = _link(chunk + HEADER, link, freed)
        freed.add(found)


def _link(at: int, word: int, freed: Freed) -> int:
    """The link `word` at `at`, mixed or plain: whichever leads into the heap, or nowhere."""
    mixed = word ^ at >> 12
    return mixed if mixed == 0 or freed.arena_of(mixed) is not None else word
