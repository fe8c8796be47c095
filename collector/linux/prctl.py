"""What a process says of itself to the kernel: prctl(2). Every call raises OSError if refused.

The arguments are read by the kernel as unsigned long; those that a call does not use must be 0.
"""

from __future__ import annotations

import ctypes
import os
import signal

_PDEATHSIG, _GET_DUMPABLE, _DUMPABLE, _KEEPCAPS = 1, 3, 4, 8  # PR_SET_* of <linux/prctl.h>
_NAME, _NO_NEW_PRIVS = 15, 38
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """SIGKILL for this process as soon as the thread that started it ends; not if it has ended."""
    _prctl("PR_SET_PDEATHSIG", _PDEATHSIG, signal.SIGKILL)


def set_dumpable(dumpable: bool) -> None:
    """Whether this process may dump core and be traced by its user. A change of ids resets it."""
    _prctl("PR_SET_DUMPABLE", _DUMPABLE, int(dumpable))


def is_dumpable() -> bool:
    """Whether this process may dump core for its user. False also where only root may read it."""
    return _prctl("PR_GET_DUMPABLE", _GET_DUMPABLE, 0) == 1


def keep_capabilities() -> None:
    """Keep permitted capabilities when root becomes another user; until the next execve(2)."""
    _prctl("PR_SET_KEEPCAPS", _KEEPCAPS, 1)


def forbid_new_privileges() -> None:
    """No execve(2) gives this process or its children more rights, for good."""
    _prctl("PR_SET_NO_NEW_PRIVS", _NO_NEW_PRIVS, 1)


def set_name(name: bytes) -> None:
    """The name of the calling thread, cut off after 15 bytes."""
    buffer = ctypes.create_string_buffer(name)
    _prctl("PR_SET_NAME", _NAME, ctypes.addressof(buffer))


def _prctl(name: str, option: int, value: int) -> int:
    result = int(_libc.prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0))))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result
