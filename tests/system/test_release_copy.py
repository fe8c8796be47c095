"""A process whose successor has no room: it goes when its memory is copied."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.elfcore.reader import CoreFile
from tests.system.agents import RunningAgent, agent
from tests.system.memory_cgroups import memory_cgroup
from tests.system.needs import by_socket
from tests.system.victims import running, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MIB = 1 << 20
SIZE = 64  # MiB
LIMIT = 96 * MIB
UNLIMITED = "defaults: {limit: none}\n"
# nobody's successor has room: where no cgroup is needed
NO_ROOM = UNLIMITED + "release: {max_pinned: 4KiB}\n"
# nor a copy, but of stacks
NO_COPY = UNLIMITED + "release: {copy: 0%}\n"


def death_in_a_cgroup(one: RunningAgent, folder: Path) -> dict[str, object]:
    with (
        memory_cgroup(LIMIT) as group,
        running("resident", str(SIZE), "4", cwd=folder, cgroup=group.path) as victim,
    ):
        victim.go()
        victim.wait()
        return one.record(victim.pid)


def large_segment(path: Path) -> Iterator[int]:
    """The first word of each page of the area of `resident`."""
    with CoreFile(path) as core:
        placed = max(core.segments, key=lambda placed: placed.segment.filesz)
        start, size = placed.segment.vaddr, placed.segment.filesz
        assert size >= SIZE * MIB
        content = core.read(start, size)
    for at in range(0, size, 4096):
        yield int.from_bytes(content[at : at + 8], "little")


@pytest.mark.parametrize("backend", [by_socket("socket"), "pipe"])
def test_its_core_is_whole_although_it_was_gone_before(backend: str, tmp_path: Path) -> None:
    # GIVEN a cgroup with room for one such process, but not for two
    with agent(tmp_path, backend=backend, config=UNLIMITED) as one:
        # WHEN it dies
        record = death_in_a_cgroup(one, tmp_path)
        one.command("core", str(record["id"]), "-o", str(tmp_path / "plain"))
    # THEN it waits for a copy of its memory
    assert record["release"] == "after-copy"
    assert re.search(
        r"a successor needs \d+ MiB, .* has \d+ MiB of 96 MiB", record["release_reason"]
    )
    assert record["outcome"] == "complete" and "memory" not in record["lost"]
    assert record["frames"]
    # AND the core has each of its pages
    words = list(large_segment(tmp_path / "plain"))
    assert {page | 1 for page in range(SIZE * MIB // 4096)} <= set(words)


def test_stacks_where_there_is_no_room_for_a_copy(tmp_path: Path) -> None:
    with agent(tmp_path, config=NO_COPY) as one:
        record = death_in_a_cgroup(one, tmp_path)
    assert (record["release"], record["capture"]) == ("after-copy", "stacks")
    assert record["outcome"] == "reduced"
    assert record["lost"]["memory"] == (
        "there is no room for a copy, but for 16 MiB: stacks instead of full"
    )
    assert record["frames"] and record["threads"] == 5


def test_memory_that_keeps_whoever_touches_it_waiting(tmp_path: Path) -> None:
    # GIVEN a process whose arguments are behind a userfaultfd that nobody answers
    with agent(tmp_path, config=NO_ROOM) as one, running("waiting", cwd=tmp_path) as victim:
        # WHEN it has to wait for its copy
        victim.go()
        victim.wait()
        record = one.record(victim.pid)
    # THEN nothing of it was touched that was not there
    assert (record["release"], record["outcome"]) == ("after-copy", "complete")
    assert record["frames"]


def copiers(agent_pid: int) -> list[int]:
    """Processes of the agent's that copy at the moment."""
    lists = Path(f"/proc/{agent_pid}/task").glob("*/children")
    children = [int(pid) for text in map(Path.read_text, lists) for pid in text.split()]
    return [pid for pid in children if name_of(pid) == "coreward-copy"]


def name_of(pid: int) -> str:
    """Of its program; empty if it has ended."""
    with contextlib.suppress(OSError):
        return Path(os.readlink(f"/proc/{pid}/exe")).name
    return ""


@pytest.mark.parametrize("backend", [by_socket("socket"), "pipe"])
def test_the_agent_is_killed_while_it_copies(backend: str, tmp_path: Path) -> None:
    # GIVEN a process whose memory is being copied (or was: then all holds as well)
    with (
        agent(tmp_path, backend=backend, config=NO_ROOM) as one,
        running("resident", "512", "4", cwd=tmp_path) as victim,
    ):
        victim.go()
        while not (at_work := copiers(one.process.pid)) and victim.process.poll() is None:
            pass
        # WHEN the agent is killed
        one.process.kill()
        # THEN the process goes, and so does who copied it, with the copy
        assert victim.wait() < 0
        wait_until(lambda: not any(map(name_of, at_work)), "a copier stays")


def test_room_is_lent_where_policy_says_so(tmp_path: Path) -> None:
    # GIVEN a policy that lends, and a cgroup without room
    with (
        agent(tmp_path, config=UNLIMITED + "release: {lend: true}\n") as one,
        memory_cgroup(LIMIT) as group,
        running("resident", str(SIZE), "4", cwd=tmp_path, cgroup=group.path) as victim,
    ):
        # WHEN a process dies there
        victim.go()
        victim.wait()
        record = one.record(victim.pid)
        # THEN it goes at once, its core is whole, and the limit is what it was before
        assert (record["release"], record["outcome"]) == ("instant", "complete")
        assert "lent room" in record["release_reason"]
        wait_until(lambda: group.limits[0].read_text().strip() == str(LIMIT), "it stays raised")
