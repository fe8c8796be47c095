"""What the attached BPF programs cost those who do not crash: with and without, taking turns."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bench.model import Figure, Say
from bench.programs import build
from collector.probe.probe import open_probe
from tests.system.settings import kernel_settings

_SIGNALS, _FORKS = 200_000, 2_000
_LOOPS = {
    "signals": ("a handled signal", _SIGNALS),
    "forks": ("fork, exit, wait", _FORKS),
}


def measure(rounds: int, say: Say) -> list[Figure]:
    """Nanoseconds that one handled signal, and one fork with its exit, take longer."""
    say(f"cost of the BPF programs: {rounds} rounds")
    program = build("loops")
    times: dict[tuple[str, bool], list[float]] = {}
    # the lock: no other agent of this machine has programs attached meanwhile
    with kernel_settings():
        for turn in range(rounds):
            for attached in (turn % 2 == 0, turn % 2 == 1):
                with _programs() if attached else contextlib.nullcontext():
                    for loop, (_, count) in _LOOPS.items():
                        times.setdefault((loop, attached), []).append(_run(program, loop, count))
    return [
        _figure(what, times[loop, True], times[loop, False]) for loop, (what, _) in _LOOPS.items()
    ]


@contextlib.contextmanager
def _programs() -> Iterator[None]:
    """The agent's programs, attached, with nobody reading."""
    with open_probe("auto", Path(f"/sys/fs/bpf/coreward-bench-{os.getpid()}")) as probe:
        try:
            yield
        finally:
            probe.unpin()


def _run(program: Path, loop: str, count: int) -> float:
    done = subprocess.run([str(program), loop, str(count)], capture_output=True, check=True)
    return float(done.stdout)


def _figure(what: str, attached: list[float], without: list[float]) -> Figure:
    extra = [one - other for one, other in zip(attached, without, strict=True)]
    base = statistics.median(without)
    return Figure(
        name=f"BPF programs, {what}",
        value=statistics.median(extra),
        unit="ns more",
        detail=f"{statistics.median(attached):.0f} : {base:.0f} ns "
        f"(+{100 * statistics.median(extra) / base:.1f} %), {len(extra)} rounds, "
        f"{min(extra):.0f} to {max(extra):.0f}",
    )
