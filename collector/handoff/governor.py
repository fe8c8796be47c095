"""May this process go at once, or must it wait until its memory is written?

With instant release the memory of a dead process stays charged to its cgroup while its successor
starts. So there must be room for a successor of the same size, on the host and at each level of
the cgroup tree, and for those of all other pinned processes, which may still be growing. If there
might not be, the process is held instead. `decide` is the rule, a pure function; the readers get
its facts from /proc and the cgroup file systems; `Governor` joins them and keeps the account.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from collector.linux import proctext
from collector.model import Release
from collector.policy.types import ReleaseSettings

ROOM = "room for a successor"  # why a process may go at once
_NO_LIMIT = 1 << 60  # bytes; cgroup v1 says "none" with a number near 2**63


class CgroupLevel(msgspec.Struct, frozen=True, kw_only=True):
    """A memory cgroup with a limit, at or above the process. Sizes are bytes."""

    path: str  # of its directory; also its name in the account
    limit: int
    usage: int
    reclaimable: int = 0  # part of `usage` that the kernel drops when it needs room

    @property
    def headroom(self) -> int:
        return max(0, self.limit - self.usage + min(self.reclaimable, self.usage))


class MemoryFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the decision needs to know of a process and its host. Bytes; None: not known."""

    private: int | None  # anonymous and shared memory and swap: what a successor needs anew
    host_total: int | None
    host_available: int | None
    levels: tuple[CgroupLevel, ...] | None  # from the process's cgroup upwards


class PinTotals(msgspec.Struct, frozen=True, kw_only=True):
    """The open pins."""

    count: int = 0
    bytes: int = 0
    by_level: dict[str, int] = {}  # path of a CgroupLevel -> bytes


class ReleaseDecision(msgspec.Struct, frozen=True, kw_only=True):
    """When the process may go, and why, in words for the record."""

    mode: Release
    reason: str


def decide(
    wanted: Release, settings: ReleaseSettings, facts: MemoryFacts, pins: PinTotals
) -> ReleaseDecision:
    """Instant release if policy wants it and nothing speaks against it; the first reason counts."""
    if wanted is not Release.INSTANT:
        return ReleaseDecision(mode=wanted, reason="policy")
    against = _against_instant(settings, facts, pins)
    if against is None:
        return ReleaseDecision(mode=Release.INSTANT, reason=ROOM)
    return ReleaseDecision(mode=Release.AFTER_WRITE, reason=against)


def _against_instant(settings: ReleaseSettings, facts: MemoryFacts, pins: PinTotals) -> str | None:
    if facts.private is None:
        return "the size of the process is unknown"
    if facts.host_total is None or facts.host_available is None:
        return "the memory of the host is unknown"
    if facts.levels is None:
        return "the memory cgroup of the process is unknown"
    if pins.count >= settings.max_pins:
        return f"{pins.count} pins are open, the limit is {settings.max_pins}"
    most = most_pinned(settings, facts.host_total)
    if pins.bytes + facts.private > most:
        return (
            f"{_mib(pins.bytes)} are pinned, {_mib(facts.private)} more would exceed {_mib(most)}"
        )
    if facts.private + pins.bytes > facts.host_available:
        return (
            f"a successor needs {_mib(facts.private)}, those of other pins {_mib(pins.bytes)}; "
            f"the host has {_mib(facts.host_available)}"
        )
    for level in facts.levels:
        others = pins.by_level.get(level.path, 0)
        if facts.private + others > level.headroom:
            return (
                f"a successor needs {_mib(facts.private)}, those of other pins {_mib(others)}; "
                f"memory cgroup {level.path} has {_mib(level.headroom)} of {_mib(level.limit)}"
            )
    return None


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"


class Reservation(NamedTuple):
    """A place in the account, to be given back with `Pins.release`."""

    size: int
    levels: tuple[str, ...]


