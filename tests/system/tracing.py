"""Running `coreward trace`, and the library beside it, for tests."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from collector.trace import Event, Tracer
from collector.trace.command import Command
from tests.system.agents import COMMAND
from tests.system.victims import PATIENCE, ROOT


def trace(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`coreward trace WORDS`, to its end."""
    return subprocess.run(
        [*COMMAND, "trace", *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=PATIENCE,
        check=False,
        env=env,
    )


@contextlib.contextmanager
def tracing(*words: str, cwd: Path = ROOT) -> Iterator[subprocess.Popen[str]]:
    """The same while it runs, in a folder; its stderr is to be read."""
    with subprocess.Popen(
        [*COMMAND, "trace", *words],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def wait_for(process: subprocess.Popen[str], *wanted: str) -> str:
    """The next line of its stderr that has all of this in it."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if all(part in line for part in wanted):
            return line
    raise AssertionError("".join(lines))


def events_of(tracer: Tracer, *words: str | Path) -> tuple[list[Event], int]:
    """All events of a command, and its exit status."""
    command = Command([str(word) for word in words])
    tracer.attach(command.pid, from_exec=True)
    command.go()
    return list(tracer.events()), command.wait()
