"""Memory of a core for readers of an allocator's lists, within a budget.

The lists are a hostile process's: they may be circular, endless, or lead anywhere. Whoever follows
one reads through here, and `OutOfBudget` ends it. What is not in the core is `NotInCore`.
"""

from __future__ import annotations

import bisect
import struct
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from collector.errors import CoreFormatError
from collector.ranges import Range, union

_WORD = struct.Struct("<Q")
_PAGE = 1 << 14  # bytes that are read and kept together
_KEPT = 1024  # such pages


class NotInCore(Exception):
    """The core does not hold this memory."""


class OutOfBudget(Exception):
    """The time is over, or enough bytes were read."""


class Core(Protocol):
    """What is needed of a core: elfcore.reader.CoreFile."""

    def read(self, address: int, size: int) -> bytes:
        """Give the bytes, all of them; CoreFormatError if one is not in the core."""


class Budget(NamedTuple):
    """What reading may take: seconds of CPU time, and bytes.

    Not by the clock: a reader at nice 19 waits for a CPU for as long as others want it. Whoever
    started it bounds that.
    """

    seconds: float = 2.0
    size: int = 8 << 30


class Memory:
    """Random access to a core's memory; small reads come from pages that are kept.

    missing: what the core says that it lacks. It may read as zeros there, which no list has.
    """

    def __init__(self, core: Core, budget: Budget, missing: Iterable[Range] = ()) -> None:
        self._core = core
        self._missing = union(missing)
        self._starts = [start for start, _ in self._missing]
        self._cpu_end = time.process_time() + budget.seconds
        self._left = budget.size
        self._pages: OrderedDict[int, bytes] = OrderedDict()

    def check(self) -> None:
        """OutOfBudget, if the time is over. For loops that read nothing."""
        if time.process_time() > self._cpu_end:
            raise OutOfBudget

    def block(self, address: int, size: int) -> bytes:
        """All `size` bytes from `address` on. NotInCore, OutOfBudget."""
        self.check()
        self._left -= size
        if self._left < 0:
            raise OutOfBudget
        number = bisect.bisect_left(self._starts, address + size) - 1
        if number >= 0 and self._missing[number][1] > address:
            raise NotInCore(f"memory at {self._missing[number][0]:#x} is not in the core")
        try:
            return self._core.read(address, size)
        except CoreFormatError as error:
            raise NotInCore(f"memory at {address:#x} is not in the core") from error

    def read(self, address: int, size: int) -> bytes:
        """The same, for small pieces near to each other."""
        offset = address % _PAGE
        if offset + size > _PAGE:
            return self.block(address, size)
        number = address // _PAGE
        page = self._pages.get(number)
        if page is None:
            try:
                page = self.block(number * _PAGE, _PAGE)
            except NotInCore:  # the mapping ends within
                return self.block(address, size)
            self._pages[number] = page
            if len(self._pages) > _KEPT:
                self._pages.popitem(last=False)
        return page[offset : offset + size]

    def word(self, address: int) -> int:
        """The 8 bytes at `address`, little endian."""
        (value,) = _WORD.unpack(self.read(address, _WORD.size))
        return int(value)

    def words(self, address: int, count: int) -> tuple[int, ...]:
        """`count` words of 8 bytes."""
        return struct.unpack(f"<{count}Q", self.read(address, 8 * count))