class Beside(Protocol):
    """Who opens pins beside this account, which are entered in it a moment later."""

    def fresh(self) -> tuple[int, int]:
        """How many are not entered yet, and their bytes."""

    def count(self, pins: int, size: int) -> None:
        """How many are entered now, and their bytes."""


class Pins:
    """The account of open pins. Thread-safe; outlives a reload of the policy."""

    def __init__(self, beside: Beside | None = None) -> None:
        self._lock = threading.Lock()
        self._open: list[Reservation] = []
        self._beside = beside

    def totals(self) -> PinTotals:
        with self._lock:
            return self._totals()

    def _totals(self) -> PinTotals:
        by_level: dict[str, int] = {}
        for reservation in self._open:
            for level in reservation.levels:
                by_level[level] = by_level.get(level, 0) + reservation.size
        count, size = self._beside.fresh() if self._beside else (0, 0)
        return PinTotals(
            count=len(self._open) + count,
            bytes=sum(r.size for r in self._open) + size,
            by_level=by_level,
        )

    def reserve(
        self, size: int, levels: tuple[str, ...], allow: Callable[[PinTotals], bool]
    ) -> Reservation | None:
        """Enter a pin of `size` bytes if `allow` says so of the totals before it, as one step."""
        with self._lock:
            if not allow(self._totals()):
                return None
            return self._enter(Reservation(size, levels))

    def enter(self, size: int) -> Reservation:
        """Enter a pin that was allowed already, of a process without limits."""
        with self._lock:
            return self._enter(Reservation(size, ()))

    def _enter(self, reservation: Reservation) -> Reservation:
        self._open.append(reservation)
        self._tell()
        return reservation

    def _tell(self) -> None:
        if self._beside:
            self._beside.count(len(self._open), sum(r.size for r in self._open))

    def release(self, reservation: Reservation) -> None:
        """Strike out one pin. Raises ValueError if it is not in the account."""
        with self._lock:
            self._open.remove(reservation)
            self._tell()


class Verdict(NamedTuple):
    """A decision and its place in the account; `reservation` is None unless it is instant."""

    decision: ReleaseDecision
    reservation: Reservation | None


class Governor:
    """Decides for one process after another. Thread-safe."""

    def __init__(
        self,
        settings: ReleaseSettings,
        pins: Pins,
        proc: Path = Path("/proc"),
        cgroups: Path = Path("/sys/fs/cgroup"),
    ) -> None:
        self._settings = settings
        self._pins = pins
        self._proc = proc
        self._cgroups = cgroups

    def judge(
        self,
        pid: int,
        wanted: Release,
        status: bytes | None = None,
        groups: bytes | None = None,
    ) -> Verdict:
        """Decide for a process that is held, and enter it in the account if it may go at once.

        `status` and `groups` as for `read_facts`. The caller gives the reservation back when the
        pin is released.
        """
        if wanted is not Release.INSTANT:
            return Verdict(ReleaseDecision(mode=wanted, reason="policy"), None)
        facts = read_facts(pid, self._proc, self._cgroups, status, groups)
        decision = ReleaseDecision(mode=wanted, reason="")

        def allow(totals: PinTotals) -> bool:
            nonlocal decision
            decision = decide(wanted, self._settings, facts, totals)
            return decision.mode is Release.INSTANT

        levels = tuple(level.path for level in facts.levels or ())
        reservation = self._pins.reserve(facts.private or 0, levels, allow)
        return Verdict(decision, reservation)

    @contextmanager
    def admitted(
        self,
        pid: int,
        wanted: Release,
        status: bytes | None = None,
        groups: bytes | None = None,
    ) -> Iterator[ReleaseDecision]:
        """`judge`, and the reservation is given back at the end of the block."""
        decision, reservation = self.judge(pid, wanted, status, groups)
        try:
            yield decision
        finally:
            if reservation is not None:
                self._pins.release(reservation)


