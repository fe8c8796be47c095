"""The memory of a held process, copied into ours: it goes long before its core is written.

Only what is in memory is read while the process waits, by threads of their own: a page that is not
there may be one that keeps whoever touches it waiting (userfaultfd, FUSE), and even one that is
there can be made to. Whoever started the threads waits for them until a deadline and goes on
without what they have not brought. What of a mapped file was never touched comes last, and has a
quarter of a second for all.

What costs is fresh memory, not the read: it is in huge pages, and two threads fill it.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import mmap
import os
import select
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from collector.arch.x86_64 import PAGE
from collector.capture.memory import ProcessMemory
from collector.elfcore.types import Mapping
from collector.linux import process_vm
from collector.linux.pagemap import resident_part
from collector.ranges import Range, outside, union

_HUGE = 2 << 20  # bytes of a huge page
_PIECE = 4 << 20  # bytes that a thread reads at a time
_THREADS = 2  # more are no faster on any machine that was measured
_PIECE_OF = struct.Struct("=QQ")  # struct iovec
_FILE_PIECE = 1 << 20
_FILE_S = 0.25  # for all that is not in memory


class _Piece(NamedTuple):
    start: int
    end: int
    offset: int  # in our memory
    mapped: bool = False  # all of it is in the page tables of the process


class Reader:
    """Reads the memory of one held process faster than through its /proc/PID/mem, by a third.

    process_vm_readv(2) knows a process by its number. That is this process's for as long as its
    pidfd says that it has not ended: what was read when it says so no more is not taken.
    """

    def __init__(self, pid: int, pidfd: int) -> None:
        """pid: of a thread that has its memory."""
        self._pid, self._pidfd = pid, pidfd

    def read_into(self, address: int, buffer: memoryview) -> int:
        """Bytes read; 0 where it is to be tried in another way."""
        ours = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        local, remote = _PIECE_OF.pack(ours, len(buffer)), _PIECE_OF.pack(address, len(buffer))
        got = process_vm.read(self._pid, local, remote, 1)
        ended = select.poll()
        ended.register(self._pidfd, select.POLLIN)
        return 0 if ended.poll(0) else got


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
        held: ProcessMemory,
        pagemap_fd: int,
        mappings: Sequence[Mapping],
        reader: Reader | None = None,
    ) -> None:
        self._held = held
        self._reader = reader
        self._pagemap = pagemap_fd
        self._mappings = mappings
        self._pieces: list[_Piece] = []
        self._missing: list[Range] = []
        self._known: list[Range] = []
        self._area = memoryview(b"")
        self.copied = 0  # bytes
        self.missing = 0  # bytes that were wanted, and did not come

    # ---- while the process waits

    def size(self, wanted: Iterable[Range]) -> int:
        """Bytes that copying these addresses would take now."""
        return sum(
            b - a for _, low, high in self._split(wanted) for a, b in self._in_memory(low, high)
        )

    def fill(self, wanted: Sequence[Range], room: int, seconds: float) -> None:
        """Copy these addresses, the first ones first, as far as `room` bytes and the time go.

        OSError if we cannot have the memory, or the address space of the process is gone.
        """
        until = time.monotonic() + seconds
        there, absent = self._list(wanted, room)
        size = sum(p.end - p.start for p in there)
        files = min(room - size, sum(b - a for a, b in absent))
        self._area = _huge_area(size + files)
        self._copy(there, until)
        self._copy_files(absent, size, files, until)
        self._pieces.sort()
        self._known = union([*((p.start, p.end) for p in self._pieces), *self._missing])
        self.copied = sum(p.end - p.start for p in self._pieces)
        kernels = [
            (m.start, m.end) for m in self._mappings if m.special
        ]  # [vvar] is never readable
        self.missing = sum(b - a for a, b in outside(union(self._missing), kernels))

    def _list(self, wanted: Iterable[Range], room: int) -> tuple[list[_Piece], list[Range]]:
        """What is in memory and fits, in pieces; and what is in a file only."""
        pieces: list[_Piece] = []
        absent: list[Range] = []
        offset = 0
        for mapping, low, high in self._split(wanted):
            there = list(self._in_memory(low, high))
            absent += outside(list(self._held.ranges(low, high)), there)
            for start, end in there:
                at = start
                while at < end:
                    stop = min(end, at + _PIECE - offset % _PIECE, at + room - offset)
                    if stop == at:  # no room
                        self._missing.append((at, end))
                        break
                    pieces.append(_Piece(at, stop, offset, not mapping.shared))
                    offset += stop - at
                    at = stop
        return pieces, absent

    def _copy(self, pieces: Sequence[_Piece], until: float) -> None:
        """Read all pieces, by threads that are left behind if they do not come back in time."""
        todo, lock = iter(pieces), threading.Lock()
        read: list[_Piece] = []

        def work() -> None:
            while time.monotonic() < until:
                with lock:
                    piece = next(todo, None)
                if piece is None:
                    return
                read.extend(self._read(piece, until))

        count = min(_THREADS, len(pieces), os.cpu_count() or 1)
        threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        self._keep(read.copy(), [(piece.start, piece.end) for piece in pieces])

    def _read(self, piece: _Piece, until: float) -> list[_Piece]:
        """Fill one piece; what of it could be read. Pages that cannot are passed over."""
        parts: list[_Piece] = []
        at, offset = piece.start, piece.offset
        while at < piece.end and time.monotonic() < until:
            size = piece.end - at
            got = 0
            if self._reader is not None and piece.mapped:
                got = self._reader.read_into(at, self._area[offset : offset + size]) & -PAGE
            if not got:
                got = self._held.read_into(at, self._area[offset : offset + size]) & -PAGE
            if got:
                parts.append(_Piece(at, at + got, offset))
            step = min(got or PAGE, size)
            at, offset = at + step, offset + step
        return parts

    def _copy_files(self, absent: Sequence[Range], offset: int, room: int, until: float) -> None:
        held = HeldMemory(self._held, self._pagemap)
        read: list[_Piece] = []
        for start, end in absent:
            at = start
            while at < end:
                size = min(end - at, _FILE_PIECE, room)
                done = 0
                if size and time.monotonic() < until:
                    done = held.read_into(at, self._area[offset : offset + size])
                done &= -PAGE
                if done:
                    read.append(_Piece(at, at + done, offset))
                offset, room, at = offset + done, room - done, at + done
                if done < size or not size:
                    break
        self._keep(read, absent)

    def _keep(self, read: Sequence[_Piece], wanted: Iterable[Range]) -> None:
        self._pieces += read
        there = union((piece.start, piece.end) for piece in read)
        self._missing += outside(sorted(wanted), there)

    def _split(self, wanted: Iterable[Range]) -> Iterator[tuple[Mapping, int, int]]:
        """The same addresses, each range with the mapping that it lies in."""
        ends = [m.end for m in self._mappings]
        for low, high in wanted:
            index = bisect.bisect_right(ends, low)
            while index < len(ends) and self._mappings[index].start < high:
                mapping = self._mappings[index]
                yield mapping, max(low, mapping.start), min(high, mapping.end)
                index += 1

    def _in_memory(self, start: int, end: int) -> Iterator[Range]:
        return self._held.in_memory(start, end)

    # ---- afterwards

    def ranges(self, start: int, end: int) -> Iterator[Range]:
        """What was wanted of [start, end) and was there: what could not be read as well."""
        index = max(bisect.bisect_right(self._known, (start,)) - 1, 0)
        while index < len(self._known) and self._known[index][0] < end:
            low, high = max(start, self._known[index][0]), min(end, self._known[index][1])
            if low < high:
                yield low, high
            index += 1

    def unknown(self, start: int, end: int) -> list[Range]:
        """Nothing: what did not come is in `missing`."""
        return []

    def read_into(self, address: int, buffer: memoryview) -> int:
        """Bytes of the copy from `address` on; fewer than asked where it has a gap."""
        done = 0
        while done < len(buffer):
            at = address + done
            index = bisect.bisect_right(self._pieces, (at, 1 << 64)) - 1
            if index < 0 or at >= self._pieces[index].end:
                break
            start, end, offset, _ = self._pieces[index]
            size = min(end - at, len(buffer) - done)
            offset += at - start
            buffer[done : done + size] = self._area[offset : offset + size]
            done += size
        return done

    def read(self, address: int, size: int) -> bytes:
        """Up to `size` bytes at an address; for look-ups, not for copying."""
        buffer = bytearray(size)
        return bytes(buffer[: self.read_into(address, memoryview(buffer))])


def _huge_area(size: int) -> memoryview:
    """Fresh memory in huge pages, as far as the system has them."""
    if not size:
        return memoryview(b"")
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    area = mmap.mmap(-1, size + _HUGE, flags=flags)
    with contextlib.suppress(OSError):  # a kernel without them
        area.madvise(mmap.MADV_HUGEPAGE)
    skip = -ctypes.addressof(ctypes.c_char.from_buffer(area)) % _HUGE
    return memoryview(area)[skip : skip + size]
