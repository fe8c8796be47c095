"""A copy of a stopped process, made by the kernel's own copy-on-write: all memory of one instant.

    with Injector(pid) as injector, StoppedProcess(pid) as stopped:
        with remote_fork(stopped, injector) as copy:     # here the process runs again
            write_core(..., copy.memory(mappings, shared_fds), ...)

One of the process's threads is made to fork. The copy shares its descriptors, sends no signal when
it ends and never runs a line of the process's code: it is stopped from its birth until it is
killed, and is killed if we die. A thread that blocks all signals is left in the process to reap
it; it ends with the copy, also when we are dead by then. So nothing remains, and the process's own
wait(2) never sees a child. A process with a seccomp filter gets no such thread (the filter might
kill it): there one more call is injected at the end, and a kill of ours in between leaves a zombie
that only that process could see, by waiting with __WALL.

Not of that instant are areas that a fork does not copy: shared memory, MADV_DONTFORK and
MADV_WIPEONFORK. They are named, and read from the process itself. What the copy costs in memory is
checked before and watched meanwhile (headroom.py); if it grows too dear the copy is given up.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from collector import copies
from collector.arch import stub
from collector.capture.memory import ProcessMemory
from collector.elfcore.types import VM_WIPEONFORK, LeftOut
from collector.elfcore.types import Mapping as Area
from collector.errors import CaptureError
from collector.linux import procfs, ptrace
from collector.linux.procfs import thread_with_memory
from collector.linux.ptrace import Options, PtraceError
from collector.model import ProcessKey
from collector.ranges import Range, holds
from collector.snapshot import headroom
from collector.snapshot.inject import InjectionRefused, Injector
from collector.snapshot.stop import StoppedProcess, critical

SHARED = "shared memory: others may have written it since"
DONTFORK = "MADV_DONTFORK: read after the instant"
WIPEONFORK = "MADV_WIPEONFORK: read after the instant"

_VICTIM = 1000  # oom_score_adj: the first to be killed
_STOPPED = "T"  # the state of a thread that SIGSTOP has stopped, proc_pid_stat(5)
_STOP_PATIENCE = 10.0  # seconds
_REAP_PATIENCE = 5.0  # seconds until the copy's memory is freed and it is reaped


class ForkFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the fork cost, in milliseconds. The pause of the process is in `StoppedProcess`."""

    borrowed_tid: int
    fork_ms: float  # the clone itself
    injected_ms: float  # all that was done with the borrowed thread


class ProcessCopy:
    """The copy: stopped, readable until the block of `remote_fork` ends."""

    def __init__(self, pid: int, of: int, facts: ForkFacts) -> None:
        self.pid = pid
        self.facts = facts
        self.lost: str | None = None  # why it was given up, once it was
        self._of = of
        self._fds = contextlib.ExitStack()
        self.mem_fd = self._open(pid, "mem", os.O_RDWR)
        self.pagemap_fd = self._open(pid, "pagemap", os.O_RDONLY)

    def _open(self, pid: int, name: str, flags: int) -> int:
        fd = os.open(f"/proc/{pid}/{name}", flags | os.O_CLOEXEC)
        self._fds.callback(os.close, fd)
        return fd

    def close(self) -> None:
        """Close the descriptors."""
        self._fds.close()

    def give_up(self, why: str) -> None:
        """End the copy now; whoever reads it is told why."""
        if self.lost is None:
            self.lost = why
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)

    def not_of_instant(self, mappings: Sequence[Area]) -> list[LeftOut]:
        """Which of the process's mappings (at the instant) are not of it, and why.

        Where `vm_flags` are not known the copy's own smaps are asked for them.
        """
        there = _map_of(self.pid)
        wiped = self._wiped() if any(m.vm_flags is None for m in mappings) else []
        found = []
        for m in mappings:
            flags = m.vm_flags or 0
            if m.shared:
                found.append(LeftOut(m.start, m.end, SHARED))
            elif flags & VM_WIPEONFORK or holds(wiped, m.start):
                found.append(LeftOut(m.start, m.end, WIPEONFORK))
            elif not holds(there, m.start) and not m.special and m.path != "[vsyscall]":
                found.append(LeftOut(m.start, m.end, DONTFORK))
        return found

    def _wiped(self) -> list[Range]:
        """Areas with the flag `wf` in /proc/PID/smaps (proc_pid_smaps(5))."""
        with open(f"/proc/{self.pid}/smaps", "rb") as file:
            entries = procfs.parse_smaps(file.read())
        return [(e.line.start, e.line.end) for e in entries if "wf" in e.flags]

    def memory(
        self,
        mappings: Sequence[Area],
        shared_fds: Mapping[int, int],
        root_fd: int | None = None,
    ) -> CopiedMemory:
        """All memory of the process (a MemorySource), also what the copy has not.

        mappings: at the instant. shared_fds, root_fd: as ProcessMemory has them; the caller's.
        """
        live = ProcessMemory(
            self._open(thread_with_memory(self._of), "mem", os.O_RDONLY),
            self._open(thread_with_memory(self._of), "pagemap", os.O_RDONLY),
            mappings,
            shared_fds,
            root_fd,
        )
        copied = ProcessMemory(self.mem_fd, self.pagemap_fd, mappings, shared_fds, root_fd)
        missing = [(area.start, area.end) for area in self.not_of_instant(mappings)]
        return CopiedMemory(self._of, copied, live, missing, lambda: self.lost)


