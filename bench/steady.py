"""A process that goes on and notices what is done to it: `steady.c`.

It works on the last CPU. Who takes a snapshot runs on the others (`elsewhere`): what the worker
notices then is what was done to it, and not that somebody else had its CPU.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.launch import LaunchError
from bench.model import LiveCase
from bench.programs import build

WORKER = "worker"  # the name of the working thread


class Window(NamedTuple):
    """What it noticed in some stretch of time."""

    seconds: float
    loops: int
    written: int  # pages
    stall_ms: float  # the longest, for whatever reason
    stop_ms: float  # the longest in which it slept: it was stopped, or waited in the kernel
    interrupted: int  # calls that returned EINTR


class Steady:
    """A running one."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid
        if self._line() != ["ready"]:
            raise LaunchError(f"{process.args!r}: did not come up")

    def window(self) -> Window:
        """What it noticed since it was asked last."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        ns, loops, written, stall_ns, stop_ns, interrupted = map(int, self._line())
        return Window(ns / 1e9, loops, written, stall_ns / 1e6, stop_ns / 1e6, interrupted)

    def _line(self) -> list[str]:
        assert self._process.stdout is not None
        words = self._process.stdout.readline().split()
        if not words:
            raise LaunchError(f"{self._process.args!r}: ended, and should not have")
        return words

    def switches(self) -> dict[int, int]:
        """How often each of the threads that are blocked for good was switched to, by its id.

        A thread that is stopped and goes on is switched to; a thread that is looked at is not.
        """
        counts = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            status = (task / "status").read_text()
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            if int(task.name) != self.pid and fields["Name"] != WORKER:
                names = ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")
                counts[int(task.name)] = sum(int(fields[name]) for name in names)
        return counts

    def until_blocked(self) -> None:
        """Until all those threads are in their calls."""
        before, now = None, self.switches()
        while before != now:
            time.sleep(0.05)
            before, now = now, self.switches()


@functools.cache
def steady() -> Path:
    return build("steady")


def worker_cpu() -> int:
    return max(os.sched_getaffinity(0))


def elsewhere() -> None:
    """In a new process: keep away from the worker's CPU."""
    others = os.sched_getaffinity(0) - {worker_cpu()}
    if others:
        os.sched_setaffinity(0, others)


@contextlib.contextmanager
def running(case: LiveCase) -> Iterator[Steady]:
    """The case's process, at work; gone at the end. Raises LaunchError."""
    numbers = (case.mib, case.threads, case.rate, case.sparse_gib, worker_cpu())
    with subprocess.Popen(
        [str(steady()), *map(str, numbers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            found = Steady(process)
            found.until_blocked()
            yield found
        finally:
            process.kill()
