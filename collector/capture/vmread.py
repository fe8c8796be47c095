"""process_vm_readv(2): pieces of another process's memory, many in a call.

It reads only what that process could read itself, and stops at the first byte that it could not.
"""

from __future__ import annotations

import ctypes
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
