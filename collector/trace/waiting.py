"""Processes that wait for the reader of their trace: stopped by BPF, resumed here.

`python -m collector.trace.waiting FD` is a process that resumes them when the reader has died: FD
is the map, and the end of its standard input is the sign.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable

from collector.linux import procfs
from collector.linux.bpfhash import HashMap

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class Waiting:
    """Who is in the map: tgid -> ns of its start, of CLOCK_BOOTTIME."""

    def __init__(self, stopped: HashMap) -> None:
        self._stopped = stopped
        self._turns: deque[bytes] = deque()

    def resume(self, has_room: Callable[[], bool]) -> None:
        """Let them go on, each once and in its turn, while there is room for what they will tell.

        One alone can fill the ring before the next has been resumed, and wait again; were it
        resumed again before anything is read, what it tells would be lost.
        """
        if not self._turns and has_room():
            self._turns.extend(self._stopped)
        while self._turns and has_room():
            key = self._turns.popleft()
            value = self._stopped.remove(key)
            if value is not None:
                _resume(int.from_bytes(key, "little"), int.from_bytes(value, "little"))

    def resume_all(self) -> None:
        """Let all go on, when they have nothing to tell any more."""
        self._turns.clear()
        self.resume(lambda: True)


def _resume(pid: int, start_ns: int) -> None:
    try:
        process = os.pidfd_open(pid)
    except OSError:  # it is gone
        return
    try:
        stat = procfs.read(f"/proc/{pid}/stat")
        if stat and abs(procfs.parse_stat(stat).start_ns - start_ns) <= _TICK_NS:
            signal.pidfd_send_signal(process, signal.SIGCONT)
    except OSError:
        return
    finally:
        os.close(process)


def start(descriptor: int) -> subprocess.Popen[bytes]:
    """Start that process; its standard input is to be closed, or ends with ours."""
    command = [sys.executable, "-m", "collector.trace.waiting", str(descriptor)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, pass_fds=(descriptor,), start_new_session=True
    )


def _watch(descriptor: int) -> int:
    """Wait for the reader's end, then resume whoever waits for it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    stopped = Waiting(HashMap(descriptor))
    while os.read(sys.stdin.fileno(), 1):
        pass
    stopped.resume_all()
    return 0


if __name__ == "__main__":
    sys.exit(_watch(int(sys.argv[1])))
