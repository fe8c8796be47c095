"""glibc's malloc: how much its arenas have from the kernel, and how much of that is in use.

Nothing of it is exported, and few hosts have libc's debugging symbols, so the main arena is looked
for in libc's writable data, by what only an arena looks like: 127 list heads, of which the empty
ones point at themselves and the others at chunks that point back (malloc_init_state,
malloc/malloc.c of glibc). The ring of all arenas then gives the place of its first field, and so
which version of `struct malloc_state` it is. An arena that contradicts itself has only what it has
from the kernel, and says why.
"""

from __future__ import annotations

import struct
from collections import Counter
from typing import NamedTuple

from collector.arch.x86_64 import PAGE
from collector.heap.glibc_chunks import Tally, walk
from collector.heap.glibc_freed import Freed, fast_chunks, thread_caches
from collector.heap.memory import Memory, NotInCore, OutOfBudget
from collector.heap.objects import Object, Objects
from collector.model import Allocator, HeapArena, HeapProfile, HeapSize

_BINS = 127  # pairs of words: NBINS - 1
_EMPTY_MIN = 16  # bins that must be empty, or proven by a chunk, to believe in an arena
# Bytes from the begin of struct malloc_state to its bins: with fast bins since 2.27, before it,
# and without any
_TO_BINS = (112, 104, 32, 24)
_FAST_BINS = 10  # NFASTBINS, right before `top`
_WITH_FAST_BINS = 104
_HEAP_MAX = 64 << 20  # HEAP_MAX_SIZE: heaps of other arenas are aligned to it
_HEAP_HEADERS = (0x20, 0x30)  # bytes of struct heap_info, before 2.35 and since
_MAX_ARENAS = 4096
_MAX_HEAPS = 1 << 16
_SHOWN_ARENAS = 32
_SHOWN_SIZES = 16


class Arena(NamedTuple):
    """What struct malloc_state says of itself; addresses and bytes."""

    address: int
    bins: int
    top: int
    system: int


class Ring(NamedTuple):
    """The arenas, the main one first. `whole`: all of them are in the core."""

    arenas: list[Arena]
    whole: bool


class Parameters(NamedTuple):
    """Of struct malloc_par: where the heap of brk(2) begins, and the large chunks."""

    begin: int
    mapped: int
    mapped_count: int


def read_glibc(memory: Memory, objects: Objects) -> HeapProfile | None:
    """What its malloc says; None: there is none, or it was never used."""
    libc = [one for one in objects.all if one.name.startswith(("libc.so.", "libc-2."))]
    for one in libc or [one for one in objects.all if one.main]:  # it may be in the program itself
        data = objects.data(one)
        ring = _find_arenas(memory, data)
        if ring is not None:
            return _Reader(memory, objects, one, data, ring).profile()
    return None


# ---- the arenas


def _find_arenas(memory: Memory, data: list[tuple[int, bytes]]) -> Ring | None:
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
            if proven >= _EMPTY_MIN:
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
            # behind the bins: binmap (16 bytes), next, next_free, attached_threads, system_mem
            following, _, _, system = memory.words(at + to_bins + 16 * _BINS + 16, 4)
            ring.append(Arena(at, at + to_bins, top, system))
            at = following
            if at == main:
                return Ring(ring, whole=True)
            if at % _HEAP_MAX not in _HEAP_HEADERS:
                return None
    except NotInCore:
        # other arenas are in their heaps, which may not have been kept
        return Ring(ring, whole=False) if ring else None
    return None


