"""A full-stop snapshot is the core that gdb's gcore makes of the same process at rest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.arch.x86_64 import Reg
from collector.elfcore.reader import CoreFile
from collector.elfcore.types import Thread
from tests.system.live_victims import states, wait_blocked
from tests.system.snapshots import backtraces, coreward, differences, done, executable_of, live_core
from tests.system.victims import running, wait_until

RESTART_SYSCALL = 219  # <asm/unistd_64.h>
PSELECT6, PPOLL = 270, 271


@contextlib.contextmanager
def at_rest(name: str, folder: Path) -> Iterator[int]:
    """A process none of whose threads runs; gives its pid."""
    rows = folder / "rows"
    words = [str(rows)] if name == "live_blocked" else []
    with running(name, *words, cwd=folder) as victim:
        if words:
            wait_blocked(victim.pid, rows)
        wait_until(lambda: set(states(victim.pid).values()) == {"S"}, "it does not come to rest")
        yield victim.pid


def registers(core: CoreFile) -> dict[int, dict[str, object]]:
    """By thread. A stopped sleep goes on as restart_syscall(2): from the second stop on its
    number is that one."""
    return {thread.tid: _registers(thread) for thread in core.threads}


def _registers(thread: Thread) -> dict[str, object]:
    words: dict[str, object] = {reg.name: thread.regs[reg] for reg in Reg}
    if words["RAX"] == -516 & (1 << 64) - 1:
        words["ORIG_RAX"] = RESTART_SYSCALL
    return words


def times_left(core: CoreFile) -> list[tuple[int, int]]:
    """Where the kernel itself writes, at each stop, how long a thread would still have waited."""
    where = {PSELECT6: Reg.R8, PPOLL: Reg.RDX}
    found = ((t, where.get(t.regs[Reg.ORIG_RAX])) for t in core.threads)
    return [(t.regs[reg], t.regs[reg] + 16) for t, reg in found if reg is not None]


@pytest.mark.parametrize(
    ("name", "inject"),
    [
        ("live_blocked", True),
        ("live_blocked", False),
        ("sample_idle.py", True),
        ("sample_idle.js", True),
    ],
)
def test_same_as_gcore(
    name: str, inject: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a process at rest (the kernel writes into the rseq area of each thread that it lets go)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.pthread.rseq=0")
    way = [] if inject else ["--no-inject"]
    with at_rest(name, tmp_path) as pid:
        executable = executable_of(pid)
        # WHEN it is snapshot in all captures, and then by gdb's gcore
        for capture in ("full", "stacks", "threads"):
            file = tmp_path / capture
            done(coreward("snapshot", pid, *way, "--capture", capture, "-o", file))
        theirs = live_core(pid, tmp_path / "gcore")

    with CoreFile(tmp_path / "full") as full, CoreFile(theirs) as gcore:
        # THEN registers and memory are the same
        assert registers(full) == registers(gcore)
        assert differences(full, gcore, times_left(full)) == []
        with CoreFile(tmp_path / "threads") as threads:
            assert registers(threads) == registers(gcore)
    # AND so are the backtraces, also with the stacks alone
    expected = backtraces(theirs, executable)
    assert backtraces(tmp_path / "full", executable) == expected
    assert backtraces(tmp_path / "stacks", executable) == expected
