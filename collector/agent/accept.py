"""Threads that see to what the native part has taken from the kernel, each to one at a time."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable

from collector.agent.context import HANDOFF_NICE
from collector.handoff.backends import OpenBackend
from collector.handoff.native import Taken

log = logging.getLogger(__name__)

_THREADS = 4  # one decides about a process that is held while others wait for the next one
_END_S = 5.0


class Acceptor:
    """`arrived` is called in one of its threads, with a process that was released or is still held.

    They end when the backend is closed.
    """

    name = "accept"

    def __init__(self, backend: OpenBackend, arrived: Callable[[Taken], None]) -> None:
        self._backend = backend
        self._arrived = arrived
        self._begun: dict[int, float] = {}  # thread -> since when it sees to a process
        self._threads = [
            threading.Thread(target=self._accept, name=f"accept-{number}", daemon=True)
            for number in range(_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until what was taken before the listener was closed has arrived."""
        for thread in self._threads:
            thread.join(_END_S)

    def stuck_s(self) -> float:
        """For how many seconds no thread has begun with another process; 0: one waits for it."""
        begun = self._begun.copy()
        return time.monotonic() - max(begun.values()) if len(begun) >= _THREADS else 0.0

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), HANDOFF_NICE)
        while True:
            try:
                taken = self._backend.accept()
                if taken is None:
                    return
                self._begun[threading.get_ident()] = time.monotonic()
                self._arrived(taken)
            except Exception:
                log.exception("a hand-off failed")
            finally:
                self._begun.pop(threading.get_ident(), None)
