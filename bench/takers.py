"""Who may be asked for a core of a process that goes on: gdb's gcore, and Coreward by its modes.

Each is a command that writes to a file and ends. Nobody compresses.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from bench.model import MIB, LiveCase
from bench.peers import Unavailable
from collector.model import SnapshotFacts

_LARGE = 4096 * MIB
_FEW = 1  # rounds of a peer that takes many seconds


class Account(NamedTuple):
    """What a taker tells of its own work."""

    method: str = ""
    held_ms: float | None = None


class Taker(Protocol):
    name: str
    about: str

    def rounds(self, case: LiveCase) -> int:
        """How often at most it can be asked to do this one."""

    def command(self, pid: int, case: LiveCase, core: Path) -> list[str]:
        """What to run. Raises Unavailable."""

    def written(self, pid: int, core: Path) -> Path:
        """The file that it makes if asked for `core`."""

    def account(self, output: str) -> Account:
        """From its standard output."""


class NoSnapshot:
    """Nobody looks at the process: the noise of the machine."""

    name = "no snapshot"
    about = "dd writes as many zeros to the same disk, fsync"

    def rounds(self, case: LiveCase) -> int:
        return min(case.rounds, _FEW) if case.resident > _LARGE else case.rounds

    def command(self, pid: int, case: LiveCase, core: Path) -> list[str]:
        return [
            "dd",
            "if=/dev/zero",
            f"of={core}",
            "bs=1M",
            f"count={case.mib}",
            "conv=fsync",
            "status=none",
        ]

    def written(self, pid: int, core: Path) -> Path:
        return core

    def account(self, output: str) -> Account:
        return Account()


class Gcore:
    """gdb's script."""

    name = "gdb's gcore"
    about = "Debian's script; page cache not flushed"

    def rounds(self, case: LiveCase) -> int:
        return min(case.rounds, _FEW) if case.resident > _LARGE or case.sparse_gib else case.rounds

    def command(self, pid: int, case: LiveCase, core: Path) -> list[str]:
        script = shutil.which("gcore")
        if script is None:
            raise Unavailable("gdb is not installed")
        if b"Free Software Foundation" not in Path(script).read_bytes():
            raise Unavailable(f"{script} is not gdb's script")
        return [script, "-o", str(core), str(pid)]

    def written(self, pid: int, core: Path) -> Path:
        return core.with_name(f"{core.name}.{pid}")

    def account(self, output: str) -> Account:
        return Account()


class CorewardTaker:
    """`coreward snapshot` to a file."""

    about = "uncompressed, sparse, fsync"

    def __init__(self, name: str, *options: str, slow: bool = False) -> None:
        self.name = f"coreward, {name}"
        self._options = options
        self._slow = slow

    def rounds(self, case: LiveCase) -> int:
        return min(case.rounds, _FEW) if self._slow and case.resident > _LARGE else case.rounds

    def command(self, pid: int, case: LiveCase, core: Path) -> list[str]:
        words = [sys.executable, "-m", "collector", "snapshot", str(pid), *self._options]
        return [*words, "--json", "-o", str(core)]

    def written(self, pid: int, core: Path) -> Path:
        return core

    def account(self, output: str) -> Account:
        facts = msgspec.json.decode(output, type=SnapshotFacts)
        return Account(facts.method, facts.worst_ms if facts.pause_ms is None else facts.pause_ms)


AUTO = CorewardTaker("auto")
NONSTOP = CorewardTaker("nonstop", "--mode", "nonstop")
THREADS = CorewardTaker("threads", "--mode", "threads")
COPY = CorewardTaker("no inject", "--mode", "full-stop", "--no-inject", slow=True)
NONE, GCORE = NoSnapshot(), Gcore()
TAKERS: tuple[Taker, ...] = (NONE, GCORE, AUTO, NONSTOP, THREADS, COPY)