class CopyLost(CaptureError, OSError):
    """Memory of the copy, or of the process where the copy lacks it, is gone before it was read. An
    OSError too: it fails a whole MemorySource."""


class CopiedMemory:
    """Memory of a copy; the areas that it lacks are those of the process itself."""

    def __init__(
        self,
        of: int,
        copied: ProcessMemory,
        live: ProcessMemory,
        missing: Sequence[Range],
        lost: Callable[[], str | None],
    ) -> None:
        """of: the process's pid. lost: why the copy was given up, once it was."""
        self._of, self._lost = of, lost
        self._copied, self._live, self._missing = copied, live, missing

    def check(self) -> None:
        """Raise CopyLost if the copy is gone. All that was read of it before is right."""
        if (why := self._lost()) is None and self._copied.is_gone():
            why = "it was killed, perhaps for want of memory"
        if why is not None:
            raise CopyLost(f"the copy of process {self._of} was given up: {why}")

    def _source(self, address: int) -> ProcessMemory:
        inside = any(start <= address < end for start, end in self._missing)
        return self._live if inside else self._copied

    def ranges(self, start: int, end: int) -> Iterable[Range]:
        """Populated ranges of [start, end), which must lie inside one mapping."""
        self.check()
        return self._source(start).ranges(start, end)

    def unknown(self, start: int, end: int) -> Iterable[Range]:
        """What of [start, end) may be non-zero beside that: only in files."""
        self.check()
        return self._source(start).unknown(start, end)

    def read_into(self, address: int, buffer: memoryview) -> int:
        """Bytes read from `address` on. Raises CopyLost when they are gone."""
        source = self._source(address)
        done = source.read_into(address, buffer)
        if done < len(buffer):
            self.check()
            if source is self._live and source.is_gone():
                raise CopyLost(f"process {self._of} ended; its memory at {address:#x} is no copy's")
        return done

    def read(self, address: int, size: int) -> bytes:
        """Up to `size` bytes at an address; for look-ups, not for copying."""
        return self._source(address).read(address, size)


