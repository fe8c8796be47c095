"""process_vm_readv(2): pieces of another process's memory, many in a call.

It reads only what that process could read itself, and stops at the first byte that it could not.
"""

from __future__ import annotations

import ctypes
from array import array
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

    def read(self, pid: int, pieces: array[int]) -> tuple[bytes, list[int]]:
        """What can be read of pieces, one after the other, and how much that is of each.

        pieces: of type "Q", address and bytes of each in turn. Of a piece there is what comes
        before its first page that is unreadable. ValueError if one is larger than the room.
        """
        parts: list[bytes] = []
        found: list[int] = []
        while 2 * len(found) < len(pieces):
            group = pieces[2 * len(found) : 2 * (len(found) + IOV_MAX)]
            while (total := sum(sizes := group[1::2])) > len(self._room):
                if len(group) == 2:
                    raise ValueError(f"{total} bytes do not fit into {len(self._room)}")
                del group[len(group) // 4 * 2 :]
            local = array("Q", (self._address, total)).tobytes()
            done = read(pid, local, group.tobytes(), len(sizes))
            parts.append(bytes(memoryview(self._room)[:done]))
            if done == total:
                found.extend(sizes)
                continue
            for size in sizes:
                found.append(min(size, done))
                done -= found[-1]
                if found[-1] < size:  # the kernel went no further: ask again for those behind it
                    break
        return b"".join(parts), found
