"""How `coreward sample` shows a report: one table for each process. Gathers nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from collector.cli import render
from collector.model import Frame
from collector.sample.group import is_outermost
from collector.sample.report import PlaceRow, PlaceThreadRow, ProcessReport

_HEAD = ["STATE", "CPU", "SEEN", "LONGEST", "THREADS", "WAITS IN", "WHERE"]
_TO_THE_RIGHT = (1, 2, 3)
_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "stuck (D)",  # uninterruptible
    "T": "stopped",
    "t": "traced",
    "I": "idle",
    "P": "parked",
    "Z": "zombie",
    "X": "dead",
}
_FRAMES = 6  # of a place, in its line
_FRAME_WIDTH = 48
_NAMES = 2  # kinds of threads that are named
_PLACES = 40


def lines(report: ProcessReport, screen: render.Screen, *, stacks: bool) -> list[str]:
    """The lines of one process; `stacks`: each place's whole stack under the table."""
    shown = report.places[:_PLACES]
    rows = [_HEAD, *(_row(place, report) for place in shown)]
    found = [screen.bold(_heading(report))]
    for number, row in enumerate(render.columns(rows, _TO_THE_RIGHT)):
        line = render.GAP.join(row).rstrip()
        if screen.width is not None:
            line = render.cut(line, screen.width)
        found.append(
            screen.dim(line) if number == 0 else _coloured(line, shown[number - 1], screen)
        )
    rest = report.places[_PLACES:]
    if rest:
        samples = sum(place.samples for place in rest)
        found.append(f"and {len(rest)} more places with {samples} samples")
    if stacks:
        for place in shown:
            found += ["", *_stack_lines(place, report)]
    return found


def _coloured(line: str, place: PlaceRow, screen: render.Screen) -> str:
    state = _STATES.get(place.state, place.state)
    return screen.red(state) + line[len(state) :] if place.state == "D" else line


def _heading(report: ProcessReport) -> str:
    who = report.process
    threads = {thread.tid for place in report.places for thread in place.threads}
    parts = [
        f"{_count(len(report.samples), 'sample')} in {duration(report.elapsed_s)}",
        _count(len(threads), "thread"),
    ]
    if report.elapsed_s:
        parts.append(f"{report.cpu_s / report.elapsed_s:.2f} CPUs busy")
    if report.ended:
        parts.append("ended")
    program = f" {who.exe}" if who.exe else ""
    return render.clean(f"{who.comm}[{who.key.pid}]{program}: {', '.join(parts)}")


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _row(place: PlaceRow, report: ProcessReport) -> list[str]:
    cpu = f"{place.cpu_s / report.elapsed_s:.2f}" if report.elapsed_s else "-"
    return [
        _STATES.get(place.state, place.state),
        cpu,
        f"{place.samples}/{sum(thread.of for thread in place.threads)}",
        duration(place.longest_s) if place.longest_s else "-",
        render.clean(names(place.threads)),
        render.clean(place.waits_in or "-"),
        render.clean(_where(place, report.frames)),
    ]


def duration(seconds: float) -> str:
    """`9.0 s`, `2m05s`."""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    return f"{round(seconds) // 60}m{round(seconds) % 60:02}s"


def names(threads: Sequence[PlaceThreadRow]) -> str:
    """`main`, `worker-# x16`, `worker-# x16, main, +3`: digits stand for any number."""
    if len(threads) == 1:
        return threads[0].name
    kinds = Counter(re.sub(r"\d+", "#", thread.name) for thread in threads)
    alike = {
        kind: {t.name for t in threads if re.sub(r"\d+", "#", t.name) == kind} for kind in kinds
    }
    parts = []
    for kind, count in kinds.most_common(_NAMES):
        name = next(iter(alike[kind])) if len(alike[kind]) == 1 else kind
        parts.append(f"{name} x{count}" if count > 1 else name)
    rest = sum(count for _, count in kinds.most_common()[_NAMES:])
    return ", ".join([*parts, f"+{rest}"] if rest else parts)


def _where(place: PlaceRow, frames: Sequence[Frame]) -> str:
    """The functions from the innermost to the outermost that says something."""
    found = [frames[number] for number in place.frames]
    while len(found) > 1 and is_outermost(found[-1]):
        found.pop()
    stack = [_name(frame) for frame in found]
    line = [render.cut(name, _FRAME_WIDTH) for name in stack[:_FRAMES]]
    if len(stack) > _FRAMES:
        line.append("…")
    if place.inner:
        line.insert(0, ", ".join(_share(i.function, i.samples, place.samples) for i in place.inner))
    return " < ".join(line) or "-"


def _share(function: str, samples: int, of: int) -> str:
    return f"{render.cut(function, _FRAME_WIDTH)} {100 * samples / of:.0f} %"


def _name(frame: Frame) -> str:
    if frame.function:
        return frame.function
    return f"[{frame.module.rsplit('/', 1)[-1]}]" if frame.module else f"{frame.pc:#x}"


def _stack_lines(place: PlaceRow, report: ProcessReport) -> list[str]:
    tids = " ".join(str(thread.tid) for thread in place.threads[:16])
    more = f" and {len(place.threads) - 16} more" if len(place.threads) > 16 else ""
    waits = f" in {place.waits_in}" if place.waits_in else ""
    heading = (
        f"{names(place.threads)}, {_STATES.get(place.state, place.state)}{waits}, "
        f"{_count(place.samples, 'sample')} (tid {tids}{more}):"
    )
    inner = [f"    {_share(i.function, i.samples, place.samples)}" for i in place.inner]
    frames = render.frame_lines([report.frames[number] for number in place.frames])
    return [*map(render.clean, [heading, *inner]), *(frames or ["(no stack)"])]
