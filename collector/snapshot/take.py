"""A snapshot of a live process: which mode, which method, and what the caller may then write.

    result = take(pid, request, write, live)

`write` gets a `Found`: an image and the memory that belongs to it, and is called at the moment
when that memory is right: at once for a plain copy, after the process goes on for all others.
What is done to the process is in the methods' own modules; here is the choice, and its reasons.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from collector.arch.x86_64 import NO_32_BIT, is_32_bit
from collector.capture.image import image_of_live
from collector.capture.memory import Memory, ProcessMemory
from collector.capture.process import OpenProcess
from collector.elfcore.types import Mapping, ProcessImage, Thread
from collector.errors import CaptureError, ProbeError, Stalled
from collector.linux.procfs import parse_stat
from collector.linux.ptrace import run_as_tracer
from collector.linux.stall import with_stall_guard
from collector.model import Capture, ProcessKey, SnapshotFacts, SnapshotMode
from collector.probe.iterators import decode_mappings
from collector.probe.live import LiveProbe
from collector.probe.stacks import ThreadStack
from collector.snapshot import refusal
from collector.snapshot.choose import Method, choose, copy_facts
from collector.snapshot.fork import SHARED as _SHARED
from collector.snapshot.fork import remote_fork
from collector.snapshot.headroom import NoRoom
from collector.snapshot.inject import InjectionRefused, Injector
from collector.snapshot.mappings import list_mappings
from collector.snapshot.precopy import PreCopy
from collector.snapshot.rolling import roll
from collector.snapshot.sharers import sharers
from collector.snapshot.staging import StagedMemory
from collector.snapshot.stop import Perturb, StoppedProcess, Unstopped

T = TypeVar("T")
COPY_MAX = 64 << 20  # largest RSS for which `auto` may stop the process during a plain copy, bytes
STACK_BYTES = 64 << 10  # of each thread, where stacks are copied with the registers


def usual_capture(mode: SnapshotMode) -> Capture:
    """What goes into a core where nobody says."""
    return Capture.STACKS if mode is SnapshotMode.THREADS else Capture.FULL


class SnapshotRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for."""

    mode: SnapshotMode = SnapshotMode.AUTO
    inject: bool = True  # whether the target may be made to do system calls
    perturb: Perturb = Perturb.TRANSPARENT
    extended: bool = False  # extended registers also in mode `threads`, which then stops threads
    min_free: int = 0  # bytes that stay free where its memory is staged, and its core written
    unstaged: bool = False  # its memory goes to no file before it is written
    lazy: bool = False  # `write` takes its time: no copy that the process stands for, or is staged


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A process as it was found, ready to be written."""

    image: ProcessImage
    memory: Memory
    opened: OpenProcess  # its open files of /proc
    facts: SnapshotFacts  # how; the pause of a plain copy is not known before its end
    holder: int  # pid of the process that has this memory: itself, or its copy
    check: Callable[[], None]  # raises CaptureError once that memory is gone
    pieces: Sequence[tuple[int, bytes]] = ()  # memory that was copied with the registers
    in_file: StagedMemory | None = None  # `memory`, where it is in the file of the core already
    core: int | None = None  # that file; without `in_file` what is in it was staged for nothing


def take(
    pid: int,
    request: SnapshotRequest,
    write: Callable[[Found], T],
    live: LiveProbe | None,
    staging: Path | None = None,
    key: ProcessKey | None = None,
    core: int | None = None,
) -> tuple[T, SnapshotFacts]:
    """Take a snapshot of `pid` (of this pid namespace) and write it.

    live: the BPF programs; None: do without (not root). staging: a folder with room for the memory
    of a large process (default: that of temporary files). key: the process that is meant, not a
    later one of its pid. core: an empty file, open for reading and writing, to which `write` has
    `write_plain` write the core: then memory is staged in it. Raises CaptureError, with the reason
    in words, if the process may not be looked at or ends meanwhile.
    """
    refusal.check(pid)
    # whatever keeps us waiting for its memory does so here, while nobody is stopped
    with with_stall_guard(lambda: pid, lambda: OpenProcess(pid)) as opened:
        if key is not None and not opened.is_process(key):
            raise CaptureError(f"process {pid} has ended; its pid is another's now")
        if is_32_bit(opened.text.auxv):
            raise CaptureError(f"no snapshot of process {pid}: {NO_32_BIT}")
        taker = _Taker(pid, request, opened, live, core)
        if request.mode is SnapshotMode.THREADS:
            return taker.threads(write)
        if request.mode is SnapshotMode.NONSTOP:
            return taker.nonstop(write)
        if not request.inject:
            return taker.copy("nothing may be injected", write)
        try:
            return taker.full_stop(write, staging)
        except _TooLong as error:
            if request.mode is not SnapshotMode.AUTO:
                raise
            return taker.nonstop(write, f"for a full stop it would stand for long: {error}")


class _TooLong(CaptureError):
    """Only a plain copy would do, for which the process would stand for long."""


class _Taker:
    def __init__(
        self,
        pid: int,
        request: SnapshotRequest,
        opened: OpenProcess,
        live: LiveProbe | None,
        core: int | None,
    ) -> None:
        self._pid, self._core = pid, core
        self._request = request
        self._opened = opened
        self._live = live
        self._sharers: tuple[str, ...] = ()  # in words; known when it is stopped

    def threads(self, write: Callable[[Found], T]) -> tuple[T, SnapshotFacts]:
        """Registers and stacks; what else a debugger needs is read while the process goes on."""
        if self._live is None or self._request.extended:
            why = "BPF cannot be used" if self._live is None else "FPU state was asked for"
            return self._rolled(SnapshotMode.THREADS, why, write)
        try:
            sampled = [s for s in self._sampled(self._live) if s.regs is not None]
        except Stalled:
            why = "memory at one of its stacks keeps readers waiting"
            return self._rolled(SnapshotMode.THREADS, why, write)
        facts = SnapshotFacts(
            mode=SnapshotMode.THREADS,
            method="iterator",
            why="BPF tells registers without stopping anybody",
            consistent=False,
            unstopped=tuple(
                f"thread {s.ns_tid}: registers of its last entry into the kernel"
                for s in sampled
                if not s.exact
            ),
        )
        pieces = [(s.stack_address, s.stack) for s in sampled if s.stack]
        found = self._found([_thread(s) for s in sampled], facts, pieces)
        return write(found), facts

    def nonstop(
        self, write: Callable[[Found], T], why: str = "memory is read while the process goes on"
    ) -> tuple[T, SnapshotFacts]:
        """Memory as well, read while everything goes on."""
        return self._rolled(SnapshotMode.NONSTOP, why, write)

    def _rolled(
        self, mode: SnapshotMode, why: str, write: Callable[[Found], T]
    ) -> tuple[T, SnapshotFacts]:
        """Each thread held alone, for some ten microseconds."""
        rolled = roll(self._pid, self._request.perturb, stack_bytes=STACK_BYTES)
        others = self._seen_by_bpf({other.tid for other in rolled.left_out})
        left_out = [
            other._replace(thread=_thread(others[other.tid])) if other.tid in others else other
            for other in rolled.left_out
        ]
        facts = SnapshotFacts(
            mode=mode,
            method="rolling",
            why=why,
            consistent=False,
            worst_ms=round(rolled.worst_us / 1e3, 3),
            unstopped=_names(left_out),
        )
        threads = [s.thread for s in rolled.samples]
        threads += [other.thread for other in left_out if other.thread is not None]
        pieces = [(s.stack_start, s.stack) for s in rolled.samples if s.stack]
        pieces += [(s.stack_address, s.stack) for s in others.values() if s.stack]
        return write(self._found(threads, facts, pieces)), facts

    def _sampled(self, live: LiveProbe) -> list[ThreadStack]:
        return with_stall_guard(lambda: self._pid, lambda: live.sample(self._pid, STACK_BYTES))

    def _seen_by_bpf(self, tids: set[int]) -> dict[int, ThreadStack]:
        """What the iterator tells of threads that were not stopped."""
        if not tids or self._live is None:
            return {}
        with contextlib.suppress(ProbeError, Stalled):
            sampled = self._sampled(self._live)
            return {s.ns_tid: s for s in sampled if s.ns_tid in tids and s.regs is not None}
        return {}

    def copy(self, why: str, write: Callable[[Found], T]) -> tuple[T, SnapshotFacts]:
        """The process stands until its memory is written: like gcore, but sparse, without EINTR."""

        def work() -> tuple[T, SnapshotFacts]:
            with self._stopped() as stopped:
                done, facts = self._copy_stopped(stopped, why, write)
            return done, with_pause(facts, stopped)

        return run_as_tracer(work)

    def full_stop(
        self, write: Callable[[Found], T], staging: Path | None
    ) -> tuple[T, SnapshotFacts]:
        """In the way that suits the process; see choose.py."""
        opened = self._opened
        if self._request.lazy:
            return self.fork(write, "its memory is read when it is asked for")
        if self._request.unstaged:
            return self.fork(write, "it is redacted, so no file has its memory before")
        choice = choose(copy_facts(self._pid, opened.resident, opened.pagemap_fd))
        if choice.method is Method.FORK:
            return self.fork(write, choice.why)
        return self.precopy(write, staging, choice.why)

    def _may_copy(self, why: str) -> str:
        """The reason for a plain copy. _TooLong if the process would stand for it too long."""
        if self._request.lazy:
            raise _TooLong(why)
        if self._request.mode is SnapshotMode.AUTO and self._opened.resident > COPY_MAX:
            raise _TooLong(why)
        return why

    def fork(self, write: Callable[[Found], T], why: str) -> tuple[T, SnapshotFacts]:
        """The process goes on as soon as the kernel has copied it; if it cannot be, see `copy`."""

        def work() -> tuple[T, SnapshotFacts]:
            with Injector(self._pid) as injector, self._stopped() as stopped:
                return self._fork_or_copy(stopped, injector, why, write)

        try:
            return run_as_tracer(work)
        except InjectionRefused as error:
            return self.copy(self._may_copy(f"no fork: {error}"), write)

    def precopy(
        self, write: Callable[[Found], T], staging: Path | None, chosen: str
    ) -> tuple[T, SnapshotFacts]:
        """Memory is copied while the process runs; it stands for what it has written last."""
        folder = staging or Path(tempfile.gettempdir())
        with contextlib.ExitStack() as until:
            try:
                # else the core goes there as well
                copies = 2 if self._core is None else 1
                _need_room(folder, copies * self._opened.resident + self._request.min_free)
                injector = until.enter_context(Injector(self._pid))
                copied = until.enter_context(PreCopy(injector, folder, core=self._core))
                copied.run()
            except InjectionRefused as error:
                why = f"no pre-copy: {error}"
            except OSError as error:
                why = f"no pre-copy: no room for it in {folder}: {error.strerror}"
            else:
                return self._stop_precopied(injector, copied, write, chosen)
        return self.fork(write, why)

    def _stop_precopied(
        self, injector: Injector, copied: PreCopy, write: Callable[[Found], T], chosen: str
    ) -> tuple[T, SnapshotFacts]:
        found: list[tuple[T, SnapshotFacts]] = []

        def work() -> tuple[StoppedProcess, list[Mapping]]:
            with self._stopped() as stopped:
                mappings = self._mappings()
                if not copied.freeze():
                    rate = copied.dirty_rate / (1 << 20)
                    why = f"it writes too fast for a pre-copy, {rate:.0f} MiB/s"
                    found.append(self._fork_or_copy(stopped, injector, why, write))
            return stopped, mappings

        stopped, mappings = run_as_tracer(work)
        if found:
            return found[0]
        shared = ((m.start, m.end, _SHARED) for m in mappings if m.shared)
        facts = SnapshotFacts(
            mode=SnapshotMode.FULL_STOP,
            method="pre-copy",
            why=f"{chosen}; {len(copied.rounds)} rounds of copying while it ran",
            consistent=not stopped.left_out and not self._sharers,
            unstopped=(*_names(stopped.left_out), *self._sharers),
            not_of_instant=_areas(mappings, shared),
        )
        facts = with_pause(facts, stopped)
        base = self._found(stopped.threads(), facts, mappings=mappings)
        memory = copied.memory(self._shared_fds(mappings), self._opened.root_fd)
        in_file = None if self._core is None else memory
        return write(msgspec.structs.replace(base, memory=memory, in_file=in_file)), facts

    def _fork_or_copy(
        self, stopped: StoppedProcess, injector: Injector, why: str, write: Callable[[Found], T]
    ) -> tuple[T, SnapshotFacts]:
        """From a process that stands, in the tracer's thread."""
        try:
            return self._fork_stopped(stopped, injector, why, write)
        except (NoRoom, InjectionRefused) as error:  # it still stands
            why = self._may_copy(f"no fork: {error}")
            done, facts = self._copy_stopped(stopped, why, write)
        stopped.release()
        return done, with_pause(facts, stopped)

    def _stopped(self) -> StoppedProcess:
        parent = parse_stat(self._opened.text.stat).ppid
        self._sharers = tuple(
            f"process {one} has the same memory, and was not stopped"
            for one in sharers(self._pid, parent)
        )
        live = self._live
        registers_of = None if live is None else (lambda pid: bytes(live.threads(pid)))
        return StoppedProcess(self._pid, self._request.perturb, registers_of=registers_of)

    def _copy_stopped(
        self, stopped: StoppedProcess, why: str, write: Callable[[Found], T]
    ) -> tuple[T, SnapshotFacts]:
        mappings = self._mappings()
        facts = SnapshotFacts(
            mode=SnapshotMode.FULL_STOP,
            method="copy",
            why=why,
            consistent=not stopped.left_out and not self._sharers,
            unstopped=(*_names(stopped.left_out), *self._sharers),
            not_of_instant=_areas(
                mappings, ((m.start, m.end, _SHARED) for m in mappings if m.shared)
            ),
        )
        return write(self._found(stopped.threads(), facts, mappings=mappings)), facts

    def _fork_stopped(
        self, stopped: StoppedProcess, injector: Injector, why: str, write: Callable[[Found], T]
    ) -> tuple[T, SnapshotFacts]:
        mappings = self._mappings()
        with remote_fork(stopped, injector) as copy:
            missing = copy.not_of_instant(mappings)
            facts = SnapshotFacts(
                mode=SnapshotMode.FULL_STOP,
                method="fork",
                why=why,
                consistent=not stopped.left_out and not self._sharers,
                unstopped=(*_names(stopped.left_out), *self._sharers),
                not_of_instant=_areas(mappings, ((a.start, a.end, a.reason) for a in missing)),
            )
            facts = with_pause(facts, stopped)
            found = self._found(stopped.threads(), facts, mappings=mappings)
            shared = self._shared_fds(mappings)
            memory = copy.memory(found.image.mappings, shared, self._opened.root_fd)
            found = msgspec.structs.replace(
                found, memory=memory, holder=copy.pid, check=memory.check
            )
            return write(found), facts

    def _found(
        self,
        threads: Sequence[Thread],
        facts: SnapshotFacts,
        pieces: Sequence[tuple[int, bytes]] = (),
        mappings: Sequence[Mapping] | None = None,
    ) -> Found:
        if not threads:
            raise CaptureError(f"process {self._pid} ended before its threads could be read")
        opened = self._opened
        image = image_of_live(opened.text, threads, mappings or self._mappings())
        memory = ProcessMemory(
            opened.mem_fd,
            opened.pagemap_fd,
            image.mappings,
            self._shared_fds(image.mappings),
            opened.root_fd,
        )

        def check() -> None:
            if memory.is_gone():
                raise CaptureError(f"process {self._pid} has ended, or runs another program now")

        return Found(
            image=image,
            memory=memory,
            opened=opened,
            facts=facts,
            holder=self._pid,
            check=check,
            pieces=pieces,
            core=self._core,
        )

    def _shared_fds(self, mappings: Sequence[Mapping]) -> dict[int, int]:
        return self._opened.open_shared(
            (m.start, m.end) for m in mappings if m.shared and m.nlink == 0
        )

    def _mappings(self) -> list[Mapping]:
        if self._live is not None:
            with contextlib.suppress(ProbeError):
                found = decode_mappings(bytes(self._live.mappings(self._pid)), None)
                if found:
                    return found
        return list_mappings(self._pid)


