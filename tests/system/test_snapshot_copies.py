"""The copies that snapshots make of their target are no deaths, whatever becomes of them."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from collector import copies
from tests.system.agents import COMMAND, RunningAgent, agent
from tests.system.live_targets import Target, live_target, waited_for
from tests.system.snapshots import coreward, done
from tests.system.victims import PATIENCE, ROOT

MIB = 64  # of the target's memory, which no pipe takes


def dies(running: RunningAgent) -> int:
    """The pid of a process that was killed, when it is on record: all that died before is, too."""
    with subprocess.Popen(["sleep", "1000"]) as victim:
        victim.kill()
        victim.wait(PATIENCE)
    running.wait_record(victim.pid)
    return victim.pid


def deaths(running: RunningAgent, target: Target) -> list[int]:
    """Pids of the deaths on record that are, or could be, of copies of the target."""
    exe = str(Path(f"/proc/{target.pid}/exe").readlink())
    return [one["pid"] for one in running.listed("--exe", exe) if one["cause"] != "snapshot"]


def marks() -> set[Path]:
    return set(copies.PLACE.iterdir()) if copies.PLACE.is_dir() else set()


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def test_snapshots_leave_no_deaths(tmp_path: Path) -> None:
    with agent(tmp_path) as running, live_target(tmp_path, "memory:4", "spin:1") as target:
        before = marks()
        # WHEN snapshots are taken in each way that makes a copy
        done(coreward("snapshot", target.pid, "-o", tmp_path / "one"))
        done(coreward("snapshot", target.pid, "--store", running.store))
        done(coreward("gcore", "-o", tmp_path / "two", target.pid))
        assert len(marks() - before) >= 3  # they did make copies, and others here may have, too
        # THEN none of these is a death
        dies(running)
        assert deaths(running, target) == []
        # AND the target's own death is one
        os.kill(target.pid, signal.SIGKILL)
        running.wait_record(target.pid)


def test_copies_of_the_time_without_an_agent(tmp_path: Path) -> None:
    with agent(tmp_path) as running, live_target(tmp_path, "memory:4") as target:
        # GIVEN a snapshot while the agent is down, and a death after it
        running.stop()
        done(coreward("snapshot", target.pid, "-o", tmp_path / "one"))
        with subprocess.Popen(["sleep", "1000"]) as victim:
            victim.kill()
        # WHEN the next agent reads what BPF has recorded
        running.restart()
        running.wait_record(victim.pid)
        # THEN only the death is one
        assert deaths(running, target) == []


@pytest.mark.parametrize("who", ["snapshot", "copy"])
def test_a_copy_that_is_killed_by_others(who: str, tmp_path: Path) -> None:
    with agent(tmp_path) as running, live_target(tmp_path, f"memory:{MIB}") as target:
        # GIVEN a snapshot in the middle of its work, into a pipe that is full
        before = marks()
        command = [*COMMAND, "snapshot", str(target.pid), "-o", "-"]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as taking:
            assert taking.stdout is not None and taking.stdout.read(4) == b"\x7fELF"
            made = {int(mark.name.partition("-")[0]) for mark in marks() - before}
            (copy,) = made & set(children(target.pid))
            # WHEN it is killed, or its copy
            os.kill(taking.pid if who == "snapshot" else copy, signal.SIGKILL)
            taking.stdout.read()
        assert waited_for(lambda: copy not in children(target.pid))
        # THEN the copy's end is no death
        dies(running)
        assert copy not in deaths(running, target)


def test_nobody_hides_a_death_of_his_own(tmp_path: Path) -> None:
    # GIVEN another user who tries to mark his process as a copy
    with agent(tmp_path) as running, live_target(tmp_path, "memory:4") as target:
        done(coreward("snapshot", target.pid, "-o", tmp_path / "one"))  # the folder is there
        with subprocess.Popen(
            ["sh", "-c", f"touch {copies.PLACE}/$$-1; echo tried; exec sleep 1000"],
            user=4242,
            group=4242,
            extra_groups=[],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as stranger:
            assert stranger.stdout is not None and stranger.stderr is not None
            assert stranger.stdout.readline() == b"tried\n"
            stranger.kill()
            # THEN that is refused, and his death is on record
            assert b"Permission denied" in stranger.stderr.read()
        running.wait_record(stranger.pid)
