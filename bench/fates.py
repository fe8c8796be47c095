"""What became of deaths while agents came and went: from what their parents saw, and the records.

A time is in seconds of the monotonic clock.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from bench.model import Figure
from collector.model import TICK_NS

HELD_TARGET = 100.0  # ms, beyond what a restart of the agent costs
SERIES, STORM = "series", "storm"  # names of the two programs
_NAMED = 3
Identity = tuple[int, int]  # pid, start in clock ticks


class Absence(NamedTuple):
    """No agent was there: from the kill of one until the next was ready."""

    begun: float
    ended: float


class Death(NamedTuple):
    """A death of the series as its parent saw it."""

    identity: Identity
    begun: float
    wait_s: float

    @staticmethod
    def of(line: str) -> Death:
        """A line of the program `series`."""
        pid, start, begun_ns, wait_ns, _ = map(int, line.split())
        return Death((pid, start), begun_ns / 1e9, wait_ns / 1e9)

    def without_agent(self, absences: Sequence[Absence]) -> float:
        """How much of its wait no agent was there, in seconds."""
        end = self.begun + self.wait_s
        both = (min(end, a.ended) - max(self.begun, a.begun) for a in absences)
        return sum(part for part in both if part > 0)


class Fates(msgspec.Struct, frozen=True, kw_only=True):
    """All of one run. `partial`: names of files. `left`: what was not put back at the end."""

    deaths: list[Death]
    stormed: int  # deaths of the storm around them
    absences: list[Absence]
    kills: int
    records: list[dict[str, Any]]
    cores: int
    partial: list[str]
    left: list[str]


def figures_of(name: str, seed: int, fates: Fates) -> list[Figure]:
    """Each demand with what was found."""
    title = f"killed, {name}: "
    starts = [absence.ended - absence.begun for absence in fates.absences]
    killed = Figure(
        name=f"{title}agents killed",
        value=fates.kills,
        unit="",
        detail=f"seed {seed}; from a kill until the next is ready "
        f"{statistics.median(starts):.1f} s, {max(starts):.1f} at most",
    )
    return [killed, *_recorded(title, fates), *_waits(title, fates), *_left(title, fates)]


def _none(name: str, found: int, detail: str) -> Figure:
    return Figure(name=name, value=found, unit="", target=0, detail=detail)


def _recorded(title: str, fates: Fates) -> list[Figure]:
    """Each death of the series by its name, and those of the storm by their number."""
    # a record without a name is of one that only the pipe's helper has seen
    records = [r for r in fates.records if r["comm"] in (SERIES, STORM, "")]
    own = Counter((r["pid"], r["start_ns"] // TICK_NS) for r in records if not r["count"])
    counted = [r for r in records if r["count"]]
    named = Counter(pid for r in counted for pid in r["pids"])
    series = [death.identity for death in fates.deaths]
    times = {one: own[one] + named[one[0]] for one in {*series, *own}}
    # a count is whole although it names the last ones only
    nameless = sum(r["count"] - len(r["pids"]) for r in counted if not _is_of_storm(r))
    missing = sum(not times[one] for one in series)
    twice = [pid for (pid, _), often in times.items() if often > 1]
    total = len(series) + fates.stormed
    found = sum(r["count"] or 1 for r in records)
    alone = sum(own[one] == 1 for one in series)
    return [
        _none(
            f"{title}of the series not on record",
            max(0, missing - nameless),
            f"{alone} of {len(series)} have a record of their own, others are counted",
        ),
        _none(
            f"{title}more than once on record",
            len(twice),
            ", ".join(f"pid {pid}" for pid in twice[:_NAMED]),
        ),
        _none(f"{title}of all too few or too many", abs(total - found), f"{found:,} of {total:,}"),
    ]


def _is_of_storm(counted: dict[str, Any]) -> bool:
    """Whether a count is of the storm's program alone, not of all that its owner runs."""
    return counted["comm"] == STORM and counted["exe"] is not None


def _waits(title: str, fates: Fates) -> list[Figure]:
    """How long the series waited where an agent was there all the time, and where it was not."""
    absent = [death.without_agent(fates.absences) for death in fates.deaths]
    waits = [death.wait_s * 1e3 for death in fates.deaths]
    there = [wait for wait, without in zip(waits, absent, strict=True) if not without]
    held = max((r["held_ms"] or 0 for r in fates.records if r["comm"] == SERIES), default=0)
    beyond = [wait - 1e3 * without for wait, without in zip(waits, absent, strict=True) if without]
    figures = []
    for what, some in (("with an agent", there), ("beyond a restart", beyond)):
        if some:
            figures.append(
                Figure(
                    name=f"{title}longest wait {what}",
                    value=max(some),
                    unit="ms",
                    target=HELD_TARGET,
                    detail=f"{_spread(some)}, {len(some)} deaths",
                )
            )
    return [
        *figures,
        Figure(
            name=f"{title}longest wait of all",
            value=max(waits),
            unit="ms",
            detail=f"{_spread(waits)}; by the agents' account held for {held:.1f} at most",
        ),
    ]


def _spread(values: Sequence[float]) -> str:
    ordered = sorted(values)
    last = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    return f"median {statistics.median(ordered):.1f} ms, p99 {last:.1f}"


def _left(title: str, fates: Fates) -> list[Figure]:
    """What the last agent should not have left behind."""
    some = ", ".join(fates.partial[:_NAMED])
    return [
        _none(
            f"{title}cores that are not whole", len(fates.partial), some or f"{fates.cores} cores"
        ),
        _none(f"{title}not put back", len(fates.left), ", ".join(fates.left)),
    ]
