"""The chunks of a piece of glibc's heap, one behind the other.

Each begins with the size of the one before, if that is free, and its own size, whose lowest bit
says whether the one before is in use. Source: malloc/malloc.c of glibc, "Chunk representations".
"""

from __future__ import annotations

from dataclasses import dataclass, field

from collector.heap.memory import Memory

HEADER = 16  # bytes: the two sizes
_MIN_CHUNK = 32  # MINSIZE
_FLAGS = 7  # of a size: PREV_INUSE, IS_MMAPPED, NON_MAIN_ARENA
_PREV_IN_USE = 1
_BLOCK = 1 << 20  # bytes that are read at a time
# struct tcache_perthread_struct with its header: since 2.30, and before
CACHE_CHUNKS = (0x290, 0x250)
_CACHES = frozenset(size | _PREV_IN_USE for size in CACHE_CHUNKS)
_MAX_CACHES = 4096  # candidates, of which each is looked into
_MAX_SIZES = 1 << 16  # different ones; a program has hundreds


@dataclass(slots=True)
class Tally:
    """What was counted of one arena; bytes with headers."""

    top: int = 0
    counts: dict[int, int] = field(default_factory=dict)  # size | 1 where in use -> chunks
    caches: list[int] = field(default_factory=list)  # chunks that may be threads' caches
    ranges: list[tuple[int, int]] = field(default_factory=list)  # that were walked through
    lost: str | None = None

    @property
    def sizes(self) -> dict[int, int]:
        """Of chunks in use: size -> how many."""
        return {key & ~1: count for key, count in self.counts.items() if key & 1}

    @property
    def free(self) -> int:
        """Bytes that are not in use."""
        return sum(size * count for size, count in self.counts.items() if not size & 1)


def walk(memory: Memory, begin: int, end: int, tally: Tally, *, fenced: bool = False) -> None:
    """Count the chunks of [begin, end), where `end` is a chunk, too: that of `top`.

    fenced: instead, two headers without memory right before `end` are the last, as in a heap that
    is full. ValueError if one chunk does not lead to the next, NotInCore and OutOfBudget as reading
    gives them.
    """
    if begin % 16 or end % 16:
        raise ValueError(f"its chunks cannot end at {end:#x}")
    readable = end if fenced else end + HEADER
    at, before = begin, 0
    counts, caches = tally.counts, tally.caches
    while at + HEADER <= readable:
        words = memoryview(memory.block(at, min(_BLOCK, readable - at))).cast("Q")
        if len(counts) > _MAX_SIZES:
            raise ValueError(f"its chunks have more than {_MAX_SIZES} sizes")
        number, count, stop = 1, len(words), (end - at) // 8 + 1
        while number < count:  # for each chunk: there may be millions
            word = words[number]
            if before:
                key = before | word & _PREV_IN_USE
                try:
                    counts[key] += 1
                except KeyError:
                    counts[key] = 1
                if key in _CACHES and len(caches) < _MAX_CACHES:
                    caches.append(at + 8 * number - 8 - before)
            before = word & ~_FLAGS
            if number == stop or (fenced and before < _MIN_CHUNK and stop - number <= 4):
                tally.ranges.append((begin, at + 8 * number - 8))
                return
            if before < _MIN_CHUNK or before & 8:
                raise ValueError(f"its chunks cannot be followed beyond {at + 8 * number - 8:#x}")
            number += before >> 3
        at += 8 * number - 8
    raise ValueError(f"its chunks cannot be followed beyond {at - before:#x}")
