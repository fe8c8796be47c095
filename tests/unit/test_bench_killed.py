"""Deaths while agents are killed, in the benchmark: who is missing, who waited for whom."""

from __future__ import annotations

from typing import Any

import pytest

from bench.__main__ import arguments
from bench.fates import Absence, Death, Fates, figures_of
from bench.model import Figure
from collector.model import TICK_NS

NAME = "killed, coreward, pipe: "


def death(pid: int, begun: float = 0.0, wait_s: float = 0.002) -> Death:
    return Death((pid, 100 + pid), begun, wait_s)


def record(pid: int, comm: str = "series", **others: Any) -> dict[str, Any]:
    # BPF tells starts in nanoseconds, their parent in ticks
    start = (100 + pid) * TICK_NS + 4711
    usual = {"comm": comm, "exe": "/x", "count": None, "held_ms": 1.5}
    return {"pid": pid, "start_ns": start, **usual, **others}


def counted(count: int, *pids: int, comm: str = "storm", exe: str | None = "/x") -> dict[str, Any]:
    return record(1, comm, exe=exe, count=count, pids=list(pids))


def figures(
    deaths: list[Death],
    records: list[dict[str, Any]],
    stormed: int = 0,
    absences: tuple[Absence, ...] = (Absence(10.0, 11.0),),
    partial: tuple[str, ...] = (),
) -> dict[str, Figure]:
    fates = Fates(
        deaths=deaths,
        stormed=stormed,
        kills=len(absences),
        absences=list(absences),
        records=records,
        cores=3,
        partial=list(partial),
        left=[],
    )
    found = figures_of("coreward, pipe", 7, fates)
    return {figure.name.removeprefix(NAME): figure for figure in found}


def values(found: dict[str, Figure]) -> list[float]:
    names = (
        "of the series not on record",
        "more than once on record",
        "of all too few or too many",
    )
    return [found[name].value for name in names]


def test_a_line_of_the_series_is_a_death() -> None:
    found = Death.of("812 1234 5000000000 1500000 139")
    assert found == Death((812, 1234), 5.0, 0.0015)


def test_all_is_well() -> None:
    # GIVEN three deaths with records of their own, and a storm of which most are counted
    storm = [record(7, "storm"), counted(9, 8, 9)]
    found = figures([death(1), death(2), death(3)], [record(n) for n in (1, 2, 3)] + storm, 10)
    # THEN every demand is met
    assert {figure.verdict for figure in found.values()} == {"", "pass"}
    assert found["of all too few or too many"].detail == "13 of 13"
    assert found["agents killed"].detail.startswith("seed 7; from a kill until the next is ready")


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([record(1)], [1, 0, 1]),  # one is missing
        ([record(1), record(2), record(2)], [0, 1, 1]),
        ([record(1), counted(1, 2)], [0, 0, 0]),  # by its pid
        ([record(1), record(2), counted(1, 2)], [0, 1, 1]),
        ([record(1), record(2, comm="other")], [1, 0, 1]),
        ([record(1), record(2), record(3, "")], [0, 0, 1]),  # a note of one that is counted
        # the agent was away for so long that it knows the number only
        ([record(1), counted(1, comm="series")], [0, 0, 0]),
        ([record(1), counted(1, exe=None)], [0, 0, 0]),
        ([record(1), counted(1)], [1, 0, 0]),  # that was one of the storm
    ],
)
def test_each_is_looked_for(records: list[dict[str, Any]], expected: list[int]) -> None:
    assert values(figures([death(1), death(2)], records)) == expected


def test_none_of_the_storm_is_there_twice() -> None:
    storm = [record(7, "storm"), record(8, "storm"), record(8, "storm"), counted(4, 7, 9)]
    found = figures([death(1)], [record(1), *storm], 6)
    assert values(found) == [0, 2, 1]
    assert found["more than once on record"].detail == "pid 7, pid 8"


def test_a_pid_that_came_again_is_another_process() -> None:
    others = [{**record(1), "start_ns": 5 * TICK_NS}]
    assert values(figures([death(1)], others)) == [1, 0, 0]


def test_a_restart_is_not_what_they_are_held_for() -> None:
    # GIVEN one that died with an agent, one half of whose wait there was none, and one in between
    deaths = [death(1, 5.0, 0.08), death(2, 9.95, 0.1), death(3, 10.5, 0.3)]
    found = figures(deaths, [record(n) for n in (1, 2, 3)])
    # THEN what counts is how long they waited with an agent
    assert found["longest wait with an agent"].value == pytest.approx(80)
    assert found["longest wait beyond a restart"].value == pytest.approx(50)
    assert found["longest wait of all"].value == pytest.approx(300)
    assert found["longest wait of all"].target is None
    assert found["longest wait of all"].detail.endswith("account held for 1.5 at most")
    assert found["longest wait with an agent"].detail == "median 80.0 ms, p99 80.0, 1 deaths"


def test_nobody_may_be_held_for_longer() -> None:
    found = figures([death(1, 5.0, 0.11), death(2, 9.8, 0.5)], [record(1), record(2)])
    assert found["longest wait with an agent"].verdict == "MISS"
    assert found["longest wait beyond a restart"].verdict == "MISS"


def test_what_is_left_behind_is_named() -> None:
    found = figures([death(1)], [record(1)], partial=("a/.tmp-1", "b/core: cut off"))
    figure = found["cores that are not whole"]
    assert (figure.value, figure.verdict) == (2, "MISS")
    assert figure.detail == "a/.tmp-1, b/core: cut off"


def test_it_runs_only_if_asked_for() -> None:
    assert {"killed", "soak"}.isdisjoint(arguments([]).cases)
    chosen = arguments(["--case", "killed", "--crashes", "50", "--seed", "3"])
    assert (chosen.cases, chosen.crashes, chosen.seed) == (["killed"], 50, 3)
