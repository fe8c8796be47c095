"""Memory of one instant by pre-copy: what is in it, and what the process notices."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.elfcore.reader import CoreFile
from collector.elfcore.sink import SparseWriter
from collector.elfcore.types import ProcessImage, Segment, Thread
from collector.elfcore.writer import write_core
from collector.linux.ptrace import run_as_tracer
from collector.snapshot.fork import remote_fork
from collector.snapshot.inject import Injector
from collector.snapshot.mappings import list_mappings
from collector.snapshot.precopy import PreCopy
from collector.snapshot.staging import StagedMemory
from collector.snapshot.stop import StoppedProcess
from tests.system.live_targets import (
    Target,
    differences,
    live_target,
    waited_for,
    without_rseq,
    word,
)
from tests.system.needs import needs
from tests.system.snapshots import live_core
from tests.system.victims import PATIENCE

__all__ = ["without_rseq"]  # a fixture

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    needs("pre-copy"),
]

MIB = 1 << 20


@contextlib.contextmanager
def copied(target: Target, folder: Path, **how: int) -> Iterator[PreCopy]:
    with Injector(target.pid) as injector, PreCopy(injector, folder, **how) as precopy:
        yield precopy


def freeze(target: Target, precopy: PreCopy) -> bool:
    """Freeze in a stop of the whole process."""

    def work() -> bool:
        with StoppedProcess(target.pid, deadline=PATIENCE):
            return precopy.freeze()

    return run_as_tracer(work)


@pytest.mark.parametrize("writer", ["writer:0", "writer:40"])
def test_all_memory_is_of_one_instant(writer: str, tmp_path: Path) -> None:
    """
    GIVEN a thread that counts in two pages, first in one and then in the other, and a writer
    WHEN memory is pre-copied, six times
    THEN the counts never differ by more than the one step, and the process is as before
    """
    with live_target(tmp_path, "memory:32", "lockstep", writer, "spin:1", "epoll:1") as target:
        before, report = target.state(), target.report
        counts = []
        for _ in range(6):
            with copied(target, tmp_path) as precopy:
                precopy.run()
                assert freeze(target, precopy)
                memory = precopy.memory({})
                counts.append((word(memory, report.first), word(memory, report.second)))
        assert {first - second for first, second in counts} <= {0, 1}
        assert sorted(set(counts)) == counts
        assert target.changed(before) == {}


@pytest.mark.usefixtures("without_rseq")
@pytest.mark.parametrize("pages", ["memory:48", "thp:48"])
def test_its_memory_is_that_of_gcore(pages: str, tmp_path: Path) -> None:
    """
    GIVEN an idle process, and a core of it by gdb
    WHEN its memory is pre-copied
    THEN each byte that gdb has is the same, and huge pages are still huge
    """
    with live_target(tmp_path, pages, "futex:2") as target:
        core = live_core(target.pid, tmp_path / "gcore")
        huge = target.huge()
        with copied(target, tmp_path) as precopy:
            assert precopy.run()
            assert freeze(target, precopy)
            assert differences(core, precopy.memory({})) == []
        assert target.huge() == huge


def test_huge_pages_stay_wherever_small_ones_lie(tmp_path: Path) -> None:
    """
    GIVEN small pages before huge ones, near enough to be looked through together, and a control
    WHEN memory is pre-copied, six times
    THEN huge pages are still huge, but for those that the kernel took from the control, too
    """
    (tmp_path / "control").mkdir()
    with (
        live_target(tmp_path, "thp:48", "memory:3", "futex:2") as target,
        live_target(tmp_path / "control", "thp:48", "memory:3", "futex:2") as control,
    ):
        sizes = [huge_of(target.pid), huge_of(control.pid)]
        assert sizes == [48 << 10] * 2
        for _ in range(6):
            with copied(target, tmp_path) as precopy:
                assert precopy.run()
                assert freeze(target, precopy)
        assert huge_of(control.pid) == 48 << 10, "the machine is short of memory"
        assert huge_of(target.pid) == 48 << 10


def huge_of(pid: int) -> int:
    """KiB in huge pages."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))


