"""What a system call costs whoever is traced, and whoever is not: beside strace and perf trace.

The loop is getppid(2), the call that does the least; all in one run, taking turns. Of each run the
fastest hundredth counts, so that other load does not. Nobody else may trace meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.model import Figure, Say, Table
from bench.programs import build
from collector.trace import RECORD, Rule, Tracer
from collector.trace.command import Command

_CALLS = 300_000
_SLOW_CALLS = 5_000  # under those that stop the process at each of them
_RING = 64 << 20  # bytes: all events of a run have room, nobody has to read them meanwhile
_ARMED_NS = 200.0  # to reach: what a call takes longer while it is recorded
_TIMES_FASTER = 100.0  # to reach: than strace
_BASE = "not traced"
_RECORD = "recorded, last 64 calls"


def measure(rounds: int, say: Say) -> tuple[list[Figure], Table]:
    """Nanoseconds of one call in each way, and what is demanded of them."""
    say(f"cost of tracing: {rounds} rounds")
    program = build("loops")
    ways: dict[str, Callable[[Path], float]] = {
        _BASE: _plain,
        "programs attached, not traced itself": _beside,
        _RECORD: lambda loops: _traced(loops, Rule(mode=RECORD)),
        "recorded, with 64 bytes of strings": lambda loops: _traced(
            loops, Rule(mode=RECORD, strings=64)
        ),
        "live": lambda loops: _traced(loops, Rule()),
        "live, a ring that is full": lambda loops: _traced(loops, Rule(), ring=64 << 10),
        **_peers(),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        names = list(ways) if turn % 2 else list(reversed(ways))
        for name in names:
            times[name].append(ways[name](program))
    return _figures(times), _table(times)


def _plain(loops: Path) -> float:
    return _run([str(loops), "calls", str(_CALLS)])


def _beside(loops: Path) -> float:
    with Tracer(Rule(mode=RECORD)):
        return _plain(loops)


def _traced(loops: Path, rule: Rule, ring: int = _RING) -> float:
    with tempfile.TemporaryFile("w+") as said, Tracer(rule, ring=ring) as tracer, _stdout(said):
        command = Command([str(loops), "calls", str(_CALLS)])
        tracer.attach(command.pid, from_exec=True)
        command.go()
        assert command.wait() == 0
        said.seek(0)
        return float(said.read())


@contextlib.contextmanager
def _stdout(file: tempfile._TemporaryFileWrapper[str]) -> Iterator[None]:
    """The standard output of a command that is started here."""
    saved = os.dup(1)
    os.dup2(file.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def _peers() -> dict[str, Callable[[Path], float]]:
    """Those that can be had here."""

    def under(*tracer: str) -> Callable[[Path], float]:
        return lambda loops: _run([*tracer, str(loops), "calls", str(_SLOW_CALLS)])

    found: dict[str, Callable[[Path], float]] = {}
    if shutil.which("strace"):
        found["strace -f"] = under("strace", "-f", "-o", "/dev/null")
    perf = ["perf", "trace", "-o", "/dev/null", "--"]
    if (
        shutil.which("perf")
        and subprocess.run([*perf, "true"], capture_output=True, check=False).returncode == 0
    ):
        found["perf trace"] = lambda loops: _run([*perf, str(loops), "calls", str(_CALLS)])
    return found


def _run(command: list[str]) -> float:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def _figures(times: dict[str, list[float]]) -> list[Figure]:
    medians = {name: statistics.median(values) for name, values in times.items()}
    base, record = medians[_BASE], medians[_RECORD]
    detail = f"{record:.0f} : {base:.0f} ns, {len(times[_BASE])} rounds"
    found = [
        Figure(
            name="trace: a call that is recorded",
            value=record - base,
            unit="ns more",
            target=_ARMED_NS,
            detail=detail,
        )
    ]
    if "strace -f" in medians:
        strace = medians["strace -f"]
        found.append(
            Figure(
                name="trace: what strace adds, by what a record adds",
                value=(strace - base) / (record - base),
                unit="x",
                target=_TIMES_FASTER,
                at_least=True,
                detail=f"{strace:.0f} ns under strace -f",
            )
        )
    return found


def _table(times: dict[str, list[float]]) -> Table:
    base = statistics.median(times[_BASE])
    rows = []
    for name, values in times.items():
        middle = statistics.median(values)
        spread = f"{min(values):,.0f} to {max(values):,.0f}"
        rows.append([name, f"{middle:,.0f}", f"{middle - base:+,.0f}", spread])
    header = ["one getppid(2)", "ns", "more", "rounds"]
    return Table(title="What tracing costs", header=header, rows=rows)
