"""What it costs the kernel to list the registers and stacks of many threads, and who notices."""

from __future__ import annotations

import resource
import statistics
import time

from bench.model import Figure, LiveCase, Say
from bench.steady import running
from collector.capture.live.snapshot import STACK_BYTES
from collector.probe.live import open_live

KERNEL_TARGET = 2.0  # ms
_PASSES = 200  # the kernel's account of its own time is exact to a clock tick of the whole


def measure(case: LiveCase, say: Say) -> list[Figure]:
    """Kernel time of one pass over all threads of the case, as mode `threads` makes it."""
    say(f"kernel time of listing {case.threads} threads: {_PASSES} passes")
    with running(case) as target, open_live() as live:
        live.stacks(target.pid, STACK_BYTES)
        before = target.switches()
        target.window()
        used, took = resource.getrusage(resource.RUSAGE_THREAD), []
        for _ in range(_PASSES):
            begun = time.monotonic()
            live.stacks(target.pid, STACK_BYTES)
            took.append((time.monotonic() - begun) * 1e3)
        system = resource.getrusage(resource.RUSAGE_THREAD).ru_stime - used.ru_stime
        noticed, after = target.window(), target.switches()
    woken = sum(count != before.get(tid) for tid, count in after.items())
    name = f"{case.threads} threads listed"
    detail = f"{_PASSES} passes, {statistics.median(took):.2f} ms each with the copies in Python"
    return [
        Figure(
            name=f"{name}: kernel time",
            value=system * 1e3 / _PASSES,
            unit="ms",
            target=KERNEL_TARGET,
            detail=detail,
        ),
        Figure(name=f"{name}: stopped", value=woken, unit="threads", target=0),
        Figure(name=f"{name}: EINTR", value=noticed.interrupted, unit="calls", target=0),
    ]
