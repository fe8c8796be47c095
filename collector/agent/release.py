"""May this process go at once, or must it wait until its memory is copied?

With instant release the memory of a dead process stays charged to its cgroup while its successor
starts. So there must be room for a successor of the same size, on the host and at each level of
the cgroup tree, and for those of all other pinned processes, which may still be growing. If there
might not be, the process is held until its memory is ours (see copy.py). `decide` is the rule, a
pure function; `Governor` joins it with the facts of linux.memory, and keeps the account.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from collector.agent.lend import Lender, short_of
from collector.linux import procfs
from collector.linux.memory import LevelKey, MemoryFacts, read_facts
from collector.model import Release
from collector.native.contract import OWNER_BYTES, OWNER_DEVICE
from collector.policy.types import ReleaseSettings

log = logging.getLogger(__name__)

ROOM = "room for a successor"  # why a process may go at once


class PinTotals(msgspec.Struct, frozen=True, kw_only=True):
    """The open pins."""

    count: int = 0
    bytes: int = 0
    by_level: dict[LevelKey, int] = {}


class ReleaseDecision(msgspec.Struct, frozen=True, kw_only=True):
    """When the process may go, and why, in words for the record."""

    mode: Release
    reason: str


def decide(
    wanted: Release,
    settings: ReleaseSettings,
    facts: MemoryFacts,
    pins: PinTotals,
    owner: LevelKey | None = None,
) -> ReleaseDecision:
    """Instant release if policy wants it and nothing speaks against it; the first reason counts.

    owner: who has a share of the pins, and of their bytes; None: nobody in particular.
    """
    if wanted is not Release.INSTANT:
        return ReleaseDecision(mode=wanted, reason="policy")
    against = _against_instant(settings, facts, pins)
    if owner is not None:
        against = against or _against_owner(settings, facts, pins, owner)
    if against is None:
        return ReleaseDecision(mode=Release.INSTANT, reason=ROOM)
    return ReleaseDecision(mode=Release.AFTER_COPY, reason=against)


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
        others = pins.by_level.get(level.key, 0)
        if facts.private + others > level.headroom:
            return (
                f"a successor needs {_mib(facts.private)}, those of other pins {_mib(others)}; "
                f"memory cgroup {level.path} has {_mib(level.headroom)} of {_mib(level.limit)}"
            )
    return None


def _against_owner(
    settings: ReleaseSettings, facts: MemoryFacts, pins: PinTotals, owner: LevelKey
) -> str | None:
    """An owner has half of the pins, and of the bytes; or one pin, of any size."""
    share = max(1, settings.max_pins // 2)
    if pins.by_level.get(owner, 0) >= share:
        return f"{share} pins are its user's already"
    most = most_pinned(settings, facts.host_total) // 2
    mine, size = pins.by_level.get(bytes_of(owner), 0), facts.private or 0
    if mine and mine + size > most:
        return f"{_mib(mine)} of its user's are pinned, {_mib(size)} more would exceed {_mib(most)}"
    return None


def bytes_of(owner: LevelKey) -> LevelKey:
    """Where the account has the bytes of an owner's pins; at the owner it has their number."""
    return LevelKey(OWNER_BYTES, owner.inode)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"


class Reservation(NamedTuple):
    """A place in the account, to be given back with `Pins.release`."""

    size: int
    levels: tuple[LevelKey, ...]


