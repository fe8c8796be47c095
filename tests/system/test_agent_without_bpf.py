"""An agent without BPF: all that it knows of a death comes with the kernel's hand-off."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.agents import RunningAgent, agent, functions
from tests.system.needs import by_socket
from tests.system.victims import running

SI_USER, SEGV_MAPERR = 0, 1
# an exit rule that would match anything: a process that is handed over did not exit
CONFIG = """
rules:
  - {name: exits, match: {cause: exit, exe: "*"}, capture: record}
"""
WITHOUT = {"event": "the agent has no BPF", "core_bit": "its exit was not seen"}


@pytest.fixture(scope="module", params=[by_socket("socket"), "pipe"])
def blind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningAgent]:
    folder = tmp_path_factory.mktemp("agent")
    with agent(folder, config=CONFIG, backend=request.param, loader="none") as one:
        yield one


def facts(record: dict[str, Any]) -> dict[str, Any]:
    keys = ("cause", "signal_name", "si_code", "si_addr", "sender", "tid", "threads", "rule")
    keys += ("capture", "outcome", "lost")
    return {key: record[key] for key in keys}


def test_a_fault(blind: RunningAgent, tmp_path: Path) -> None:
    # WHEN a process dies of a null pointer
    with running("null_main", cwd=tmp_path) as victim:
        victim.go()
        victim.wait()
        record = blind.record(victim.pid)
    # THEN the kernel's notes told what, and policy took it for a death by signal
    assert facts(record) == {
        "cause": "signal",
        "signal_name": "SIGSEGV",
        "si_code": SEGV_MAPERR,
        "si_addr": 0,
        "sender": None,
        "tid": victim.pid,
        "threads": 1,
        "rule": "defaults",
        "capture": "full",
        "outcome": "complete",
        "lost": WITHOUT,
    }
    assert record["reason"].startswith("SIGSEGV: wrote to address 0x0 in `")
    assert functions(record)[-1] == "main"


def test_a_signal_from_another_process(blind: RunningAgent, tmp_path: Path) -> None:
    # WHEN another process sends a signal that dumps core
    with running("null_main", cwd=tmp_path) as victim:
        killer = subprocess.Popen(["sh", "-c", f"kill -QUIT {victim.pid}; :"])
        assert killer.wait() == 0
        victim.wait()
        record = blind.record(victim.pid)
    # THEN its pid and user are known, and its name, which only BPF could tell, is not made up
    sender = {"pid": killer.pid, "uid": 0, "comm": None}
    found = facts(record)
    assert (found["cause"], found["signal_name"]) == ("killed", signal.SIGQUIT.name)
    assert (found["si_code"], found["sender"], found["rule"]) == (SI_USER, sender, "defaults")
    assert record["reason"] == f"killed by SIGQUIT from a process (pid {killer.pid}, uid 0)"
