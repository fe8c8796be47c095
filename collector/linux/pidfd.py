"""Process descriptors: whether one has ended, and pidfd_getfd(2), which Python's library lacks."""

from __future__ import annotations

import ctypes
import os
import select

from collector.errors import HoldError

_libc = ctypes.CDLL(None, use_errno=True)
_SYS_PIDFD_GETFD = 438  # <asm-generic/unistd.h>, the same on every architecture since 5.6


def getfd(pidfd: int, fd: int) -> int:
    """A copy (close-on-exec) of descriptor `fd` of another process; the caller closes it.

    Needs CAP_SYS_PTRACE. Raises HoldError if the process or its descriptor is gone.
    """
    got = _libc.syscall(_SYS_PIDFD_GETFD, pidfd, fd, 0)
    if got < 0:
        reason = os.strerror(ctypes.get_errno())
        raise HoldError(f"cannot take descriptor {fd} of another process: {reason}")
    return int(got)


def has_ended(pidfd: int, seconds: float | None = 0) -> bool:
    """Whether the process ends within that time (None: wait for it). A zombie has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if seconds is None else seconds * 1000))
