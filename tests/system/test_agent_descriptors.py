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
