"""From samples to places, and how they are shown."""

from __future__ import annotations

import msgspec
import pytest

from collector.cli import places as shown
from collector.cli.render import Screen
from collector.sample.group import Inner, Place, PlaceThread, places
from collector.sample.report import PlaceThreadRow, ProcessReport, report_of
from collector.sample.types import Sample
from tests.unit.sample_builders import IDENTITY, SECOND, frame, sample, thread

WAIT = (frame("lock"), frame("pop", 2), frame("worker", 3), frame("start_thread", 4))
HOT, COLD = frame("hot", 10), frame("cold", 11)
LOOP = (frame("loop", 12), frame("main", 13))
FRAMES = {
    b"wait": WAIT,
    b"wait-too": tuple(msgspec.structs.replace(f, module="/bin/app") for f in WAIT),
    b"hot": (HOT, *LOOP),
    b"cold": (COLD, *LOOP),
    b"loop": LOOP,
    b"alone": (frame("elsewhere", 99),),
}


def place(state: str = "S", waits_in: str | None = "futex", **parts: object) -> Place:
    values: dict[str, object] = {"frames": WAIT, "inner": (), "threads": ()}
    return Place(state=state, waits_in=waits_in, **{**values, **parts})  # type: ignore[arg-type]


def member(
    tid: int = 1, samples: int = 3, of: int = 3, longest: float = 2, cpu: float = 0
) -> PlaceThread:
    return PlaceThread(
        tid=tid,
        name=f"worker-{tid}",
        samples=samples,
        of=of,
        longest_ns=int(longest * SECOND),
        cpu_ns=int(cpu * SECOND),
    )


def test_threads_with_equal_stacks_are_in_one_place() -> None:
    # GIVEN two threads at the same place, though the copies of their stacks differ
    samples = [
        sample(second, thread(1, stack=b"wait"), thread(2, stack=b"wait-too"))
        for second in range(3)
    ]
    assert places(samples, FRAMES) == [place(threads=(member(1), member(2)))]


def test_a_long_stay_is_one_without_running() -> None:
    # GIVEN a thread that comes back to its place each time, and one that never left it
    samples = [
        sample(second, thread(1, stack=b"wait", switches=second), thread(2, stack=b"wait"))
        for second in range(3)
    ]
    (found,) = places(samples, FRAMES)
    assert [t.longest_ns for t in found.threads] == [0, 2 * SECOND]


def test_a_long_stay_is_told_by_time_on_cpu_where_switches_are_not_known() -> None:
    samples = [
        sample(second, thread(1, stack=b"wait", switches=None, runtime_ns=second))
        for second in range(3)
    ]
    (found,) = places(samples, FRAMES)
    assert found.threads[0].longest_ns == 0


def test_a_running_thread_is_where_its_samples_have_their_callers_in_common() -> None:
    # GIVEN a thread that runs, seen in two functions and between them
    samples = [
        sample(second, thread(state="R", syscall=None, stack=stack, runtime_ns=second * SECOND))
        for second, stack in enumerate((b"hot", b"hot", b"cold", b"loop"))
    ]
    assert places(samples, FRAMES) == [
        place(
            "R",
            None,
            frames=LOOP,
            inner=(
                Inner(function="hot", samples=2),
                Inner(function="cold", samples=1),
                Inner(function="(itself)", samples=1),
            ),
            threads=(member(samples=4, of=4, longest=3, cpu=3),),
        )
    ]


def test_running_samples_without_common_callers_stay_apart() -> None:
    samples = [
        sample(second, thread(state="R", syscall=None, stack=stack))
        for second, stack in enumerate((b"hot", b"alone"))
    ]
    assert [p.frames for p in places(samples, FRAMES)] == [FRAMES[b"hot"], FRAMES[b"alone"]]


def test_a_later_thread_of_the_same_id_is_another() -> None:
    samples = [
        sample(0, thread(runtime_ns=100 * SECOND)),
        sample(1, thread(start_ns=8, runtime_ns=SECOND)),
    ]
    (found,) = places(samples, {})
    assert [(t.samples, t.of, t.cpu_ns) for t in found.threads] == [(1, 1, 0), (1, 1, 0)]


