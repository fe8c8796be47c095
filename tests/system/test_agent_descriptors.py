"""An agent whose descriptors are wanted by those who connect to it or by many deaths at once."""

from __future__ import annotations

import contextlib
import resource
import socket
from pathlib import Path

from collector.export.server import MOST
from tests.system.agents import RunningAgent, agent
from tests.system.victims import running, wait_until

SILENT = 700  # select(2) of this process takes no descriptor above 1023

LASTING = 8  # the first descriptors of an agent, which it has as long as it lives


def descriptors(running: RunningAgent) -> int:
    return len(list(Path(f"/proc/{running.process.pid}/fd").iterdir()))


def use_up(one: RunningAgent, folder: Path) -> None:
    """Let an agent that works open nothing more."""
    with running("null_main", cwd=folder) as victim:
        victim.go()
        victim.wait()
    one.wait_record(victim.pid)
    open_now = {int(fd.name) for fd in Path(f"/proc/{one.process.pid}/fd").iterdir()}
    assert set(range(LASTING)) <= open_now
    resource.prlimit(one.process.pid, resource.RLIMIT_NOFILE, (LASTING, LASTING))


def test_silent_connections_to_the_metrics(tmp_path: Path) -> None:
    with agent(tmp_path, metrics=True) as one, contextlib.ExitStack() as stack:
        before = descriptors(one)
        # GIVEN more connections than the agent may have descriptors, all of them silent
        resource.prlimit(one.process.pid, resource.RLIMIT_NOFILE, (before + 200, before + 200))
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
        # (others may be dying, which takes some for a moment)
        wait_until(lambda: descriptors(one) < before + MOST + 20, "few descriptors")


def test_deaths_while_there_are_no_descriptors_at_all(tmp_path: Path) -> None:
    with agent(tmp_path) as one, contextlib.ExitStack() as stack:
        killed, crashes = (
            stack.enter_context(running("null_main", cwd=tmp_path)) for _ in range(2)
        )
        # GIVEN an agent that cannot open one more file
        use_up(one, tmp_path)
        # WHEN one process is killed, and one crashes
        killed.process.kill()
        killed.process.wait()
        crashes.go()
        crashes.wait()
        # THEN both are on record
        assert one.info(one.wait_record(killed.pid))["signal_name"] == "SIGKILL"
        assert one.info(one.wait_record(crashes.pid))["signal_name"] == "SIGSEGV"
