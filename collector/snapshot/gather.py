"""Many pieces of another process's memory, read in few calls into memory made before.

For the moments in which that process stands: process_vm_readv(2), 1024 pieces a call, and pread of
/proc/PID/mem where that fails (areas without read permission). 1 ms for 4 MiB in single pages.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Sequence
from typing import NamedTuple

from collector.arch.x86_64 import PAGE
from collector.linux import process_vm
from collector.ranges import Range


class Piece(NamedTuple):
    """Memory of [address, address + size) is at `offset` of the buffer."""

    address: int
    size: int
    offset: int


class Gatherer:
    """Room for `capacity` bytes of the memory of process or thread `pid`, made and touched."""

    def __init__(self, pid: int, mem_fd: int, capacity: int) -> None:
        self.capacity = capacity
        self.pieces: list[Piece] = []
        self.unreadable: list[Range] = []
        self._pid, self._mem = pid, mem_fd
        self._buffer = mmap.mmap(-1, capacity, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
        ctypes.memset(self._address, 0xFF, capacity)
        self._remote = (ctypes.c_uint64 * (2 * process_vm.IOV_MAX))()
        self._local = (ctypes.c_uint64 * 2)()

    def take(self, ranges: Sequence[Range]) -> bool:
        """Read all ranges, from the beginning of the buffer. False: they do not fit."""
        if sum([end - start for start, end in ranges]) > self.capacity:
            return False
        self.pieces, self.unreadable = [], []
        at = 0
        for first in range(0, len(ranges), process_vm.IOV_MAX):
            group = ranges[first : first + process_vm.IOV_MAX]
            size = self._read(group, at)
            for start, end in group:
                self.pieces.append(Piece(start, end - start, at))
                at += end - start
            if size is not None:
                self._read_singly(self.pieces[-len(group) :], at - size)
        return True

    def _read(self, group: Sequence[Range], at: int) -> int | None:
        """None if all were read; else how many bytes at the end of the group were not."""
        words: list[int | ctypes.c_uint64] = []
        total = 0
        for start, end in group:
            words += (start, end - start)
            total += end - start
        self._remote[: len(words)] = words
        self._local[:] = [self._address + at, total]
        local, remote = ctypes.addressof(self._local), ctypes.addressof(self._remote)
        done = process_vm.read_alone(self._pid, local, remote, len(group))
        return None if done == total else total - done

    def _read_singly(self, pieces: Sequence[Piece], begin: int) -> None:
        """The pieces that end behind `begin` of the buffer, page by page where it must be."""
        view = memoryview(self._buffer)
        for piece in pieces:
            skip = max(0, begin - piece.offset) & -PAGE
            while skip < piece.size:
                place = view[piece.offset + skip : piece.offset + piece.size]
                done = 0
                with contextlib.suppress(OSError):
                    done = os.preadv(self._mem, [place], piece.address + skip)
                skip += done
                if not done:
                    self.unreadable.append((piece.address + skip, piece.address + skip + PAGE))
                    skip += PAGE

    def view(self, piece: Piece) -> memoryview:
        """The memory of one piece."""
        return memoryview(self._buffer)[piece.offset : piece.offset + piece.size]
