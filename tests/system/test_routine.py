"""Ends that are no crashes leave a line, those that look like them a record."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.agents import RunningAgent, agent
from tests.system.victims import running, wait_until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.beside,
]


@pytest.fixture(scope="module", params=["core", "bcc"])
def watching(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningAgent]:
    folder = tmp_path_factory.mktemp("agent")
    with agent(folder, backend="none", loader=request.param, routine=True, metrics=True) as one:
        yield one
        assert not [line for line in one.lines if "Traceback" in line]


def line_of(one: RunningAgent, pid: int) -> dict[str, Any]:
    """The line of a process that ended; waits for it."""
    found: list[dict[str, Any]] = []

    def look() -> bool:
        ends = json.loads(one.command("list", "--routine", "--json"))
        found[:] = [end for end in ends if end["pid"] == pid]
        return bool(found)

    wait_until(look, f"no line of process {pid}")
    return found[0]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_child_that_its_parent_ends(
    watching: RunningAgent, tmp_path: Any, number: signal.Signals
) -> None:
    before = watching.metric('coreward_routine_ends_total{by="parent"}')
    with running("wait_for_kill", cwd=tmp_path) as victim:
        os.kill(victim.pid, number)
        victim.wait()
    end = line_of(watching, victim.pid)
    assert (end["way"], end["signal"], end["by_pid"]) == ("parent", number, os.getpid())
    assert end["exe"].endswith("/wait_for_kill")
    # AND it is counted, and no death
    assert watching.metric('coreward_routine_ends_total{by="parent"}') > before
    assert [one for one in watching.listed() if one["pid"] == victim.pid] == []
    assert "--routine shows the last ones" in watching.command("list")


def test_what_timeout_ends(watching: RunningAgent) -> None:
    command = ["timeout", "-s", "KILL", "0.1", "sh", "-c", "echo $$; while :; do :; done"]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout
    end = line_of(watching, int(out))
    assert (end["way"], end["by_comm"]) == ("parent", "timeout")


def test_a_pipe_that_nobody_reads(watching: RunningAgent) -> None:
    yes = shutil.which("yes") or "yes"
    # (Python ignores SIGPIPE, and a child would inherit that)
    with subprocess.Popen([yes], stdout=subprocess.PIPE, restore_signals=True) as writer:
        assert writer.stdout is not None
        writer.stdout.read(1)
        writer.stdout.close()
    assert writer.returncode == -signal.SIGPIPE
    end = line_of(watching, writer.pid)
    assert (end["way"], end["comm"], end.get("by_pid")) == ("pipe", "yes", None)


@pytest.mark.parametrize("name", ["KILL", "TERM"])
def test_a_kill_from_elsewhere_is_a_death(watching: RunningAgent, tmp_path: Any, name: str) -> None:
    with running("wait_for_kill", cwd=tmp_path) as victim:
        subprocess.run(["sh", "-c", f"kill -{name} {victim.pid}"], check=True)
        victim.wait()
    record = watching.record(victim.pid)
    assert (record["signal_name"], record["killer"]["comm"]) == (f"SIG{name}", "sh")
    ends = json.loads(watching.command("list", "--routine", "--json"))
    assert victim.pid not in [end["pid"] for end in ends]
