"""Starting a child without others having to wait for it, and ending it without waiting for ever:
one that is killed may hang in the kernel all the same.

A thread that waits for a page of FUSE whose request its owner has taken, or for a disk that does
not answer, does not even hear SIGKILL. Such a child is left behind, and reaped when it has ended.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import threading
from collections.abc import Sequence
from typing import Any

from collector.linux import pidfd

AHEAD = -10  # nice value of whoever a dying process waits for
MAX_HANGING = 64  # children; beyond that nobody should start one that reads a process's memory
_PATIENCE = 2.0  # seconds that a killed child has to end

log = logging.getLogger(__name__)
_lock = threading.Lock()
_left: list[subprocess.Popen[bytes]] = []


def start(command: Sequence[str], nice: int, **how: Any) -> subprocess.Popen[bytes]:
    """subprocess.Popen, for a child with that nice value.

    The interpreter's lock is kept until the child has begun its program (vfork(2)). On a busy host
    that is long at a usual priority, and longer at a low one; so this thread has a high one
    meanwhile, and the child until it runs.
    """
    own = threading.get_native_id()
    before = os.getpriority(os.PRIO_PROCESS, own)
    _set_priority(own, min(before, AHEAD))
    try:
        child = subprocess.Popen(command, **how)
        _set_priority(child.pid, nice)
        return child
    finally:
        _set_priority(own, before)


def _set_priority(pid: int, nice: int) -> None:
    with contextlib.suppress(OSError):  # only root may raise it; or it has ended already
        os.setpriority(os.PRIO_PROCESS, pid, nice)


def has_ended(pid: int, seconds: float) -> bool:
    """Whether a child of ours ends within that time; it is not reaped."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:  # it was reaped by others
        return True
    try:
        return pidfd.has_ended(fd, seconds)
    finally:
        os.close(fd)


def kill(process: subprocess.Popen[bytes], seconds: float = _PATIENCE) -> bool:
    """Kill a child and reap it; False if it has not ended in that time and was left behind."""
    if process.returncode is not None:
        return True
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    if has_ended(process.pid, seconds):
        process.wait()
        return True
    leave(process)
    return False


def leave(process: subprocess.Popen[bytes]) -> None:
    """Leave a killed child behind."""
    with _lock:
        _left.append(process)
    log.warning("process %d was killed and hangs in the kernel", process.pid)


def hanging() -> int:
    """How many children that were left behind have not ended yet; reaps the others."""
    with _lock:
        _left[:] = [process for process in _left if process.poll() is None]
        return len(_left)
