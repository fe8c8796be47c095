"""A child that dies on purpose, to prove by its death that deaths are seen here.

Agents know such a death by its name, its user and its interpreter, and have no record of it.
"""

from __future__ import annotations

import os
import signal

from collector.linux import prctl

NAME = "coreward-proof"
SIGNAL = signal.SIGABRT


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
        prctl.set_dumpable(dumpable)
        prctl.set_name(NAME.encode())
        os.abort()
    finally:
        os._exit(1)
