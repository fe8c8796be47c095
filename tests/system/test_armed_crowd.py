"""Many armed processes, those that fork without end, and agents that change or end meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.agents import RunningAgent, agent
from tests.system.armed import RULES, assert_same, look_at, wait_armed
from tests.system.memory_cgroups import memory_cgroup
from tests.system.snapshots import NOBODY
from tests.system.victims import running, wait_until

pytestmark = pytest.mark.beside

MIB = 1 << 20
STORM_S = 4.0  # of forking, on CPUs
SLOW = 300.0  # seconds: all writers and explainers on a busy machine
CORES = 8  # of 200; each takes a writer and an explainer


@contextlib.contextmanager
def arming(folder: Path, config: str = RULES) -> Iterator[RunningAgent]:
    with agent(folder, config=config, backend="none", metrics=True, extra=("--debug",)) as one:
        yield one


def test_two_hundred_at_a_time(tmp_path: Path) -> None:
    limited = RULES.replace("limit: none", f"limit: {{captures: {CORES}, fallback: record}}")
    with arming(tmp_path, limited) as one, contextlib.ExitStack() as alive:
        victims = [
            alive.enter_context(running("armed", "1", "1", cwd=tmp_path)) for _ in range(200)
        ]
        for victim in victims:
            wait_armed(one, victim.pid)
        before = {victim.pid: look_at(victim.pid) for victim in victims}
        # WHEN 200 armed processes are killed at once
        for victim in victims:
            os.kill(victim.pid, signal.SIGKILL)
        for victim in victims:
            victim.wait()
        # THEN all are on record, and as many as policy lets have their cores
        waiting = {victim.pid for victim in victims}
        while waiting:
            waiting.discard(int(one.wait_line(r" pid \d+ armed: killed", SLOW).split()[3]))
        records = {record["pid"]: record for record in one.listed("--limit", "100000")}
        mine = [records[victim.pid] for victim in victims]
        assert sum(record["outcome"] == "complete" for record in mine) == CORES
        for record in mine:
            if record["core"]:
                core = one.core(record, tmp_path / f"core-{record['pid']}")
                assert_same(before[record["pid"]], core)
            else:
                assert "captures per 1h used up" in record["lost"]["memory"]
        # AND nothing is held any more
        wait_until(lambda: not one.metric("coreward_pins_open"), "memory is still held")
        assert one.metric("coreward_armed_processes") == 0


def test_nobody_takes_all_places(tmp_path: Path) -> None:
    with (
        arming(tmp_path, RULES.replace("max: 240", "max: 2")) as one,
        running("armed", "1", "0", cwd=tmp_path) as first,
    ):
        wait_armed(one, first.pid)
        with running("armed", "1", "0", cwd=tmp_path) as second:
            # GIVEN as many armed processes of one user as there may be
            wait_armed(one, second.pid)
            # WHEN another user starts one
            with running("armed", "1", "0", cwd=tmp_path, uid=NOBODY) as other:
                # THEN it is armed instead of the newest of those
                wait_armed(one, other.pid)
                for victim in (first, second, other):
                    os.kill(victim.pid, signal.SIGKILL)
                    victim.wait()
        kept = [one.record(victim.pid)["core"] is not None for victim in (first, second, other)]
        assert kept == [True, False, True]
        assert one.metric('coreward_arm_refused_total{why="max"}') >= 1


def test_a_fork_storm(tmp_path: Path) -> None:
    with arming(tmp_path) as one:
        with running("armed", "1", "0", "fork", cwd=tmp_path) as victim:
            wait_armed(one, victim.pid)
            agent_before, began = cpu_s(one.process.pid), time.monotonic()
            # WHEN an armed process forks without end
            victim.go()
            wait_until(lambda: cpu_s(victim.pid) > STORM_S, "it does not fork")
            spent, took = cpu_s(one.process.pid) - agent_before, time.monotonic() - began
            os.kill(victim.pid, signal.SIGKILL)
            victim.wait()
        # THEN the agent has done much less than those who fork; where others take the CPUs away
        # from them, it has had its small share of a CPU for longer
        assert spent < max(STORM_S, took) / 2
        # AND it has the core of the one that was killed, and holds nothing
        assert one.record(victim.pid)["outcome"] == "complete"
        wait_until(lambda: not one.metric("coreward_armed_processes"), "some are still armed")


def cpu_s(pid: int) -> float:
    """Its time on CPUs, and that of its children."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return sum(int(word) for word in words[11:15]) / os.sysconf("SC_CLK_TCK")


def test_no_rule_no_pin(tmp_path: Path) -> None:
    with arming(tmp_path) as one:
        with running("armed", "1", "0", cwd=tmp_path) as victim:
            wait_armed(one, victim.pid)
            # WHEN the rules go
            config = tmp_path / "coreward.yaml"
            config.write_text(config.read_text().partition("arm:")[0])
            one.process.send_signal(signal.SIGHUP)
            # THEN nothing is armed any more
            wait_until(lambda: not one.metric("coreward_armed_processes"), "it is still armed")
            os.kill(victim.pid, signal.SIGKILL)
            victim.wait()
        assert one.record(victim.pid)["core"] is None


def test_the_agent_is_killed(tmp_path: Path) -> None:
    with (
        memory_cgroup(256 * MIB) as group,
        arming(tmp_path) as one,
    ):
        with running("armed", "64", "2", cwd=tmp_path, cgroup=group.path) as victim:
            wait_armed(one, victim.pid)
            # WHEN the agent is killed
            one.process.kill()
            one.process.wait()
            # THEN its processes go on, and nothing holds the memory of one that ends
            assert victim.process.poll() is None
            os.kill(victim.pid, signal.SIGKILL)
            victim.wait()
        names = {1: "memory.usage_in_bytes", 2: "memory.current"}
        usage = group.path / names[group.version]
        wait_until(lambda: int(usage.read_text()) < 32 * MIB, "its memory stays")


def test_the_next_agent_arms_them_again(tmp_path: Path) -> None:
    with arming(tmp_path) as one, running("armed", "4", "2", cwd=tmp_path) as victim:
        wait_armed(one, victim.pid)
        one.process.kill()
        one.process.wait()
        # WHEN another agent is started after one that was killed
        said = len(one.lines)
        one.restart()
        wait_armed(one, victim.pid, said)
        before = look_at(victim.pid)
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        # THEN it has the whole memory
        record = one.record(victim.pid)
        assert_same(before, one.core(record, tmp_path / "core"))


def test_the_other_loader_says_that_it_cannot(tmp_path: Path) -> None:
    with agent(tmp_path, config=RULES, backend="none", loader="bcc") as one:
        one.wait_line("no process can be armed: arming needs the loader `core`")
