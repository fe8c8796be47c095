"""Samples for tests, built from few words."""

from __future__ import annotations

import datetime

from collector.introspect.types import ProcessIdentity
from collector.model import Frame, ProcessKey
from collector.sample.types import KeptStack, Sample, ThreadSample

SECOND = 1_000_000_000


def thread(tid: int = 1, **changes: object) -> ThreadSample:
    values: dict[str, object] = {
        "tid": tid,
        "name": f"worker-{tid}",
        "start_ns": 7,
        "state": "S",
        "runtime_ns": 0,
        "switches": 1,
        "syscall": "futex",
    }
    return ThreadSample(**{**values, **changes})  # type: ignore[arg-type]


def sample(second: float, *threads: ThreadSample) -> Sample:
    return Sample(time_ns=int(second * SECOND), took_ns=1000, threads=threads)


def frame(function: str | None, pc: int = 1, module: str | None = "/bin/app") -> Frame:
    return Frame(pc=pc, function=function, module=module)


def kept(size: int = 100) -> KeptStack:
    return KeptStack(0, (0,) * 21, 0x1000, bytes(size))


IDENTITY = ProcessIdentity(
    key=ProcessKey(4242, 0),
    ns_pid=4242,
    ppid=1,
    started=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    comm="app",
    exe="/bin/app",
    cmdline=["app"],
    uid=0,
    gid=0,
    cgroup=None,
    unit=None,
    container=None,
    threads=1,
    resident_bytes=1,
)
