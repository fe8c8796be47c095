"""Others who write kernel.core_pattern while we have it: noticed, counted, and answered or not.

A timed read tells it, of a descriptor that stays open: 2.4 µs, twice a second. Nothing else does:
poll(2) never reports POLLPRI for this setting, and inotify(7) sees no write through another mount
of /proc, as containers have, nor any after the kernel has dropped the file's inode (both measured
on 6.18). BPF's hook for sysctls is of cgroup v2 alone.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from collector.errors import HoldError
from collector.handoff.settings import SYSCTL

log = logging.getLogger(__name__)

EVERY_S = 0.5
_MOST, _WITHIN_S = 5, 3600.0  # so often it is written again: two who do not give in write for ever
_SIZE = 256  # bytes; a core_pattern has 127 at most


class Overwrites:
    """Its methods are for one thread."""

    def __init__(
        self,
        pattern: str,
        write_again: Callable[[], None],
        path: Path = SYSCTL / "core_pattern",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """write_again: sets the kernel up for us anew, or raises HoldError."""
        self.keep = False  # whether it is written again
        self.counts = {"kept": 0, "yielded": 0}  # times that others wrote it, by what was done
        self._pattern, self._write_again = pattern.encode(), write_again
        self._path, self._clock = path, clock
        self._fd: int | None = None
        self._next = clock()
        self.is_ours = True  # as it was last seen
        self._times: collections.deque[float] = collections.deque()

    @property
    def timeout_ms(self) -> int:
        """In how many milliseconds `look` wants to be called again."""
        return max(0, round((self._next - self._clock()) * 1000))

    def look(self) -> None:
        """If it is time, see whether it is still ours; if not, do what the policy says."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + EVERY_S
        present = self._read()
        if present is None:
            return
        if present == self._pattern:
            if not self.is_ours:
                log.info("kernel.core_pattern is ours again: crashes are handed to us")
            self.is_ours = True
            return
        if self.keep and self._may_write(now) and self._write(present):
            return
        if self.is_ours:
            self.is_ours = False
            self.counts["yielded"] += 1
            if self.keep:
                why = f"ours was written again {_MOST} times within an hour, and that is enough"
            else:
                why = "`hold.takeover: keep` has ours written again, and so does a restart"
            log.error(
                "kernel.core_pattern is %r by someone else's hand, so no crash is handed to us: %s",
                *(os.fsdecode(present), why),
            )

    def close(self) -> None:
        """No more reading."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _read(self) -> bytes | None:
        """None: nobody knows."""
        with contextlib.suppress(OSError):
            if self._fd is None:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(self._fd, _SIZE, 0).rstrip(b"\n")
        return None

    def _may_write(self, now: float) -> bool:
        while self._times and self._times[0] <= now - _WITHIN_S:
            self._times.popleft()
        return len(self._times) < _MOST

    def _write(self, present: bytes) -> bool:
        self._times.append(self._clock())
        try:
            self._write_again()
        except HoldError as error:
            log.error("%s", error)
            return False
        self.is_ours = True
        self.counts["kept"] += 1
        log.warning(
            "kernel.core_pattern was %r by someone else's hand: ours is written again, "
            "and theirs is put back when the agent stops",
            os.fsdecode(present),
        )
        return True
