"""The processes above one, up to the first of the machine, by /proc/PID/stat.

Files that nobody's memory can hold up. The parent of a process is never younger: where the one that
has its pid is, another process has that pid by now.
"""

from __future__ import annotations

from collections.abc import Sequence

from collector.linux import procfs
from collector.model import Relative

MOST = 64  # processes that are looked up


def with_ancestors(
    found: Sequence[Relative], ppid: int, start_ns: int
) -> tuple[list[Relative], str | None]:
    """`found` and all that lies above it, the nearest first; and why that is not all.

    ppid, start_ns: of the last one found, or of the process itself if there is none.
    """
    found = list(found)
    while ppid:
        if len(found) >= MOST:
            return found, f"more than {MOST}"
        above = stat_of(ppid)
        if above is None or above.start_ns > start_ns:
            who = f"process {found[-1].pid}" if found else "the process"
            return found, f"{who} was gone when its parent was looked up"
        found.append(Relative(pid=ppid, comm=above.comm))
        ppid, start_ns = above.ppid, above.start_ns
    return found, None


def stat_of(pid: int) -> procfs.Stat | None:
    """None: there is no such process."""
    try:
        return procfs.parse_stat(procfs.read(f"/proc/{pid}/stat") or b"")
    except (ValueError, IndexError):
        return None
