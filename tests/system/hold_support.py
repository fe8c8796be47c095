"""What the tests of the hand-off share: victims that crash when told, an agent to be killed."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from collector.handoff.backends import OpenBackend, open_backend
from collector.handoff.handoff import HandOff
from collector.handoff.native import Native, Taken
from collector.handoff.settings import SettingsGuard
from collector.model import Backend
from collector.native.build import build
from tests.system import sanitized
from tests.system.settings import kernel_settings
from tests.system.victims import PATIENCE

BOTH = (Backend.SOCKET, Backend.PIPE)

# Holds the first crash that arrives for as long as it lives. It gives nothing back.
_AGENT = """
import os, signal, sys
from pathlib import Path
from collector.handoff.backends import open_backend
from collector.handoff.native import Native
from collector.handoff.settings import SettingsGuard
from collector.model import Backend
kind, run_dir, state_dir, helper, accepts = sys.argv[1:]
guard = SettingsGuard(Path(state_dir))
backend = open_backend(Backend(kind), Path(run_dir), guard, Native(), False, Path(helper))
print("open", flush=True)
if accepts == "no":  # nothing of it answers any more
    os.kill(os.getpid(), signal.SIGSTOP)
taken = backend.accept()
print(f"held {taken.handoff.pid}", flush=True)
signal.pause()
"""


class Place:
    """Directories and programs for one test. Short paths: a core_pattern has 127 bytes."""

    def __init__(self, directory: Path) -> None:
        directory.chmod(0o755)  # victims run as other users
        self.run_dir = directory / "run"
        self.state_dir = directory / "state"
        self.helper = build(directory)
        self.victim = directory / "victim"
        source = Path(__file__).parents[1] / "victims" / "hold_threads.c"
        subprocess.run(["gcc", "-O1", "-pthread", "-o", self.victim, source], check=True)

    @contextlib.contextmanager
    def backend(self, kind: Backend, native: Native | None = None) -> Iterator[OpenBackend]:
        guard, native = SettingsGuard(self.state_dir), native or Native()
        with open_backend(
            *(kind, self.run_dir, guard, native, False, self.helper),
            patience_s=60.0,  # of helpers: on a busy machine we may not run for a second
        ) as backend:
            assert isinstance(backend, OpenBackend)
            yield backend

    @contextlib.contextmanager
    def agent(self, kind: Backend, accepts: bool) -> Iterator[subprocess.Popen[str]]:
        """An agent in a process of its own that is ready for crashes; killed at the end."""
        arguments = (kind, self.run_dir, self.state_dir, self.helper, "yes" if accepts else "no")
        command = [sys.executable, "-c", _AGENT, *map(str, arguments)]
        environment = sanitized.environment()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as agent:
            try:
                assert agent.stdout is not None
                assert agent.stdout.readline() == "open\n"
                yield agent
            finally:
                agent.kill()


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """The kernel's settings borrowed, and a place to work in."""
    with (
        tempfile.TemporaryDirectory(prefix="cs-", dir="/tmp") as directory,
        kernel_settings(core_pattern="core", core_pipe_limit="0"),
    ):
        yield Place(Path(directory))


class Victim:
    """A process with sleeping threads that crashes when told. A context manager."""

    def __init__(self, where: Place, threads: int = 0, user: int | None = None) -> None:
        self.process = subprocess.Popen(
            [str(where.victim), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            user=user,
            group=user,
            cwd="/",
        )
        self.pid = self.process.pid
        assert self.process.stdout is not None and self.process.stdin is not None
        assert self.process.stdout.readline() == b"ready\n"
        self.pidfd = os.pidfd_open(self.pid)

    def crash(self) -> float:
        """Let it crash; returns the time of it, for `gone`."""
        assert self.process.stdin is not None
        now = time.monotonic()
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        return now

    def is_gone(self, within_s: float = 0) -> bool:
        return bool(select.select([self.pidfd], [], [], within_s)[0])

    def gone_after(self, since: float) -> float:
        """Seconds from `since` until it is gone."""
        assert self.is_gone(PATIENCE), "the process still hangs"
        return time.monotonic() - since

    def __enter__(self) -> Victim:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        os.close(self.pidfd)


@contextlib.contextmanager
def accept(backend: OpenBackend) -> Iterator[HandOff]:
    """The next hand-off, waited for."""
    with contextlib.closing(take(backend)) as taken:
        yield taken.handoff


def take(backend: OpenBackend) -> Taken:
    """The next process that is handed over, waited for."""
    taken = backend.accept(PATIENCE)
    assert taken is not None, "no crash arrived"
    return taken
