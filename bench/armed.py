"""What it costs to be armed: while a process lives, when it is killed, and when memory runs out.

Armed and not, taking turns, on the same machine at the same time. The agent takes no hand-offs, so
nothing of the machine's settings is changed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from bench.model import MIB, Figure, Say
from bench.peers import scratch
from bench.programs import build
from collector.agent.arm_find import Finder
from collector.agent.armed import Armed, ArmedProcesses
from collector.linux import procfs
from collector.model import ProcessKey
from collector.policy.types import ArmRule, Match
from collector.probe.armed import TELL_EXIT, ArmedProbe
from collector.probe.probe import open_probe
from tests.system import victims
from tests.system.agents import RunningAgent, agent
from tests.system.memory_cgroups import MemoryCgroup, has_memory_controller, memory_cgroup
from tests.system.victims import running, wait_until

ROUNDS = 5
WAIT_TARGET_MS = 5.0  # after SIGKILL, whatever its size
OOM_TARGET = 1.2  # times not armed, until its cgroup's memory is free
SIZES = (64, 256, 1024, 4096, 8192)  # MiB
_SPARE = 4096 * MIB  # of the host's memory that stays free
_PINS = 256
_OOM_MIB = 512
_LOOPS = {
    "faults": ("first touch of a page", 40_000),
    "maps": ("mmap and munmap", 40_000),
    "forks": ("fork, exit, wait", 600),
    "execs": ("posix_spawn, wait", 200),
    "threads": ("thread: create, exit, join", 3_000),
}
_RULES = """
defaults: {capture: none, limit: none}
arm:
  max: 300
  rules:
    - {name: bench, match: {exe: "EXE"}, on: [killed, oom], capture: CAPTURE}
"""


def measure(rounds: int, say: Say) -> list[Figure]:
    """All of it."""
    figures = [*_living(rounds, say), *_waits(rounds, say)]
    if has_memory_controller():
        figures += _memory_ran_out(rounds, say)
    return figures + _pins(say)


# ---- while it lives


def _living(rounds: int, say: Say) -> list[Figure]:
    say(f"what an armed process is slower at: {rounds} rounds")
    times: dict[tuple[str, bool], list[float]] = {}
    with _programs() as probe:
        for turn in range(rounds):
            for is_armed in (turn % 2 == 0, turn % 2 == 1):
                for loop, found in _turns(probe if is_armed else None):
                    times.setdefault((loop, is_armed), []).append(found)
    return [
        _extra(f"armed, {what}", times[loop, True], times[loop, False])
        for loop, (what, _) in _LOOPS.items()
    ]


@contextlib.contextmanager
def _programs() -> Iterator[ArmedProbe]:
    pins = Path(f"/sys/fs/bpf/coreward-bench-{os.getpid()}")
    with open_probe("core", pins) as probe:
        try:
            with ArmedProbe(probe.directory) as armed:
                yield armed
        finally:
            probe.unpin()


def _turns(probe: ArmedProbe | None) -> Iterator[tuple[str, float]]:
    """Each loop, in a process of its own; probe: it is armed, as an agent does it."""
    command = [str(build("living"))]
    with (
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
        _armed(probe, process.pid),
    ):
        assert process.stdin is not None and process.stdout is not None
        _line(process.stdout)
        for loop, (_, count) in _LOOPS.items():
            process.stdin.write(f"{loop} {count}\n")
            process.stdin.flush()
            yield loop, float(_line(process.stdout))
        process.stdin.close()
        process.wait()


def _line(pipe: IO[str]) -> str:
    line = pipe.readline()
    if not line:
        raise RuntimeError("the benchmark's program has ended")
    return line


class _Bpf(NamedTuple):
    """As the agent has BPF told."""

    probe: ArmedProbe

    def tell(self, key: ProcessKey, _: ArmRule) -> None:
        self.probe.arm(key, TELL_EXIT)

    def forget(self, key: ProcessKey) -> int:
        return self.probe.disarm(key)


@contextlib.contextmanager
def _armed(probe: ArmedProbe | None, pid: int) -> Iterator[None]:
    if probe is None:
        yield
        return
    rule = ArmRule(name="bench", match=Match())
    processes, found = ArmedProcesses(), list[Armed]()
    finder = Finder(processes, lambda one: not found.append(one), _Bpf(probe), lambda why: None)
    probe.begin()
    try:
        finder.consider(pid, rule)
        yield
    finally:
        for one in found:
            one.close()
        probe.end()
        while probe.drain():
            pass


def _extra(name: str, with_it: Sequence[float], without: Sequence[float]) -> Figure:
    extra = [one - other for one, other in zip(with_it, without, strict=True)]
    base = statistics.median(without)
    return Figure(
        name=name,
        value=statistics.median(extra),
        unit="ns of CPU more",
        detail=f"{statistics.median(with_it):.0f} : {base:.0f} ns "
        f"(+{100 * statistics.median(extra) / base:.1f} %), {len(extra)} rounds",
    )


# ---- when it is killed


@contextlib.contextmanager
def _agent(capture: str) -> Iterator[tuple[RunningAgent, Path]]:
    """An agent, and a copy of the victim that it does not arm."""
    with scratch() as folder:
        bare = folder / "bare"
        shutil.copy(victims.build("armed"), bare)
        config = _RULES.replace("CAPTURE", capture).replace("EXE", str(victims.build("armed")))
        with agent(folder, config=config, backend="none", metrics=True) as one:
            yield one, bare


def _wait_armed(one: RunningAgent, count: int = 1) -> None:
    wait_until(lambda: one.metric("coreward_armed_processes") >= count, "it is not armed")


def _waits(rounds: int, say: Say) -> list[Figure]:
    meminfo = procfs.read("/proc/meminfo") or b""
    available = (procfs.size(meminfo, b"MemAvailable") or 0) - _SPARE
    figures = []
    with _agent("threads") as (one, bare):
        for mib in SIZES:
            if mib * MIB > available:
                say(f"{mib} MiB: the host has no room for it")
                continue
            say(f"SIGKILL of {mib} MiB, armed and not")
            shots = [(_kill(mib, None, one), _kill(mib, bare, None)) for _ in range(rounds)]
            armed, without = (statistics.median(times) for times in zip(*shots, strict=True))
            figures.append(
                Figure(
                    name=f"armed, {mib} MiB: SIGKILL to wait",
                    value=armed,
                    unit="ms",
                    target=WAIT_TARGET_MS,
                    detail=f"not armed {without:.1f} ms; worst {max(a for a, _ in shots):.1f} ms",
                )
            )
    return figures


def _kill(mib: int, file: Path | None, one: RunningAgent | None) -> float:
    """Milliseconds from SIGKILL to the parent's wait. one: the agent that arms it first."""
    with scratch() as folder, running("armed", str(mib), "15", cwd=folder, file=file) as victim:
        if one is not None:
            _wait_armed(one)
        begun = time.perf_counter()
        os.kill(victim.pid, signal.SIGKILL)
        os.waitid(os.P_PID, victim.pid, os.WEXITED | os.WNOWAIT)
        took = (time.perf_counter() - begun) * 1e3
        victim.wait()
    if one is not None:
        wait_until(lambda: not one.metric("coreward_pins_open"), "its memory is still held")
    return took