class _Reader:
    """One process's malloc, whose main arena is in `data`, that of `libc`."""

    def __init__(
        self,
        memory: Memory,
        objects: Objects,
        libc: Object,
        data: list[tuple[int, bytes]],
        ring: Ring,
    ) -> None:
        self._memory, self._objects, self._ring = memory, objects, ring
        self._libc, self._data = libc, data
        self._lost: dict[str, str] = {}

    def profile(self) -> HeapProfile:
        parameters = self._parameters()
        tallies = [self._walk(arena, parameters) for arena in self._ring.arenas]
        freed = self._freed(tallies)
        arenas = [
            _arena_facts(arena, tallies[number], freed, number)
            for number, arena in enumerate(self._ring.arenas)
        ]
        arenas.sort(key=lambda one: -one.system)
        self._name_losses(arenas, freed)
        known = "in_use" not in self._lost
        if parameters is None:
            self._lost["mapped"] = "malloc's parameters (mp_) were not found"
        return HeapProfile(
            allocator=Allocator.GLIBC,
            version=self._version(),
            in_use=sum(one.in_use or 0 for one in arenas) if known else None,
            objects=sum(one.chunks or 0 for one in arenas) if known else None,
            sizes=_sizes(tallies, freed),
            arenas=arenas[:_SHOWN_ARENAS],
            arena_count=len(arenas),
            mapped=None if parameters is None else parameters.mapped,
            mapped_count=None if parameters is None else parameters.mapped_count,
            lost=self._lost,
        )

    def _name_losses(self, arenas: list[HeapArena], freed: Freed) -> None:
        unknown = [one for one in arenas if one.in_use is None]
        if not self._ring.whole:
            self._lost["arenas"] = "not all of them are in the core"
            self._lost["in_use"] = "not all arenas are in the core"
        elif unknown:
            self._lost["in_use"] = f"{len(unknown)} of {len(arenas)} arenas: {unknown[0].lost}"
        if freed.lost is None and freed.doubtful and unknown:
            freed.lost = "some are of arenas that could not be read"
        if freed.lost is not None:  # what is in them counts as in use
            self._lost["caches"] = freed.lost

    def _version(self) -> str | None:
        """As libc itself says it."""
        try:
            with self._objects.open(self._libc) as opened:
                text = opened.elf.section(".rodata")
        except (OSError, ValueError):
            return None
        begin = text.find(b"GNU C Library ")
        said = text[begin : text.find(b"\n", begin)] if begin >= 0 else b""
        word = said.partition(b"stable release version ")[2].rstrip(b".")
        return word.decode("ascii", "replace")[:32] or None

    def _parameters(self) -> Parameters | None:
        """malloc's parameters (mp_): the only place that says where the heap begins that `top` of
        the main arena ends, beside numbers that fit each other."""
        main = self._ring.arenas[0]
        found = []
        for _, part in self._data:
            words = struct.unpack(f"<{len(part) // 8}Q", part[: len(part) & -8])
            for number in range(6, len(words)):
                if 0 < words[number] <= main.top:
                    one = _parameters_at(part, 8 * number, words[number])
                    if one is not None and self._objects.is_writable(one.begin):
                        found.append(one)
        return found[0] if len(found) == 1 else None

    # ---- what is in use

    def _walk(self, arena: Arena, parameters: Parameters | None) -> Tally:
        tally = Tally()
        if not arena.system:  # it was never used
            return tally
        try:
            (size,) = self._memory.words(arena.top + 8, 1)
            tally.top = size & ~7
            if arena is self._ring.arenas[0]:
                self._walk_main(arena, parameters, tally)
            else:
                self._walk_heaps(arena, tally)
        except NotInCore as error:
            tally.lost = str(error)
        except OutOfBudget:
            tally.lost = "there was no time to look at all of its chunks"
        except ValueError as error:
            tally.lost = str(error)
        return tally

    def _walk_main(self, arena: Arena, parameters: Parameters | None, tally: Tally) -> None:
        if parameters is None:
            raise ValueError("where it begins is not known")
        end = arena.top + tally.top
        if end - parameters.begin != arena.system:
            raise ValueError("it has parts that are not known")
        walk(self._memory, parameters.begin + 15 & -16, arena.top, tally)

    def _walk_heaps(self, arena: Arena, tally: Tally) -> None:
        """struct heap_info, malloc/arena.c: ar_ptr, prev, size; the newest heap has `top`."""
        memory = self._memory
        heap, end, total = arena.top & -_HEAP_MAX, arena.top, 0
        first = arena.address & -_HEAP_MAX
        header = arena.address - first
        state = arena.bins - arena.address + 16 * _BINS + 16 + 40
        for _ in range(_MAX_HEAPS):
            owner, before, size = memory.words(heap, 3)
            if owner != arena.address or not 0 < size <= _HEAP_MAX:
                raise ValueError("the list of its heaps is damaged")
            total += size
            begin = arena.address + state if heap == first else heap + header
            walk(memory, begin + 15 & -16, end or heap + size, tally, fenced=not end)
            if heap == first:
                if total != arena.system:
                    raise ValueError("it has parts that are not known")
                return
            heap, end = before, 0
        raise ValueError("the list of its heaps has no end")

    def _freed(self, tallies: list[Tally]) -> Freed:
        """Chunks that look in use, but were given back: in threads' caches and fast bins."""
        freed = Freed(
            (begin, end, number)
            for number, tally in enumerate(tallies)
            for begin, end in tally.ranges
        )
        try:
            for arena, tally in zip(self._ring.arenas, tallies, strict=True):
                thread_caches(self._memory, tally.caches, freed)
                if tally.lost is None and arena.bins - arena.address >= _WITH_FAST_BINS:
                    heads = self._memory.words(arena.bins - 16 - 8 * _FAST_BINS, _FAST_BINS)
                    fast_chunks(self._memory, heads, freed)
        except NotInCore:
            freed.lost = "not all of them are in the core"
        except OutOfBudget:
            freed.lost = "there was no time to look at all of them"
        except ValueError as error:
            freed.lost = str(error)
        return freed


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
            return Parameters(begin, mapped, count)
    return None


def _arena_facts(arena: Arena, tally: Tally, freed: Freed, number: int) -> HeapArena:
    if tally.lost is not None:
        return HeapArena(
            address=arena.address, system=arena.system, top=tally.top or None, lost=tally.lost
        )
    back = freed.bytes[number]
    return HeapArena(
        address=arena.address,
        system=arena.system,
        in_use=tally.used - back,
        chunks=tally.chunks - freed.count[number],
        free=tally.free + back,
        top=tally.top,
    )


def _sizes(tallies: list[Tally], freed: Freed) -> list[HeapSize]:
    """Those that take most. Of arenas that were not seen to their end, too: what is there, is."""
    counts: Counter[int] = Counter()
    for tally in tallies:
        counts.update(tally.sizes)
    counts.subtract(freed.sizes)
    most = sorted(counts.items(), key=lambda pair: -pair[0] * pair[1])[:_SHOWN_SIZES]
    return [HeapSize(size=size, count=count) for size, count in most if count > 0]
