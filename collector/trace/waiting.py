"""Processes that wait for the reader of their trace: stopped by BPF, resumed here.

`python -m collector.trace.waiting FD` is a process that resumes them when the reader has died: FD
is the map, and the end of its standard input is the sign.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from collector.linux import procfs
from collector.linux.bpfhash import HashMap

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def resume_all(stopped: HashMap) -> None:
    """Let all go on that are in the map: tgid -> ns of its start, of CLOCK_BOOTTIME."""
    for key in stopped:
        value = stopped.remove(key)
        if value is not None:
            _resume(int.from_bytes(key, "little"), int.from_bytes(value, "little"))


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
    stopped = HashMap(descriptor)
    while os.read(sys.stdin.fileno(), 1):
        pass
    resume_all(stopped)
    return 0


if __name__ == "__main__":
    sys.exit(_watch(int(sys.argv[1])))
