"""A process that dies in the memory of its parent, which waits in vfork(2) until it has gone."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collector.elfcore.reader import CoreFile
from tests.system.agents import RunningAgent, agent, functions
from tests.system.needs import by_socket
from tests.system.victims import Victim, running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MIB, PAGE = 1 << 20, 4096
LARGE = 512  # MiB; nobody copies it in the least time that there is
WHOLE = "release: {shared: 60s}\n"
CUT = "release: {shared: 10ms}\n"


@contextlib.contextmanager
def parent(folder: Path, size: int) -> Iterator[Victim]:
    """`size` MiB of its memory have a 1 in each page when a child dies, and a 2 when it goes on."""
    with running("vfork_crash", str(size), cwd=folder) as victim:
        yield victim


def death_of_a_child(one: RunningAgent, victim: Victim) -> tuple[dict[str, Any], int]:
    """Its record, and where the parent's memory is."""
    victim.go()
    assert victim.process.stdout is not None
    child, _, area = map(int, victim.process.stdout.readline().split())
    return one.record(child), area


def words(path: Path, area: int, size: int) -> list[int]:
    """The first word of each page of the parent's `size` MiB that is in the core."""
    found = []
    with CoreFile(path) as core:
        for placed in core.segments:
            start = max(area, placed.segment.vaddr)
            end = min(area + size * MIB, placed.segment.vaddr + placed.segment.filesz)
            content = core.read(start, end - start) if start < end else b""
            found += [
                int.from_bytes(content[at : at + 8], "little")
                for at in range(0, len(content), PAGE)
            ]
    return found


@pytest.mark.parametrize("loader", ["auto", "none"])
@pytest.mark.parametrize("backend", [by_socket("socket"), "pipe"])
def test_its_memory_is_as_it_was_when_it_died(backend: str, loader: str, tmp_path: Path) -> None:
    # GIVEN a parent in vfork, and time enough
    with (
        agent(tmp_path, backend=backend, loader=loader, config=WHOLE) as one,
        parent(tmp_path, 16) as victim,
    ):
        # WHEN its child dies, and the parent changes all memory as soon as it goes on
        record, area = death_of_a_child(one, victim)
        core = one.core(record, tmp_path / "core")
    # THEN the core has all of it, as the child saw it
    assert (record["release"], record["outcome"]) == ("after-copy", "complete")
    assert "its memory is its parent's" in record["release_reason"]
    assert words(core, area, 16) == [1] * (16 * MIB // PAGE)
    assert functions(record) == ["main"]


@pytest.mark.parametrize("capture", ["full", "stacks", "threads", "record"])
def test_the_parent_does_not_wait_for_more_than_there_is_time_for(
    capture: str, tmp_path: Path
) -> None:
    # GIVEN a large parent, and little time
    config = CUT + f"defaults: {{capture: {capture}}}\n"
    with agent(tmp_path, config=config) as one, parent(tmp_path, LARGE) as victim:
        # WHEN its child dies
        record, area = death_of_a_child(one, victim)
        cores = [one.core(record, tmp_path / "core")] if capture in ("full", "stacks") else []
    # THEN where it died is known
    assert functions(record) == ["main"]
    assert record["release"] == "after-copy"
    # AND the core has nothing of what the parent did later, and what is missing is named
    for core in cores:
        assert set(words(core, area, LARGE)) <= {1}
    if capture == "full":
        assert record["outcome"] == "truncated"
        assert re.fullmatch(
            r"\d+ bytes were not copied while others waited \(release.shared\)",
            record["lost"]["memory"],
        )
        missing = int(record["lost"]["memory"].split()[0])
        assert missing >= LARGE * MIB - len(words(cores[0], area, LARGE)) * PAGE
    elif capture != "stacks":
        assert "memory" not in record["lost"]
