"""What is not to be on the disk is not there: not in any file of the store, compressed or not."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.agents import RunningAgent, agent, functions
from tests.system.victims import Victim, build, descendants, running, wait_until

_POLICY = """
defaults: {capture: record}
"""
_PLANTED = "planted-3141592653"


@pytest.fixture(scope="module")
def running_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    with agent(tmp_path_factory.mktemp("agent"), config=_POLICY) as started:
        yield started


def holding(folder: Path, words: bytes) -> list[str]:
    """Files below a folder that have these words."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in files if words in path.read_bytes()]


def stop_one_that_explains(running_agent: RunningAgent) -> int | None:
    """The first process that explains a core for the agent, if there is one now: it is stopped."""
    for child in descendants(running_agent.process.pid):
        try:
            command = Path(f"/proc/{child}/cmdline").read_bytes()
            if b"collector.explain\0" in command:
                os.kill(child, signal.SIGSTOP)
                return child
        except (OSError, ValueError):  # it has ended
            continue
    return None


def explained_slowly(running_agent: RunningAgent, folder: Path) -> tuple[Victim, int]:
    """One that died, and the process that explains that, which was stopped."""
    while True:
        with running("null_main", cwd=folder) as victim:
            victim.go()
            victim.wait()
        found: list[int] = []

        def seen(victim: Victim = victim, found: list[int] = found) -> bool:
            found.extend(filter(None, [stop_one_that_explains(running_agent)]))
            wanted = rf"^\S+ [0-9a-f]{{16}} pid {victim.pid} "
            return bool(found) or any(re.search(wanted, line) for line in running_agent.lines)

        wait_until(seen, "it is neither explained nor on record")
        if found:
            return victim, found[0]


def test_nothing_of_memory_is_on_the_disk_while_it_is_explained(
    running_agent: RunningAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a policy that wants a record, and a secret on the stack of what dies
    build("null_main")
    monkeypatch.setenv("PLANTED", _PLANTED)
    # WHEN its stack is being unwound
    victim, explainer = explained_slowly(running_agent, tmp_path)
    try:
        # THEN that has the secret, and no file of the store has
        core = next(
            fd
            for fd in Path(f"/proc/{explainer}/fd").iterdir()
            if os.readlink(fd).startswith("/memfd:coreward-explain")
        )
        assert _PLANTED.encode() in core.read_bytes()
        assert holding(running_agent.store, _PLANTED.encode()) == []
    finally:
        os.kill(explainer, signal.SIGCONT)
    # AND there is a backtrace all the same
    record = running_agent.info(running_agent.wait_record(victim.pid))
    assert functions(record) == ["inner", "outer", "main"]
    assert (record["core"], record["lost"]) == (None, {})