@contextlib.contextmanager
def remote_fork(
    stopped: StoppedProcess,
    injector: Injector,
) -> Iterator[ProcessCopy]:
    """Copy a stopped process, and release it as soon as the copy exists.

    Only in the tracer's own thread, from beginning to end. Raises headroom.NoRoom,
    inject.InjectionRefused (both before anything was done; the process is still stopped), or
    CaptureError.
    """
    headroom.check_room(stopped.pid)
    with critical():
        forked = _fork(stopped, injector)
        stopped.release()
    try:
        ptrace.wait(forked.pid, time.monotonic() + _STOP_PATIENCE)
        ptrace.set_options(forked.pid, Options.EXITKILL)
        _prefer_as_victim(forked.pid)
        _mark(forked.pid)
        copy = ProcessCopy(forked.pid, stopped.pid, forked.facts)
        try:
            injector.clear_in(copy.mem_fd)
            with headroom.RoomWatch(forked.pid, copy.give_up):
                yield copy
        finally:
            copy.close()
    finally:
        _end(forked, stopped.pid, injector)


class _Forked(NamedTuple):
    pid: int  # of the copy, here
    own_pid: int  # of the copy, in the process's pid namespace
    own_reaper: int  # the thread that reaps it, in the same; 0: none
    facts: ForkFacts


def _fork(stopped: StoppedProcess, injector: Injector) -> _Forked:
    begun = time.monotonic()
    tid = injector.choose(stopped.stops.values())
    reaper = tid not in injector.seccomp
    with injector.borrow(tid, lambda regs, mask: stub.fork(regs, mask, reaper=reaper)) as thread:
        before = time.monotonic()
        own_pid = thread.call()
        after = time.monotonic()
        if own_pid < 0:
            reason = os.strerror(-own_pid)
            raise InjectionRefused(f"process {stopped.pid} cannot be forked: {reason}")
        own_reaper = max(thread.call(), 0) if reaper else 0
        if own_reaper:
            injector.keep()
    facts = ForkFacts(
        borrowed_tid=tid,
        fork_ms=(after - before) * 1e3,
        injected_ms=(time.monotonic() - begun) * 1e3,
    )
    return _Forked(thread.child, own_pid, own_reaper, facts)


def _mark(pid: int) -> None:
    """Its end is no death, however it ends."""
    if text := procfs.read(f"/proc/{pid}/stat"):
        copies.mark(ProcessKey(pid, procfs.parse_stat(text).start_ns))


def _prefer_as_victim(pid: int) -> None:
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(_VICTIM))


def _end(forked: _Forked, of: int, injector: Injector) -> None:
    """Kill the copy and see it reaped. The process itself may be gone by now."""
    reaper = _tid_here(of, forked.own_reaper) if forked.own_reaper else 0
    with contextlib.suppress(OSError):
        os.kill(forked.pid, signal.SIGKILL)
    end = time.monotonic() + _REAP_PATIENCE
    with contextlib.suppress(PtraceError):  # reaped already
        while (stop := ptrace.wait(forked.pid, end)) is not None and not stop.gone:
            ptrace.nap()  # still in its old stop
    if not forked.own_reaper:
        _reap(forked.own_pid, injector)
        return
    while reaper and reaper in procfs.thread_ids(of):
        if procfs.thread_state(of, reaper) == _STOPPED or time.monotonic() > end:
            return  # it is stopped with its process, and reaps later; the next injector clears
        time.sleep(0.0005)
    injector.clear()


def _reap(own_pid: int, injector: Injector) -> None:
    """Let any thread of the process reap the dead copy."""
    arguments = (own_pid, 0, stub.WALL | os.WNOHANG, 0)
    with (
        contextlib.suppress(CaptureError),  # it stays a zombie until the process ends
        injector.one_thread() as tid,
        injector.borrow(tid, lambda regs, mask: stub.call(stub.WAIT4, arguments, regs, mask)) as t,
    ):
        t.call()


def _tid_here(pid: int, own_tid: int) -> int:
    """A thread's id in this pid namespace; 0 if it has gone."""
    for tid in reversed(procfs.thread_ids(pid)):
        fields = procfs.fields(procfs.read_thread(pid, tid, "status") or b"")
        if fields.get(b"NSpid", [b"0"])[-1] == b"%d" % own_tid:
            return tid
    return 0


def _map_of(pid: int) -> list[Range]:
    with open(f"/proc/{pid}/maps", "rb") as maps:
        return [(m.start, m.end) for m in procfs.parse_maps(maps.read())]
