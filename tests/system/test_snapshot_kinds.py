"""Snapshots of processes of special kinds: afterwards each goes on as if nothing had been."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from collector.elfcore.reader import CoreFile
from collector.linux import ptrace
from collector.snapshot.fork import remote_fork
from collector.snapshot.inject import InjectionRefused, Injector
from collector.snapshot.stop import StoppedProcess
from tests.system.live_victims import states
from tests.system.snapshots import NOBODY, nobodys_folder
from tests.system.test_snapshot_targets import MODES, facts_of
from tests.system.victims import PATIENCE, running, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

WAYS = pytest.mark.parametrize("way", MODES, ids=" ".join)


def numbers(file: Path) -> tuple[int, int]:
    """Turns done, and turns that went wrong, as a victim counts them in a file."""
    turns, wrong = struct.unpack("<QQ", file.read_bytes())
    return turns, wrong


def goes_on(file: Path) -> None:
    """Wait until it has done more, and assert that nothing went wrong."""
    before, _ = numbers(file)
    wait_until(lambda: numbers(file)[0] > before + 1, "it does not go on")
    assert numbers(file)[1] == 0


# --- syscall user dispatch ------------------------------------------------------------------------


def is_asleep(pid: int) -> bool:
    return list(states(pid).values()).count("S") >= 1


@WAYS
@pytest.mark.parametrize("who", ["all", "some"])
def test_system_calls_that_are_dispatched(who: str, way: tuple[str, ...], tmp_path: Path) -> None:
    # GIVEN a process whose threads, or two of three, get their system calls as SIGSYS
    file = tmp_path / "numbers"
    which = ["all"] if who == "all" else []
    with running("live_dispatch", str(file), *which, cwd=tmp_path) as victim:
        goes_on(file)
        wait_until(lambda: is_asleep(victim.pid), "no thread waits")
        # WHEN it is snapshot
        facts = facts_of(victim.pid, tmp_path / "core", *way)
        # THEN all its calls still come to it, and no other ones
        goes_on(file)
    # AND a thread without dispatch is borrowed where there is one
    if way == ("--mode", "full-stop"):
        assert facts.method == ("copy" if who == "all" else "fork"), facts
        assert ("syscall user dispatch" in facts.why) == (who == "all")


def test_a_kernel_that_does_not_tell_of_dispatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a kernel as before Linux 6.4, and a process all of whose threads have it
    monkeypatch.setattr(ptrace, "dispatches_syscalls", lambda _tid: None)
    file = tmp_path / "numbers"
    with running("live_dispatch", str(file), "all", cwd=tmp_path) as victim:
        wait_until(lambda: is_asleep(victim.pid), "no thread waits")

        def fork_it() -> None:
            with (
                Injector(victim.pid) as injector,
                StoppedProcess(victim.pid, deadline=PATIENCE) as stopped,
                remote_fork(stopped, injector),
            ):
                pass

        # WHEN a call is injected THEN its SIGSYS is kept from the thread, again and again
        for _ in range(10):
            with pytest.raises(InjectionRefused, match="syscall user dispatch"):
                ptrace.run_as_tracer(fork_it)
            goes_on(file)


# --- threads of the kernel ------------------------------------------------------------------------


def workers(pid: int) -> list[str]:
    """The names of the kernel's own threads in a process."""
    names = [(task / "comm").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return sorted(name[:7] for name in names if name.startswith("iou-"))


@WAYS
@pytest.mark.parametrize("user", [None, NOBODY], ids=["root", "nobody"])
def test_the_kernels_threads_of_io_uring(
    user: int | None, way: tuple[str, ...], tmp_path: Path
) -> None:
    # GIVEN a process in which the kernel has two threads of its own
    with nobodys_folder() as folder:
        file = folder / "numbers"
        with running("live_uring", str(file), cwd=folder, uid=user) as victim:
            wait_until(lambda: workers(victim.pid) == ["iou-sqp", "iou-wrk"], "no workers")
            # WHEN it is snapshot
            facts = facts_of(victim.pid, folder / "core", *way, user=user)
            # THEN they are no threads of it, and none is missed
            with CoreFile(folder / "core") as core:
                assert [thread.tid for thread in core.threads] == [victim.pid]
            assert facts.unstopped == ()
            assert facts.consistent == (way in (("--mode", "full-stop"), ("--no-inject",)))
            goes_on(file)
            assert workers(victim.pid) == ["iou-sqp", "iou-wrk"]
