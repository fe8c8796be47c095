"""Processes that are kept waiting on purpose, each until its deadline.

The watchdog of the native part looks after a process until somebody decides that it is to wait for
a dumper, or for its core. From then on it is looked after here: whoever was to let it go may be
kept waiting, or be gone. The thread touches nothing of any process, and starts with the first one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

_PAUSE_S = 3600.0  # until it looks again, where nobody waits
_NICE = -8  # before all other threads of ours that are Python's


class Kept:
    """Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._deadlines: dict[int, tuple[float, Callable[[], None]]] = {}
        self._thread: threading.Thread | None = None

    def watch(self, key: int, seconds: float, overdue: Callable[[], None]) -> None:
        """Call `overdue`, once, in so many seconds. One with the same key takes its place."""
        with self._changed:
            self._deadlines[key] = (time.monotonic() + seconds, overdue)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="kept", daemon=True)
                self._thread.start()
            self._changed.notify()

    def forget(self, key: int) -> None:
        """It waits no more."""
        with self._changed:
            self._deadlines.pop(key, None)

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # without the right to it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while True:
            for overdue in self._wait():
                try:
                    overdue()
                except Exception:  # others have deadlines as well
                    log.exception("a process could not be let go")

    def _wait(self) -> list[Callable[[], None]]:
        """Those whose time is over, as soon as there are any."""
        with self._changed:
            while True:
                now = time.monotonic()
                late = [key for key, (until, _) in self._deadlines.items() if until <= now]
                if late:
                    return [self._deadlines.pop(key)[1] for key in late]
                next_one = min((until for until, _ in self._deadlines.values()), default=None)
                self._changed.wait(_PAUSE_S if next_one is None else next_one - now)
