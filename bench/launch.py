"""Let a program die and time it, through the launcher: a parent that does nothing but wait."""

from __future__ import annotations

import contextlib
import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bench.model import Case, Shot
from bench.programs import build
from tests.system.victims import build as build_victim

UNLIMITED = -1


class LaunchError(Exception):
    """A victim did not come up, or did not die as it should."""


@functools.cache
def launcher() -> Path:
    return build("launcher")


class Loaded:
    """A victim that is ready to die."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = int(self._answer("ready")[0])

    def _answer(self, word: str) -> list[str]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().split()
        if not line or line[0] != word:
            raise LaunchError(f"{self._process.args!r}: {word!r} expected, not {line}")
        return line[1:]

    def fire(self) -> Shot:
        """Let it die; returns when its parent has waited for it."""
        assert self._process.stdin is not None
        self._process.stdin.write("!")
        self._process.stdin.flush()
        began_ns, wait_ns, status, cpu_us = map(int, self._answer("done"))
        if not status & 0x7F:
            raise LaunchError(f"pid {self.pid} did not die by a signal: status {status:#x}")
        return Shot(
            pid=self.pid,
            began_ns=began_ns,
            wait_ms=wait_ns / 1e6,
            status=status,
            cpu_ms=cpu_us / 1e3,
        )


@contextlib.contextmanager
def loaded(case: Case, *, core_limit: int, folder: Path) -> Iterator[Loaded]:
    """The case's victim, started in `folder` and ready; gone at the end, whatever happens."""
    program = build_victim(case.victim)
    command = [str(launcher()), str(core_limit), str(program), *case.arguments]
    with subprocess.Popen(
        command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        victim = None
        try:
            victim = Loaded(process)
            yield victim
        finally:
            # without a launcher the victim reads the end of its input, and dies of itself
            if process.poll() is None:
                with contextlib.suppress(OSError):
                    process.stdin.close() if process.stdin else None
