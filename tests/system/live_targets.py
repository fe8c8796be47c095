"""A live_target (tests/victims/live_target.c) and what it has noticed."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import pytest

from collector.elfcore.reader import CoreFile
from tests.system.memory_cgroups import MemoryCgroup
from tests.system.victims import PATIENCE, Victim, build, running

PAGE = 4096
_WORDS = struct.Struct("<14Q")


class Report(NamedTuple):
    """struct report of live_target.c."""

    interrupted: int
    returned: int
    broken: int
    spins: int
    writes: int
    faults: int
    longest_fault: int
    memory: int
    size: int
    first: int
    second: int
    dontfork: int
    wipeonfork: int
    shared: int


class State(NamedTuple):
    """What a snapshot must leave as it was."""

    children: int  # that wait(-1) of the process sees
    hidden: tuple[str, ...]  # children that the kernel knows of
    descriptors: tuple[str, ...]
    mappings: bytes
    masks: tuple[str, ...]
    threads: int
    tracers: tuple[str, ...]
    interrupted: int
    returned: int
    broken: int


class Target:
    """A running live_target."""

    def __init__(self, victim: Victim, file: Path) -> None:
        self.victim, self.pid = victim, victim.pid
        with file.open("rb") as opened:
            self._memory = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)

    @property
    def report(self) -> Report:
        return Report(*_WORDS.unpack_from(self._memory))

    def ask(self, command: bytes) -> bytes:
        """Its answer to one of the commands in live_target.c."""
        assert self.victim.process.stdin is not None and self.victim.process.stdout is not None
        self.victim.process.stdin.write(command)
        assert select.select([self.victim.process.stdout], [], [], PATIENCE)[0], "it hangs"
        answer = os.read(self.victim.process.stdout.fileno(), 64)
        assert waited_for(self._waits)
        return answer

    def _waits(self) -> bool:
        """Whether the main thread is in read(2) again, on its standard input."""
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.pid}/syscall").read_text().startswith("0 0x0 ")
        return True  # it has ended

    def state(self) -> State:
        tasks = list(Path(f"/proc/{self.pid}/task").iterdir())
        report = self.report
        return State(
            children=int(self.ask(b"c").split()[1]),
            hidden=tuple(c for t in tasks for c in (t / "children").read_text().split()),
            descriptors=tuple(sorted(fd.name for fd in Path(f"/proc/{self.pid}/fd").iterdir())),
            mappings=Path(f"/proc/{self.pid}/maps").read_bytes(),
            masks=tuple(self._field(t, "SigBlk") for t in tasks),
            threads=len(tasks),
            tracers=tuple(self._field(t, "TracerPid") for t in tasks),
            interrupted=report.interrupted,
            returned=report.returned,
            broken=report.broken,
        )

    @staticmethod
    def _field(task: Path, name: str) -> str:
        lines = (task / "status").read_text().splitlines()
        return next(line.split()[1] for line in lines if line.startswith(name))

    def changed(self, before: State, ignored: str = "") -> dict[str, tuple[object, object]]:
        """What is not as it was (then, now), once it has settled; hopefully nothing."""
        end = time.monotonic() + PATIENCE / 6
        while True:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                now = self.state()._asdict()
                then = before._asdict()
                found = {n: (then[n], now[n]) for n in then if then[n] != now[n] and n != ignored}
                if not found or time.monotonic() > end:
                    return found

    def goes_on(self) -> bool:
        """Whether its spinning threads still spin."""
        before = self.report.spins
        return waited_for(lambda: self.report.spins > before + 2)

    def stop(self) -> None:
        """SIGSTOP, until all of its threads have stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        assert waited_for(self.is_stopped)

    def is_stopped(self) -> bool:
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return {self._field(task, "State") for task in tasks} == {"T"}

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def huge(self) -> int:
        """KiB of its `memory` in huge pages, if it is of `thp`."""
        end = 0
        for line in Path(f"/proc/{self.pid}/smaps").read_text().splitlines():
            if line[0] in "0123456789abcdef":
                end = int(line.split()[0].split("-")[1], 16)
            elif line.startswith("AnonHugePages") and end > self.report.memory:
                return int(line.split()[1])
        raise AssertionError("it has no such memory")


def waited_for(condition: Callable[[], bool]) -> bool:
    """Whether it became true in time."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.0005)  # or whoever is waited for has half of this CPU
    return True


@pytest.fixture
def without_rseq(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets that are still: the kernel writes the number of the CPU into a thread's rseq(2)."""
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.pthread.rseq=0")


@contextlib.contextmanager
def live_target(folder: Path, *what: str, group: MemoryCgroup | None = None) -> Iterator[Target]:
    """A live_target that does all this, in a cgroup from its start on."""
    file = folder / "report"
    build("live_target")
    with contextlib.ExitStack() as stack:
        with group.entered() if group else contextlib.nullcontext():
            victim = stack.enter_context(running("live_target", str(file), *what, cwd=folder))
        yield Target(victim, file)


class Readable(Protocol):
    """Memory by address."""

    def read(self, address: int, size: int) -> bytes:
        """As much as there is of `size` bytes."""


def word(memory: Readable, address: int) -> int:
    return int.from_bytes(memory.read(address, 8), "little")


def differences(core: Path, memory: Readable) -> list[int]:
    """Addresses of pages of a core that are not the same in this memory."""
    found = []
    with CoreFile(core) as opened:
        for placed in opened.segments:
            start = placed.segment.vaddr
            end = start + placed.segment.filesz
            for at in range(start, min(end, 1 << 47), 1 << 20):  # beyond: the vsyscall page
                size = min(end - at, 1 << 20)
                if opened.read(at, size) != memory.read(at, size):
                    pages = range(at, at + size, PAGE)
                    found += [p for p in pages if opened.read(p, PAGE) != memory.read(p, PAGE)]
        assert sum(placed.segment.filesz for placed in opened.segments) > 1 << 20
    return found
