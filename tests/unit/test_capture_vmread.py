"""Memory of another process by process_vm_readv: this one's own, which any process may read."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Callable

import pytest

from collector.capture import vmread


@pytest.mark.parametrize("read", [vmread.read, vmread.read_alone])
def test_pieces_come_together_up_to_the_first_that_is_unreadable(
    read: Callable[[int, vmread.Address, vmread.Address, int], int],
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
