"""What one process does makes nobody else wait, and is not taken for what another one did."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from collector.elfcore.reader import CoreFile
from tests.system.agents import agent
from tests.system.needs import by_socket
from tests.system.victims import killed_with, running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

WAYS = (by_socket("socket"), "pipe")


def value_in(core: CoreFile, program: Path) -> int:
    """The program's `value`, as the core has it."""
    with program.open("rb") as file:
        elf = ELFFile(file)
        (found,) = elf.get_section_by_name(".symtab").get_symbol_by_name("value")
        place: int = found["st_value"]
        if elf["e_type"] != "ET_EXEC":
            place += min(m.start for m in core.mappings if m.path == str(program))
    return int.from_bytes(core.read(place, 4), "little")


@pytest.mark.parametrize("backend", WAYS)
def test_those_who_keep_a_lock_keep_nobody_else(tmp_path: Path, backend: str) -> None:
    """
    GIVEN processes whose memory is locked, again and again, by others that share it
    WHEN they crash
    THEN they are released although nobody could look at them, and so is one of somebody else
    """
    with agent(tmp_path, backend=backend, patience="3s") as one:
        # (to gather takes 2 ms, but they take the CPUs as well; and its writers yield to everybody)
        with killed_with("shared_lock"), contextlib.ExitStack() as alive:
            bad = [
                alive.enter_context(running("shared_lock", "600", cwd=tmp_path)) for _ in range(2)
            ]
            innocent = alive.enter_context(running("null_main", cwd=tmp_path))
            for victim in bad:
                victim.go()
            for victim in bad:
                assert victim.wait() == -signal.SIGABRT
            innocent.go()
            assert innocent.wait() == -signal.SIGSEGV
        outcomes = ("complete", "truncated", "reduced", "recorded")
        for victim in bad:
            assert one.record(victim.pid)["outcome"] in outcomes
        assert one.record(innocent.pid)["outcome"] == "complete"


@pytest.mark.parametrize("backend", WAYS)
@pytest.mark.parametrize("how", ["vfork", "clone"])
def test_memory_that_others_go_on_writing_to(tmp_path: Path, backend: str, how: str) -> None:
    """
    GIVEN a process that shares its memory with its parent
    WHEN it crashes
    THEN it waits until its memory is copied; a parent that waits for it (vfork) has changed nothing
    """
    with (
        agent(tmp_path, backend=backend, config="release: {shared: 60s}\n") as agent_,
        running("shared_memory", how, cwd=tmp_path) as parent,
    ):
        parent.go()
        assert parent.process.stdout is not None
        child = int(parent.process.stdout.readline())
        record = agent_.record(child)
        assert record["outcome"] == "complete"
        assert record["release"] == "after-copy"
        assert ("instant" in record["lost"]) == (how == "clone")
        program = Path(os.readlink(f"/proc/{parent.pid}/exe"))
        with CoreFile(agent_.core(record, tmp_path / "core")) as core:
            assert value_in(core, program) == 1
