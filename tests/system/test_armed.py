"""Armed processes that are killed, leave, or run out of memory: what of them is in their cores."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.arch.x86_64 import Reg
from collector.elfcore.reader import CoreFile
from tests.system.agents import RunningAgent, agent, functions
from tests.system.armed import RULES, assert_same, look_at, wait_armed
from tests.system.memory_cgroups import memory_cgroup
from tests.system.victims import running, wait_until

pytestmark = pytest.mark.beside

MIB = 1 << 20


@pytest.fixture(scope="module")
def arming(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    folder = tmp_path_factory.mktemp("agent")
    with agent(folder, config=RULES, backend="none", metrics=True, extra=("--debug",)) as one:
        yield one


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


def test_futexes_that_its_exit_marks_are_as_they_were(arming: RunningAgent, tmp_path: Path) -> None:
    with running("robust", cwd=tmp_path) as victim:
        wait_armed(arming, victim.pid)
        before = look_at(victim.pid)
        # WHEN a process is killed whose threads hold robust mutexes
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
    # THEN these are held in its core
    record = arming.record(victim.pid)
    assert_same(before, arming.core(record, tmp_path / "core"))
    assert "robust" not in record["lost"]


@pytest.mark.parametrize("reaped", [True, False])
def test_no_room_for_a_successor(arming: RunningAgent, tmp_path: Path, reaped: bool) -> None:
    with (
        memory_cgroup(160 * MIB) as group,
        running("armed", "96", "3", cwd=tmp_path, cgroup=group.path) as victim,
    ):
        wait_armed(arming, victim.pid)
        before = look_at(victim.pid)
        # WHEN a process is killed beside which its cgroup has no room for another one
        os.kill(victim.pid, signal.SIGKILL)
        if reaped:
            victim.wait()
        # BECAUSE a zombie is in the root of each hierarchy of cgroup v1
        record = arming.record(victim.pid)
    # THEN its memory was not left there, but for a moment, and that is said
    assert record["release_reason"].startswith("its memory was kept for 0.3s at most: a successor")
    # AND there are the stacks, and what there was time for
    core = arming.core(record, tmp_path / "core")
    with CoreFile(core) as found:
        assert {t.tid: (t.regs[Reg.RSP], t.regs[Reg.RIP]) for t in found.threads} == before.places
        for sp, _ in before.places.values():
            span = next(span for span in before.memory if span[0] <= sp < span[1])
            size = min(span[1] - sp, 4096)
            assert found.read(sp, size) == before.memory[span][sp - span[0] :][:size]
    if "memory" not in record["lost"]:
        assert_same(before, core)


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
        wait_armed(arming, victim.pid, said)
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
    # THEN its core is that of the new one
    record = arming.record(victim.pid)
    assert record["lost"].keys() <= {"si_code", "cgroup"}, record["lost"]
    assert record["resident_bytes"] < 64 * MIB
    assert record["cmdline"] == ["armed", "1", "0", "wait"]
    assert record["outcome"] == "complete"


def test_a_kill_right_after_exec_says_what_is_lost(arming: RunningAgent, tmp_path: Path) -> None:
    with running("armed", "64", "0", "exec", cwd=tmp_path) as victim:
        wait_armed(arming, victim.pid)
        words = Path(f"/proc/{victim.pid}/cmdline")
        before = words.read_bytes()
        # WHEN it is killed as soon as it has executed another program
        victim.go()
        wait_until(lambda: words.read_bytes() != before, "no exec")
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
    # THEN there is the core of the new one, or none
    record = arming.record(victim.pid)
    if record["core"]:
        assert record["resident_bytes"] < 32 * MIB
    else:
        assert record["lost"]["core"]
