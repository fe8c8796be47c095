"""What it costs the kernel to list the registers and stacks of many threads, and who notices."""

from __future__ import annotations

import resource
import statistics
import time

from bench.model import Figure, LiveCase, Say
from bench.steady import running
from collector.probe.live import LiveProbe, open_live
from collector.snapshot.take import STACK_BYTES

KERNEL_TARGET = 2.0  # ms
_PASSES = 400  # the kernel's account of its own time is exact to some clock ticks of the whole
_PARTS = {"registers": 0, "registers and stacks": STACK_BYTES}


def measure(case: LiveCase, say: Say) -> list[Figure]:
    """Kernel time of one pass over all threads of the case, as mode `threads` makes it."""
    say(f"kernel time of listing {case.threads} threads: {_PASSES} passes")
    name = f"{case.threads:,} threads listed"
    with running(case) as target, open_live() as live:
        before = target.switches()
        target.window()
        figures = [
            _kernel_time(f"{name}, {part}", live, target.pid, size) for part, size in _PARTS.items()
        ]
        noticed, after = target.window(), target.switches()
    woken = sum(count != before.get(tid) for tid, count in after.items())
    passes = f"{len(_PARTS) * _PASSES} passes"
    return [
        *figures,
        Figure(name=f"{name}: stopped", value=woken, unit="threads", target=0, detail=passes),
        Figure(
            name=f"{name}: EINTR",
            value=noticed.interrupted,
            unit="calls",
            target=0,
            detail=passes,
        ),
    ]


def _kernel_time(name: str, live: LiveProbe, pid: int, stack: int) -> Figure:
    """The passes run in one thread, so that the time is theirs: with what Python's copies cost."""
    live.stacks(pid, stack)
    took = []
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_stime
    for _ in range(_PASSES):
        begun = time.monotonic()
        live.stacks(pid, stack)
        took.append((time.monotonic() - begun) * 1e3)
    used = resource.getrusage(resource.RUSAGE_THREAD).ru_stime - before
    return Figure(
        name=f"{name}: kernel time",
        value=used * 1e3 / _PASSES,
        unit="ms",
        target=KERNEL_TARGET,
        detail=f"mean of {_PASSES} passes, each {statistics.median(took):.2f} ms in all",
    )
