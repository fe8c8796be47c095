"""glibc's malloc: how much its arenas have from the kernel, and how much of that is in use.

Each arena is walked from its first chunk to its last; what of it lies in caches was given back. An
arena that contradicts itself has only what it has from the kernel, and says why.
"""

from __future__ import annotations

from collections import Counter

from collector.heap.glibc_arenas import (
    HEAP_MAX,
    Arena,
    Parameters,
    Ring,
    find_arenas,
    find_parameters,
)
from collector.heap.glibc_chunks import Tally, walk
from collector.heap.glibc_freed import Freed, fast_chunks, thread_caches
from collector.heap.memory import Memory, NotInCore, OutOfBudget
from collector.heap.objects import Data, Object, Objects
from collector.model import Allocator, HeapArena, HeapProfile, HeapSize

_MAX_HEAPS = 1 << 16
_SHOWN_ARENAS = 32
_SHOWN_SIZES = 16


def read_glibc(memory: Memory, objects: Objects) -> HeapProfile | None:
    """What its malloc says; None: there is none, or it was never used.

    NotInCore if libc's data is not there.
    """
    libc = [one for one in objects.all if one.name.startswith(("libc.so.", "libc-2."))]
    for one in libc or [one for one in objects.all if one.main]:  # it may be in the program itself
        data = objects.data(one)
        if libc and not data:
            raise NotInCore(f"the data of {one.name} is not in the core")
        ring = find_arenas(memory, data)
        if ring is not None:
            return _Reader(memory, objects, one, data, ring).profile()
    return None


class _Reader:
    """One process's malloc, whose main arena is in `data`, that of `libc`."""

    def __init__(
        self,
        memory: Memory,
        objects: Objects,
        libc: Object,
        data: Data,
        ring: Ring,
    ) -> None:
        self._memory, self._objects, self._ring = memory, objects, ring
        self._libc, self._data = libc, data
        self._lost: dict[str, str] = {}

    def profile(self) -> HeapProfile:
        writable = self._objects.is_writable
        main = self._ring.arenas[0]
        parameters = find_parameters(self._memory, self._data, main, writable)
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
        if unknown:
            self._lost["sizes"] = "pieces are those of the parts that could be followed"
        if freed.lost is None and freed.doubtful and unknown:
            freed.lost = "some are of arenas that could not be read"
        if freed.lost is not None:
            self._lost["caches"] = f"chunks in caches count as in use: {freed.lost}"

    def _version(self) -> str | None:
        """As libc itself says it."""
        try:
            with self._objects.open(self._libc) as opened:
                text = opened.elf.section(".rodata") if opened.verified else b""
        except (OSError, ValueError):
            return None
        begin = text.find(b"GNU C Library ")
        said = text[begin : text.find(b"\n", begin)] if begin >= 0 else b""
        word = said.partition(b"stable release version ")[2].rstrip(b".")
        return word.decode("ascii", "replace")[:32] or None

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
        heap, end, total = arena.top & -HEAP_MAX, arena.top, 0
        first = arena.address & -HEAP_MAX
        header = arena.address - first
        for _ in range(_MAX_HEAPS):
            owner, before, size = memory.words(heap, 3)
            if owner != arena.address or not 0 < size <= HEAP_MAX:
                raise ValueError("the list of its heaps is damaged")
            total += size
            begin = arena.end if heap == first else heap + header
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
                if tally.lost is None:
                    fast_chunks(self._memory, arena.fast_bins(self._memory), freed)
        except NotInCore:
            freed.lost = "not all of them are in the core"
        except OutOfBudget:
            freed.lost = "there was no time to look at all of them"
        except ValueError as error:
            freed.lost = str(error)
        return freed


def _arena_facts(arena: Arena, tally: Tally, freed: Freed, number: int) -> HeapArena:
    if tally.lost is not None:
        return HeapArena(
            address=arena.address, system=arena.system, top=tally.top or None, lost=tally.lost
        )
    back = freed.bytes[number]
    sizes = tally.sizes
    return HeapArena(
        address=arena.address,
        system=arena.system,
        in_use=sum(size * count for size, count in sizes.items()) - back,
        chunks=sum(sizes.values()) - freed.count[number],
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
