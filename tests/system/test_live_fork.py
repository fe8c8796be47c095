"""Memory of one instant by a hidden fork: what is in it, and that the process does not notice."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.elfcore.types import LeftOut
from collector.linux.ptrace import run_as_tracer
from collector.snapshot import headroom
from collector.snapshot.fork import (
    DONTFORK,
    SHARED,
    WIPEONFORK,
    CopyLost,
    ProcessCopy,
    remote_fork,
)
from collector.snapshot.inject import Injector
from collector.snapshot.mappings import list_mappings
from collector.snapshot.stop import StoppedProcess
from tests.system.live_targets import (
    PAGE,
    differences,
    live_target,
    waited_for,
    without_rseq,
    word,
)
from tests.system.memory_cgroups import memory_cgroup
from tests.system.snapshots import live_core
from tests.system.victims import PATIENCE

__all__ = ["without_rseq"]  # a fixture

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@contextlib.contextmanager
def forked(pid: int) -> Iterator[ProcessCopy]:
    """A copy of a process. In a tracer's thread."""
    with (
        Injector(pid) as injector,
        StoppedProcess(pid, deadline=PATIENCE) as stopped,
        remote_fork(stopped, injector) as copy,
    ):
        yield copy


def test_all_memory_is_of_one_instant(tmp_path: Path) -> None:
    """
    GIVEN a thread that counts in two pages, first in one and then in the other
    WHEN the process is forked, thirty times
    THEN the counts in the copy never differ by more than the one step, and the process goes on
    """

    def work() -> tuple[int, int]:
        with forked(target.pid) as copy:
            memory = copy.memory(list_mappings(target.pid), {})
            return word(memory, report.first), word(memory, report.second)

    with live_target(tmp_path, "lockstep", "spin:1", "futex:2", "memory:16") as target:
        before, report = target.state(), target.report
        counts = [run_as_tracer(work) for _ in range(30)]
        assert {first - second for first, second in counts} <= {0, 1}
        assert sorted(counts) == counts  # and it counted on, whenever it had a CPU
        assert len(set(counts)) > 1
        assert target.changed(before) == {}


def test_the_copy_is_invisible_to_the_process(tmp_path: Path) -> None:
    """
    GIVEN a process without children
    WHEN a copy of it exists
    THEN its wait(-1) sees no child, the copy is the first to be killed for want of memory, does
        not run, and is gone with its reaper afterwards
    """

    def work() -> tuple[int, str, str]:
        with forked(target.pid) as copy:
            children = target.state().children
            status = Path(f"/proc/{copy.pid}/status").read_text()
            state = next(line for line in status.splitlines() if line.startswith("State"))
            score = Path(f"/proc/{copy.pid}/oom_score_adj").read_text().strip()
            return children, state.split(None, 1)[1], score

    with live_target(tmp_path, "epoll:1", "spin:1") as target:
        before = target.state()
        assert run_as_tracer(work) == (0, "t (tracing stop)", "1000")
        assert target.changed(before) == {}


@pytest.mark.usefixtures("without_rseq")
def test_its_memory_is_that_of_gcore(tmp_path: Path) -> None:
    """
    GIVEN an idle process, and a core of it by gdb
    WHEN it is forked
    THEN each byte that gdb has is the same in the copy
    """

    def work() -> list[int]:
        with forked(target.pid) as copy:
            return differences(core, copy.memory(list_mappings(target.pid), {}))

    with live_target(tmp_path, "memory:48", "futex:2") as target:
        core = live_core(target.pid, tmp_path / "gcore")
        assert run_as_tracer(work) == []


def test_areas_that_a_fork_does_not_copy_are_named_and_read_all_the_same(tmp_path: Path) -> None:
    """
    GIVEN pages that are shared, MADV_DONTFORK and MADV_WIPEONFORK
    WHEN the process is forked
    THEN these are named with the reason, and what is in them is read from the process
    """

    def work() -> tuple[list[LeftOut], list[bytes]]:
        with forked(target.pid) as copy:
            mappings = list_mappings(target.pid)
            named = [a for a in copy.not_of_instant(mappings) if a.start in pages]
            memory = copy.memory(mappings, {})
            return named, [memory.read(page, 12).rstrip(b"\0") for page in pages]

    with live_target(tmp_path, "dontfork", "wipeonfork", "shared") as target:
        pages = target.report.dontfork, target.report.wipeonfork, target.report.shared
        named, contents = run_as_tracer(work)
    reasons = zip(pages, (DONTFORK, WIPEONFORK, SHARED), strict=True)
    assert {a.start: a for a in named} == {p: LeftOut(p, p + PAGE, why) for p, why in reasons}
    assert contents == [b"dontfork", b"wipeonfork", b"shared"]


