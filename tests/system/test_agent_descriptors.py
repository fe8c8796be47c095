"""An agent whose descriptors are used up, by those who connect to it or by many deaths at once."""

from __future__ import annotations

import contextlib
import resource
import socket
import subprocess
from pathlib import Path

from tests.system.agents import RunningAgent, agent
from tests.system.victims import PATIENCE, running

DEATHS = 40
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


def test_no_descriptors_left(tmp_path: Path) -> None:
    config = "defaults: {limit: none}\n"
    with agent(tmp_path, config=config) as one, contextlib.ExitStack() as stack:
        killed = [stack.enter_context(subprocess.Popen(["sleep", "1000"])) for _ in range(DEATHS)]
        crashing = [
            stack.enter_context(running("null_main", cwd=tmp_path)) for _ in range(DEATHS // 4)
        ]
        # GIVEN an agent that can open two files more
        limit = descriptors(one) + 2
        resource.prlimit(one.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        # WHEN many die at once, by kills and by crashes
        for victim in crashing:
            victim.go()
        for process in killed:
            process.kill()
        for victim in crashing:
            victim.wait()
        for process in killed:
            process.wait(PATIENCE)
        # THEN each of them is on record
        for pid in [process.pid for process in killed] + [victim.pid for victim in crashing]:
            one.wait_record(pid)
        assert one.stop() == 0
        pids = {record["pid"] for record in one.listed()}
        assert {process.pid for process in killed} <= pids
        assert {victim.pid for victim in crashing} <= pids
