"""What the heap of a process was used for, by the cores of real ones."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.agents import RunningAgent, agent
from tests.system.armed import wait_armed
from tests.system.memory_cgroups import memory_cgroup
from tests.system.victims import build_folder, running

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.beside,
]
MIB = 1 << 20
CHUNK = 1008  # of malloc(1000): with its header, a multiple of 16
# what of `heap` is in use: size of chunks -> how many
IN_USE = {5008: 15_000, CHUNK: 1050, 100016: 10}
ARMED = f"""
defaults: {{capture: none, limit: none}}
arm: {{rules: [{{name: mine, match: {{exe: {build_folder() / "heap"}}}, on: [oom], within: 1.5s}}]}}
"""


@pytest.fixture(scope="module")
def arming(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    folder = tmp_path_factory.mktemp("agent")
    with agent(folder, config=ARMED, backend="none", extra=("--debug",)) as one:
        yield one
        assert not [line for line in one.lines if "Traceback" in line]


def heap_of(taking: RunningAgent, record: dict[str, Any]) -> dict[str, Any]:
    """The only profile that `coreward heap` shows of a core."""
    (profile,) = json.loads(taking.command("heap", record["id"], "--json"))
    assert isinstance(profile, dict)
    return profile


def test_the_arenas_of_glibc(arming: RunningAgent, tmp_path: Path) -> None:
    # WHEN a snapshot is taken of a process whose heap is known
    with running("heap", cwd=tmp_path) as victim:
        record = arming.snapshot(victim.pid)
    # THEN its record has each piece that is in use, and none that was given back
    (profile,) = record["heap"]
    sizes = {one["size"]: one["count"] for one in profile["sizes"]}
    assert {size: sizes.get(size) for size in IN_USE} == IN_USE
    # AND what is in the two arenas is all that they have from the kernel
    other, main = profile["arenas"]
    assert main["lost"] is other["lost"] is None
    assert main["in_use"] + main["free"] + main["top"] == main["system"]
    # (a part of one that was given back went to pthread_create(3))
    assert 49 * CHUNK < main["free"] <= 50 * CHUNK
    headers = other["system"] - other["in_use"] - other["free"] - other["top"]
    assert 2000 < headers < 3000
    assert profile["in_use"] == main["in_use"] + other["in_use"]
    assert profile["objects"] == main["chunks"] + other["chunks"]
    # AND so are those with mappings of their own
    assert (profile["mapped"], profile["mapped_count"]) == (3 * (4 * MIB + 4096), 3)
    assert (profile["allocator"], profile["lost"]) == ("glibc", {})
    # AND the verb reads the same, and people see it
    assert heap_of(arming, record) == profile
    shown = arming.command("info", record["id"])
    heap = shown[shown.index("\nHeap\n") :]
    assert re.search(r"^ +71.6 MiB +15,000 +5,008 B$", heap, re.MULTILINE)
    assert "12.0 MiB in 3 pieces with mappings of their own" in heap
    assert "5,008 B" in arming.command("heap", record["id"])


def test_a_core_without_the_heap(arming: RunningAgent, tmp_path: Path) -> None:
    with running("heap", cwd=tmp_path) as victim:
        stacks = arming.snapshot(victim.pid, "--capture", "stacks")
        threads = arming.snapshot(victim.pid, "--mode", "threads", "--capture", "threads")
    # THEN what the core has is there, and no number is made up for what it has not
    profile = heap_of(arming, stacks)
    assert profile["in_use"] is profile["objects"] is profile["arenas"][0]["in_use"] is None
    assert profile["arenas"][0]["system"] > 2 * MIB
    assert profile["mapped_count"] == 3
    assert "not all arenas are in the core" in profile["lost"]["in_use"]
    # AND where it has nothing of it, that is said
    done = arming.attempt("heap", threads["id"])
    assert done.returncode == 1
    assert "has no heap: the data of libc.so.6 is not in the core; `coreward info " in done.stderr


def test_a_heap_that_is_damaged(arming: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a process that wrote over the size of a chunk
    with running("heap", "broken", cwd=tmp_path) as victim:
        record = arming.snapshot(victim.pid)
    # THEN its arena says where that is, the other one is as it was, and there is no sum
    (profile,) = record["heap"]
    other, main = profile["arenas"]
    assert re.fullmatch(r"its chunks cannot be followed beyond 0x[0-9a-f]+", main["lost"])
    assert main["in_use"] is None
    assert other["in_use"] > 15_000 * 5008
    assert profile["in_use"] is profile["objects"] is None
    assert profile["lost"]["in_use"] == f"1 of 2 arenas: {main['lost']}"


def test_memory_that_ran_out(arming: RunningAgent, tmp_path: Path) -> None:
    # GIVEN an armed process in a memory cgroup
    with memory_cgroup(160 * MIB) as group:
        with running("heap", "grow", cwd=tmp_path, cgroup=group.path) as victim:
            wait_armed(arming, victim.pid)
            # WHEN it takes more than that may have
            victim.go()
            assert victim.wait() == -signal.SIGKILL
        record = arming.record(victim.pid)
    assert (record["cause"], record["oom"]) == ("oom", True)
    # THEN its record says what its memory was used for
    (profile,) = record["heap"]
    if "memory" in record["lost"]:  # it was not copied in time
        assert profile["lost"]
        return
    sizes = {one["size"]: one["count"] for one in profile["sizes"]}
    assert 40 * MIB < 100016 * sizes[100016] < 90 * MIB
    assert {size: sizes[size] for size in (5008, CHUNK)} == {5008: 15_000, CHUNK: 1050}
    assert profile["lost"] == {}


# ---- Go


@pytest.mark.skipif(shutil.which("go") is None, reason="no compiler of Go")
@pytest.mark.parametrize("rate", [512 << 10, 64 << 10])
def test_the_profile_of_go(arming: RunningAgent, tmp_path: Path, rate: int) -> None:
    text = tmp_path / "pprof"
    arguments = [str(text)] if rate == 512 << 10 else [str(text), "sparse"]
    # WHEN a snapshot is taken of a program that has asked its own runtime just before
    with running("goheap", *arguments, cwd=tmp_path) as victim:
        record = arming.snapshot(victim.pid)
    (profile,) = record["heap"]
    assert (profile["allocator"], profile["rate"], profile["lost"]) == ("go", rate, {})
    assert re.fullmatch(r"go1\.\d+(\.\d+)?", profile["version"])
    # THEN both say the same of the places that keep memory
    said = by_function(text.read_text(), rate)
    for function in ("keepLarge", "keepSmall"):
        sites = [site for site in profile["sites"] if f"main.{function}" in names(site)]
        found = sum(site["objects"] for site in sites), sum(site["in_use"] for site in sites)
        assert found == pytest.approx(said[function], abs=len(sites))
    # AND by which lines, also where one function was compiled into another
    large = next(site for site in profile["sites"] if "main.keepLarge" in names(site))
    assert names(large)[:3] == ["main.inlined", "main.keepLarge", "main.main"]
    assert [frame["inline"] for frame in large["frames"][:3]] == [True, False, False]
    assert large["frames"][0]["file"].endswith("/goheap.go")
    # AND it is near to what is true
    assert 50 * MIB < large["in_use"] < 90 * MIB
    shown = arming.command("info", record["id"])
    assert re.search(r"MiB  main.inlined \(goheap.go:\d+\) < main.keepLarge \(goheap", shown)
    assert "      main.keepSmall (goheap.go:" in arming.command("heap", record["id"])


def names(site: dict[str, Any]) -> list[str]:
    return [frame["function"] for frame in site["frames"]]


def by_function(text: str, rate: int) -> dict[str, tuple[float, float]]:
    """Objects and bytes in use by the function of main that took them, of what pprof writes as
    text, where each sample counts as one: `2: 128 [3: 192] @ 0x… ` and lines of the stack."""
    found: dict[str, tuple[float, float]] = {}
    for block in text.split("\n\n"):
        head = re.match(r"(?:heap profile:.*\n)?(\d+): (\d+) \[", block)
        function = re.search(r"\tmain\.(keep\w+)\+", block)
        if head is None or function is None or head[1] == "0":
            continue
        count, size = int(head[1]), int(head[2])
        scale = 1 / (1 - math.exp(-size / count / rate))
        before = found.get(function[1], (0.0, 0.0))
        found[function[1]] = before[0] + count * scale, before[1] + size * scale
    return found
