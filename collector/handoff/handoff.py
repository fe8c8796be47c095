"""One dying process, held by the kernel until we let it go.

A `HandOff` is the same whichever way the kernel hands the process over. It knows how to read the
head of the core stream, and how to release; it knows nothing of policy or memory.
Should the agent die, its descriptors close and the kernel lets the process go by itself, so no
descriptor of a hand-off may be inherited by a child that stays.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType

from collector.errors import HoldError
from collector.handoff import stream
from collector.handoff.kept import Kept

log = logging.getLogger(__name__)

_KEPT = Kept()  # one for all: it has one thread


class HandOff:
    """A context manager: leaving it releases the process."""

    backend: str  # "socket" or "pipe"

    def __init__(
        self,
        holds: int,
        pid: int,
        pidfd: int,
        accepted_ns: int,
        streams: bool,
        unwatch: Callable[[], bool] = lambda: True,
    ) -> None:
        """Owns `holds`, whose closing releases the process, and `pidfd` from now on.

        pid: that of the thread group, in our pid namespace. accepted_ns: of time.monotonic_ns().
        streams: the kernel writes its core into `holds`. unwatch: tells the watchdog that it need
        not look any more; False if it has let the process go.
        """
        self.holds = holds
        self.pid = pid
        self.pidfd = pidfd
        self.signal: int | None = None  # None: this backend is not told; the notes are
        self.streams = streams
        self.accepted_ns = accepted_ns
        self._held_ms: float | None = None
        self._unwatch: Callable[[], bool] | None = unwatch
        self._in_time = True  # the watchdog has not let it go
        self.late: str | None = None  # why it was let go although it was kept
        self._is_open = pidfd >= 0
        self._lock = threading.Lock()

    def stream_fd(self) -> int:
        """The readable core stream; belongs to the hand-off. Raises HoldError if there is none."""
        if not self.streams:
            raise HoldError(f"pid {self.pid}: no core stream was asked for")
        return self.holds

    def read_notes(self, limit: int = stream.NOTES_LIMIT, timeout_s: float = 10.0) -> bytearray:
        """ELF header, program headers and notes from the head of the stream, and no more.

        Not copied to `bytes`: the process waits meanwhile. Raises HoldError if the stream is not
        a core, ends early, stalls, or they are longer than `limit` bytes.
        """
        return stream.read_notes(self.stream_fd(), limit, timeout_s)

    def release(self) -> float:
        """Let the process go and close every descriptor; returns ms since it was accepted.

        May be called again, from any thread: the first call counts. Must not be called while
        another thread reads the stream.
        """
        with self._lock:
            if self._held_ms is None:
                self._end_of_watch()
                _KEPT.forget(id(self))
                held_ms = self._let_go()
            else:
                held_ms = self._held_ms
            self._close_pidfd()
            return held_ms

    def _let_go(self) -> float:
        os.close(self.holds)
        self._held_ms = (time.monotonic_ns() - self.accepted_ns) / 1e6
        return self._held_ms

    def _close_pidfd(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self.pidfd)

    def note_release(self, released_ns: int) -> None:
        """`holds` was closed already, at this time of time.monotonic_ns()."""
        with self._lock:
            self._held_ms = (released_ns - self.accepted_ns) / 1e6
            self._close_pidfd()

    def keep(self, most_s: float) -> None:
        """Let it wait, for so many seconds from now at most; also again. Its stream, if there is
        one, was read before. Raises HoldError if it had to wait too long already."""
        with self._lock:
            if self._held_ms is None:
                self._end_of_watch()
            if not self._in_time:
                raise HoldError("it was let go before: the agent took longer than hold.patience")
            if self.late is not None:
                raise HoldError(self.late)
            if self._held_ms is None:
                _KEPT.watch(id(self), most_s, partial(self._overdue, most_s))

    def _overdue(self, most_s: float) -> None:
        """Nobody has let it go, and its time is over: in a thread that touches nothing of it."""
        with self._lock:
            if self._held_ms is None:
                self.late = f"it was let go: nobody was done with it within {most_s:.3g} s"
                self._let_go()
                log.error("process %d: %s", self.pid, self.late)

    def _end_of_watch(self) -> None:
        unwatch, self._unwatch = self._unwatch, None
        if unwatch is not None:  # before `holds` is closed: its number is another file's then
            self._in_time = unwatch()

    def __enter__(self) -> HandOff:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
