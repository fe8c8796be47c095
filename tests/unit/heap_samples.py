"""Memory of small heaps, as glibc and Go lay them out: for the tests of collector.heap."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NoReturn

from collector.errors import CoreFormatError
from collector.explain.mapped import MappedFile
from collector.heap.memory import Budget, Memory
from collector.heap.objects import Object

LIBC = 0x7F0000000000  # its writable data
ARENA = LIBC + 0x100
BEGIN = 0x550000000000  # of the heap
TO_BINS = 112
BINS = ARENA + TO_BINS
PARAMETERS = LIBC + 0x1000  # struct malloc_par of 2.35 and later
IN_USE, FREE = 1, 0


class FakeCore:
    """Writable areas by address."""

    def __init__(self) -> None:
        self.areas: dict[int, bytearray] = {}

    def area(self, address: int, size: int) -> None:
        self.areas[address] = bytearray(size)

    def put(self, address: int, *words: int) -> None:
        area, offset = self._find(address, 8 * len(words))
        struct.pack_into(f"<{len(words)}Q", area, offset, *words)

    def read(self, address: int, size: int) -> bytes:
        area, offset = self._find(address, size)
        return bytes(area[offset : offset + size])

    def _find(self, address: int, size: int) -> tuple[bytearray, int]:
        for start, area in self.areas.items():
            if start <= address and address + size <= start + len(area):
                return area, address - start
        raise CoreFormatError(f"memory at {address:#x} is not in the core")

    def memory(self, seconds: float = 60.0) -> Memory:
        return Memory(self, Budget(seconds=seconds))

    def data(self, address: int = LIBC) -> list[tuple[int, bytes]]:
        return [(address, bytes(self.areas[address]))]

    def is_writable(self, address: int) -> bool:
        return any(start <= address < start + len(area) for start, area in self.areas.items())


def chunks(core: FakeCore, begin: int, pieces: Sequence[tuple[int, int]], top: int) -> int:
    """Lay out chunks (size, IN_USE or FREE) and behind them one of `top` bytes; its address."""
    at, before = begin, IN_USE
    for size, state in [*pieces, (top, IN_USE)]:
        core.put(at + 8, size | before)
        at, before = at + size, state
    return at - top


def glibc_heap(pieces: Sequence[tuple[int, int]], top: int = 0x1000) -> FakeCore:
    """A process with a main arena of these chunks, and three large ones with their own mappings."""
    core = FakeCore()
    core.area(LIBC, 0x2000)
    core.area(BEGIN, sum(size for size, _ in pieces) + top + 16)
    at = chunks(core, BEGIN, pieces, top)
    for number in range(127):
        head = BINS + 16 * number - 16
        core.put(head + 16, head, head)
    core.put(BINS - 16, at)
    core.put(BINS + 16 * 127 + 16, ARENA, 0, 1, at + top - BEGIN)
    core.put(PARAMETERS + 80, 3 << 22, 3 << 22, BEGIN)
    area = core.areas[LIBC]
    struct.pack_into("<4i", area, 0x1000 + 60, 3, 65536, 3, 0)
    return core


class FakeObjects:
    """Those of a process with glibc, whose file cannot be opened."""

    def __init__(self, core: FakeCore) -> None:
        self._core = core
        self.all = [Object(MappedFile("/usr/lib/libc.so.6", LIBC - 0x1000, LIBC), main=False)]
        self.is_writable = core.is_writable

    def data(self, which: Object) -> list[tuple[int, bytes]]:
        return self._core.data()

    def open(self, which: Object) -> NoReturn:
        raise FileNotFoundError(which.file.path)
