"""How the cgroups of watched processes are off for memory: near a limit, or waiting for it.

A look at a cgroup serves every process in it and below it, and is made once in LOOK_S at most, so
its cost does not grow with the processes of one cgroup. Where a process has no figure of its own,
that of the host stands for it, under the host's name.

Sources: Documentation/admin-guide/cgroup-v2.rst (memory.events.local) and cgroup-v1/memory.rst; the
files are read by linux.memory and linux.pressure.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from collector.linux import memory, pressure, procfs

LOOK_S = 1.0
_KEEP_S = 60.0  # what nobody has asked for in so long is forgotten
_LEVELS = 64  # of one process that are looked at, from its own cgroup upwards


class MemoryUse(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes in use that the kernel cannot just drop; `of` a cgroup's directory, None: the host."""

    of: str | None
    limit: int
    used: int


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """By how much something grows, in a second; `of` as in MemoryUse."""

    of: str | None
    value: float


class CgroupVitals(msgspec.Struct, frozen=True, kw_only=True):
    """One look. A rate is there from the second look on; `lost` says what never will be."""

    memory: tuple[MemoryUse, ...] = ()  # of each level with a limit; without any: of the host
    high: tuple[Rate, ...] = ()  # events of memory.high, of each level that has one
    stalled: Rate | None = None  # share of the time in which a task waited for memory
    lost: dict[str, str] = {}


class _Known(msgspec.Struct):
    """What the last look at a cgroup said, and how far its count was."""

    at: float = float("-inf")
    count: int | None = None
    use: MemoryUse | None = None
    rate: Rate | None = None

    def grow(self, now: float, count: int | None, of: str | None, unit: float) -> None:
        """Take in a number of the kernel that only grows; None: it is not there."""
        before, passed = self.count, now - self.at
        self.rate = None
        if before is not None and count is not None and passed > 0:
            self.rate = Rate(of=of, value=max(0, count - before) / unit / passed)
        self.count = count


class Cgroups:
    """What is known of cgroups, by directory. Not thread-safe."""

    def __init__(
        self,
        root: str = "/sys/fs/cgroup",
        proc: str = "/proc",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root, self._proc, self._clock = root, proc, clock
        self._looks: dict[bytes, tuple[float, CgroupVitals]] = {}  # of one set of cgroups
        self._levels: dict[str, _Known] = {}
        self._stalls: dict[str, _Known] = {}
        self._host = _Known()
        self._forgot = clock()

    def look(self, groups: bytes) -> CgroupVitals:
        """How a process is off whose /proc/PID/cgroup this is. What cannot be read is lost."""
        now = self._clock()
        at, vitals = self._looks.get(groups, (now - LOOK_S, None))
        if vitals is None or now - at >= LOOK_S:
            self._forget()
            vitals = self._look(groups)
            self._looks[groups] = now, vitals
        return vitals

    def _look(self, groups: bytes) -> CgroupVitals:
        lost = {}
        found = memory.memory_cgroups(groups, self._root)
        levels = [self._level(group) for group in (found or [])[:_LEVELS]]
        used = [level.use for level in levels if level.use is not None]
        if found is None:
            lost["memory"] = "its memory cgroup cannot be seen from here"
        elif not used and (host := self._host_use()) is not None:
            used = [host]
        if all(level.count is None for level in levels):
            lost["memory-high"] = "no cgroup of it has memory.high"
        stall = self._stall(groups)
        if stall.count is None:
            lost["pressure"] = "the kernel does not tell pressure (PSI)"
        return CgroupVitals(
            memory=tuple(used),
            high=tuple(level.rate for level in levels if level.rate is not None),
            stalled=stall.rate,
            lost=lost,
        )

    def _level(self, group: memory.MemoryCgroup) -> _Known:
        known = self._levels.setdefault(group.directory, _Known())
        now = self._clock()
        if now - known.at < LOOK_S:
            return known
        try:
            level = memory.read_level(group)
        except OSError:  # it is gone
            level = None
        if level is not None:
            used = level.limit - level.headroom
            known.use = MemoryUse(of=group.directory, limit=level.limit, used=used)
        else:
            known.use = None
        known.grow(now, memory.high_events(group), group.directory, 1)
        known.at = now
        return known

    def _host_use(self) -> MemoryUse | None:
        now = self._clock()
        if now - self._host.at >= LOOK_S:
            text = procfs.read(f"{self._proc}/meminfo") or b""
            total, free = procfs.size(text, b"MemTotal"), procfs.size(text, b"MemAvailable")
            self._host.use = None
            if total is not None and free is not None:
                self._host.use = MemoryUse(of=None, limit=total, used=max(0, total - free))
            self._host.at = now
        return self._host.use

    def _stall(self, groups: bytes) -> _Known:
        """Of its own cgroup of v2; where that has none, of the host."""
        own = memory.unified_directory(groups, self._root)
        if own is not None:
            known = self._stall_in(f"{own}/{pressure.CGROUP}", own)
            if known.count is not None:
                return known
        return self._stall_in(f"{self._proc}/{pressure.HOST}", None)

    def _stall_in(self, path: str, of: str | None) -> _Known:
        known = self._stalls.setdefault(path, _Known())
        now = self._clock()
        if now - known.at >= LOOK_S:
            known.grow(now, pressure.stalled_us(path), of, 1e6)
            known.at = now
        return known

    def _forget(self) -> None:
        """Names of cgroups are others' choice, and there may be a new one every moment."""
        now = self._clock()
        if now - self._forgot < _KEEP_S:
            return
        self._forgot = now
        looks = self._looks.items()
        self._looks = {groups: look for groups, look in looks if now - look[0] < _KEEP_S}
        for table in (self._levels, self._stalls):
            for name in [name for name, known in table.items() if now - known.at >= _KEEP_S]:
                del table[name]
