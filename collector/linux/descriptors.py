"""Descriptors that are there when there are no others: RLIMIT_NOFILE of getrlimit(2)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")
_NONE_LEFT = (errno.EMFILE, errno.ENFILE)
_PAUSE_S = 0.02


def use_all() -> int:
    """Raise the soft limit of this process to its hard one; returns that."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def make_room(count: int = 4096) -> None:
    """Let the table of descriptors be large enough for so many, now.

    The kernel doubles it when it is full, and of a process with several threads it waits for all
    CPUs then (expand_fdtable of fs/file.c): on a busy host for a tenth of a second, in which no
    thread gets a descriptor.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError), open(os.devnull, "rb") as any_file:
        os.close(fcntl.fcntl(any_file, fcntl.F_DUPFD_CLOEXEC, min(count, hard) - 1))


class Spare:
    """Some descriptors that are kept for what must not fail for want of one. Not thread-safe."""

    def __init__(self, count: int) -> None:
        self._wanted = count
        self._fds: list[int] = []
        self._refill()

    def close(self) -> None:
        """Give them up for good."""
        self._wanted = 0
        self._release()

    def attempt(self, action: Callable[[], _T], patience: float) -> _T:
        """What `action` returns. Where it fails for want of descriptors it gets ours.

        If others were quicker to take these it is tried again for so many seconds. Raises what
        the action raises, in the end also EMFILE or ENFILE.
        """
        deadline = time.monotonic() + patience
        try:
            while True:
                try:
                    return action()
                except OSError as error:
                    late = not self._fds and time.monotonic() >= deadline
                    if error.errno not in _NONE_LEFT or late:
                        raise
                if self._fds:
                    self._release()
                else:
                    time.sleep(_PAUSE_S)
        finally:
            self._refill()

    def _release(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def _refill(self) -> None:
        with contextlib.suppress(OSError):
            while len(self._fds) < self._wanted:
                self._fds.append(os.open(os.devnull, os.O_PATH | os.O_CLOEXEC))
