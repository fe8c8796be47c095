"""The values of a benchmark: what dies, what was measured of one death, and what is demanded.

The same of processes that go on, and of which snapshots are taken.

Times are milliseconds and sizes are bytes, unless a name says otherwise.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

MIB = 1 << 20


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A program that dies, `rounds` times under each peer."""

    name: str
    victim: str  # in tests/victims
    arguments: tuple[str, ...]
    rounds: int
    resident: int  # about; to tell whether it fits
    about: str
    memory_limit: int | None = None  # bytes, of a memory cgroup of its own

    @property
    def is_size(self) -> bool:
        """Whether it is about much memory rather than many threads or mappings."""
        return self.victim == "resident"


class Shot(msgspec.Struct, frozen=True, kw_only=True):
    """One death as its parent saw it."""

    pid: int
    began_ns: int  # CLOCK_REALTIME
    wait_ms: float  # from the fatal instruction's trigger to the return of wait4(2)
    status: int  # of wait4(2)
    cpu_ms: float  # of the dying process, from then on


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What one peer did with one death. None: it has no such thing, or it cannot be had."""

    peer: str
    case: str
    round: int
    wait_ms: float
    complete_ms: float | None  # until the core has its final name and contents
    disk: int | None  # allocated blocks
    cpu_ms: float | None  # all processes involved
    held_ms: float | None = None  # Coreward's own account
    note: str = ""


class LiveCase(msgspec.Struct, frozen=True, kw_only=True):
    """A process that goes on (`steady.c`), of which each peer takes `rounds` snapshots."""

    name: str
    mib: int  # touched
    threads: int
    rate: int = 0  # MiB/s that it writes, page by page
    sparse_gib: int = 0  # the mapping over which the memory is spread; 0: it is not
    rounds: int
    about: str

    @property
    def resident(self) -> int:
        return self.mib * MIB


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What one peer did with one process that goes on, as far as that noticed."""

    peer: str
    case: str
    round: int
    stop_ms: float  # the longest that its working thread stood: was stopped, or had to wait
    stall_ms: float  # the same, or its CPU was with somebody else
    total_s: float  # from the start of the command to its end
    disk: int  # allocated blocks
    interrupted: int  # calls that returned EINTR
    woken: int  # of the threads that are blocked for good, those that were switched to
    throughput: float  # of the working thread: loops per second, by those just before
    written: float | None  # pages it wrote, by those it should have; None: it writes nothing
    method: str = ""  # Coreward's own account, as the next one
    held_ms: float | None = None


class Spread(NamedTuple):
    """Median, least and greatest of some values."""

    median: float
    low: float
    high: float
    count: int


def spread(values: Iterable[float | None]) -> Spread | None:
    """None if there is no value at all."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    return Spread(statistics.median(known), known[0], known[-1], len(known))


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One measured number beside what is demanded of it. `target` is an upper or a lower bound."""

    name: str
    value: float
    unit: str
    target: float | None = None
    at_least: bool = False
    below: bool = False  # strictly less, where the target is an upper bound
    detail: str = ""

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        if self.at_least:
            good = self.value >= self.target
        else:
            good = self.value < self.target if self.below else self.value <= self.target
        return "pass" if good else "MISS"


Say = Callable[[str], None]  # progress, for whoever watches


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers that are neither of a case nor judged."""

    title: str
    header: list[str]
    rows: list[list[str]]


class Result(msgspec.Struct, kw_only=True):
    """Everything of one run of the benchmark; what `--json` writes."""

    machine: dict[str, str]
    cases: list[Case] = []
    samples: list[Sample] = []
    live_cases: list[LiveCase] = []
    snapshots: list[Snapshot] = []
    figures: list[Figure] = []
    tables: list[Table] = []
    absent: dict[str, str] = {}  # peer -> why it could not run
    notes: list[str] = []
