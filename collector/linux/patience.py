"""How long to wait for a child: what it waits for a CPU while others have them is none of its time.

One that hangs, on a page of FUSE or on a disk that does not answer, sleeps; one at nice 19 on a
busy host is runnable, and gets a hundredth of a CPU.
"""

from __future__ import annotations

import time

from collector.linux import procfs

BUSY = 10  # times the patience, at most, however busy the host is
_LOOK_S = 1.0


class Patience:
    """With a child of one thread."""

    def __init__(self, pid: int, seconds: float) -> None:
        self._pid = pid
        self._left = seconds
        self._seen = time.monotonic()
        self._end = self._seen + BUSY * seconds
        self._used_ns = 0

    def left(self) -> float:
        """Seconds until it is to be asked again; 0: the patience is over."""
        now = time.monotonic()
        passed, self._seen = now - self._seen, now
        text = procfs.read(f"/proc/{self._pid}/stat")
        if text is not None:
            stat = procfs.parse_stat(text)
            used_ns = stat.user_ns + stat.system_ns
            if stat.state == "R":
                passed = (used_ns - self._used_ns) / 1e9
            self._used_ns = used_ns
        self._left -= passed
        return max(0.0, min(self._left, self._end - now, _LOOK_S))
