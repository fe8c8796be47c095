"""The probe for live processes: threads with registers and stacks, mappings; nobody is stopped.

    with open_live() as live:
        threads = live.sample(pid, 8 << 10)

Its programs belong to the process that opened it: nothing is attached to the system, nothing is
pinned, and any number of them may be open beside an agent. Needs root (CAP_BPF, CAP_PERFMON,
CAP_SYS_ADMIN, CAP_SYS_PTRACE).
"""

from __future__ import annotations

import contextlib
import os
import select
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from collector.arch.x86_64 import RED_ZONE
from collector.errors import ProbeError
from collector.linux import libbpf, process_vm
from collector.linux.perf_clock import Clock
from collector.linux.procfs import thread_with_memory
from collector.linux.ringbuf import Ring
from collector.probe import files, iterators, pins
from collector.probe.stacks import (
    LIVE,
    MAX_CAUGHT_STACK,
    MAX_STACK,
    SETTINGS,
    SWITCHES,
    Caught,
    Listed,
    ThreadStack,
    check_size,
    decode_caught,
    decode_listed,
    extents,
    pages_for,
    with_caught,
)

LISTINGS = ("states", "switches")
PROGRAMS = (*LISTINGS, "catch_running", *pins.ITERATORS)
MAPS = ("live_settings", "ring")
PERIOD_NS = 150_000  # between two clock interrupts
PATIENCE = 0.005  # seconds in which a running thread is caught, if it goes on running
_AGAIN = 64  # threads that are looked at once more, one by one
_TRIES = 3
_AT_ONCE = (32 << 10) // LIVE.size  # threads: the kernel tells no more bytes at a time
_ROOM = max(1 << 20, MAX_STACK + RED_ZONE)  # bytes of stacks that are read by one call


class _Descriptors(NamedTuple):
    programs: dict[str, int]
    maps: dict[str, int]

    def close(self) -> None:
        for descriptor in (*self.programs.values(), *self.maps.values()):
            os.close(descriptor)


def _from_object(path: Path) -> _Descriptors:
    try:
        image = path.read_bytes()
    except OSError as error:
        raise ProbeError(
            f"{path} cannot be read ({error.strerror}): build it with "
            "`python -m collector.probe.build build`, or use the loader bcc"
        ) from error
    with libbpf.Object(image, str(path)) as loaded:
        programs = dict(loaded.programs())
        return _Descriptors(
            {name: os.dup(programs[name]) for name in PROGRAMS},
            {name: os.dup(loaded.map(name)) for name in MAPS},
        )


def _from_bcc() -> _Descriptors:
    """Through pins of a moment: the compiler runs in another process."""
    from collector.probe import livebcc  # noqa: PLC0415 - it is also a program of its own

    if not pins.BPFFS.is_mount():
        libbpf.mount_bpffs(pins.BPFFS)
    try:
        directory = Path(tempfile.mkdtemp(prefix="coreward-live-", dir=pins.BPFFS))
    except OSError as error:
        raise ProbeError(f"{pins.BPFFS}: {error.strerror}") from error
    try:
        livebcc.load_elsewhere(directory)
        return _Descriptors(
            {name: libbpf.get_pin(str(directory / name)) for name in PROGRAMS},
            {name: libbpf.get_pin(str(directory / name)) for name in MAPS},
        )
    finally:
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()


def open_live(loader: str = "auto") -> LiveProbe:
    """Load the programs: "core" (the built object), "bcc", or the first that works ("auto").

    ProbeError says what each did not like.
    """
    ways: dict[str, Callable[[], _Descriptors]] = {
        "core": lambda: _from_object(files.live_object_file()),
        "bcc": _from_bcc,
    }
    if loader not in ("auto", *ways):
        raise ProbeError(f"loader {loader!r}: there are auto, core and bcc")
    problems = []
    for name, way in ways.items():
        if loader not in ("auto", name):
            continue
        try:
            return LiveProbe(name, way())
        except ProbeError as error:
            problems.append(f"{name}: {error}")
        except OSError as error:
            problems.append(f"{name}: {error.strerror or error}")
    raise ProbeError("; ".join(problems))


