"""What the agent costs while nothing happens: its memory, and its share of a core."""

from __future__ import annotations

import time

from bench.coreward import CorewardSession, coreward, warm_up
from bench.model import Figure, Say
from bench.processes import cpu_ms, memory_kib, with_descendants

IDLE_S = 60.0
QUICK_IDLE_S = 15.0
RSS_TARGET = 35.0  # MB
CPU_TARGET = 0.05  # percent of a core
_TRIES = 3


def measure(seconds: float, say: Say) -> list[Figure]:
    """Start an agent as it is by default, let one process die, then leave it alone."""
    say(f"at rest for {seconds:.0f} s")
    with coreward("auto") as session:
        fresh_kib = _resident_kib(session.pid)
        warm_up(session)
        for _ in range(_TRIES):
            known = _deaths(session)
            before_ms, begun = cpu_ms(session.pid), time.monotonic()
            time.sleep(seconds)  # the measured thing is that nothing happens
            used_ms, passed_s = cpu_ms(session.pid) - before_ms, time.monotonic() - begun
            others = _deaths(session) - known
            if not others:
                break
            say(f"{others} other processes died meanwhile: again")
        processes = with_descendants(session.pid)
        anonymous = sum(memory_kib(pid, "RssAnon") for pid in processes) * 1024 / 1e6
        resident = _resident_kib(session.pid) * 1024 / 1e6
    return [
        Figure(
            name="agent at rest, resident",
            value=resident,
            unit="MB",
            target=RSS_TARGET,
            below=True,
            detail=f"{len(processes)} process, {anonymous:.1f} MB of it anonymous; "
            f"{fresh_kib * 1024 / 1e6:.1f} MB before its first crash",
        ),
        Figure(
            name="agent at rest, share of a core",
            value=used_ms / passed_s / 10,
            unit="%",
            target=CPU_TARGET,
            below=True,
            detail=f"{used_ms:.2f} ms in {passed_s:.0f} s"
            + (f", NOT at rest: {others} other processes died" if others else ""),
        ),
    ]


def _deaths(session: CorewardSession) -> int:
    return len(list((session.agent.store / "crashes").iterdir()))


def _resident_kib(pid: int) -> int:
    return sum(memory_kib(one, "VmRSS") for one in with_descendants(pid))