def most_pinned(settings: ReleaseSettings, host_total: int | None = None) -> int:
    """Bytes that may be pinned in all. `host_total`: the host's memory, if it was read already."""
    if settings.max_pinned is not None:
        return settings.max_pinned
    if host_total is None:
        host_total = proctext.size(proctext.read("/proc/meminfo") or b"", b"MemTotal")
    return (host_total or 0) // 2


def read_facts(
    pid: int, proc: Path, cgroups: Path, status: bytes | None = None, groups: bytes | None = None
) -> MemoryFacts:
    """The facts of a process. What cannot be read is None, never a guess.

    `status` and `groups`: its files `status` and `cgroup`, where they were read already.
    """
    meminfo = proctext.read(f"{proc}/meminfo") or b""
    if status is None:
        status = proctext.read(f"{proc}/{pid}/status") or b""
    if groups is None:
        groups = proctext.read(f"{proc}/{pid}/cgroup")
    private = proctext.size(status, b"RssAnon")
    if private is not None:
        for name in (b"RssShmem", b"VmSwap"):
            private += proctext.size(status, name) or 0
    return MemoryFacts(
        private=private,
        host_total=proctext.size(meminfo, b"MemTotal"),
        host_available=proctext.size(meminfo, b"MemAvailable"),
        levels=None if groups is None else read_levels(groups, str(cgroups)),
    )


def read_levels(groups: bytes, root: str) -> tuple[CgroupLevel, ...] | None:
    """The memory cgroups with a limit, from that of a process up to the root.

    groups: its /proc/PID/cgroup. Understands cgroup v2 (cgroups(7)) at `root` or `root`/unified,
    and the v1 memory controller at `root`/memory. None if its cgroup cannot be seen here.
    """
    levels: list[CgroupLevel] = []
    for line in os.fsdecode(groups).split("\n"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            found = _walk(f"{root}/memory", path, _level_v1)
        elif rest and not controllers:
            unified = f"{root}/unified"
            found = _walk(unified if _is_dir(unified) else root, path, _level_v2)
        else:
            continue
        if found is None:
            return None
        levels += found
    return tuple(levels)


def _walk(
    root: str, path: str, read: Callable[[str], CgroupLevel | None]
) -> list[CgroupLevel] | None:
    parts = [part for part in path.split("/") if part]
    if ".." in parts or not _is_dir("/".join((root, *parts))):
        return None
    here = ("/".join((root, *parts[:depth])) for depth in range(len(parts), -1, -1))
    return [level for level in map(read, here) if level is not None]


def _is_dir(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)  # noqa: PTH116  a process waits
    except OSError:
        return False


def _level_v2(directory: str) -> CgroupLevel | None:
    limits = [_number(f"{directory}/{name}") for name in ("memory.max", "memory.high")]
    limit = min((value for value in limits if value is not None), default=None)
    return _level(directory, limit, "memory.current", b"\ninactive_file ")


def _level_v1(directory: str) -> CgroupLevel | None:
    limit = _number(f"{directory}/memory.limit_in_bytes")
    return _level(directory, limit, "memory.usage_in_bytes", b"\ntotal_inactive_file ")


def _level(directory: str, limit: int | None, usage: str, reclaimable: bytes) -> CgroupLevel | None:
    if limit is None or limit >= _NO_LIMIT:
        return None
    used = _number(f"{directory}/{usage}")
    about = b"\n" + (proctext.read(f"{directory}/memory.stat") or b"")
    cache = about.partition(reclaimable)[2].partition(b"\n")[0]
    return CgroupLevel(
        path=directory,
        limit=limit,
        usage=limit if used is None else used,  # unknown: no room
        reclaimable=int(cache) if cache.isdigit() else 0,
    )


def _number(path: str) -> int | None:
    """The number in a file; None for "max", or if there is no such file."""
    text = (proctext.read(path) or b"").strip()
    return int(text) if text.isdigit() else None
