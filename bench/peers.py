"""Who may be asked to deal with a death: the shape of a peer, and the two that the kernel has.

A peer is set up for a session (one round of all cases) and taken down again, so that peers take
turns and drift of the machine hits all alike. Every session holds the machine's settings lock.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from bench.launch import UNLIMITED
from bench.model import MIB, Case, Sample, Shot
from bench.programs import ROOT, build
from collector.handoff.pipe import PIPE_LIMIT
from tests.system.settings import kernel_settings


class Unavailable(Exception):
    """A peer cannot run here; the message says why."""


class Session(Protocol):
    """A peer that is set up. `core_limit`: RLIMIT_CORE of the victims, bytes or -1."""

    folder: Path  # the current directory of the victims
    core_limit: int

    def before(self, case: Case) -> None:
        """The victim of `case` is ready; it dies after this."""

    def after(self, case: Case, shot: Shot) -> Sample:
        """It has died: wait until all is done with it, measure, and remove what was written."""


class Peer(Protocol):
    name: str
    about: str

    def rounds(self, case: Case) -> int:
        """How often at most it can be asked to do this one; 0: never."""

    def session(self) -> AbstractContextManager[Session]:
        """Set it up; raises Unavailable."""


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for cores, on the file system of the checkout; removed at the end."""
    base = ROOT / "build" / "bench" / "cores"
    base.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=base) as name:
        yield Path(name)


def disk_of(*files: Path) -> int:
    """Allocated bytes of all these files."""
    return sum(file.stat().st_blocks * 512 for file in files)


def completed_ms(shot: Shot, *files: Path) -> float:
    """From the trigger to the last change of any of these files: of contents, name or mode."""
    return max((file.stat().st_ctime_ns - shot.began_ns) / 1e6 for file in files)


class _NoDumpSession:
    def __init__(self, folder: Path, core_limit: int = 0) -> None:
        self.folder = folder
        self.core_limit = core_limit

    def before(self, case: Case) -> None:
        """Nothing to prepare."""

    def after(self, case: Case, shot: Shot) -> Sample:
        return Sample(
            peer=NoDump.name,
            case=case.name,
            round=0,
            wait_ms=shot.wait_ms,
            complete_ms=None,
            disk=None,
            cpu_ms=shot.cpu_ms,
        )


class NoDump:
    """Nobody takes a core: the yardstick."""

    name = "no dump"
    about = "RLIMIT_CORE 0, core_pattern `core`"

    def rounds(self, case: Case) -> int:
        return case.rounds

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        with scratch() as folder, kernel_settings(core_pattern="core", core_pipe_limit="0"):
            yield _NoDumpSession(folder)


@contextlib.contextmanager
def nothing() -> Iterator[Session]:
    """A session in which the kernel starts a helper for each death that does nothing: all that is
    waited for is the kernel's own."""
    helper = build("nothing", options=("-static", "-nostdlib"))
    settings = {"core_pattern": f"|{helper}", "core_pipe_limit": str(PIPE_LIMIT)}
    with scratch() as folder, kernel_settings(**settings):
        yield _NoDumpSession(folder, UNLIMITED)


class _KernelCoreSession:
    core_limit = UNLIMITED

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def before(self, case: Case) -> None:
        """Nothing to prepare."""

    def after(self, case: Case, shot: Shot) -> Sample:
        core = self.folder / f"core.{shot.pid}"
        sample = Sample(
            peer=KernelCore.name,
            case=case.name,
            round=0,
            wait_ms=shot.wait_ms,
            complete_ms=shot.wait_ms,
            disk=disk_of(core),
            cpu_ms=shot.cpu_ms,
        )
        core.unlink()
        return sample


class KernelCore:
    """The kernel's own core file. It is complete before the process can be waited for."""

    name = "kernel core file"
    about = "core_pattern `core.%p`, page cache not flushed"

    def rounds(self, case: Case) -> int:
        return min(case.rounds, 3) if case.resident > 512 * MIB else case.rounds

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        settings = {"core_pattern": "core.%p", "core_pipe_limit": "0", "core_uses_pid": "0"}
        with scratch() as folder, kernel_settings(**settings):
            yield _KernelCoreSession(folder)