def _need_room(folder: Path, size: int) -> None:
    """OSError if the folder's file system has less room than `size` bytes."""
    found = os.statvfs(folder)
    if found.f_bavail * found.f_frsize < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def with_pause(facts: SnapshotFacts, stopped: StoppedProcess) -> SnapshotFacts:
    """The facts with the pause, which is known after the release."""
    if stopped.pause is None:
        return facts
    return msgspec.structs.replace(
        facts, pause_ms=round(stopped.pause.total, 3), worst_ms=round(stopped.pause.worst, 3)
    )


def _areas(mappings: Sequence[Mapping], found: Iterable[tuple[int, int, str]]) -> tuple[str, ...]:
    """Areas that are not of the instant, in words: only those that a core holds memory of."""
    names = {m.start: m.path or "" for m in mappings}
    kept = {m.start for m in mappings if not m.shared or m.nlink == 0}
    return tuple(
        f"{start:#x}-{end:#x} {names.get(start, '')}: {why}"
        for start, end, why in found
        if start in kept
    )


def _thread(sampled: ThreadStack) -> Thread:
    return Thread(
        tid=sampled.ns_tid, regs=sampled.regs or (), name=sampled.name, state=sampled.state
    )


def _names(others: Sequence[Unstopped]) -> tuple[str, ...]:
    return tuple(_names_of(others))


def _names_of(others: Sequence[Unstopped]) -> Iterator[str]:
    for other in others:
        known = "its registers are from BPF" if other.thread else "its registers are not known"
        yield f"thread {other.tid}: {other.why}; {known}"
