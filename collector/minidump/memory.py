"""What of a core's memory goes into a minidump: of each thread, the top of its stack.

A minidump is for services that bound its size, so a stack is cut off where it is deep, and all
stacks together have a bound. No byte is taken twice: threads may share a stack, or say so.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from collector.arch.x86_64 import RED_ZONE, SP
from collector.elfcore.layout import Placed
from collector.elfcore.types import Thread
from collector.minidump.file import Memory
from collector.ranges import Range, union

MAX_FIRST = 1 << 20  # bytes of the stack of the thread that died
MAX_STACK = 256 << 10  # of each other thread
MAX_MEMORY = 256 << 20  # of all
_GUARD = 1 << 20  # bytes below a stack, into which one that ran over may point


class Stacks:
    """The stacks of a core's threads, taken one after the other."""

    def __init__(self, segments: Sequence[Placed], size: int) -> None:
        """size: of the core's file; what is cut off of it is not there."""
        self._there = union(
            (one.segment.vaddr, one.segment.vaddr + min(one.segment.filesz, size - one.offset))
            for one in segments
            if one.segment.filesz and one.offset < size
        )
        self._starts = [start for start, _ in self._there]
        self._ends: list[int] = []  # of what was taken, rising, and where each begins
        self._begins: list[int] = []
        self._left = MAX_MEMORY
        self.cut = 0  # threads whose stack is not there as a whole

    def take(self, thread: Thread, *, first: bool) -> Memory:
        """The stack of a thread from its stack pointer on; of no bytes if it leads nowhere."""
        pointer = max(0, thread.regs[SP] - RED_ZONE) & -16
        found = self._at(pointer)
        if found is None:
            return Memory(pointer, 0)
        start, end = max(found[0], pointer), found[1]
        start, end = self._free(start, end)
        stop = min(end, start + (MAX_FIRST if first else MAX_STACK), start + self._left)
        self.cut += stop < end
        self._left -= stop - start
        if start < stop:
            at = bisect.bisect_left(self._begins, start)
            self._begins.insert(at, start)
            self._ends.insert(at, stop)
        return Memory(start, stop - start)

    def _at(self, address: int) -> Range | None:
        """The memory that an address is in, or just below."""
        number = bisect.bisect_right(self._starts, address) - 1
        if number >= 0 and address < self._there[number][1]:
            return self._there[number]
        following = number + 1
        if following < len(self._there) and self._there[following][0] - address <= _GUARD:
            return self._there[following]
        return None

    def _free(self, start: int, end: int) -> Range:
        """The part of a range, from its start on, that nobody has taken; empty if its start is."""
        at = bisect.bisect_right(self._begins, start)
        if at and start < self._ends[at - 1]:
            return start, start
        return start, min(end, self._begins[at]) if at < len(self._begins) else end
