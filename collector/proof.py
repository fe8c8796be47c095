"""A child that dies on purpose, to prove by its death that deaths are seen here.

Agents know such a death by its name, its user and its interpreter, and have no record of it.
"""

from __future__ import annotations

import ctypes
import os
import signal

NAME = "coreward-proof"
SIGNAL = signal.SIGABRT
_PR_SET_DUMPABLE, _PR_SET_NAME = 4, 15  # prctl(2)
_libc = ctypes.CDLL(None, use_errno=True)


def die(*, dumpable: bool) -> int:
    """Fork a child that dies of SIGNAL at once; returns its pid, which the caller waits for.

    dumpable: whether the kernel dumps its core, or hands it over (PR_SET_DUMPABLE).
    """
    child = os.fork()
    if child:
        return child
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {SIGNAL})
        signal.signal(SIGNAL, signal.SIG_DFL)
        _libc.prctl(_PR_SET_DUMPABLE, int(dumpable), 0, 0, 0)
        _libc.prctl(_PR_SET_NAME, NAME.encode(), 0, 0, 0)
        os.abort()
    finally:
        os._exit(1)
