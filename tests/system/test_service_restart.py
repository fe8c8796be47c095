"""The agent is started anew by its service manager while processes die: no death is lost.

The manager is the test's own. It keeps the agent's listening socket, so that processes wait in it
until the next agent is there.
"""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.service_manager import ServiceManager
from tests.system.agents import RunningAgent, agent
from tests.system.needs import needs
from tests.system.victims import PATIENCE, running

IN_HAND = re.compile("the agent (ended before it was written|was killed|was down)$")

pytestmark = needs("socket hand-off")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    with ServiceManager(tmp_path) as one:
        yield one


class Deaths:
    """Two processes die each second, whether those before them have ended or wait."""

    def __init__(self, folder: Path) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self._folder = folder
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._die, daemon=True)

    def _die(self) -> None:
        while not self._end.wait(0.5):
            command = ["sh", "-c", "ulimit -c unlimited; kill -SEGV $$"]
            self.processes.append(subprocess.Popen(command, cwd=self._folder))

    def __enter__(self) -> Deaths:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> list[int]:
        """No more of them; the pids of all, who have ended."""
        self._end.set()
        self._thread.join(PATIENCE)
        for process in self.processes:
            process.wait(PATIENCE)
        return [process.pid for process in self.processes]

    def more(self, count: int) -> None:
        """Wait for so many more."""
        wanted, end = len(self.processes) + count, time.monotonic() + PATIENCE
        while len(self.processes) < wanted:
            assert time.monotonic() < end, "nobody dies any more"
            time.sleep(0.05)


def finished(one: RunningAgent, pids: list[int]) -> dict[int, dict[str, Any]]:
    """The records of these processes, by pid, when all are there and none waits for its core."""
    end = time.monotonic() + PATIENCE
    while True:
        records = {record["pid"]: record for record in one.listed()}
        left = [p for p in pids if records.get(p, {}).get("outcome", "pending") == "pending"]
        if not left:
            return records
        if time.monotonic() > end:
            raise AssertionError(f"no record of {left}; {[records.get(pid) for pid in left]}")
        time.sleep(0.2)


def is_whole(record: dict[str, Any]) -> bool:
    return bool(record["outcome"] == "complete")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_restart_loses_no_death(tmp_path: Path, manager: ServiceManager, how: int) -> None:
    # GIVEN an agent whose socket is kept, and processes that die without end
    with (
        agent(
            tmp_path, launch=manager.launch, backend="socket", config="defaults: {limit: none}"
        ) as one,
        Deaths(tmp_path) as deaths,
    ):
        assert list(manager.store) == ["coreward-socket"]
        pattern = one.settings.read("core_pattern")
        deaths.more(3)
        # WHEN it is started anew
        assert one.stop(how) == (0 if how == signal.SIGTERM else -how)
        before = len(deaths.processes)
        assert one.settings.read("core_pattern") == pattern
        one.restart()
        deaths.more(3)
        pids = deaths.end()  # none waits for long
        # THEN each death has a record, and its core, but for what a killed agent had in its hands
        records = finished(one, pids)
        without = {pid: records[pid]["lost"] for pid in pids if not is_whole(records[pid])}
        if how == signal.SIGTERM:
            assert without == {}
        assert set(without) <= set(pids[:before])
        assert all(IN_HAND.match(lost["core"]) for lost in without.values()), without
        # AND what was kept is used again
        assert list(manager.store) == ["coreward-socket"]


def _connections(one: RunningAgent) -> int:
    """Processes that wait in the agent's socket, as ss(8) counts them."""
    listed = subprocess.run(
        ["ss", "-xlnH", "src", str(one.run_dir / "core.sock")],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    return int(listed.split()[2]) if listed else 0


def test_an_agent_that_cannot_start_again_lets_them_go(
    tmp_path: Path, manager: ServiceManager
) -> None:
    # GIVEN an agent that was stopped, and a process that has died since and waits for the next one
    with agent(tmp_path, launch=manager.launch, backend="socket") as one:
        assert one.stop() == 0
        with running("null_main", cwd=tmp_path) as victim:
            victim.go()
            end = time.monotonic() + PATIENCE
            while _connections(one) == 0:
                assert time.monotonic() < end
                time.sleep(0.02)
            # WHEN the next one cannot start
            (tmp_path / "coreward.yaml").write_text("ruls: []\n")
            with pytest.raises(AssertionError):
                one.restart()
            # THEN the process ends, and the kernel's settings are those from before
            victim.wait()
        assert one.settings.read("core_pattern") == "core"
        assert manager.store == {}