class Beside(Protocol):
    """Who opens pins beside this account, which are entered in it a moment later."""

    def fresh(self) -> tuple[int, int, dict[LevelKey, int]]:
        """How many are not entered yet, their bytes, and those by memory cgroup."""

    def count(self, pins: int, size: int, by_level: dict[LevelKey, int]) -> None:
        """How many are entered now, their bytes, and those by memory cgroup."""


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
        count, size, by_level = self._beside.fresh() if self._beside else (0, 0, {})
        totals = self._entered()
        for level, part in totals.by_level.items():
            by_level[level] = by_level.get(level, 0) + part
        return PinTotals(count=totals.count + count, bytes=totals.bytes + size, by_level=by_level)

    def _entered(self) -> PinTotals:
        by_level: dict[LevelKey, int] = {}
        for reservation in self._open:
            for level in reservation.levels:
                part = 1 if level.device == OWNER_DEVICE else reservation.size
                by_level[level] = by_level.get(level, 0) + part
        size = sum(reservation.size for reservation in self._open)
        return PinTotals(count=len(self._open), bytes=size, by_level=by_level)

    def reserve(
        self, size: int, levels: tuple[LevelKey, ...], allow: Callable[[PinTotals], bool]
    ) -> Reservation | None:
        """Enter a pin of `size` bytes if `allow` says so of the totals before it, as one step."""
        with self._lock:
            if not allow(self._totals()):
                return None
            return self._enter(Reservation(size, levels))

    def enter(self, size: int, levels: tuple[LevelKey, ...] = ()) -> Reservation:
        """Enter a pin that was allowed already."""
        with self._lock:
            return self._enter(Reservation(size, levels))

    def _enter(self, reservation: Reservation) -> Reservation:
        self._open.append(reservation)
        self._tell()
        return reservation

    def _tell(self) -> None:
        if self._beside:
            totals = self._entered()
            self._beside.count(totals.count, totals.bytes, totals.by_level)

    def release(self, reservation: Reservation) -> None:
        """Strike out one pin. Raises ValueError if it is not in the account."""
        with self._lock:
            self._open.remove(reservation)
            self._tell()


class Verdict(NamedTuple):
    """A decision and its place in the account; `reservation` is None unless it is instant."""

    decision: ReleaseDecision
    reservation: Reservation | None
    loan: tuple[str, ...] = ()  # files of limits that were raised for it


class Governor:
    """Decides for one process after another. Thread-safe."""

    def __init__(
        self,
        settings: ReleaseSettings,
        pins: Pins,
        proc: Path = Path("/proc"),
        cgroups: Path = Path("/sys/fs/cgroup"),
        lender: Lender | None = None,
    ) -> None:
        self._lender = lender
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
        owner: LevelKey | None = None,
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
            decision = decide(wanted, self._settings, facts, totals, owner)
            return decision.mode is Release.INSTANT

        levels = tuple(level.key for level in facts.levels or ())
        levels += () if owner is None else (owner, bytes_of(owner))
        reservation = self._pins.reserve(facts.private or 0, levels, allow)
        if reservation is None and self._lender is not None and self._settings.lend:
            loan = self._lend(facts)
            if loan:
                facts = read_facts(pid, self._proc, self._cgroups, status, groups)
                reservation = self._pins.reserve(facts.private or 0, levels, allow)
                if reservation is None:
                    self._lender.give_back(loan, facts.private or 0)
                    return Verdict(decision, None)
                decision = ReleaseDecision(mode=wanted, reason=f"lent room in {len(loan)} limits")
                return Verdict(decision, reservation, (*loan,))
        return Verdict(decision, reservation)

    def _lend(self, facts: MemoryFacts) -> list[str]:
        """Raise the limits that are too low for a successor; the files that were changed."""
        assert self._lender is not None
        totals = self._pins.totals()
        size = facts.private or 0
        if not facts.levels or size + totals.bytes > (facts.host_available or 0):
            return []
        needed = {v.path: size + totals.by_level.get(v.key, 0) for v in facts.levels}
        try:
            return self._lender.lend(short_of(facts.levels, needed), size)
        except OSError as error:
            log.warning("no room can be lent: %s", error)
            return []

    @contextmanager
    def admitted(
        self,
        pid: int,
        wanted: Release,
        status: bytes | None = None,
        groups: bytes | None = None,
        owner: LevelKey | None = None,
    ) -> Iterator[ReleaseDecision]:
        """`judge`, and the reservation is given back at the end of the block."""
        decision, reservation, loan = self.judge(pid, wanted, status, groups, owner)
        try:
            yield decision
        finally:
            if reservation is not None:
                self._pins.release(reservation)
                if loan and self._lender is not None:
                    self._lender.give_back(loan, reservation.size)


def most_pinned(settings: ReleaseSettings, host_total: int | None = None) -> int:
    """Bytes that may be pinned in all. `host_total`: the host's memory, if it was read already."""
    if settings.max_pinned is not None:
        return settings.max_pinned
    if host_total is None:
        host_total = procfs.size(procfs.read("/proc/meminfo") or b"", b"MemTotal")
    return (host_total or 0) // 2
