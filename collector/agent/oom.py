"""oom: what ran out of memory when the out-of-memory killer chose, and who was in it.

BPF tells limit and usage of each memory cgroup above the victim at that moment; that tells which of
them was full. What it was full of is read at once when the kill is told: the cgroup may be gone
soon, and others wait for what the victim gives back. The allocating task is the record's `killer`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import msgspec

from collector.linux import cgroupfs, memcg, procfs
from collector.model import OomFacts, OomLevel, OomTask, OomVictim

_FULL = 2 << 20  # bytes: what asked for memory may have asked for a huge page
_LARGEST = 16  # tasks
_TASKS_S = 0.02  # to look at tasks
_LOOKS, _PERIOD_S = 10, 1.0  # a container that runs out of memory all the time costs no more
_HOST = (
    *("MemTotal", "MemFree", "MemAvailable", "Buffers", "Cached", "AnonPages", "Mapped", "Shmem"),
    *("SReclaimable", "SUnreclaim", "KernelStack", "PageTables", "Percpu", "Mlocked"),
    *("SwapTotal", "SwapFree", "Committed_AS", "CommitLimit", "Hugetlb"),
)


def full_level(levels: tuple[OomLevel, ...]) -> OomLevel | None:
    """The memory cgroup that had nothing left; None: the host as a whole had not."""
    limited = [(one.limit - one.usage, one) for one in levels if one.limit is not None]
    room, level = min(limited, key=lambda pair: pair[0], default=(_FULL + 1, None))
    return level if room <= _FULL else None


class Ooms:
    """Looks at what ran out of memory. Not thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looks: deque[float] = deque(maxlen=_LOOKS)

    def complete(self, event: OomVictim) -> OomVictim:
        """The event with what can be known of what ran out."""
        level = full_level(event.levels)
        if not event.levels:
            facts = OomFacts(lost={"cgroup": "BPF did not tell the memory cgroups"})
        elif self._may_look():
            facts = _of_host() if level is None else _of_cgroup(level)
        else:
            why = f"more than {_LOOKS} kills in a second"
            facts = _told(level, {"stat": why, "tasks": why})
        return msgspec.structs.replace(event, facts=facts)

    def _may_look(self) -> bool:
        now = self._clock()
        if len(self._looks) == _LOOKS and now - self._looks[0] < _PERIOD_S:
            return False
        self._looks.append(now)
        return True


def _told(level: OomLevel | None, lost: dict[str, str]) -> OomFacts:
    """What BPF told of it."""
    if level is None:
        return OomFacts(lost=lost)
    return OomFacts(limit=level.limit, usage=level.usage, failcnt=level.failcnt, lost=lost)


def _of_cgroup(level: OomLevel) -> OomFacts:
    mount = cgroupfs.memory_mount()
    identity = level.cgroup_id if mount is None else level.cgroup_id | cgroupfs.V1
    path = cgroupfs.path_of(identity)
    mount = mount or cgroupfs.unified_mount()
    if path is None or mount is None:
        return _told(level, {"cgroup": "it was gone when the kill was told"})
    directory = f"{mount}{path}".rstrip("/")
    stat, events = memcg.stat(directory), memcg.events(directory)
    tasks, count, lost = _tasks(directory)
    return msgspec.structs.replace(
        _told(level, lost), cgroup=path, stat=stat, events=events, tasks=tasks, task_count=count
    )


def _of_host() -> OomFacts:
    text = procfs.read("/proc/meminfo") or b""
    sizes = {name: procfs.size(text, name.encode()) for name in _HOST}
    tasks, count, lost = _tasks(None)
    host = {name: size for name, size in sizes.items() if size is not None}
    return OomFacts(host=host, tasks=tasks, task_count=count, lost=lost)


def _tasks(directory: str | None) -> tuple[list[OomTask], int, dict[str, str]]:
    found = memcg.tasks(directory, _LARGEST, _TASKS_S)
    tasks = [OomTask(pid=one.pid, comm=one.comm, resident=one.resident) for one in found.largest]
    lost = {"tasks": f"there were more than the {found.found} looked at"} if found.cut else {}
    return tasks, found.found, lost
