"""process_vm_readv(2): pieces of another process's memory, many in a call.

It reads only what that process could read itself, and stops at the first byte that it could not.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from typing import Any

IOV_MAX = 1024  # pieces of a call, <limits.h>

Address = int | bytes  # of an array of struct iovec; bytes are such an array


def _typed(libc: ctypes.CDLL) -> Any:
    function = libc.process_vm_readv
    function.restype = ctypes.c_ssize_t
    function.argtypes = (
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_ulong,
    )
    return function


_read = _typed(ctypes.CDLL(None))
_read_alone = _typed(ctypes.PyDLL(None))


def read(pid: int, local: Address, remote: Address, pieces: int) -> int:
    """Read `pieces` (at most IOV_MAX) areas into one; returns how many bytes, 0 if none.

    `local` is one struct iovec, `remote` as many as there are pieces. Other threads run meanwhile.
    """
    return max(int(_read(pid, local, 1, remote, pieces, 0)), 0)


def read_alone(pid: int, local: Address, remote: Address, pieces: int) -> int:
    """As `read`, for a process that stands still for it: no other thread of ours comes in between.

    Not for processes whose memory may keep us waiting.
    """
    return max(int(_read_alone(pid, local, 1, remote, pieces, 0)), 0)


class Reader:
    """Reads pieces of any size into room that is made once. Not thread-safe."""

    def __init__(self, room: int) -> None:
        """`room`: bytes; no piece may be larger."""
        self._room = bytearray(room)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._room))

    def read(self, pid: int, pieces: Sequence[tuple[int, int]]) -> list[bytes]:
        """Of each piece, (address, bytes), what comes before the first page that is unreadable."""
        found: list[bytes] = []
        view = memoryview(self._room)
        while len(found) < len(pieces):
            sizes, remote, total = [], array("Q"), 0
            for address, size in pieces[len(found) : len(found) + IOV_MAX]:
                if total + size > len(self._room):
                    break
                sizes.append(size)
                remote.extend((address, size))
                total += size
            if not sizes:
                raise ValueError(f"{size} bytes do not fit into {len(self._room)}")
            local = array("Q", (self._address, total)).tobytes()
            left, at = read(pid, local, remote.tobytes(), len(sizes)), 0
            for size in sizes:
                done = min(size, left)
                found.append(bytes(view[at : at + done]))
                at += done
                left -= done
                if done < size:  # the kernel went no further: the next ones are asked for again
                    break
        return found
