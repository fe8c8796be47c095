"""CPU time and memory of running processes, from their clocks and /proc."""

from __future__ import annotations

import time
from pathlib import Path

from collector.linux import procfs

_CPUCLOCK_SCHED = 2  # CLOCK_PROCESS_CPUTIME_ID of another process: clock_getcpuclockid(3)


def own_cpu_ms(pid: int) -> float:
    """CPU time of all threads of a process so far; exact to microseconds."""
    return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED) / 1e6


def cpu_ms(pid: int) -> float:
    """The same, and that of its children that ended and were waited for (exact to 10 ms)."""
    stat = procfs.parse_stat(Path(f"/proc/{pid}/stat").read_bytes())
    return own_cpu_ms(pid) + (stat.children_user_ns + stat.children_system_ns) / 1e6


def with_descendants(pid: int) -> list[int]:
    """A process and all that descend from it now."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                stat = (path / "stat").read_bytes()
            except OSError:
                continue
            parents.setdefault(procfs.parse_stat(stat).ppid, []).append(int(path.name))
    found, open_ = [], [pid]
    while open_:
        one = open_.pop()
        found.append(one)
        open_ += parents.get(one, [])
    return found


def memory_kib(pid: int, field: str) -> int:
    """`VmRSS`, `RssAnon`, ... of /proc/PID/status, in KiB."""
    found = procfs.size(Path(f"/proc/{pid}/status").read_bytes(), field.encode())
    if found is None:
        raise KeyError(field)
    return found >> 10