class LiveProbe:
    """See `open_live`. A context manager. All methods may be called from any thread."""

    loader: str
    no_clock: str | None  # why running threads cannot be caught; None: they can

    def __init__(self, loader: str, descriptors: _Descriptors) -> None:
        self.loader = loader
        self.no_clock = None
        self._descriptors = descriptors
        self._programs = descriptors.programs
        self._settings = descriptors.maps["live_settings"]
        self._lock = threading.Lock()
        self._round = 0
        self._closed = False
        self._readers: list[process_vm.Reader] = []
        self._ring = Ring(os.dup(descriptors.maps["ring"]))
        self._clock: Clock | None = None
        try:
            self._clock = Clock(self._programs["catch_running"], PERIOD_NS)
        except ProbeError as error:
            self.no_clock = str(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unload everything. Safe to call again."""
        if self._closed:
            return
        self._closed = True
        self._ring.close()
        if self._clock is not None:
            self._clock.close()
        self._descriptors.close()

    def threads(self, pid: int) -> memoryview:
        """As `Probe.threads`: with extended registers and signal masks, without stacks."""
        with _listing(pid):
            raw = iterators.read_all(self._programs["threads"], pid)
        if not raw:
            raise ProbeError(f"no process {pid} has threads to list")
        return raw

    def mappings(self, pid: int) -> memoryview:
        """As `Probe.mappings`: raw records for `decode_mappings`; empty if it has none."""
        with _listing(pid):
            return iterators.iterate_mappings(self._programs["mappings"], pid)

    def stacks(self, pid: int, stack: int = 8 << 10) -> list[Listed]:
        """All threads for `decode_listed`, each with up to `stack` bytes (at most 64 KiB).

        A running thread has the registers of its last entry into the kernel. An empty list: there
        is no such process.
        """
        check_size(stack)
        with _listing(pid):
            return list(self._list(pid, stack, single=False))

    def _list(self, pid: int, stack: int, *, single: bool) -> Iterator[Listed]:
        """A hundred threads at a time: who they are, their stacks, and who has run meanwhile."""
        with (
            _iterator(self._programs["states"], pid, single) as states,
            _iterator(self._programs["switches"], pid, single) as switches,
            self._reader() as reader,
        ):
            memory = thread_with_memory(pid) if stack else pid
            while records := os.read(states, _AT_ONCE * LIVE.size):
                if stack:
                    where = extents(records, stack)
                    stacks, sizes = reader.read(memory, where)
                    later = os.read(switches, len(sizes) * SWITCHES.size)
                    yield Listed(records, where, stacks, sizes, later)
                else:
                    yield Listed(records, array("Q"), b"", [], b"")
                if single:
                    return

    @contextlib.contextmanager
    def _reader(self) -> Iterator[process_vm.Reader]:
        """One that nobody else uses now: fresh memory for each look would cost a third of it."""
        reader = self._readers.pop() if self._readers else process_vm.Reader(_ROOM)
        try:
            yield reader
        finally:
            self._readers.append(reader)

    def _set(self, pages: int, tgid: int = 0) -> None:
        libbpf.write_array(self._settings, 0, SETTINGS.pack(pages, tgid, self._round))

    def catch(
        self,
        tgid: int,
        wanted: Collection[int],
        stack: int = 8 << 10,
        seconds: float = PATIENCE,
    ) -> dict[int, Caught]:
        """Threads of a process as they run, by tid: those of `wanted` that do, within `seconds`.

        Switches clock interrupts on for that long, on every CPU; ends as soon as all are caught.
        A thread gets up to 32 KiB of stack. Ids are those of the initial namespace.
        """
        found: dict[int, Caught] = {}
        if self._clock is None:
            return found
        size = min(stack, MAX_CAUGHT_STACK)
        with _listing(tgid), self._lock:
            self._round = (self._round + 1) & 0xFFFFFFFF
            poll = select.poll()
            poll.register(self._ring.descriptor, select.POLLIN)
            deadline = time.monotonic() + seconds
            self._set(pages_for(size), tgid)
            with self._clock.ticking():
                while not found.keys() >= set(wanted):
                    left = deadline - time.monotonic()
                    if left <= 0:
                        break
                    poll.poll(left * 1000)
                    self._drain(found, size)
            self._set(0)
            self._drain(found, size)
            self._ring.trim()
        return found

    def _drain(self, found: dict[int, Caught], stack: int) -> None:
        for record in self._ring.records():
            caught = decode_caught(record, stack)
            if caught.round == self._round:
                found[caught.tid] = caught

    def sample(
        self, pid: int, stack: int = 8 << 10, patience: float = PATIENCE
    ) -> list[ThreadStack]:
        """All threads of a process, those that run caught as they run, where they can be.

        `ThreadStack.exact` says of which it is known. ProbeError if there is no such process.
        """
        threads = list(decode_listed(self.stacks(pid, stack)))
        if not threads:
            raise ProbeError(f"no process {pid} has threads to list")
        moving = {t.tid: t for t in threads if not t.exact and t.regs is not None}
        if not moving:
            return threads
        tgid = threads[0].tgid
        settled: dict[int, ThreadStack] = {}
        for tid, caught in self.catch(tgid, moving, stack, patience).items():
            if tid in moving and moving[tid].start_ns == caught.start_ns:
                settled[tid] = with_caught(moving[tid], caught)
        if tgid == pid:  # else thread ids have other numbers where we are
            for tid in [tid for tid in moving if tid not in settled][:_AGAIN]:
                again = self._one(tid, stack)
                if again is not None and again.start_ns == moving[tid].start_ns:
                    settled[tid] = again
        return [settled.get(thread.tid, thread) for thread in threads]

    def _one(self, tid: int, stack: int) -> ThreadStack | None:
        """One thread; None if it has ended."""
        found = None
        with contextlib.suppress(ProbeError), _listing(tid):
            for _ in range(_TRIES):
                listed = self._list(tid, stack, single=True)
                found = next(decode_listed(listed), None)
                if found is None or found.exact:
                    break
        return found


@contextlib.contextmanager
def _listing(pid: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ProbeError(f"process {pid} cannot be listed: {error.strerror}") from error


@contextlib.contextmanager
def _iterator(program: int, pid: int, single: bool) -> Iterator[int]:
    descriptor = libbpf.open_task_iterator(program, pid, single=single)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
