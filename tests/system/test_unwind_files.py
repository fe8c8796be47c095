"""Names in the backtraces of processes whose files cannot be found by their paths any more."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collector.model import SIGNAL_FRAME
from tests.system.agents import RunningAgent, agent
from tests.system.victims import build, running, wait_until

_POLICY = """
defaults: {capture: full}
rules: [{name: many, match: {comm: threads}, capture: record}]
"""
_PAUSE = 34  # number of the system call
_LIBRARY = """
#include <unistd.h>
static void {inner}(void) {{ *(volatile int *)0 = 1; }}
void outer(void) {{ {inner}(); }}
void {inner}_waits(void) {{ pause(); }}
"""


@pytest.fixture(scope="module")
def running_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    with agent(tmp_path_factory.mktemp("agent"), config=_POLICY) as started:
        yield started


def library(folder: Path, name: str, inner: str, *flags: str) -> Path:
    """A library whose function `outer` calls one that dies."""
    source, made = folder / f"{name}.c", folder / f"{name}.so"
    source.write_text(_LIBRARY.format(inner=inner))
    command = ["gcc", "-g", "-O0", "-shared", "-fPIC", *flags, str(source), "-o", str(made)]
    subprocess.run(command, check=True)
    return made


def functions(record: dict[str, Any]) -> list[str | None]:
    return [frame["function"] for frame in record["frames"] or []]


@pytest.mark.parametrize("flags", [[], ["-Wl,--build-id=none"]], ids=["build-id", "none"])
def test_a_library_that_was_replaced(
    running_agent: RunningAgent, flags: list[str], tmp_path: Path
) -> None:
    # GIVEN a process in a library that an update has replaced while it ran
    old = library(tmp_path, "old", "inner_of_old", *flags)
    new = library(tmp_path, "new", "inner_of_new", *flags)
    with running("in_library", str(old), "outer", cwd=tmp_path) as victim:
        new.rename(old)
        victim.go()
        victim.wait()
        record = running_agent.info(running_agent.wait_record(victim.pid))
    # THEN its names are those of the file that it ran, with lines
    assert functions(record)[:3] == ["inner_of_old", "outer", "main"]
    assert record["frames"][0]["line"] == 3
    assert "symbols" not in record["lost"]
    # AND the threads that are read from the core later have them as well
    shown = running_agent.command("bt", record["id"], "--all")
    assert "in inner_of_old+" in shown and "inner_of_new" not in shown


def test_a_snapshot_in_a_library_that_was_replaced(
    running_agent: RunningAgent, tmp_path: Path
) -> None:
    # GIVEN a process that waits in a library that was replaced
    old = library(tmp_path, "old", "old")
    new = library(tmp_path, "new", "new")
    with running("in_library", str(old), "old_waits", cwd=tmp_path) as victim:
        new.rename(old)
        victim.go()
        call = Path(f"/proc/{victim.pid}/syscall")
        wait_until(lambda: call.read_text().startswith(f"{_PAUSE} "), "it does not wait")
        # WHEN a snapshot of it is taken
        record = running_agent.snapshot(victim.pid)
    # THEN its names are those of the file that it runs
    assert [name for name in functions(record) if name in ("old_waits", "main")] == [
        "old_waits",
        "main",
    ]


def test_a_program_in_memory(running_agent: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a program that is in a memfd only
    with running("in_memory", str(build("null_main")), cwd=tmp_path) as victim:
        victim.go()
        victim.wait()
        record = running_agent.info(running_agent.wait_record(victim.pid))
    # THEN it has its names, then and later
    assert functions(record)[:3] == ["inner", "outer", "main"]
    assert "in inner+" in running_agent.command("bt", record["id"], "--all")


def test_after_a_plain_chroot(running_agent: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a program in a jail with all its libraries
    program = build("null_main")
    listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    for path in [str(program), *(word for word in listed.split() if word.startswith("/"))]:
        place = tmp_path / "jail" / path[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    with running("jail", str(tmp_path / "jail"), str(program), cwd=tmp_path) as victim:
        victim.go()
        victim.wait()
        record = running_agent.info(running_agent.wait_record(victim.pid))
    # THEN its frames do not end at the first library
    assert functions(record)[:3] == ["inner", "outer", "main"]
    assert functions(record)[-1] == "_start"
    assert record["lost"] == {}
    assert "in inner+" in running_agent.command("bt", record["id"], "--all")


@pytest.mark.parametrize("kind", ["null", "low", "data", "unmapped"])
def test_a_call_through_a_bad_pointer(
    running_agent: RunningAgent, kind: str, tmp_path: Path
) -> None:
    with running("bad_call", kind, cwd=tmp_path) as victim:
        victim.go()
        victim.wait()
        record = running_agent.info(running_agent.wait_record(victim.pid))
    assert functions(record)[:4] == [None, "call", "outer", "main"]
    assert record["site"] is None
    assert "from `call` (bad_call.c:8)" in record["reason"]


def test_a_fault_in_a_signal_handler(running_agent: RunningAgent, tmp_path: Path) -> None:
    with running("in_handler", cwd=tmp_path) as victim:
        victim.go()
        victim.wait()
        record = running_agent.info(running_agent.wait_record(victim.pid))
    own = [name for name in functions(record) if name in ("handler", SIGNAL_FRAME, "work", "main")]
    assert own == ["handler", SIGNAL_FRAME, "work", "main"]


def test_all_threads_of_a_death_without_a_core(running_agent: RunningAgent, tmp_path: Path) -> None:
    # GIVEN a program of 51 threads, 49 of which sleep, of which no core is kept
    with running("threads", "50", cwd=tmp_path) as victim:
        victim.go()
        victim.wait()
        record = running_agent.info(running_agent.wait_record(victim.pid))
    assert (record["core"], record["threads"]) == (None, 51)
    # THEN there are the backtraces of all its threads all the same, equal ones once (some sleepers
    # may not have got to where they sleep)
    shown = running_agent.command("bt", record["id"], "--all")
    assert re.search(r"^Thread \d+ `.*`, which died:\n#0 .* in crash\+", shown)
    assert re.search(r"^\d+ threads: \S+ <- sleeper$", shown, re.MULTILINE)
    # AND one by one in JSON, with what to symbolise them by
    threads = json.loads(running_agent.command("bt", record["id"], "--all", "--json"))["threads"]
    assert len(threads) == 51
    assert all(
        frame["module_offset"] and frame["build_id"] for one in threads for frame in one["frames"]
    )
