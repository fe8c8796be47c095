"""Processes that an agent arms for a test, and what is in their cores against what they had."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from collector.arch.x86_64 import Reg
from collector.elfcore.reader import CoreFile
from tests.system.agents import RunningAgent
from tests.system.victims import build_folder, wait_until

# not those of another checkout, which arms its own
PROGRAMS = [str(build_folder() / name) for name in ("armed", "robust")]
RULES = f"""
defaults: {{capture: none, limit: none}} # others die here all the time
rules: [{{name: recorded, match: {{exe: {PROGRAMS}}}, capture: full}}]
release: {{max_pins: 1024}}
arm:
  max: 240
  rules:
    - name: mine
      match: {{exe: {PROGRAMS}}}
      on: [killed, oom, exit]
      children: true
"""
READ, PAUSE = "0", "34"  # <asm/unistd_64.h>


def wait_armed(arming: RunningAgent, pid: int, said: int = 0) -> None:
    """Until the agent has armed it. said: lines that do not count."""
    wanted = re.compile(rf"armed: process {pid}, ")
    wait_until(lambda: any(map(wanted.search, arming.lines[said:])), f"{pid} is not armed")


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
