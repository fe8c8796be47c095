"""What the record of an OOM kill says of what ran out of memory, by a real one."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.agents import RunningAgent, agent
from tests.system.memory_cgroups import MemoryCgroup, memory_cgroup
from tests.system.victims import Victim, running

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.beside,
]
MIB = 1 << 20
LIMIT = 32 * MIB


@pytest.fixture(scope="module", params=["core", "bcc"])
def watching(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningAgent]:
    folder = tmp_path_factory.mktemp("agent")
    with agent(
        folder, config="defaults: {limit: none}", backend="none", loader=request.param
    ) as one:
        yield one
        assert not [line for line in one.lines if "Traceback" in line]


def die_of_hunger(watching: RunningAgent, group: MemoryCgroup, victim: Victim) -> dict[str, Any]:
    victim.go()
    assert victim.wait() == -signal.SIGKILL
    record = watching.record(victim.pid)
    assert (record["cause"], record["oom"], record["sender"]) == ("oom", True, None)
    return record


def test_what_a_cgroup_was_full_of(watching: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a cgroup with a process that is out of the killer's reach, and one that wants too much
    with memory_cgroup(LIMIT) as group:
        with group.entered():
            bystander = subprocess.Popen(["sleep", "1000"])
            context = running("probe_hog", "64", cwd=tmp_path)
            victim = context.__enter__()
        try:
            record = die_of_hunger(watching, group, victim)
        finally:
            context.__exit__(None, None, None)
            bystander.kill()
            bystander.wait()
    found = record["oom_facts"]
    # THEN its limit and use are those of the moment of the kill
    if found["limit"] is None:
        pytest.skip("this kernel tells no levels")
    assert found["limit"] == LIMIT
    assert LIMIT - 2 * MIB <= found["usage"] <= LIMIT
    assert found["cgroup"] == f"/{group.path.name}"
    assert found["events"]["oom_kill"] == 1
    if group.version == 1:
        assert found["failcnt"] > 0 and found["events"]["failcnt"] > 0
    else:
        assert found["events"]["max"] > 0 and found["events"]["oom"] > 0
    # AND what it was full of, and who was in it, are there
    assert set(found["stat"]) >= {"rss" if group.version == 1 else "anon"}
    assert found["task_count"] >= 1
    others = {one["pid"]: one["comm"] for one in found["tasks"]}
    assert others[bystander.pid] == "sleep"
    assert found["host"] == {}
    # AND the task in whose turn the killer ran
    killer = record["killer"]
    assert (killer["by"], killer["pid"], killer["comm"]) == ("oom", victim.pid, "probe_hog")
    assert killer["cmdline"][1] == "64"
    # AND people are shown the same
    shown = watching.command("info", record["id"])
    assert "What ran out of memory\n" in shown
    assert f"memory cgroup /{group.path.name}\n" in shown
    assert "killed by     the out-of-memory killer, which ran in\n" in shown
    assert f"sleep ({bystander.pid})" in shown


def test_the_level_that_ran_out_is_not_that_of_the_victim(
    watching: RunningAgent, tmp_path: Path
) -> None:
    # GIVEN a cgroup with room below one that has none
    with memory_cgroup(LIMIT) as group:
        if group.version == 2:
            (group.path / "cgroup.subtree_control").write_text("+memory")
        inner = MemoryCgroup(group.path / "inner", group.version, ())
        inner.path.mkdir()
        try:
            with running("probe_hog", "64", cwd=tmp_path) as victim:
                inner.enter(victim.pid)
                record = die_of_hunger(watching, inner, victim)
        finally:
            inner.path.rmdir()
    found = record["oom_facts"]
    assert (found["cgroup"], found["limit"]) == (f"/{group.path.name}", LIMIT)