@pytest.mark.usefixtures("without_rseq")
def test_what_is_dropped_moved_or_mapped_anew_between_the_rounds_is_seen(tmp_path: Path) -> None:
    """
    GIVEN memory of which all was copied in a round
    WHEN a quarter each is dropped, mapped anew, moved away, and read as zeros; before and after
        one more round
    THEN the copy is what gdb then sees, and what was dropped has no populated ranges
    """
    for late in (False, True):
        with (
            live_target(tmp_path, "memory:32", "futex:1") as target,
            copied(target, tmp_path) as precopy,
        ):
            precopy.round()
            if late:
                precopy.round()
            for what in (b"d", b"u", b"m", b"z"):
                assert target.ask(what) == b"done\n"
            if not late:
                precopy.round()
            assert freeze(target, precopy)
            memory = precopy.memory({})
            start, size = target.report.memory, target.report.size
            core = live_core(target.pid, tmp_path / "gcore")
            assert differences(core, memory) == []
            # one page, which is a huge one where the kernel gives them to everybody
            assert populated(memory, start + size // 4, size // 4) in (4096, 2 << 20)
            assert populated(memory, start, size // 4) == 0


def populated(memory: StagedMemory, start: int, size: int) -> int:
    return sum(high - low for low, high in memory.ranges(start, start + size))


def test_a_saturated_writer_is_forked_in_the_same_stop(tmp_path: Path) -> None:
    """
    GIVEN a process that writes all of its memory all the time
    WHEN pre-copy is allowed less than that
    THEN it says so in the stop, and a fork in that same stop is consistent
    """

    def work() -> tuple[bool, int]:
        with StoppedProcess(target.pid, deadline=PATIENCE) as stopped:
            fits = precopy.freeze()
            with remote_fork(stopped, injector) as copy:
                memory = copy.memory(list_mappings(target.pid), {})
                return fits, word(memory, report.first) - word(memory, report.second)

    with live_target(tmp_path, "memory:64", "lockstep", "writer:2000") as target:
        before, report = target.state(), target.report
        with (
            Injector(target.pid) as injector,
            PreCopy(injector, tmp_path, max_dirty=1 * MIB) as precopy,
        ):
            assert not precopy.run()
            fits, apart = run_as_tracer(work)
        assert (fits, apart in (0, 1)) == (False, True)
        assert target.changed(before) == {}


def test_a_core_is_written_from_it_while_the_process_goes_on(tmp_path: Path) -> None:
    """
    GIVEN a frozen pre-copy
    WHEN a core is written from it after the process went on
    THEN it has the memory of the instant, and no more data than there was
    """
    with live_target(tmp_path, "memory:32", "lockstep", "writer:10") as target:
        with copied(target, tmp_path) as precopy:
            precopy.run()
            assert freeze(target, precopy)
            memory = precopy.memory({})
            seen = word(memory, target.report.first)
            assert waited_for(lambda: target.report.writes > 1000)
            segments = [
                Segment(vaddr=m.start, memsz=m.size, filesz=m.size, flags=m.prot)
                for m in precopy.mappings
                if not m.inode and not m.shared and not (m.path or "").startswith("[v")
            ]
            with (tmp_path / "core").open("wb") as file:
                image = ProcessImage(threads=[Thread(tid=1, regs=(0,) * 27)])
                result = write_core(image, segments, memory, SparseWriter(file.fileno()))
            with CoreFile(tmp_path / "core") as core:
                first, second = (
                    int.from_bytes(core.read(at, 8), "little")
                    for at in (target.report.first, target.report.second)
                )
        assert (first, first - second in (0, 1), result.unreadable_bytes) == (seen, True, 0)
        assert 32 * MIB <= result.written <= 34 * MIB


def test_nothing_is_tracked_any_more_afterwards(tmp_path: Path) -> None:
    """
    GIVEN a process whose memory was pre-copied
    WHEN that has ended, by itself or because the tracer was killed
    THEN no mapping of it is registered with a userfaultfd, and it has no descriptor more
    """
    with live_target(tmp_path, "memory:16", "writer:10", "spin:1") as target:
        before = target.state()
        with copied(target, tmp_path) as precopy:
            precopy.round()
            assert b"uw" in flags_of(target.pid)
        assert b"uw" not in flags_of(target.pid)
        child = os.fork()
        if not child:
            with copied(target, tmp_path) as precopy:
                precopy.round()
                os.kill(os.getpid(), 9)
        os.waitpid(child, 0)
        assert waited_for(lambda: b"uw" not in flags_of(target.pid))
        assert target.changed(before) == {}


def flags_of(pid: int) -> set[bytes]:
    lines = Path(f"/proc/{pid}/smaps").read_bytes().splitlines()
    return {flag for line in lines if line.startswith(b"VmFlags") for flag in line.split()[1:]}
