"""Cores made the plain way: by the kernel, into a file, with no collector in between."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tests.system.settings import kernel_settings
from tests.system.victims import running


class KernelCore(NamedTuple):
    """A core file and what it is of; `status` is minus the signal, as subprocess has it."""

    path: Path
    pid: int
    executable: Path
    status: int


def kernel_core(name: str, *arguments: str, folder: Path) -> KernelCore:
    """Let a victim die in `folder`, with core_pattern `core`, and return the core it leaves."""
    with running(name, *arguments, cwd=folder) as victim:
        executable = Path(f"/proc/{victim.pid}/exe").readlink()
        with kernel_settings(core_pattern="core", core_uses_pid="0"):
            victim.go()
            status = victim.wait()
    return KernelCore(folder / "core", victim.pid, executable, status)
