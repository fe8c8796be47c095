"""An agent whose descriptors are wanted by those who connect to it or by many deaths at once."""

from __future__ import annotations

import contextlib
import resource
import socket
from pathlib import Path

from tests.system.agents import RunningAgent, agent
from tests.system.victims import running

SILENT = 700  # select(2) of this process takes no descriptor above 1023


def descriptors(running: RunningAgent) -> int:
    return len(list(Path(f"/proc/{running.process.pid}/fd").iterdir()))


def use_up(one: RunningAgent, folder: Path) -> int:
    """Let an agent that works open nothing more; its hard limit, to be given back."""
    with running("null_main", cwd=folder) as victim:
        victim.go()
        victim.wait()
    one.wait_record(victim.pid)
    open_now = {int(fd.name) for fd in Path(f"/proc/{one.process.pid}/fd").iterdir()}
    hard = resource.prlimit(one.process.pid, resource.RLIMIT_NOFILE)[1]
    lowest = min(set(range(len(open_now) + 1)) - open_now)
    resource.prlimit(one.process.pid, resource.RLIMIT_NOFILE, (lowest, hard))
    return hard


def test_silent_connections_to_the_metrics(tmp_path: Path) -> None:
    with agent(tmp_path, metrics=True) as one, contextlib.ExitStack() as stack:
        before = descriptors(one)
        # GIVEN more connections than the agent may have descriptors, all of them silent
        resource.prlimit(one.process.pid, resource.RLIMIT_NOFILE, (before + 100, before + 100))
        for _ in range(SILENT):
            silent = stack.enter_context(socket.socket())
            silent.setblocking(False)
            silent.connect_ex(("127.0.0.1", one.port))
        # WHEN a process crashes meanwhile THEN all of it is there
        with running("null_main", cwd=tmp_path) as victim:
            victim.go()
            victim.wait()
            record = one.record(victim.pid)
        assert record["outcome"] == "complete" and record["frames"]
        # AND who asks for the metrics gets them; and the agent has not many more descriptors
        assert one.metric(
            'coreward_deaths_total{cause="signal",outcome="complete",signal="SIGSEGV"}'
        )
        assert descriptors(one) < before + 40


def test_deaths_while_there_are_no_descriptors_at_all(tmp_path: Path) -> None:
    with agent(tmp_path) as one, running("null_main", cwd=tmp_path) as victim:
        # GIVEN an agent that cannot open one more file
        hard = use_up(one, tmp_path)
        # WHEN a process is killed
        victim.process.kill()
        victim.process.wait()
        # THEN it is told, though it cannot be put on record
        one.wait_line("cannot be stored.*it is tried again")
        # AND it is on record as soon as there are some
        resource.prlimit(one.process.pid, resource.RLIMIT_NOFILE, (hard, hard))
        one.wait_line("is stored now")
        assert one.info(one.wait_record(victim.pid))["signal_name"] == "SIGKILL"


def test_an_agent_that_is_killed_without_descriptors(tmp_path: Path) -> None:
    with agent(tmp_path) as one, running("null_main", cwd=tmp_path) as victim:
        use_up(one, tmp_path)
        victim.process.kill()
        victim.process.wait()
        one.wait_line("cannot be stored")
        # WHEN the agent is killed before there are any
        one.process.kill()
        one.process.wait()
    # THEN the next one has it from BPF
    with agent(tmp_path) as other:
        assert other.record(victim.pid)["signal_name"] == "SIGKILL"
