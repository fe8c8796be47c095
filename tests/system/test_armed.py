"""Armed processes that are killed, leave, or run out of memory: what of them is in their cores."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from collector.arch.x86_64 import Reg
from collector.elfcore.reader import CoreFile
from tests.system.agents import RunningAgent, agent, functions
from tests.system.memory_cgroups import memory_cgroup
from tests.system.victims import running, wait_until

pytestmark = pytest.mark.beside

MIB = 1 << 20
READ, PAUSE = "0", "34"  # <asm/unistd_64.h>
RULES = """
defaults: {limit: none}
release: {max_pins: 1024}
arm:
  max: 240
  rules:
    - name: mine
      match: {exe: "*/armed"}
      on: [killed, oom, exit]
      children: true
"""


@pytest.fixture(scope="module")
def arming(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    folder = tmp_path_factory.mktemp("agent")
    with agent(folder, config=RULES, backend="none", metrics=True, extra=("--debug",)) as one:
        yield one


def wait_armed(arming: RunningAgent, pid: int) -> None:
    said = re.compile(rf"armed: process {pid}, ")
    wait_until(lambda: any(said.search(line) for line in list(arming.lines)), f"{pid} is not armed")


class Before(NamedTuple):
    """A process as it was while it waited."""

    memory: dict[tuple[int, int], bytes]  # private writable memory by addresses
    mapped: list[tuple[int, int]]
    places: dict[int, tuple[int, int]]  # tid -> sp and ip of its system call


def look_at(pid: int) -> Before:
    """All that is writable, while nothing of it changes: its threads wait."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        where = READ if task.name == str(pid) else PAUSE
        wait_until(
            lambda: (task / "syscall").read_text().split()[0] == where,  # noqa: B023
            f"{task.name} does not wait",
        )
    memory, mapped = {}, []
    with open(f"/proc/{pid}/mem", "rb") as mem:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            words = line.split()
            start, end = (int(word, 16) for word in words[0].split("-"))
            mapped.append((start, end))
            if "w" in words[1]:
                mem.seek(start)
                memory[start, end] = mem.read(end - start)
    places = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        *_, sp, ip = (task / "syscall").read_text().split()
        places[int(task.name)] = int(sp, 16), int(ip, 16)
    return Before(memory, mapped, places)


def assert_same(before: Before, core: Path) -> None:
    with CoreFile(core) as found:
        assert {(m.start, m.end) for m in found.mappings} >= {
            span for span in before.mapped if span[1] < 1 << 47
        }
        places = {t.tid: (t.regs[Reg.RSP], t.regs[Reg.RIP]) for t in found.threads}
        assert places == before.places
        for (start, end), was in before.memory.items():
            assert found.read(start, end - start) == was, f"{start:x}-{end:x}"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_kill_leaves_all_memory_and_registers(
    arming: RunningAgent, tmp_path: Path, number: signal.Signals
) -> None:
    with running("armed", "8", "5", cwd=tmp_path) as victim:
        # GIVEN a process that a rule names
        wait_armed(arming, victim.pid)
        before = look_at(victim.pid)
        # WHEN it is killed
        os.kill(victim.pid, number)
        assert victim.wait() == -number
    # THEN its core has every byte of its memory, and every thread where it was
    record = arming.record(victim.pid)
    assert_same(before, arming.core(record, tmp_path / "core"))
    assert (record["signal"], record["rule"], record["capture"]) == (number, "mine", "full")
    assert record["sender"]["pid"] == os.getpid()
    assert (record["threads"], record["outcome"], record["held_ms"]) == (6, "complete", 0.0)
    assert record["lost"].keys() <= {"si_code", "cgroup"}


def test_an_exit_has_its_stack(arming: RunningAgent, tmp_path: Path) -> None:
    with running("armed", "1", "2", "exit", cwd=tmp_path) as victim:
        wait_armed(arming, victim.pid)
        # WHEN a process calls exit(3)
        victim.go()
        assert victim.wait() == 3
    # THEN its record says from where
    record = arming.record(victim.pid)
    assert (record["cause"], record["exit_code"], record["threads"]) == ("exit", 3, 3)
    assert functions(record) == ["main"]
    assert "exit" in {frame["function"] for frame in record["frames"]} | {
        frame["function"].lstrip("_").removeprefix("GI_") for frame in record["frames"]
    }


def test_an_exit_with_0_leaves_no_pin(arming: RunningAgent, tmp_path: Path) -> None:
    with running("armed", "1", "0", cwd=tmp_path) as victim:
        wait_armed(arming, victim.pid)
        # WHEN it ends well
        assert victim.process.stdin is not None
        victim.process.stdin.close()
        assert victim.wait() == 0
    # THEN nothing is kept of it
    wait_until(lambda: not arming.metric("coreward_armed_processes"), "it is still armed")
    assert not [one for one in arming.listed() if one["pid"] == victim.pid]