def test_a_filtered_process_is_forked_and_keeps_no_zombie(tmp_path: Path) -> None:
    """
    GIVEN a process that its seccomp filter kills for clone(2) and wait4(2)
    WHEN it is forked
    THEN it lives, its memory is right, and no child remains
    """

    def work() -> int:
        with forked(target.pid) as copy:
            memory = copy.memory(list_mappings(target.pid), {})
            return word(memory, report.first) - word(memory, report.second)

    with live_target(tmp_path, "lockstep", "seccomp", "futex:1", "spin:1") as target:
        before, report = target.state(), target.report
        assert run_as_tracer(work) in (0, 1)
        assert target.changed(before) == {}
        assert target.goes_on()


def test_huge_pages_of_an_idle_process_survive(tmp_path: Path) -> None:
    """
    GIVEN a process with huge pages to which it does not write
    WHEN it is forked and the copy is read
    THEN they are still huge
    """

    def work() -> int:
        with forked(target.pid) as copy:
            memory = copy.memory(list_mappings(target.pid), {})
            return len(memory.read(target.report.memory, target.report.size))

    with live_target(tmp_path, "thp:64", "futex:1") as target:
        before = target.huge()
        assert before  # as many as the machine has
        assert run_as_tracer(work) == 64 << 20
        assert target.huge() == before


def test_a_copy_that_might_not_fit_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    """
    GIVEN a process of 64 MiB in a memory cgroup of 100 MiB
    WHEN it is to be forked
    THEN it is refused, naming the cgroup, and the process is as before
    """
    with (
        memory_cgroup(100 << 20) as group,
        live_target(tmp_path, "memory:64", "spin:1", group=group) as target,
    ):
        before = target.state()
        with pytest.raises(headroom.NoRoom, match=f"memory cgroup {group.path} has .* of 100 MiB"):
            run_as_tracer(lambda: forked(target.pid).__enter__())
        assert target.changed(before) == {}
        assert target.goes_on()


def test_a_writer_near_its_memory_limit_outlives_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    GIVEN a process that writes to all of its 64 MiB, in a memory cgroup where 128 do not fit
    WHEN it is forked in spite of that, and the copy is kept
    THEN the copy is given up, whoever reads it is told why, and the process goes on unharmed
    """

    monkeypatch.setattr(headroom, "check_room", lambda pid: None)

    def work() -> str:
        with forked(target.pid) as copy:
            memory = copy.memory(list_mappings(target.pid), {})
            assert waited_for(lambda: copy.lost is not None)
            with pytest.raises(CopyLost, match="was given up"):
                list(memory.ranges(target.report.memory, target.report.memory + PAGE))
            return copy.lost or ""

    with (
        memory_cgroup(110 << 20) as group,
        live_target(tmp_path, "memory:64", "writer:200", "spin:1", group=group) as target,
    ):
        before = target.state()
        assert str(group.path) in run_as_tracer(work)
        assert target.changed(before) == {}
        written = target.report.writes
        assert waited_for(lambda: target.report.writes > written + 1000)


def test_a_process_that_dies_while_its_copy_is_read(tmp_path: Path) -> None:
    """
    GIVEN a copy of a process
    WHEN the process is killed
    THEN its parent has it at once, and the copy can still be read
    """

    def work() -> tuple[int, int]:
        with forked(target.pid) as copy:
            memory = copy.memory(list_mappings(target.pid), {})
            target.victim.process.kill()
            status = target.victim.wait()
            return status, len(memory.read(address, size))

    with live_target(tmp_path, "memory:16", "futex:1") as target:
        address, size = target.report.memory, target.report.size
        assert run_as_tracer(work) == (-9, size)


def test_a_stopped_process_stays_stopped(tmp_path: Path) -> None:
    """
    GIVEN a process that SIGSTOP has stopped
    WHEN it is forked
    THEN the copy can be read, the process is still stopped, and SIGCONT lets it go on
    """

    def work() -> int:
        with forked(target.pid) as copy:
            return len(copy.memory(list_mappings(target.pid), {}).read(address, size))

    with live_target(tmp_path, "memory:8", "spin:1", "futex:1") as target:
        address, size = target.report.memory, target.report.size
        before = target.state()
        target.stop()
        assert run_as_tracer(work) == size
        assert target.is_stopped()
        target.resume()
        assert target.changed(before) == {}
        assert target.goes_on()
