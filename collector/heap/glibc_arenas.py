"""Find glibc's arenas in a core without its debugging symbols, which few hosts have.

The main arena is looked for in libc's writable data, by what only an arena looks like: 127 list
heads, of which the empty ones point at themselves and the others at chunks that point back
(malloc_init_state, malloc/malloc.c of glibc). The ring of all arenas then gives the place of its
first field, and so which version of `struct malloc_state` it is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from collector.arch.x86_64 import PAGE
from collector.heap.memory import Memory, NotInCore
from collector.heap.objects import Data

_BINS = 127  # pairs of words: NBINS - 1
_PROVEN_MIN = 16  # bins that must be empty, or proven by a chunk, to believe in an arena
# Bytes from the begin of struct malloc_state to its bins: with fast bins since 2.27, before it,
# and without any
_TO_BINS = (112, 104, 32, 24)
_FAST_BINS = 10  # NFASTBINS, right before `top`
_WITH_FAST_BINS = 104
_TO_NEXT = 16 * _BINS + 16  # bytes from the bins to `next`; binmap is between
_REST = 40  # next, next_free, attached_threads, system_mem, max_system_mem
HEAP_MAX = 64 << 20  # HEAP_MAX_SIZE: heaps of other arenas are aligned to it
_HEAP_HEADERS = (0x20, 0x30)  # bytes of struct heap_info, before 2.35 and since
_MAPPED_MAX = 65536  # DEFAULT_MMAP_MAX
_MAX_ARENAS = 4096


class Arena(NamedTuple):
    """What struct malloc_state says of itself; addresses and bytes."""

    address: int
    bins: int
    top: int
    system: int

    @property
    def end(self) -> int:
        """Where the struct ends."""
        return self.bins + _TO_NEXT + _REST

    def fast_bins(self, memory: Memory) -> tuple[int, ...]:
        """The heads of its lists of small chunks that were given back; empty: it has none."""
        if self.bins - self.address < _WITH_FAST_BINS:
            return ()
        return memory.words(self.bins - 16 - 8 * _FAST_BINS, _FAST_BINS)


class Ring(NamedTuple):
    """The arenas, the main one first. `whole`: all of them are in the core."""

    arenas: list[Arena]
    whole: bool


class Parameters(NamedTuple):
    """Of struct malloc_par: where the heap of brk(2) begins, and the large chunks."""

    begin: int
    mapped: int
    mapped_count: int
    limit: int  # of mapped_count


def find_arenas(memory: Memory, data: Data) -> Ring | None:
    """All arenas; None: this is no data of a glibc whose malloc was used."""
    for address, part in data:
        for bins in _bins_in(memory, address, part):
            for to_bins in _TO_BINS:
                ring = _ring(memory, bins - to_bins, to_bins)
                if ring is not None:
                    return ring
    return None


def _bins_in(memory: Memory, base: int, part: bytes) -> list[int]:
    """Where there could be an array of bins. Its last one is always empty."""
    words = struct.unpack(f"<{len(part) // 8}Q", part[: len(part) & -8])
    empty = [
        number
        for number in range(len(words) - 1)
        if words[number] == words[number + 1] == base + 8 * number - 16
    ]
    found = []
    heads = set(empty)
    for last in empty:
        first = last - 2 * (_BINS - 1)
        if first < 2 or last + 2 in heads:
            continue
        proven = 0
        for number in range(first, last + 2, 2):
            state = number in heads or _is_bin(
                memory, base + 8 * number - 16, *words[number : number + 2]
            )
            if state is False:
                break
            proven += state is True
        else:
            if proven >= _PROVEN_MIN:
                found.append(base + 8 * first)
    return found


def _is_bin(memory: Memory, head: int, first: int, last: int) -> bool | None:
    """Whether its chunks point back at it; None: they are not in the core."""
    if not first or not last or first % 16 or last % 16:
        return False
    try:
        return memory.word(first + 24) == head and memory.word(last + 16) == head
    except NotInCore:
        return None


def _ring(memory: Memory, main: int, to_bins: int) -> Ring | None:
    """The arenas from the main one around to it again; None if that is not where they lead."""
    ring: list[Arena] = []
    at = main
    try:
        while len(ring) < _MAX_ARENAS:
            top = memory.word(at + to_bins - 16)
            following, _, _, system = memory.words(at + to_bins + _TO_NEXT, 4)
            ring.append(Arena(at, at + to_bins, top, system))
            at = following
            if at == main:
                return Ring(ring, whole=True)
            if at % HEAP_MAX not in _HEAP_HEADERS:
                return None
    except NotInCore:
        # other arenas are in their heaps, which may not have been kept
        return Ring(ring, whole=False) if ring else None
    return None


def find_parameters(
    memory: Memory, data: Data, main: Arena, is_writable: Callable[[int], bool]
) -> Parameters | None:
    """malloc's parameters (mp_): what names the begin of the main arena's heap, beside numbers that
    fit each other. None: that is nowhere, or in more than one place.

    Where `top` does not tell the begin, because the heap has gaps or is not in the core, they must
    have the default limit of mapped chunks, too.
    """
    found = []
    for _, part in data:
        words = struct.unpack(f"<{len(part) // 8}Q", part[: len(part) & -8])
        for number in range(6, len(words)):
            if 0 < words[number] <= main.top:
                one = _parameters_at(part, 8 * number, words[number])
                if one is not None and is_writable(one.begin):
                    found.append(one)
    try:
        size = memory.word(main.top + 8) & ~7
    except NotInCore:
        size = 0
    exact = [one for one in found if one.begin == main.top + size - main.system]
    usual = [one for one in found if one.limit == _MAPPED_MAX]
    likely = exact or usual
    return likely[0] if len(likely) == 1 else None


def _parameters_at(part: bytes, at: int, begin: int) -> Parameters | None:
    """If sbrk_base of a struct malloc_par is at `at`: since 2.35 there is one word more of ints
    before it, hp_flags (malloc/malloc.c)."""
    mapped, most = struct.unpack_from("<QQ", part, at - 16)
    for ints in (at - 36, at - 32):
        count, limit, peak, fixed = struct.unpack_from("<4i", part, ints)
        padding = part[ints + 16 : at - 16]
        if (
            not any(padding)
            and fixed in (0, 1)
            and 0 <= count <= peak <= max(limit, peak) < 1 << 30
            and limit > 0
            and mapped <= most
            and not mapped % PAGE
            and (count == 0) == (mapped == 0)
        ):
            return Parameters(begin, mapped, count, limit)
    return None
