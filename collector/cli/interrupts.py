"""Ctrl-C, SIGTERM and SIGHUP while a process may stand still in another thread of ours.

    with interruptible() as check:
        take(..., lambda found: write_found(found, what, writer, check))

An exception of the main thread does not reach a thread that copies gigabytes: `check`, called by it
after each piece, ends it there. It may also be stuck in a pipe that nobody reads; then the program
ends as it is, which lets go of the process as any death of a tracer does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 2.0  # seconds for clean-up

Check = Callable[[int, int], None]  # as write_core's `progress`


class Interrupted(Exception):
    """Ends the work of a thread whose program is about to end; nobody sees it."""


@contextlib.contextmanager
def interruptible() -> Iterator[Check]:
    """Within: these signals end the program by an exception, in time. Gives the check."""
    interrupted = threading.Event()
    timers: list[threading.Timer] = []

    def leave(number: int, _frame: FrameType | None) -> None:
        status = 128 + number
        if not interrupted.is_set():
            interrupted.set()
            timer = threading.Timer(_PATIENCE, os._exit, (status,))
            timer.daemon = True
            timer.start()
            timers.append(timer)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(status)

    def check(_done: int, _size: int) -> None:
        if interrupted.is_set() and threading.current_thread() is not threading.main_thread():
            raise Interrupted

    heard = [n for n in _SIGNALS if signal.getsignal(n) != signal.SIG_IGN]  # nohup(1)
    previous = {number: signal.signal(number, leave) for number in heard}
    try:
        yield check
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for timer in timers:
            timer.cancel()
