"""May this process go at once, or must it wait until its memory is written?

With instant release the memory of a dead process stays charged to its cgroup while its successor
starts. So there must be room for a successor of the same size, on the host and at each level of
the cgroup tree, and for those of all other pinned processes, which may still be growing. If there
might not be, the process is held instead. `decide` is the rule, a pure function; the readers get
its facts from /proc and the cgroup file systems; `Governor` joins them and keeps the account.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from collector.errors import HoldError
from collector.model import Release
from collector.policy.types import ReleaseSettings

_NO_LIMIT = 1 << 60  # bytes; cgroup v1 says "none" with a number near 2**63
_FILE_MAX = 64 << 10  # bytes of a /proc or cgroup file that are looked at


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
        return ReleaseDecision(mode=Release.INSTANT, reason="room for a successor")
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
    most = facts.host_total // 2 if settings.max_pinned is None else settings.max_pinned
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


class Pins:
    """The account of open pins. Thread-safe; outlives a reload of the policy."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[Reservation] = []

    def totals(self) -> PinTotals:
        with self._lock:
            return self._totals()

    def _totals(self) -> PinTotals:
        by_level: dict[str, int] = {}
        for reservation in self._open:
            for level in reservation.levels:
                by_level[level] = by_level.get(level, 0) + reservation.size
        return PinTotals(
            count=len(self._open), bytes=sum(r.size for r in self._open), by_level=by_level
        )

    def reserve(
        self, size: int, levels: tuple[str, ...], allow: Callable[[PinTotals], bool]
    ) -> Reservation | None:
        """Enter a pin of `size` bytes if `allow` says so of the totals before it, as one step."""
        with self._lock:
            if not allow(self._totals()):
                return None
            reservation = Reservation(size, levels)
            self._open.append(reservation)
            return reservation

    def release(self, reservation: Reservation) -> None:
        """Strike out one pin. Raises ValueError if it is not in the account."""
        with self._lock:
            self._open.remove(reservation)


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

    def judge(self, pid: int, wanted: Release) -> Verdict:
        """Decide for a process that is held, and enter it in the account if it may go at once.

        Takes some 0.15 ms. The caller gives the reservation back when the pin is released.
        """
        if wanted is not Release.INSTANT:
            return Verdict(ReleaseDecision(mode=wanted, reason="policy"), None)
        facts = read_facts(pid, self._proc, self._cgroups)
        decision = ReleaseDecision(mode=wanted, reason="")

        def allow(totals: PinTotals) -> bool:
            nonlocal decision
            decision = decide(wanted, self._settings, facts, totals)
            return decision.mode is Release.INSTANT

        levels = tuple(level.path for level in facts.levels or ())
        reservation = self._pins.reserve(facts.private or 0, levels, allow)
        return Verdict(decision, reservation)

    @contextmanager
    def admitted(self, pid: int, wanted: Release) -> Iterator[ReleaseDecision]:
        """`judge`, and the reservation is given back at the end of the block."""
        decision, reservation = self.judge(pid, wanted)
        try:
            yield decision
        finally:
            if reservation is not None:
                self._pins.release(reservation)


def read_facts(pid: int, proc: Path, cgroups: Path) -> MemoryFacts:
    """The facts of a process. What cannot be read is None, never a guess."""
    meminfo = _kib_lines(proc / "meminfo")
    status = _kib_lines(proc / str(pid) / "status")
    private = None
    if "RssAnon" in status:
        private = sum(status.get(name, 0) for name in ("RssAnon", "RssShmem", "VmSwap"))
    try:
        levels = read_levels(pid, proc, cgroups)
    except HoldError:
        levels = None
    return MemoryFacts(
        private=private,
        host_total=meminfo.get("MemTotal"),
        host_available=meminfo.get("MemAvailable"),
        levels=levels,
    )


def resident_bytes(pid: int, proc: Path = Path("/proc")) -> int | None:
    """All resident memory of a process, also files; None if it cannot be read."""
    return _kib_lines(proc / str(pid) / "status").get("VmRSS")


def read_levels(pid: int, proc: Path, cgroups: Path) -> tuple[CgroupLevel, ...]:
    """The memory cgroups with a limit, from that of the process up to the root.

    Understands cgroup v2 (cgroups(7)) at `cgroups` or `cgroups`/unified, and the v1 memory
    controller at `cgroups`/memory. Raises HoldError if the process's cgroup cannot be seen here.
    """
    text = _read(proc / str(pid) / "cgroup")
    if text is None:
        raise HoldError(f"pid {pid}: cannot read its cgroups")
    levels: list[CgroupLevel] = []
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            levels += _walk(cgroups / "memory", path, _level_v1)
        elif not controllers:
            unified = cgroups / "unified"
            levels += _walk(unified if unified.is_dir() else cgroups, path, _level_v2)
    return tuple(levels)


def _walk(root: Path, path: str, read: Callable[[Path], CgroupLevel | None]) -> list[CgroupLevel]:
    parts = [part for part in path.split("/") if part]
    if ".." in parts or not root.joinpath(*parts).is_dir():
        raise HoldError(f"cgroup {path} is not visible at {root}")
    here = (root.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))
    return [level for level in map(read, here) if level is not None]


def _level_v2(directory: Path) -> CgroupLevel | None:
    limits = [_number(directory / name) for name in ("memory.max", "memory.high")]
    limit = min((value for value in limits if value is not None), default=None)
    return _level(directory, limit, "memory.current", "inactive_file")


def _level_v1(directory: Path) -> CgroupLevel | None:
    limit = _number(directory / "memory.limit_in_bytes")
    return _level(directory, limit, "memory.usage_in_bytes", "total_inactive_file")


def _level(directory: Path, limit: int | None, usage: str, reclaimable: str) -> CgroupLevel | None:
    if limit is None or limit >= _NO_LIMIT:
        return None
    used = _number(directory / usage)
    stat = dict(
        line.split(" ", 1) for line in (_read(directory / "memory.stat") or "").splitlines()
    )
    cache = stat.get(reclaimable, "0")
    return CgroupLevel(
        path=str(directory),
        limit=limit,
        usage=limit if used is None else used,  # unknown: no room
        reclaimable=int(cache) if cache.isdigit() else 0,
    )


def _number(path: Path) -> int | None:
    """The number in a file; None for "max", or if there is no such file."""
    text = (_read(path) or "").strip()
    return int(text) if text.isdigit() else None


def _kib_lines(path: Path) -> dict[str, int]:
    """`Name:  123 kB` lines as bytes."""
    values = {}
    for line in (_read(path) or "").splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            values[name] = int(words[0]) * 1024
    return values


def _read(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(_FILE_MAX).decode("utf-8", "surrogateescape")
    except OSError:
        return None
