"""Memory of another process by process_vm_readv: this one's own, which any process may read."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import struct
from array import array
from collections.abc import Callable

import pytest

from collector.linux import process_vm


@pytest.mark.parametrize("read", [process_vm.read, process_vm.read_alone])
def test_pieces_come_together_up_to_the_first_that_is_unreadable(
    read: Callable[[int, process_vm.Address, process_vm.Address, int], int],
) -> None:
    # GIVEN two pieces, and address 0 behind them
    source = ctypes.create_string_buffer(b"first, second", 16)
    at = ctypes.addressof(source)
    room = mmap.mmap(-1, mmap.PAGESIZE)
    local = struct.pack("<QQ", ctypes.addressof(ctypes.c_char.from_buffer(room)), 15)
    pieces = struct.pack("<8Q", at + 7, 6, at, 5, 0, 4, at, 1)
    # THEN what comes before it is read
    assert read(os.getpid(), local, pieces, 4) == 11
    assert room[:15] == b"secondfirst\0\0\0\0"
    # AND nothing of a process that is not there
    assert read(1 << 22, local, pieces, 1) == 0


def test_pieces_are_read_up_to_what_is_unreadable_and_the_others_whole() -> None:
    # GIVEN three pages of which the middle one cannot be read, and room for two pages
    page = mmap.PAGESIZE
    area = mmap.mmap(-1, 3 * page)
    area[:] = b"a" * page + b"b" * page + b"c" * page
    at = ctypes.addressof(ctypes.c_char.from_buffer(area))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(at + page), page, 0) == 0
    reader = process_vm.Reader(2 * page)
    # WHEN pieces are read, more than fit into the room or a call
    pieces = [(at, 3), (at + page - 8, page), (at + page, 1), (0, 0), (at + 2 * page, page), (0, 5)]
    pieces += [(at + 2 * page + i, 8) for i in range(process_vm.IOV_MAX + 1)]
    data, sizes = reader.read(os.getpid(), array("Q", itertools.chain.from_iterable(pieces)))
    ends = list(itertools.accumulate(sizes))
    found = [data[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    assert ends[-1] == len(data)
    # THEN each has what comes before the unreadable page
    assert found[:6] == [b"aaa", b"a" * 8, b"", b"", b"c" * page, b""]
    assert found[6:] == [b"c" * 8] * (process_vm.IOV_MAX + 1)
    # AND a piece without room is refused
    with pytest.raises(ValueError, match="do not fit"):
        reader.read(os.getpid(), array("Q", [at, 3 * page]))
