"""Snapshots of processes of special kinds: afterwards each goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from collector.elfcore.reader import CoreFile
from collector.introspect import Process
from collector.linux import ptrace
from collector.snapshot.fork import remote_fork
from collector.snapshot.inject import InjectionRefused, Injector
from collector.snapshot.stop import StoppedProcess
from tests.system.live_targets import live_target
from tests.system.live_victims import states
from tests.system.scratch import NAME
from tests.system.snapshots import NO_32_BIT, NOBODY, coreward, nobodys_folder, refused
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


# --- 32 bits --------------------------------------------------------------------------------------


@WAYS
def test_a_32_bit_process_is_refused_by_name(way: tuple[str, ...], tmp_path: Path) -> None:
    # GIVEN a 32-bit process
    file = tmp_path / "numbers"
    with running("bits32", "live", str(file), cwd=tmp_path) as victim:
        # WHEN a snapshot is asked for THEN that is why there is none
        said = refused(coreward("snapshot", victim.pid, *way, "-o", tmp_path / "core"))
        assert said == f"no snapshot of process {victim.pid}: {NO_32_BIT}"
        assert not (tmp_path / "core").exists()
        # AND it goes on
        goes_on(file)


@pytest.mark.parametrize("use_bpf", [True, False], ids=["bpf", "proc"])
def test_system_calls_of_a_32_bit_process(use_bpf: bool, tmp_path: Path) -> None:
    # GIVEN a 32-bit process that sleeps most of the time
    file = tmp_path / "numbers"
    with (
        running("bits32", "live", str(file), cwd=tmp_path) as victim,
        Process(victim.pid, use_bpf=use_bpf) as process,
    ):
        calls = set()

        def sees_a_call() -> bool:
            calls.update(t.syscall.name for t in process.threads() if t.syscall is not None)
            return bool(calls)

        wait_until(sees_a_call, "it is in no system call")
        # THEN its calls have the names of 32-bit ones
        assert calls == {"nanosleep"}
        goes_on(file)


def test_samples_of_a_32_bit_process(tmp_path: Path) -> None:
    with running("bits32", "live", str(tmp_path / "numbers"), cwd=tmp_path) as victim:
        took = coreward("sample", victim.pid, "--every", "20ms", "--for", "200ms")
        goes_on(tmp_path / "numbers")
    assert took.returncode == 0, took.stderr
    assert NO_32_BIT in took.stdout + took.stderr


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


# --- restartable sequences, robust lists, devices -------------------------------------------------


@WAYS
def test_what_the_kernel_keeps_of_a_thread(way: tuple[str, ...], tmp_path: Path) -> None:
    # GIVEN threads in restartable sequences, one with a robust list, and a device that is mapped
    file = tmp_path / "numbers"
    with running("live_special", str(file), cwd=tmp_path) as victim:
        goes_on(file)
        # WHEN it is snapshot, again and again
        for _ in range(3):
            facts_of(victim.pid, tmp_path / "core", *way, "--force")
            # THEN nothing was lost, and nothing counted twice
            goes_on(file)


# --- frozen ---------------------------------------------------------------------------------------


class Freezer(NamedTuple):
    """A cgroup of a test that can be frozen (cgroups(7))."""

    group: Path
    file: str
    words: tuple[str, str]  # to freeze, to go on

    def freeze(self) -> None:
        (self.group / self.file).write_text(self.words[0])

    def thaw(self) -> None:
        (self.group / self.file).write_text(self.words[1])

    def is_frozen(self) -> bool:
        if self.file == "freezer.state":
            return (self.group / self.file).read_text() == "FROZEN\n"
        return "frozen 1" in (self.group / "cgroup.events").read_text()


FREEZERS = {
    "v1": (Path("/sys/fs/cgroup/freezer"), "freezer.state", ("FROZEN", "THAWED")),
    "v2": (Path("/sys/fs/cgroup"), "cgroup.freeze", ("1", "0")),
    "v2 beside v1": (Path("/sys/fs/cgroup/unified"), "cgroup.freeze", ("1", "0")),
}


@pytest.fixture(params=list(FREEZERS))
def freezer(request: pytest.FixtureRequest) -> Iterator[Freezer]:
    root, file, words = FREEZERS[request.param]
    if not (root / ("cgroup.controllers" if file == "cgroup.freeze" else "tasks")).exists():
        pytest.skip(f"no freezer of cgroups {request.param} here")
    made = Freezer(root / f"{NAME}-frozen", file, words)
    made.group.mkdir()
    try:
        yield made
    finally:
        made.thaw()
        wait_until(
            lambda: not (made.group / "cgroup.procs").read_text(), "members of a cgroup stay"
        )
        made.group.rmdir()


@WAYS
def test_a_frozen_process(way: tuple[str, ...], freezer: Freezer, tmp_path: Path) -> None:
    # GIVEN a process whose cgroup is frozen
    with live_target(tmp_path, "futex:2", "spin:1", "memory:8") as target:
        before = target.state()
        (freezer.group / "cgroup.procs").write_text(str(target.pid))
        freezer.freeze()
        wait_until(freezer.is_frozen, "it does not freeze")
        try:
            # WHEN it is snapshot
            took = coreward("snapshot", target.pid, *way, "-o", tmp_path / "core")
            # THEN it is done, or refused with the reason
            if took.returncode:
                assert "could be stopped: it sleeps uninterruptibly" in refused(took)
            else:
                with CoreFile(tmp_path / "core") as core:
                    assert len(core.threads) == 4
            assert freezer.is_frozen()
        finally:
            freezer.thaw()
        # AND when it thaws it goes on as if nothing had been
        assert target.changed(before) == {}
        assert target.goes_on() and target.report.broken == 0


# --- in exec --------------------------------------------------------------------------------------


@WAYS
def test_a_process_that_begins_another_program(way: tuple[str, ...], tmp_path: Path) -> None:
    # GIVEN a process that calls execve(2) all the time, from any thread
    file = tmp_path / "numbers"
    with running("live_exec", str(file), cwd=tmp_path) as victim:
        for _ in range(5):
            # WHEN it is snapshot THEN it is done, or refused with a reason
            took = coreward("snapshot", victim.pid, *way, "-o", tmp_path / "core", "--force")
            if took.returncode:
                assert refused(took)
            # AND it goes on as if nothing had been
            goes_on(file)


# --- traced by others, now and then ---------------------------------------------------------------


@WAYS
def test_a_debugger_that_comes_and_goes(way: tuple[str, ...], tmp_path: Path) -> None:
    # GIVEN a process that somebody else stops and lets go all the time
    file = tmp_path / "numbers"
    with live_target(tmp_path, "futex:2", "spin:1", "memory:8") as target:
        before = target.state()
        with running("live_tracer", str(file), str(target.pid), cwd=tmp_path):
            for _ in range(5):
                goes_on(file)
                # WHEN it is snapshot THEN it is done, or refused with the reason
                took = coreward("snapshot", target.pid, *way, "-o", tmp_path / "core", "--force")
                if took.returncode:
                    assert "traced" in refused(took) or "tracing" in refused(took)
                else:
                    with CoreFile(tmp_path / "core") as core:
                        assert len(core.threads) == 4
                # AND the other one still can
                goes_on(file)
        # AND the process is as it was
        assert target.changed(before) == {}
        assert target.goes_on() and target.report.broken == 0


# --- in vfork -------------------------------------------------------------------------------------


@WAYS
def test_a_child_of_vfork(way: tuple[str, ...], tmp_path: Path) -> None:
    # GIVEN a process whose memory is its parent's, which waits in vfork and has two more threads
    with running("live_vfork", cwd=tmp_path) as victim:
        wait_until(lambda: sorted(states(victim.pid).values()) == ["D", "S", "S"], "no vfork")
        lists = Path(f"/proc/{victim.pid}/task").glob("*/children")
        (child,) = [int(pid) for text in map(Path.read_text, lists) for pid in text.split()]
        wait_until(lambda: states(child) == {child: "S"}, "it does not wait")
        for _ in range(3):
            # WHEN it is snapshot
            facts = facts_of(child, tmp_path / "core", *way, "--force")
            with CoreFile(tmp_path / "core") as core:
                assert [thread.tid for thread in core.threads] == [child]
            # THEN its memory is of no instant, for the others go on
            assert not facts.consistent
            if "full-stop" in way or "--no-inject" in way:
                same = f"process {victim.pid} has the same memory, and was not stopped"
                assert facts.unstopped == (same,)
        # AND both go on as if nothing had been
        victim.go()
        assert victim.wait() == 0


# --- memory that nobody gives ---------------------------------------------------------------------

FUSE = 0x100000000000  # where the victim has mapped a file of FUSE


@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="no FUSE here")
@WAYS
def test_pages_of_a_file_that_never_answers(
    way: tuple[str, ...], mounted: Path, tmp_path: Path
) -> None:
    # GIVEN a process with a private mapping of a file whose owner answers nobody any more
    with running("fuse_private", str(mounted), cwd=tmp_path) as victim:
        # WHEN it is snapshot
        facts_of(victim.pid, tmp_path / "core", *way)
        # THEN what is in memory is in the core
        if way != ("--mode", "threads"):
            with CoreFile(tmp_path / "core") as core:
                assert core.read(FUSE, 7) == b"of fuse"
                assert core.read(FUSE + 100, 1) == b"\1"
        # AND it goes on, and ends as ever (not by a crash: the kernel's own dump would wait)
        assert set(states(victim.pid).values()) == {"S"}
        victim.process.kill()
        assert victim.wait() == -signal.SIGKILL
