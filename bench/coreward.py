"""Coreward itself, by either hand-off: a real agent as `coreward run` starts it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.cases import WARM_UP
from bench.launch import UNLIMITED, loaded
from bench.model import Case, Sample, Shot
from bench.peers import Session, Unavailable, completed_ms, disk_of, scratch
from bench.processes import cpu_ms
from tests.system.agents import RunningAgent, Stuck, agent

# the default configuration, but every death is captured, not five in an hour
UNLIMITED_CAPTURES = "defaults: {limit: none}\n"


class CorewardSession:
    """An agent that runs."""

    core_limit = UNLIMITED

    def __init__(self, name: str, folder: Path, running: RunningAgent) -> None:
        self.folder = folder
        self.agent = running
        self._name = name
        self._cpu_ms = 0.0

    @property
    def pid(self) -> int:
        return self.agent.process.pid

    def before(self, case: Case) -> None:
        self._cpu_ms = cpu_ms(self.pid)

    def after(self, case: Case, shot: Shot) -> Sample:
        record = self.agent.record(shot.pid)  # its line is the last that is done
        used = cpu_ms(self.pid) - self._cpu_ms
        core = self.core(record)
        sample = Sample(
            peer=self._name,
            case=case.name,
            round=0,
            wait_ms=shot.wait_ms,
            complete_ms=completed_ms(shot, core) if core else None,
            disk=disk_of(core) if core else None,
            cpu_ms=shot.cpu_ms + used,
            held_ms=record["held_ms"],
            note=_odd(record),
        )
        self.forget(record)
        return sample

    def core(self, record: dict[str, Any]) -> Path | None:
        """The file of a record's core."""
        return self._folder(record) / record["core"] if record["core"] else None

    def forget(self, record: dict[str, Any]) -> None:
        """Remove what was kept of a death."""
        shutil.rmtree(self._folder(record))

    def _folder(self, record: dict[str, Any]) -> Path:
        folder: Path = self.agent.store / "crashes" / record["id"]
        return folder


def _odd(record: dict[str, Any]) -> str:
    """What a reader of the table must know if this was no plain full capture."""
    if record["outcome"] == "complete" and record["release"] == "instant":
        return ""
    return f"{record['outcome']}, released {record['release']}: {record['release_reason']}"


@contextlib.contextmanager
def coreward(
    backend: str, config: str = UNLIMITED_CAPTURES, patience: str = "10s"
) -> Iterator[CorewardSession]:
    """An agent with the named hand-off. Raises Unavailable if it does not start.

    patience: `hold.patience`; by default so long that a busy machine spoils no sample.
    """
    with scratch() as folder, contextlib.ExitStack() as stack:
        try:
            how = agent(folder, backend=backend, config=config, patience=patience)
            running = stack.enter_context(how)
        except Stuck as error:
            raise Unavailable(f"the agent does not start with this hand-off: {error}") from error
        yield CorewardSession(f"coreward, {backend}", folder, running)


def warm_up(session: Session) -> None:
    """One small death, so that threads are started and files are in the page cache."""
    with loaded(WARM_UP, core_limit=session.core_limit, folder=session.folder) as victim:
        session.before(WARM_UP)
        session.after(WARM_UP, victim.fire())


class Coreward:
    """All memory is kept, zstd level 1, one worker; BPF attached; the last event is the record."""

    about = "full core, zstd level 1, fsync; default policy without its limit"

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.name = f"coreward, {backend}"

    def rounds(self, case: Case) -> int:
        return case.rounds

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        with coreward(self.backend) as session:
            yield session
