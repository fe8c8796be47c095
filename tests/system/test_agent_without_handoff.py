"""Crashes that the kernel hands over to nobody: BPF alone tells why, and where in the code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.agents import RunningAgent, agent, functions
from tests.system.victims import running

NOT_HELD = "no hand-off: hold.backend is none"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    with agent(tmp_path_factory.mktemp("agent"), backend="none", loader="core") as one:
        yield one


def crash(alone: RunningAgent, name: str, folder: Path) -> dict[str, Any]:
    with running(name, cwd=folder) as victim:
        victim.go()
        victim.wait()
        return alone.record(victim.pid)


def test_a_crash_has_its_backtrace(alone: RunningAgent, tmp_path: Path) -> None:
    # WHEN a process dumps core into a file
    record = crash(alone, "null_main", tmp_path)
    # THEN the record has its reason and its frames, from what BPF saw of the stack
    assert record["reason"] == "SIGSEGV: wrote to address 0x0 in `inner` (null_main.c:6)"
    assert functions(record) == ["inner", "outer", "main"]
    assert record["lost"].keys() - {"cgroup"} == {"core", "symbols"}
    assert (record["lost"]["core"], record["core"]) == (NOT_HELD, None)


def test_a_backtrace_that_is_cut_says_so(alone: RunningAgent, tmp_path: Path) -> None:
    # WHEN a process dies with more stack than BPF copies
    record = crash(alone, "stack_overflow", tmp_path)
    # THEN its innermost frames are there, and that there are others is said
    found = functions(record)
    assert len(found) > 100 and set(found) == {"recurse"}
    assert record["lost"]["outer_frames"] == "the stack beyond the 32 KiB that BPF copies"
