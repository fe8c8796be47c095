"""System calls injected into a living process: it is as before, whoever dies in between."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from collector.arch import stub
from collector.errors import CorewardError
from collector.linux import ptrace
from collector.snapshot import inject
from collector.snapshot.fork import remote_fork
from collector.snapshot.inject import InjectionRefused, Injector
from collector.snapshot.precopy import PreCopy
from collector.snapshot.stop import StoppedProcess
from tests.system.live_targets import live_target
from tests.system.needs import needs
from tests.system.victims import PATIENCE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

GETPPID = 110
MIXES = (
    ("spin:2",),
    ("futex:4", "epoll:2", "read:2", "nanosleep:2", "pause:1", "spin:1"),
    ("epoll:1", "spin:1", "memory:16"),
    ("memory:32", "lockstep", "spin:1", "writer:4", "futex:2"),
)
KILLS = 25  # of each way, for each mix


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is: what is looked at here is not how long a stop takes."""
    monkeypatch.setattr(inject, "_STOP_PATIENCE", PATIENCE)
    monkeypatch.setattr(inject, "_ENTRY_PATIENCE", PATIENCE)


def call_getppid(pid: int) -> int:
    """Have a thread of the process call getppid(2)."""
    with (
        Injector(pid) as injector,
        injector.one_thread() as tid,
        injector.borrow(tid, lambda regs, mask: stub.call(GETPPID, (), regs, mask)) as thread,
    ):
        return thread.call()


@pytest.mark.parametrize("mix", MIXES, ids="+".join)
def test_a_thread_makes_a_call_and_nothing_remains_of_it(
    mix: tuple[str, ...], tmp_path: Path
) -> None:
    """
    GIVEN a process with running and blocked threads
    WHEN one of them is made to call getppid, a hundred times
    THEN it gives the right answer, and the process is exactly as before, its code too
    """
    with live_target(tmp_path, *mix) as target:
        before, code = target.state(), vdso(target.pid)
        answers = {ptrace.run_as_tracer(lambda: call_getppid(target.pid)) for _ in range(100)}
        assert answers == {os.getpid()}
        assert (target.changed(before), vdso(target.pid)) == ({}, code)
        assert target.goes_on()


@needs("pre-copy")
def test_a_filtered_process_makes_calls_that_its_filter_forbids(tmp_path: Path) -> None:
    """
    GIVEN a process that its seccomp filter kills for userfaultfd(2)
    WHEN it is made to call that
    THEN it does, and lives
    """
    with live_target(tmp_path, "seccomp", "futex:1", "spin:1", "memory:4") as target:
        before = target.state()
        with Injector(target.pid) as injector, PreCopy(injector, tmp_path) as precopy:
            assert precopy.run()
        assert target.changed(before) == {}
        assert target.goes_on()


def test_only_one_injects_at_a_time(tmp_path: Path) -> None:
    """
    GIVEN an injector at work
    WHEN another one is opened for the same process
    THEN it is refused, by name; and not any more when the first one has ended
    """
    with live_target(tmp_path) as target:
        with (
            Injector(target.pid),
            pytest.raises(InjectionRefused, match="another program is injecting"),
            Injector(target.pid),
        ):
            pass
        with Injector(target.pid):
            pass


def fork_it(pid: int, _folder: Path) -> None:
    with (
        Injector(pid) as injector,
        StoppedProcess(pid, deadline=PATIENCE) as stopped,
        remote_fork(stopped, injector),
    ):
        pass


def precopy_it(pid: int, folder: Path) -> None:
    with Injector(pid) as injector, PreCopy(injector, folder) as precopy:
        precopy.round()
        with StoppedProcess(pid, deadline=PATIENCE):
            precopy.freeze()


def call_it(pid: int, _folder: Path) -> None:
    call_getppid(pid)


WAYS = [call_it, fork_it, pytest.param(precopy_it, marks=needs("pre-copy"))]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mix", MIXES, ids="+".join)
def test_a_killed_tracer_leaves_a_process_that_runs_on(
    mix: tuple[str, ...], way: Callable[[int, Path], None], tmp_path: Path
) -> None:
    """
    GIVEN a tracer that injects, forks or copies again and again
    WHEN it is killed at a random point, and another takes its place, many times
    THEN the process is as before each time: children, descriptors, mappings, masks, threads; no
        register or flag changed; only epoll_wait may have come back with EINTR, for the kernel
        forgets it when a stop ends before the tracer has said that it shall start again
    """
    chance = random.Random(f"{mix}{way.__name__}")
    with live_target(tmp_path, *mix) as target:
        before = target.state()
        ignored = "interrupted" if any("epoll" in what for what in mix) else ""
        for kill in range(KILLS):
            with tracer(lambda: way(target.pid, tmp_path)) as pid:
                time.sleep(chance.uniform(0, 0.02))  # the random point, not a wait
                os.kill(pid, signal.SIGKILL)
            assert (kill, target.changed(before, ignored)) == (kill, {})
            assert target.goes_on()
        assert ptrace.run_as_tracer(lambda: call_getppid(target.pid)) == os.getpid()
        assert target.changed(before, ignored) == {}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("mix", "step"), [(MIXES[0], 1), (MIXES[1], 3)], ids=["waits", "runs"])
def test_a_tracer_that_dies_after_any_of_its_requests_does_no_harm(
    mix: tuple[str, ...], step: int, way: Callable[[int, Path], None], tmp_path: Path
) -> None:
    """
    GIVEN a tracer that kills itself right after its Nth request to the kernel
    WHEN N goes from the first request to the last, for threads that run to every third
    THEN the process is as before each time
    """
    with live_target(tmp_path, *mix) as target:
        before = target.state()
        ignored = "interrupted" if any("epoll" in what for what in mix) else ""
        last, finished = 0, False
        while not finished:
            last += step
            finished = dies_after(last, lambda: way(target.pid, tmp_path))
            assert (last, target.changed(before, ignored)) == (last, {})
            assert target.goes_on()
        assert last > 10


def dies_after(requests: int, work: Callable[[], None]) -> bool:
    """Do the work in a process that is killed after that many requests. Whether it was done."""
    pid = os.fork()
    if not pid:
        plain = ptrace._ptrace
        left = iter(range(requests - 1, -1, -1))

        def request(*arguments: int) -> int:
            result = int(plain(*arguments))
            if not next(left):
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        ptrace._ptrace = request  # type: ignore[assignment]
        try:
            ptrace.run_as_tracer(work)
        except BaseException:  # never back into a second pytest
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL)
    return status == 0


@contextlib.contextmanager
def tracer(work: Callable[[], None]) -> Iterator[int]:
    """A process that does its work over and over until it is killed. Given when it has begun."""
    began, begin = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(begin, b"x")
        while True:
            with contextlib.suppress(CorewardError, OSError):  # e.g. what the last one left is busy
                ptrace.run_as_tracer(work)
    try:
        os.read(began, 1)
        yield pid
    finally:
        os.close(began)
        os.close(begin)
        _, status = os.waitpid(pid, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, status


def vdso(pid: int) -> bytes:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    start, end = next(line.split()[0] for line in lines if "[vdso]" in line).split("-")
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(int(start, 16))
        return memory.read(int(end, 16) - int(start, 16))
