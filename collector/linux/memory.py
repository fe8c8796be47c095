"""How much memory there is for a process: of the host, and at each level of its memory cgroup.

From /proc/meminfo, /proc/PID/status and the cgroup file systems (proc(5), cgroups(7), v1 and v2).
What the figures mean for a process, or for its restarted instance, is for the caller to decide.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

import msgspec

from collector.linux import procfs

NO_LIMIT = 1 << 60  # bytes; cgroup v1 says "none" with a number near 2**63


class LevelKey(NamedTuple):
    """A memory cgroup by stat(2) of its directory, also its name in the account."""

    device: int
    inode: int


class CgroupLevel(msgspec.Struct, frozen=True, kw_only=True):
    """A memory cgroup with a limit, at or above the process. Sizes are bytes."""

    path: str  # of its directory
    key: LevelKey
    limit: int
    usage: int
    reclaimable: int = 0  # part of `usage` that the kernel drops when it needs room

    @property
    def headroom(self) -> int:
        return max(0, self.limit - self.usage + min(self.reclaimable, self.usage))


class MemoryFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the decision needs to know of a process and its host. Bytes; None: not known."""

    private: int | None  # anonymous and shared memory, and swap
    host_total: int | None
    host_available: int | None
    levels: tuple[CgroupLevel, ...] | None  # from the process's cgroup upwards


def read_facts(
    pid: int, proc: Path, cgroups: Path, status: bytes | None = None, groups: bytes | None = None
) -> MemoryFacts:
    """The facts of a process. What cannot be read is None, never a guess.

    `status` and `groups`: its files `status` and `cgroup`, where they were read already.
    """
    meminfo = procfs.read(f"{proc}/meminfo") or b""
    if status is None:
        status = procfs.read(f"{proc}/{pid}/status") or b""
    if groups is None:
        groups = procfs.read(f"{proc}/{pid}/cgroup")
    private = procfs.size(status, b"RssAnon")
    if private is not None:
        for name in (b"RssShmem", b"VmSwap"):
            private += procfs.size(status, name) or 0
    return MemoryFacts(
        private=private,
        host_total=procfs.size(meminfo, b"MemTotal"),
        host_available=procfs.size(meminfo, b"MemAvailable"),
        levels=None if groups is None else read_levels(groups, str(cgroups)),
    )


class MemoryCgroup(NamedTuple):
    """A memory cgroup by its directory; `version` of cgroups is 1 or 2."""

    directory: str
    version: int


def read_levels(groups: bytes, root: str) -> tuple[CgroupLevel, ...] | None:
    """The memory cgroups with a limit, from that of a process up to the root.

    groups: its /proc/PID/cgroup; see `memory_cgroups`. None if its cgroup cannot be seen here.
    Raises OSError if one is removed meanwhile.
    """
    found = memory_cgroups(groups, root)
    if found is None:
        return None
    return tuple(level for level in map(read_level, found) if level is not None)


def memory_cgroups(groups: bytes, root: str) -> list[MemoryCgroup] | None:
    """The memory cgroups from that of a process up to the root, with limits or without.

    groups: its /proc/PID/cgroup. Understands cgroup v2 (cgroups(7)) at `root` or `root`/unified,
    and the v1 memory controller at `root`/memory. None if its cgroup cannot be seen here.
    """
    all_: list[MemoryCgroup] = []
    for line in os.fsdecode(groups).split("\n"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            found = _upwards(f"{root}/memory", path, 1)
        elif rest and not controllers:
            found = _upwards(_unified(root), path, 2)
        else:
            continue
        if found is None:
            return None
        all_ += found
    return all_


def unified_directory(groups: bytes, root: str) -> str | None:
    """The directory of a process's cgroup of v2; None: it is the root's, or cannot be seen here."""
    for line in os.fsdecode(groups).split("\n"):
        _, _, rest = line.partition(":")
        if rest.startswith(":") and (found := _upwards(_unified(root), rest[1:], 2)):
            return found[0].directory if len(found) > 1 else None
    return None


def _unified(root: str) -> str:
    return unified if _is_dir(unified := f"{root}/unified") else root


def _upwards(root: str, path: str, version: int) -> list[MemoryCgroup] | None:
    parts = [part for part in path.split("/") if part]
    if ".." in parts or not _is_dir("/".join((root, *parts))):
        return None
    here = ("/".join((root, *parts[:depth])) for depth in range(len(parts), -1, -1))
    return [MemoryCgroup(directory, version) for directory in here]


def _is_dir(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)  # noqa: PTH116  a process waits
    except OSError:
        return False


def read_level(group: MemoryCgroup) -> CgroupLevel | None:
    """Limit and use of one; None: it has no limit. Raises OSError if it is gone."""
    return (_level_v1 if group.version == 1 else _level_v2)(group.directory)


def high_events(group: MemoryCgroup) -> int | None:
    """How often its use went beyond its own memory.high; None: it has none, as all of v1."""
    if group.version == 1 or number_in(f"{group.directory}/memory.high") is None:
        return None
    events = b"\n" + (procfs.read(f"{group.directory}/memory.events.local") or b"")
    count = events.partition(b"\nhigh ")[2].partition(b"\n")[0]
    return int(count) if count.isdigit() else None


def _level_v2(directory: str) -> CgroupLevel | None:
    limits = [number_in(f"{directory}/{name}") for name in ("memory.max", "memory.high")]
    limit = min((value for value in limits if value is not None), default=None)
    return _level(directory, limit, "memory.current", b"\ninactive_file ")


def _level_v1(directory: str) -> CgroupLevel | None:
    limit = number_in(f"{directory}/memory.limit_in_bytes")
    return _level(directory, limit, "memory.usage_in_bytes", b"\ntotal_inactive_file ")


def _level(directory: str, limit: int | None, usage: str, reclaimable: bytes) -> CgroupLevel | None:
    if limit is None or limit >= NO_LIMIT:
        return None
    used = number_in(f"{directory}/{usage}")
    figures = b"\n" + (procfs.read(f"{directory}/memory.stat") or b"")
    cache = figures.partition(reclaimable)[2].partition(b"\n")[0]
    about = os.stat(directory)  # noqa: PTH116
    return CgroupLevel(
        path=directory,
        key=LevelKey(about.st_dev, about.st_ino),
        limit=limit,
        usage=limit if used is None else used,  # unknown: no room
        reclaimable=int(cache) if cache.isdigit() else 0,
    )


def number_in(path: str) -> int | None:
    """The number in a file of a cgroup; None for "max", or if there is no such file."""
    text = (procfs.read(path) or b"").strip()
    return int(text) if text.isdigit() else None
