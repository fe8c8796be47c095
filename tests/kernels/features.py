"""The rows of docs/kernels.md: what is tried on each kernel, and what must come of it.

An expectation may name a kernel version: it says what *should* be, and a run that finds anything
else fails, whether a feature is gone or has come. The product itself never asks for a version.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

import msgspec


class State(enum.StrEnum):
    """What a try came to."""

    WORKS = "works"
    CANNOT = "cannot"  # not possible here, and the product says why
    FAILED = "failed"  # wrong, or refused without a reason


class Here(NamedTuple):
    """Where and with what something is tried; `handoff` and `loader` are "" if no matter."""

    release: str  # of the kernel, as `uname -r` has it
    loader: str
    handoff: str

    @property
    def version(self) -> tuple[int, int]:
        """Of the kernel, such as (6, 12)."""
        major, minor = self.release.split(".")[:2]
        return int(major), int(minor)


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One try. `detail`: why it is not possible, or what is wrong."""

    release: str
    loader: str
    handoff: str
    feature: str
    state: State
    expected: State
    detail: str = ""
    seconds: float = 0.0  # since the one before

    @property
    def surprising(self) -> bool:
        return self.state is not self.expected


Expectation = Callable[[Here], bool]


class Feature(NamedTuple):
    """A row. `works` tells whether it has to work; where it has not, the product must say why."""

    title: str
    works: Expectation = lambda here: True


def _socket(here: Here) -> bool:
    return here.handoff != "socket" or here.version >= (6, 17)


def _mapped_at_exit(here: Here) -> bool:
    """What was mapped is told when a process ends; only a CO-RE program can do that."""
    return here.loader == "core"


def _unwound(here: Here) -> bool:
    return here.handoff != "none" or _mapped_at_exit(here)


def _since(*version: int) -> Expectation:
    return lambda here: here.version >= version


# By hand-off and loader: the agent.
AGENT = {
    "ready": Feature("the agent is ready", _socket),
    "null": Feature("SIGSEGV, null dereference"),
    "worker": Feature("SIGSEGV in a worker thread among 50"),
    "abort": Feature("SIGABRT, abort()"),
    "divide": Feature("SIGFPE, integer division by zero"),
    "illegal": Feature("SIGILL"),
    "bus": Feature("SIGBUS, beyond the end of a mapped file"),
    "overflow": Feature("SIGSEGV, stack overflow"),
    "killed": Feature("SIGKILL, with its sender"),
    "exit": Feature("exit(3), where a rule names the process"),
    "exit-exe": Feature("exit(3), where a rule names the executable"),
    "oom": Feature("OOM kill in a memory cgroup"),
    "backtraces": Feature("backtraces of what dumps core", _unwound),
    "kill-backtrace": Feature("backtrace of what was killed", _mapped_at_exit),
    "cores": Feature("whole cores", lambda here: here.handoff != "none"),
    "instant": Feature(
        "instant release, memory read afterwards", lambda here: here.handoff != "none"
    ),
    "loop": Feature("200 deaths in a loop, each on record once"),
    "recorder": Feature("flight recorder: threads before the death"),
    "sample-core": Feature("flight recorder: core of a sample"),
    "restart": Feature("deaths while the agent is killed"),
    "alone": Feature("nothing but these deaths on record"),
    "settings": Feature("the kernel's settings are put back"),
    "equality": Feature(
        "core of 51 threads equal to the kernel's own", lambda here: here.handoff != "none"
    ),
}
# By loader: live processes.
LIVE = {
    "threads": Feature("snapshot --mode threads, nobody stops", lambda here: here.loader != "none"),
    "rolling": Feature("snapshot --mode threads --fpu"),
    "nonstop": Feature("snapshot --mode nonstop"),
    "fork": Feature("snapshot --mode full-stop, by fork"),
    "pre-copy": Feature("snapshot --mode full-stop, by pre-copy", _since(6, 7)),
    "copy": Feature("snapshot --mode full-stop --no-inject"),
    "auto": Feature("snapshot, mode chosen"),
    "gcore": Feature("gcore"),
    "sample": Feature("sample"),
}
# Once for each kernel.
KERNEL = {
    "doctor": Feature("doctor tells what then works"),
    "blind": Feature("an agent that can see no death does not say that it is ready"),
    "demo": Feature("make demo: three deaths, reason and backtrace"),
}
FEATURES = {**AGENT, **LIVE, **KERNEL}


def expected(feature: str, here: Here) -> State:
    return State.WORKS if FEATURES[feature].works(here) else State.CANNOT
