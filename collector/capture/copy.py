"""The memory of a held process, copied into ours: it goes long before its core is written.

While it waits only what is in memory is looked at: a page that is not there may be one that keeps
whoever touches it waiting (userfaultfd, FUSE). What has to be read for the selection, and is in a
file only, has a quarter of a second for all. Who copies is a program of its own (copier.py).
"""

from __future__ import annotations

import bisect
import mmap
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from collector.capture.memory import ProcessMemory
from collector.capture.parts import Copy, Part
from collector.elfcore.types import Mapping
from collector.linux.pagemap import resident_part
from collector.ranges import Range, outside, union

_PIECE = struct.Struct("=4Q")  # struct piece of collector/native/copier.h
_FILE_S = 0.25  # for all that is not in memory


class _Piece(NamedTuple):
    start: int
    end: int
    offset: int  # in the copy


class HeldMemory:
    """`Memory` of a process that waits for us. What we might wait for we do, but not long."""

    def __init__(self, memory: ProcessMemory, pagemap_fd: int, patience: float = _FILE_S) -> None:
        """patience: seconds for all reads of what is not in memory."""
        self._memory = memory
        self._pagemap = pagemap_fd
        self._left = patience

    def ranges(self, start: int, end: int) -> Iterable[Range]:
        return self._memory.ranges(start, end)

    def unknown(self, start: int, end: int) -> Iterable[Range]:
        return self._memory.unknown(start, end)

    def read(self, address: int, size: int) -> bytes:
        buffer = bytearray(size)
        return bytes(buffer[: self.read_into(address, memoryview(buffer))])

    def read_into(self, address: int, buffer: memoryview) -> int:
        there = resident_part(self._pagemap, address, len(buffer)) if len(buffer) else 0
        done = self._memory.read_into(address, buffer[:there])
        if done < there or done == len(buffer):
            return done
        return done + self._read_absent(address + done, buffer[done:])

    def _read_absent(self, address: int, buffer: memoryview) -> int:
        if self._left <= 0:
            return 0
        own = memoryview(bytearray(len(buffer)))  # should it come too late, nobody looks at it
        got: list[int] = []
        reader = threading.Thread(
            target=lambda: got.append(self._memory.read_into(address, own)), daemon=True
        )
        before = time.monotonic()
        reader.start()
        reader.join(self._left)
        self._left -= time.monotonic() - before
        if not got:
            self._left = 0
            return 0
        buffer[: got[0]] = own[: got[0]]
        return got[0]


class CopiedMemory:
    """`Memory` of a process that may be gone by now: what was copied of it."""

    def __init__(
        self,
        copy: Copy,
        mappings: Sequence[Mapping],
        is_known: Callable[[int, int], bool] = lambda start, end: True,
    ) -> None:
        """is_known: whether all of a range was wanted. OSError if the copy cannot be mapped."""
        self.missing = 0  # bytes that were wanted, and did not come
        self.copied = 0  # bytes
        self._pieces: list[_Piece] = []
        self._area = _mapped(copy)
        missing: list[Range] = []
        for start, end, offset, got in _PIECE.iter_unpack(
            self._area[copy.table : copy.table + copy.pieces * _PIECE.size]
        ):
            if got:
                self._pieces.append(_Piece(start, start + got, offset))
            if start + got < end:
                missing.append((start + got, end))
        self._pieces.sort()
        self._known = union([*((p.start, p.end) for p in self._pieces), *missing])
        self.copied = sum(p.end - p.start for p in self._pieces)
        kernels = [(m.start, m.end) for m in mappings if m.special]  # [vvar] is never readable
        gone = outside(union(missing), kernels)
        self.missing = sum(b - a for a, b in gone)
        self.not_in_time = gone if copy.hasty else []
        self._is_known = is_known if copy.hasty else None

    def ranges(self, start: int, end: int) -> Iterator[Range]:
        """What was wanted of [start, end) and was there: what could not be read as well."""
        index = max(bisect.bisect_right(self._known, (start,)) - 1, 0)
        while index < len(self._known) and self._known[index][0] < end:
            low, high = max(start, self._known[index][0]), min(end, self._known[index][1])
            if low < high:
                yield low, high
            index += 1

    def unknown(self, start: int, end: int) -> list[Range]:
        """What nobody had the time to look for; what was wanted and did not come is `missing`."""
        if self._is_known is None or self._is_known(start, end):
            return []
        return outside([(start, end)], self._known)

    def read_into(self, address: int, buffer: memoryview) -> int:
        """Bytes of the copy from `address` on; fewer than asked where it has a gap."""
        done = 0
        while done < len(buffer):
            at = address + done
            index = bisect.bisect_right(self._pieces, (at, 1 << 64)) - 1
            if index < 0 or at >= self._pieces[index].end:
                break
            start, end, offset = self._pieces[index]
            size = min(end - at, len(buffer) - done)
            offset += at - start
            buffer[done : done + size] = self._area[offset : offset + size]
            done += size
        return done

    def read(self, address: int, size: int) -> bytes:
        """Up to `size` bytes at an address; for look-ups, not for copying."""
        buffer = bytearray(size)
        return bytes(buffer[: self.read_into(address, memoryview(buffer))])


def _mapped(copy: Copy) -> memoryview:
    size = copy.table + copy.pieces * _PIECE.size
    if not size:
        return memoryview(b"")
    return memoryview(mmap.mmap(copy.fd, size, mmap.MAP_SHARED, mmap.PROT_READ))


def parts_of(
    wanted: Iterable[Range], memory: ProcessMemory, mappings: Sequence[Mapping]
) -> list[Part]:
    """What a copier is asked for, for these addresses: their parts, in their order."""
    return [part for start, end in _split(wanted, mappings) for part in memory.parts(start, end)]


def _split(wanted: Iterable[Range], mappings: Sequence[Mapping]) -> Iterator[Range]:
    """The same addresses, in ranges that lie inside one mapping each."""
    ends = [m.end for m in mappings]
    for low, high in wanted:
        index = bisect.bisect_right(ends, low)
        while index < len(ends) and mappings[index].start < high:
            mapping = mappings[index]
            yield max(low, mapping.start), min(high, mapping.end)
            index += 1
