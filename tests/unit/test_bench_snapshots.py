"""Snapshots in the benchmark: from samples to rows, verdicts, and which cases run."""

from __future__ import annotations

import pytest

from bench.__main__ import arguments
from bench.model import MIB, LiveCase, Result, Snapshot
from bench.report import snapshot_row
from bench.snapshots import LIVE_CASES
from bench.takers import AUTO, COPY, GCORE, NONE, NONSTOP, THREADS, Taker
from bench.verdicts import judge_snapshots

IDLE, WRITER = (
    next(case for case in LIVE_CASES if case.name == name)
    for name in ("snap-2GiB-16-idle", "snap-6GiB-16-writer")
)


def samples(taker: Taker, case: LiveCase, *stops: float, **parts: object) -> list[Snapshot]:
    """One snapshot for each stop, in milliseconds."""
    values: dict[str, object] = {
        "total_s": 2.0,
        "disk": 2048 * MIB,
        "interrupted": 0,
        "woken": 14,
        "throughput": 0.98,
        "written": 1.0 if case.rate else None,
        **parts,
    }
    return [
        Snapshot(
            peer=taker.name,
            case=case.name,
            round=turn,
            stop_ms=stop,
            stall_ms=stop + 0.5,
            **values,  # type: ignore[arg-type]
        )
        for turn, stop in enumerate(stops, 1)
    ]


def result(*lists: list[Snapshot], case: LiveCase = IDLE) -> Result:
    return Result(machine={}, live_cases=[case], snapshots=[one for some in lists for one in some])


def test_a_row_compares_medians_with_gcore() -> None:
    # GIVEN gcore and a pre-copy in three rounds each
    found = result(
        samples(GCORE, IDLE, 2900, 3100, 3000, interrupted=7, throughput=0.03),
        samples(AUTO, IDLE, 4, 2, 3, total_s=5.0, method="pre-copy", held_ms=2.5),
    )

    # THEN gcore's own row is the yardstick
    assert snapshot_row(found, IDLE, GCORE) == [
        "gdb's gcore",
        "3,000 [2,900-3,100]",
        "1.00",
        "3,000 [2,900-3,100]",
        "2.00",
        "1.00",
        "2,048",
        "7",
        "14",
        "3",
        "3",
        "",
    ]
    # AND the other is so many times shorter, and takes so many times as long
    assert snapshot_row(found, IDLE, AUTO) == [
        "coreward, auto",
        "3.00 [2.00-4.00]",
        "1,000",
        "3.50 [2.50-4.50]",
        "5.00",
        "2.50",
        "2,048",
        "0",
        "14",
        "98",
        "3",
        "pre-copy; held 2.50 ms by its own account",
    ]


def test_there_is_no_ratio_to_what_never_stopped_and_none_without_gcore() -> None:
    with_gcore = result(samples(GCORE, IDLE, 3000), samples(THREADS, IDLE, 0, woken=0))
    without = result(samples(AUTO, IDLE, 3))
    assert snapshot_row(with_gcore, IDLE, THREADS)[1:3] == ["0.00", "-"]
    assert [snapshot_row(without, IDLE, AUTO)[i] for i in (2, 5)] == ["-", "-"]


def test_a_row_says_what_is_odd() -> None:
    found = result(samples(COPY, WRITER, 9000, written=0.4, method="copy"), case=WRITER)
    found.absent[GCORE.name] = "gdb is not installed"
    assert snapshot_row(found, WRITER, COPY)[-1] == "copy; 40 % of its writes; fewer runs: slow"
    absent = snapshot_row(found, WRITER, GCORE)
    assert (absent[0], absent[-2:]) == (GCORE.name, ["0", "gdb is not installed"])
    assert len(absent) == len(snapshot_row(found, WRITER, COPY))


@pytest.mark.parametrize(
    ("case", "stops", "target", "verdict"),
    [
        (IDLE, (4.0, 5.0, 9.0), 5.0, "pass"),
        (IDLE, (4.0, 5.1, 9.0), 5.0, "MISS"),
        (WRITER, (9.0, 10.0), 10.0, "pass"),
        (WRITER, (10.0, 10.2), 10.0, "MISS"),
    ],
)
def test_the_median_stop_of_a_pre_copy_is_judged(
    case: LiveCase, stops: tuple[float, ...], target: float, verdict: str
) -> None:
    (figure,) = judge_snapshots(result(samples(AUTO, case, *stops), case=case))
    assert figure.name == f"{case.name}, auto: longest stop"
    assert (figure.target, figure.unit, figure.verdict) == (target, "ms", verdict)


def test_a_verdict_names_the_noise_beside_it() -> None:
    # GIVEN a thread held 0.1 ms, while others took its CPU for longer with and without a snapshot
    found = result(
        samples(NONE, IDLE, 0.0, 0.0, 0.0),
        samples(NONSTOP, IDLE, 0.08, 0.1, 0.3, method="rolling", held_ms=0.15),
    )
    (figure,) = judge_snapshots(found)
    assert (figure.value, figure.target, figure.verdict) == (0.1, 0.2, "pass")
    assert figure.detail == (
        "rolling; 0.08-0.30 in 3 rounds; by its own account 0.15 ms; "
        "any stall 0.60 ms; with no snapshot 0.50 ms"
    )


def test_no_target_is_judged_in_other_cases() -> None:
    other = next(case for case in LIVE_CASES if case.name == "snap-256MiB-16-idle")
    assert judge_snapshots(result(samples(AUTO, other, 50.0), case=other)) == []


def test_which_cases_run() -> None:
    names = {case.name for case in LIVE_CASES}
    assert names <= set(arguments([]).cases)
    assert names & set(arguments(["--quick"]).cases) == {"snap-256MiB-16-writer"}
    assert names & set(arguments(["--case", "snapshots"]).cases) == names
    assert arguments(["--case", "snap-sparse"]).cases == ["snap-sparse"]
