"""Events of deaths, as the probe gives them: values for the tests of joining and recording."""

from __future__ import annotations

from typing import Any

import msgspec

from collector.model import Exit, FatalSignal, Identity, OomVictim, ProcessKey, Sender

TICK = 10_000_000  # ns
KEY = ProcessKey(812, 5_000 * TICK + 1234)
OTHER = Sender(pid=99, comm="bash", uid=1000)


def who(key: ProcessKey = KEY, tid: int | None = None) -> Identity:
    return Identity(
        key=key,
        tid=tid or key.pid,
        ns_pid=7,
        ns_tid=8,
        ppid=1,
        comm="victim",
        uid=1000,
        gid=100,
        cgroup_id=0,
        exe="/usr/bin/victim",
    )


def fatal(key: ProcessKey = KEY, **differs: Any) -> FatalSignal:
    """SIGSEGV at address 0 in a worker thread."""
    usual = FatalSignal(
        who=who(key, tid=key.pid + 3),
        time_ns=9_000 * TICK,
        signal=11,
        si_code=1,
        si_addr=0,
        siginfo=bytes(128),
        sender=None,
        regs=tuple(range(100, 127)),
        stack=(),
        site=None,
        last_fault=None,
        thread_name="worker-3",
    )
    return msgspec.structs.replace(usual, **differs)


def ended(key: ProcessKey = KEY, status: int = 11 | 0x80, **differs: Any) -> Exit:
    usual = Exit(who=who(key), time_ns=9_001 * TICK, status=status, sender=None, last_fault=None)
    return msgspec.structs.replace(usual, **differs)


def oom(key: ProcessKey = KEY) -> OomVictim:
    return OomVictim(who=who(key), time_ns=8_999 * TICK)
