"""One dying process, held by the kernel until we let it go.

A `HandOff` is the same whichever way the kernel hands the process over. It knows how to read the
head of the core stream, and how to release; it knows nothing of policy or memory.
Should the agent die, its descriptors close and the kernel lets the process go by itself, so no
descriptor of a hand-off may be inherited by a child that stays.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType

from collector.errors import HoldError
from collector.handoff import stream


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
        self._in_time = True
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
                os.close(self.holds)
                self._held_ms = (time.monotonic_ns() - self.accepted_ns) / 1e6
                os.close(self.pidfd)
            return self._held_ms

    def note_release(self, released_ns: int) -> None:
        """`holds` was closed already, at this time of time.monotonic_ns()."""
        with self._lock:
            self._held_ms = (released_ns - self.accepted_ns) / 1e6
            if self.pidfd >= 0:
                os.close(self.pidfd)

    def keep(self) -> None:
        """Let it wait as long as we want. Raises HoldError if it had to wait too long already."""
        with self._lock:
            if self._held_ms is None:
                self._end_of_watch()
            if not self._in_time:
                raise HoldError("it was let go before: the agent took longer than hold.patience")

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