def test_places_are_in_order_of_their_use() -> None:
    samples = [
        sample(
            second,
            thread(1, syscall="poll"),
            thread(2, syscall="poll"),
            thread(3, syscall="read"),
            thread(4, state="R", syscall=None, runtime_ns=second * SECOND),
        )
        for second in range(2)
    ]
    assert [p.waits_in for p in places(samples, {})] == [None, "poll", "read"]


# ---- the report, and how it is shown


def report(*samples: Sample, ended: bool = False) -> ProcessReport:
    return report_of(IDENTITY, samples, FRAMES, ended=ended, lost={"part": "why"})


BUSY = [
    sample(
        second,
        thread(1, stack=b"wait"),
        thread(2, stack=b"wait"),
        thread(3, name="loader\x1b[2J", syscall=None, state="D", wait_channel="folio_wait_bit"),
        thread(
            4,
            name="main",
            state="R",
            syscall=None,
            stack=(b"hot", b"hot", b"cold")[second],
            runtime_ns=second * SECOND,
        ),
    )
    for second in range(3)
]


def test_a_report_names_stacks_and_frames_by_number() -> None:
    found = report(*BUSY)
    assert found.stacks[found.samples[0].threads[0].stack or 0] == [0, 1, 2, 3]
    assert [found.frames[n].function for n in found.stacks[0]] == [f.function for f in WAIT]
    first, second, third = found.samples
    assert (first.offset_s, second.offset_s, third.offset_s) == (0, 1, 2)
    assert [(t.name, t.cpu_s, t.switches) for t in first.threads][3] == ("main", None, None)
    assert [(t.name, t.cpu_s, t.switches) for t in second.threads][3] == ("main", 1.0, 0)
    assert (found.elapsed_s, found.cpu_s, found.lost) == (2.0, 2.0, {"part": "why"})
    assert msgspec.json.decode(msgspec.json.encode(found), type=ProcessReport) == found


def test_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown.lines(report(*BUSY), Screen(), stacks=False) == [
        "app[4242] /bin/app: 3 samples in 2.0 s, 4 threads, 1.00 CPUs busy",
        "STATE       CPU  SEEN  LONGEST  THREADS        WAITS IN        WHERE",
        "running    1.00   3/3    2.0 s  main           -               "
        "hot 67 %, cold 33 % < loop < main",
        "sleeping   0.00   6/6    2.0 s  worker-# x2    futex           lock < pop < worker",
        "stuck (D)  0.00   3/3    2.0 s  loader\\x1b[2J  folio_wait_bit  -",
    ]


def test_whole_stacks_stand_under_the_table() -> None:
    lines = shown.lines(report(*BUSY[:1], ended=True), Screen(), stacks=True)
    assert lines[0] == "app[4242] /bin/app: 1 sample in 0.0 s, 4 threads, ended"
    at = lines.index("worker-# x2, sleeping in futex, 2 samples (tid 1 2):")
    assert lines[at + 1 : at + 5] == [
        "#0  0x0000000000000001 in lock [/bin/app]",
        "#1  0x0000000000000002 in pop [/bin/app]",
        "#2  0x0000000000000003 in worker [/bin/app]",
        "#3  0x0000000000000004 in start_thread [/bin/app]",
    ]
    assert "(no stack)" in lines


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["main"], "main"),
        (["pool", "pool"], "pool x2"),
        (["w-1", "w-22", "w-3"], "w-# x3"),
        (["w-1", "w-2", "main", "timer", "gc"], "w-# x2, main, +2"),
    ],
)
def test_names_of_threads(given: list[str], expected: str) -> None:
    rows = [
        PlaceThreadRow(tid=tid, name=name, samples=1, of=1, longest_s=0, cpu_s=0)
        for tid, name in enumerate(given)
    ]
    assert shown.names(rows) == expected


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9, "9.0 s"), (99.94, "99.9 s"), (125.2, "2m05s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert shown.duration(seconds) == text
