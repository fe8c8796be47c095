"""Traced processes in the agent: a record has the last system calls of each thread."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.agents import RunningAgent, agent
from tests.system.recorders import until
from tests.system.victims import Victim, build, running, wait_until, wish

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.beside,
]

TRACE = """
defaults: {{limit: none}}
recorder: {{memory: 4MiB}}
watch:
  - name: leaky
    match: {{exe: {leaky}}}
    every: 20ms
    keep: 5
    memory: 1MiB
    triggers: [{{name: leak, descriptors: 150}}]
rules: [{{name: exits, match: {{exe: {exe}, cause: exit}}, capture: record}}]
trace:
  - name: service
    match: {{exe: {exe}}}
    calls: 8
    strings: 16
    exclude: [futex, "%memory", getrandom]
  - {{name: leaky, match: {{exe: {leaky}}}}}
  - {{name: unmapping, match: {{exe: {unmapping}}}, include: [munmap]}}
"""
THREADS = "coreward_traced_threads"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the victim, so that no other test's processes are traced."""
    return Path(shutil.copy(build("traced"), tmp_path_factory.mktemp("program")))


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that opens files, which a trigger looks at."""
    return Path(shutil.copy(build("watched"), tmp_path_factory.mktemp("program") / "leaky"))


@pytest.fixture(scope="module")
def unmapping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that reads what it has unmapped."""
    return Path(shutil.copy(build("diagnoses"), tmp_path_factory.mktemp("program") / "unmapping"))


@pytest.fixture(scope="module")
def tracing_agent(
    tmp_path_factory: pytest.TempPathFactory, program: Path, leaky: Path, unmapping: Path
) -> Iterator[RunningAgent]:
    config = TRACE.format(exe=program, leaky=leaky, unmapping=unmapping)
    folder = tmp_path_factory.mktemp("agent")
    with agent(folder, config=config, backend="none", metrics=True) as one:
        yield one
        assert not [line for line in one.lines if "Traceback" in line]


@contextlib.contextmanager
def traced(
    running_agent: RunningAgent, program: Path, *arguments: str, threads: int = 1
) -> Iterator[Victim]:
    """A process that has been found, and is the only one."""
    wait_until(lambda: not running_agent.metric(THREADS), "the one before is forgotten")
    with running("traced", *arguments, cwd=program.parent, file=program) as victim:
        until(running_agent, THREADS, threads)
        yield victim


def calls_of(running_agent: RunningAgent, record: dict[str, Any]) -> list[dict[str, Any]]:
    found = json.loads(running_agent.command("calls", record["id"], "--json"))
    threads: list[dict[str, Any]] = found["threads"]
    return threads


def test_a_killed_process_has_the_call_that_it_was_in(
    tracing_agent: RunningAgent, program: Path
) -> None:
    # GIVEN a traced process that reads what does not come
    with traced(tracing_agent, program, "sleep") as victim:
        victim.go()
        os.kill(victim.pid, signal.SIGTERM)
        assert victim.wait() == -signal.SIGTERM
        record = tracing_agent.record(victim.pid)
    # THEN its record says so
    assert record["calls"].items() >= {"rule": "service", "threads": 1, "file": "calls.zst"}.items()
    (thread,) = calls_of(tracing_agent, record)
    assert (thread["tid"], thread["comm"]) == (victim.pid, "traced")
    # AND people are shown the last ones
    shown = tracing_agent.command("info", record["id"])
    assert "Last calls of the thread\n" in shown
    assert "read(0, " in shown


def test_the_use_of_what_was_unmapped(tracing_agent: RunningAgent, unmapping: Path) -> None:
    # GIVEN a traced process that unmaps a page
    wait_until(lambda: not tracing_agent.metric(THREADS), "the one before is forgotten")
    folder = unmapping.parent
    with running("diagnoses", "unmapped", cwd=folder, file=unmapping, core_limit=0) as victim:
        until(tracing_agent, THREADS, 1)
        # WHEN it reads that page
        victim.go()
        assert victim.wait() == -signal.SIGSEGV
        record = tracing_agent.record(victim.pid)
    # THEN that is what it died of
    found = record["diagnosis"]
    assert (found["category"], found["confidence"]) == ("use-after-unmap", "certain")
    assert "which it had unmapped before" in record["reason"]