@pytest.mark.parametrize("mib", [4, 96])
def test_memory_ran_out(arming: RunningAgent, tmp_path: Path, mib: int) -> None:
    with memory_cgroup(160 * MIB) as group:
        with running("armed", str(mib), "3", "touch", cwd=tmp_path, cgroup=group.path) as victim:
            wait_armed(arming, victim.pid)
            # WHEN a process takes more memory than its cgroup may have
            victim.go()
            assert victim.wait() == -signal.SIGKILL
        record = arming.record(victim.pid)
    # THEN its stacks are there, and where it took the memory
    assert (record["cause"], record["oom"], record["threads"]) == ("oom", True, 4)
    assert functions(record)[-2:] == ["touch", "main"]
    core = arming.core(record, tmp_path / "core")
    # AND what of its memory is not is named
    with CoreFile(core) as found:
        assert len(found.threads) == 4
    if "memory" in record["lost"]:
        assert re.search(
            r"bytes were not copied within .* \(arm rule mine\)", record["lost"]["memory"]
        )
    else:
        assert record["core_memory"] > 150 * MIB


def test_a_thousand_threads(arming: RunningAgent, tmp_path: Path) -> None:
    with running("armed", "1", "999", cwd=tmp_path) as victim:
        wait_armed(arming, victim.pid)
        before = look_at(victim.pid)
        # WHEN a process of 1,000 threads is killed
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
    # THEN every one of them is where it was
    record = arming.record(victim.pid)
    assert record["threads"] == 1000
    assert_same(before, arming.core(record, tmp_path / "core"))


def test_an_exec_drops_the_memory_before_it(arming: RunningAgent, tmp_path: Path) -> None:
    with running("armed", "256", "0", "exec", cwd=tmp_path) as victim:
        wait_armed(arming, victim.pid)
        said = len(arming.lines)
        # WHEN it executes another program
        victim.go()
        victim.wait_ready()
        wait_until(
            lambda: any(f"armed: process {victim.pid}," in x for x in arming.lines[said:]), "armed"
        )
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
    # THEN its core is that of the new one
    record = arming.record(victim.pid)
    assert record["resident_bytes"] < 64 * MIB
    assert record["cmdline"] == ["armed", "1", "0", "wait"]
    assert record["outcome"] == "complete"


def test_a_kill_right_after_exec_says_what_is_lost(arming: RunningAgent, tmp_path: Path) -> None:
    with running("armed", "64", "0", "exec", cwd=tmp_path) as victim:
        wait_armed(arming, victim.pid)
        # WHEN it is killed as soon as it has executed another program
        victim.go()
        before = (victim.pid, Path(f"/proc/{victim.pid}/cmdline").read_bytes())
        wait_until(lambda: Path(f"/proc/{victim.pid}/cmdline").read_bytes() != before[1], "no exec")
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
    # THEN there is the core of the new one, or none
    record = arming.record(victim.pid)
    if record["core"]:
        assert record["resident_bytes"] < 32 * MIB
    else:
        assert record["lost"]["core"]


def test_two_hundred_at_a_time(arming: RunningAgent, tmp_path: Path) -> None:
    with contextlib.ExitStack() as alive:
        victims = [
            alive.enter_context(running("armed", "1", "1", cwd=tmp_path)) for _ in range(200)
        ]
        for victim in victims:
            wait_armed(arming, victim.pid)
        before = {victim.pid: look_at(victim.pid) for victim in victims[::20]}
        # WHEN 200 armed processes are killed at once
        for victim in victims:
            os.kill(victim.pid, signal.SIGKILL)
        for victim in victims:
            victim.wait()
    # THEN each has its core
    records = [arming.record(victim.pid) for victim in victims]
    assert {record["outcome"] for record in records} == {"complete"}
    for record in records:
        if was := before.get(record["pid"]):
            assert_same(was, arming.core(record, tmp_path / f"core-{record['pid']}"))


def test_a_fork_storm(arming: RunningAgent, tmp_path: Path) -> None:
    with running("armed", "1", "0", "fork", cwd=tmp_path) as victim:
        wait_armed(arming, victim.pid)
        agent_before = cpu_s(arming.process.pid)
        # WHEN an armed process forks without end
        victim.go()
        wait_until(lambda: children_of(victim.pid) > 3000, "it does not fork")
        spent = cpu_s(arming.process.pid) - agent_before
        storm = cpu_s(victim.pid)
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
    # THEN the agent has done less than those who fork
    assert spent < max(1.0, storm)
    # AND it has the core of the one that was killed, and holds nothing
    record = arming.record(victim.pid)
    assert record["outcome"] == "complete"
    wait_until(lambda: not arming.metric("coreward_armed_processes"), "some are still armed")


def cpu_s(pid: int) -> float:
    """Its time on CPUs, and that of its children."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return sum(int(word) for word in words[11:15]) / os.sysconf("SC_CLK_TCK")


def children_of(pid: int) -> int:
    """Page faults that its children had, which it has waited for."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[8]) // 10


def test_no_rule_no_pin(tmp_path: Path) -> None:
    with agent(tmp_path, config=RULES, backend="none", metrics=True, extra=("--debug",)) as one:
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
        agent(tmp_path, config=RULES, backend="none", extra=("--debug",)) as one,
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
