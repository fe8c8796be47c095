"""Threads that take processes from the kernel by the native part, each one at a time."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable

from collector.agent.context import HANDOFF_NICE
from collector.errors import HoldError
from collector.handoff.coredump_socket import SocketBackend
from collector.handoff.native import Native, Taken
from collector.handoff.pipe import PipeBackend

log = logging.getLogger(__name__)

_THREADS = 4  # a hostile process may keep one waiting, by memory that does not come
_END_S = 5.0


class Acceptor:
    """`arrived` is called in one of its threads, with a process that was released or is still held.

    The listener is theirs from now on; they end when it is closed.
    """

    def __init__(
        self,
        native: Native,
        listener: SocketBackend | PipeBackend,
        arrived: Callable[[Taken], None],
    ) -> None:
        self._native = native
        self._listener = listener
        self._arrived = arrived
        listener.block()
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

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), HANDOFF_NICE)
        while True:
            try:
                taken = self._native.take(self._listener)
                if taken is None:
                    return
                self._arrived(taken)
            except HoldError as error:
                self._listener.refuse(error)
            except Exception:
                log.exception("a hand-off failed")