# ---- when memory runs out


def _memory_ran_out(rounds: int, say: Say) -> list[Figure]:
    say(f"OOM kill in a cgroup of {_OOM_MIB} MiB, armed and not")
    with _agent("stacks") as (one, bare):
        shots = [(_oom(None, one), _oom(bare, None)) for _ in range(rounds)]
    armed, without = (statistics.median(times) for times in zip(*shots, strict=True))
    return [
        Figure(
            name=f"armed, OOM kill at {_OOM_MIB} MiB: until that is free",
            value=statistics.median(a / b for a, b in shots),
            unit="x not armed",
            target=OOM_TARGET,
            detail=f"{armed:.0f} : {without:.0f} ms, {rounds} rounds",
        )
    ]


def _oom(file: Path | None, one: RunningAgent | None) -> float:
    """Milliseconds from the kill, as its cgroup counts it, until the memory is free again."""
    with (
        scratch() as folder,
        memory_cgroup(_OOM_MIB * MIB) as group,
        running("armed", "1", "15", "touch", cwd=folder, file=file, cgroup=group.path) as victim,
    ):
        if one is not None:
            _wait_armed(one)
        victim.go()
        begun = _until(group, lambda: bool(_kills(group)))
        usage = _until(group, lambda: _usage(group) < 64 * MIB)
        victim.wait()
    return (usage - begun) * 1e3


def _until(group: MemoryCgroup, condition: Callable[[], bool]) -> float:
    """When it became true."""
    deadline = time.perf_counter() + victims.PATIENCE
    while not condition():
        if time.perf_counter() > deadline:
            raise victims.Stuck(f"{group.path}: nothing happens")
        time.sleep(0.0002)
    return time.perf_counter()


def _kills(group: MemoryCgroup) -> int:
    """OOM kills that it counts."""
    name = {1: "memory.oom_control", 2: "memory.events"}[group.version]
    words = (group.path / name).read_text().split()
    return int(words[words.index("oom_kill") + 1])


def _usage(group: MemoryCgroup) -> int:
    name = {1: "memory.usage_in_bytes", 2: "memory.current"}[group.version]
    return int((group.path / name).read_text())


# ---- what the agent has of it


def _pins(say: Say) -> list[Figure]:
    say(f"an agent that has armed {_PINS} processes")
    with _agent("threads") as (one, _), scratch() as folder, contextlib.ExitStack() as alive:
        before = _of_agent(one)
        for _ in range(_PINS):
            alive.enter_context(running("armed", "1", "0", cwd=folder))
        _wait_armed(one, _PINS)
        after = _of_agent(one)
        what = {"threads": "", "memory": "KiB", "descriptors": ""}
        return [
            Figure(
                name=f"agent with {_PINS} armed: {name} for each",
                value=(after[name] - before[name]) / _PINS,
                unit=unit,
                detail=f"{before[name]} before, {after[name]} with them",
            )
            for name, unit in what.items()
        ]


def _of_agent(one: RunningAgent) -> dict[str, int]:
    folder = Path(f"/proc/{one.process.pid}")
    status = (folder / "status").read_bytes()
    rollup = (folder / "smaps_rollup").read_bytes()
    return {
        "threads": procfs.number(status, b"Threads") or 0,
        "memory": (procfs.size(rollup, b"Pss_Anon") or 0) // 1024,
        "descriptors": len(os.listdir(folder / "fd")),  # noqa: PTH208
    }
