"""Print a result: with rich on a terminal, as Markdown in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from bench.model import MIB, Case, Figure, LiveCase, Result, Sample, Snapshot, spread
from bench.peers import NoDump, Peer
from bench.takers import GCORE, Taker
from bench.verdicts import judge, judge_snapshots, snapshots_of, wait_of

Rows = list[list[str]]


_ON_SCHEDULE = 0.98  # a writer that made this part of its writes was not held up
_SNAPSHOT = (
    "peer",
    "longest stop, ms",
    "gcore : it",
    "any stall, ms",
    "total, s",
    "x gcore",
    "on disk, MiB",
    "EINTRs",
    "woken",
    "speed, %",
    "runs",
    "notes",
)


def show(result: Result, peers: Sequence[Peer], takers: Sequence[Taker]) -> None:
    """The whole result, on standard output."""
    facts = [[key, value] for key, value in result.machine.items()]
    _table("Machine", ["what", "value"], facts, right=0)
    for case in result.cases:
        header = ["peer", "signal to wait, ms", "x no dump", "core complete, ms", "on disk, MiB"]
        rows = [_row(result, case, peer) for peer in peers]
        _table(case.about, [*header, "CPU, ms", "runs", "notes"], rows, right=6)
    for live in result.live_cases:
        rows = [snapshot_row(result, live, taker) for taker in takers]
        _table(live.about, list(_SNAPSHOT), rows, right=10)
    for table in result.tables:
        _table(table.title, table.header, table.rows, right=len(table.header))
    figures = [*judge(result), *judge_snapshots(result), *result.figures]
    header = ["figure", "measured", "target", "verdict", "detail"]
    _table("Targets and figures", header, [_figure(f) for f in figures], right=2)
    for note in result.notes:
        print(f"note: {note}")


def _row(result: Result, case: Case, peer: Peer) -> list[str]:
    found = [s for s in result.samples if (s.peer, s.case) == (peer.name, case.name)]
    if not found:
        why = result.absent.get(peer.name, "too slow for this size")
        return [peer.name, "", "", "", "", "", "0", why]
    none = wait_of(result, NoDump.name, case.name)
    wait = spread(s.wait_ms for s in found)
    ratio = f"{wait.median / none.median:.2f}" if wait and none else ""
    return [
        peer.name,
        _spread([s.wait_ms for s in found]),
        ratio,
        _spread([s.complete_ms for s in found]),
        _spread([None if s.disk is None else s.disk / MIB for s in found], wide=False),
        _spread([s.cpu_ms for s in found], wide=False),
        str(len(found)),
        _notes(found, case),
    ]


def _notes(found: list[Sample], case: Case) -> str:
    notes = sorted({s.note for s in found if s.note})
    held = spread(s.held_ms for s in found)
    if held:
        notes.append(f"held {_number(held.median)} ms by its own account")
    if len(found) < case.rounds:
        notes.append("fewer runs: slow")
    return "; ".join(notes)


def snapshot_row(result: Result, case: LiveCase, taker: Taker) -> list[str]:
    """One line of a table of snapshots."""
    found = snapshots_of(result, taker.name, case)
    if not found:
        why = result.absent.get(taker.name, "no result")
        return [taker.name, *[""] * 9, "0", why]
    gcore = snapshots_of(result, GCORE.name, case)
    stop, total = _median(s.stop_ms for s in found), _median(s.total_s for s in found)
    shorter = _median(s.stop_ms for s in gcore) / stop if gcore and stop else None
    longer = total / _median(s.total_s for s in gcore) if gcore else None
    return [
        taker.name,
        _spread([s.stop_ms for s in found]),
        "-" if shorter is None else _number(shorter),
        _spread([s.stall_ms for s in found]),
        _spread([s.total_s for s in found]),
        "-" if longer is None else _number(longer),
        _spread([s.disk / MIB for s in found], wide=False),
        _spread([s.interrupted for s in found], whole=True),
        _spread([s.woken for s in found], whole=True),
        _spread([100 * s.throughput for s in found], whole=True),
        str(len(found)),
        _snapshot_notes(found, case),
    ]


def _snapshot_notes(found: list[Snapshot], case: LiveCase) -> str:
    notes = [", ".join(sorted({s.method for s in found if s.method}))]
    held = spread(s.held_ms for s in found)
    if held:
        notes.append(f"held {_number(held.median)} ms by its own account")
    written = spread(s.written for s in found)
    if written and written.median < _ON_SCHEDULE:
        notes.append(f"{100 * written.median:.0f} % of its writes")
    if len(found) < case.rounds:
        notes.append("fewer runs: slow")
    return "; ".join(filter(None, notes))


def _median(values: Iterable[float]) -> float:
    found = spread(values)
    assert found is not None
    return found.median


def _spread(values: Iterable[float | None], *, wide: bool = True, whole: bool = False) -> str:
    """`median [least-greatest]`, the latter only if they differ."""
    found = spread(values)
    if found is None:
        return "-"
    number = "{:.0f}".format if whole else _number
    text, low, high = map(number, found[:3])
    return f"{text} [{low}-{high}]" if wide and low != high else text


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _figure(figure: Figure) -> list[str]:
    target = ""
    if figure.target is not None:
        sign = ">=" if figure.at_least else "<" if figure.below else "<="
        target = f"{sign} {figure.target:g} {figure.unit}"
    value = f"{figure.value:.3f}" if abs(figure.value) < 1 else _number(figure.value)
    return [figure.name, f"{value} {figure.unit}", target, figure.verdict, figure.detail]


def _table(title: str, header: list[str], rows: Rows, *, right: int) -> None:
    """Columns 1 to `right` are numbers."""
    if sys.stdout.isatty():
        _rich_table(title, header, rows, right)
        return
    print(f"### {title}\n")
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for index, row in enumerate([header, *rows]):
        cells = [
            cell.rjust(width) if 1 <= column <= right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print(f"| {' | '.join(cells)} |")
        if index == 0:
            marks = [
                "-" * (width - 1) + (":" if 1 <= column <= right else "-")
                for column, width in enumerate(widths)
            ]
            print(f"| {' | '.join(marks)} |")
    print(flush=True)


def _rich_table(title: str, header: list[str], rows: Rows, right: int) -> None:
    from rich.console import Console  # noqa: PLC0415 - only for a terminal
    from rich.table import Table  # noqa: PLC0415

    table = Table(title=title, title_justify="left")
    for column, name in enumerate(header):
        table.add_column(name, justify="right" if 1 <= column <= right else "left")
    for row in rows:
        style = {"pass": "green", "MISS": "red"}
        table.add_row(*(f"[{style[c]}]{c}[/]" if c in style else _plain(c) for c in row))
    Console().print(table)


def _plain(text: str) -> str:
    return text.replace("[", "\\[")