def test_an_exit_has_the_last_calls_with_their_texts(
    tracing_agent: RunningAgent, program: Path
) -> None:
    with traced(tracing_agent, program, "text", "3000") as victim:
        victim.go()
        assert victim.wait() == 3
        record = tracing_agent.record(victim.pid)
    (thread,) = calls_of(tracing_agent, record)
    names = [call["name"] for call in thread["calls"]]
    # mmap(2) and brk(2) are left out by the rule
    assert names == ["read", "openat", "write", "openat", "exit_group"]
    assert thread["calls"][2]["texts"]["1"]["data"] == "x" * 16
    assert thread["calls"][-1]["result"] is None
    text = tracing_agent.command("calls", record["id"], "--thread", str(victim.pid))
    assert 'openat(AT_FDCWD, "/\\33]0;title\\7\\n+++ "..., O_RDONLY) = -1 ENOENT' in text
    assert "exit_group(3) = ? (it did not return in " in text
    missing = tracing_agent.attempt("calls", record["id"], "--thread", "1")
    assert missing.returncode == 1
    assert f"thread 1 kept none; {victim.pid} did" in missing.stderr


def test_every_thread_of_many_has_its_own(tracing_agent: RunningAgent, program: Path) -> None:
    with traced(tracing_agent, program, "threads", "300", threads=301) as victim:
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        record = tracing_agent.record(victim.pid)
    threads = calls_of(tracing_agent, record)
    assert record["calls"]["threads"] == len(threads) == 301


def where_it_waits(pid: int) -> list[str]:
    """Number and arguments of its system call; empty if it is in none."""
    words = Path(f"/proc/{pid}/syscall").read_text().split()
    return words[:4] if words[0].isdigit() else []


def test_a_snapshot_has_the_calls_of_the_process_that_goes_on(
    tracing_agent: RunningAgent, program: Path
) -> None:
    # GIVEN a traced process that reads what does not come
    with traced(tracing_agent, program, "sleep") as victim:
        first = where_it_waits(victim.pid)
        victim.go()
        wait_until(
            lambda: where_it_waits(victim.pid)[:1] == ["0"] and where_it_waits(victim.pid) != first,
            "it reads again",
        )
        # WHEN a snapshot of it is taken, of each kind
        for mode in ("threads", "nonstop", "full-stop"):
            record = tracing_agent.snapshot(victim.pid, "--mode", mode)
            # THEN the record has its calls, and none that the snapshot made it do
            facts = {"rule": "service", "threads": 1, "file": "calls.zst"}
            assert record["calls"].items() >= facts.items()
            assert "calls" not in record["lost"]
            (thread,) = calls_of(tracing_agent, record)
            assert (thread["tid"], thread["calls"][-1]["name"]) == (victim.pid, "read")
            assert {call["name"] for call in thread["calls"]} == {"read"}
            assert thread["calls"][-1]["result"] is None
            shown = tracing_agent.command("info", record["id"])
            assert "Last calls of the thread\n" in shown
        # AND a later death has its own
        victim.process.kill()
        victim.wait()
        record = tracing_agent.record(victim.pid)
    (thread,) = calls_of(tracing_agent, record)
    assert thread["calls"][-1]["name"] == "read"


def test_the_snapshot_of_a_trigger_has_them(tracing_agent: RunningAgent, leaky: Path) -> None:
    # GIVEN a process that is watched and traced
    wait_until(lambda: not tracing_agent.metric(THREADS), "the one before is forgotten")
    with running("watched", cwd=leaky.parent, file=leaky) as victim:
        until(tracing_agent, THREADS, 3)
        until(tracing_agent, "coreward_watched_processes", 1)
        # WHEN a trigger fires, since it opens files
        wish(victim, "f")
        line = tracing_agent.wait_line(rf"^\S+ [0-9a-f]{{16}} pid {victim.pid} leaky: leak: ")
        victim.process.kill()
        victim.wait()
    record = tracing_agent.info(line.split()[1])
    assert record["calls"].items() >= {"rule": "leaky", "threads": 3, "file": "calls.zst"}.items()
    threads = {thread["tid"]: thread for thread in calls_of(tracing_agent, record)}
    names = [call["name"] for call in threads[victim.pid]["calls"]]
    # THEN its last calls are there: it opened the files, said so, and waits
    assert names[-2:] == ["write", "read"]
    assert names.count("dup") > 10 or names.count("openat") > 10


def test_a_snapshot_of_what_nobody_traced_has_none(
    tracing_agent: RunningAgent, program: Path
) -> None:
    with running("waiting", cwd=program.parent) as victim:
        record = tracing_agent.snapshot(victim.pid)
    assert record["calls"] is None
    assert "calls" not in record["lost"]


def test_what_nobody_traced_has_none(tracing_agent: RunningAgent, program: Path) -> None:
    with running("waiting", cwd=program.parent) as victim:
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        record = tracing_agent.record(victim.pid)
    assert record["calls"] is None
    refused = tracing_agent.attempt("calls", record["id"])
    assert refused.returncode == 1
    assert "has no system calls: no `trace` rule of the policy named it" in refused.stderr
