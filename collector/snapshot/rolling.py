"""Threads of a live process one at a time: each is held for some ten microseconds, never all.

For users who may not use BPF, and for registers that BPF cannot read. The registers and the stack
of one thread are of one moment, but each thread has another moment: together they are not
consistent. What a thread may notice follows the rules of `stop`.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

from collector.arch.x86_64 import PAGE, RED_ZONE, Reg
from collector.elfcore.types import Thread
from collector.errors import CaptureError
from collector.linux import process_vm, procfs, ptrace
from collector.linux.pagemap import resident_part
from collector.linux.procfs import thread_with_memory
from collector.linux.ptrace import Iovec, PtraceError, run_as_tracer
from collector.native.cpu import xsave_layout
from collector.snapshot import refusal, restart, tasks
from collector.snapshot.stop import XSTATE_SIZE, Perturb, Unstopped, Why, critical
from collector.snapshot.tasks import TaskFacts

DEADLINE = 0.005  # seconds for one thread; the next is visited then, and this one looked at again
_AFTER = 1.0  # seconds in the end for those that have not stopped yet: they may wait for a CPU
_ROUNDS = 8  # looks at the list of threads, for those born meanwhile


class HeldThread(NamedTuple):
    """One thread at one moment. `stack` is what could be read from `stack_start` on."""

    thread: Thread
    time_ns: int  # CLOCK_BOOTTIME when it stood
    held_us: float  # how long it stood at most: since it was last seen not to
    stack_start: int  # 128 bytes below the stack pointer, or where its page begins
    stack: bytes
    rewound: bool  # its system call was set to start again


class Rolled(NamedTuple):
    """All threads that were there long enough to be found."""

    samples: tuple[HeldThread, ...]  # in the order in which they stood; mostly that of creation
    left_out: tuple[Unstopped, ...]

    @property
    def worst_us(self) -> float:
        """The longest time that any thread was held."""
        return max((sample.held_us for sample in self.samples), default=0.0)


def roll(
    pid: int,
    policy: Perturb = Perturb.TRANSPARENT,
    *,
    stack_bytes: int = 64 << 10,
    deadline: float = DEADLINE,
    only: Sequence[int] | None = None,
) -> Rolled:
    """Stop, read and resume each thread of `pid` (or those of `only`) in turn.

    stack_bytes: at most so much of each stack is read, which lengthens the hold. deadline: seconds
    to wait for one thread; one that has not stopped then comes later in the order, and is left out
    if it has not in the end. Raises CaptureError if the process may not be traced, or has ended.
    """
    refusal.check(pid)
    memory = thread_with_memory(pid)
    try:
        pagemap = os.open(f"/proc/{memory}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise refusal.refused(pid) from error
    try:
        rolling = _Rolling(pid, memory, pagemap, policy, stack_bytes, deadline)
        run_as_tracer(lambda: rolling.run(only))
    finally:
        os.close(pagemap)
    if not rolling.samples and not rolling.left_out:
        raise CaptureError(
            refusal.reason(pid) or f"process {pid} ended before its threads could be read"
        )
    return Rolled(tuple(rolling.samples), tuple(rolling.left_out))


class _Late(NamedTuple):
    """A thread that was asked to stop, and had not when it was last looked at."""

    facts: TaskFacts
    looked_ns: int


class _Rolling:
    def __init__(
        self,
        pid: int,
        memory: int,
        pagemap: int,
        policy: Perturb,
        stack_bytes: int,
        deadline: float,
    ) -> None:
        self.samples: list[HeldThread] = []
        self.left_out: list[Unstopped] = []
        self._pid, self._memory, self._pagemap = pid, memory, pagemap
        self._policy, self._deadline = policy, deadline
        layout = xsave_layout()
        self._file = ptrace.RegisterFile(1, layout.size if layout else XSTATE_SIZE)
        self._stack = ctypes.create_string_buffer(b"\xff" * max(stack_bytes, 1))
        self._most = stack_bytes
        self._local = Iovec(ctypes.addressof(self._stack), 0)
        self._remote = Iovec(0, 0)
        self._late: dict[int, _Late] = {}

    def run(self, only: Sequence[int] | None) -> None:
        """Visit all threads. Within `run_as_tracer`, whose end lets go of the late ones."""
        seen: set[int] = set()
        for _ in range(_ROUNDS):
            found = [tid for tid in only or procfs.thread_ids(self._pid) if tid not in seen]
            if not found:
                break
            seen.update(found)
            for tid in found:
                self._visit(tid)
                self._look_at_late()
        self._end_late()

    def _visit(self, tid: int) -> None:
        facts = tasks.facts(self._pid, tid)
        if facts is None or facts.state in procfs.ENDED:
            return
        asleep = facts.state == procfs.UNINTERRUPTIBLE
        call = None
        if asleep or self._policy is Perturb.NEVER:
            call = procfs.blocked(self._pid, tid)
        if self._policy is Perturb.NEVER and restart.would_notice(self._pid, call):
            self.left_out.append(Unstopped(facts.tid, Why.PERTURB, call))
        elif asleep:
            self.left_out.append(Unstopped(facts.tid, Why.UNINTERRUPTIBLE, call))
        elif self._may_trace(tid, facts):
            with contextlib.suppress(PtraceError), critical():  # it may end at any step
                self._hold(tid, facts)

    def _may_trace(self, tid: int, facts: TaskFacts) -> bool:
        try:
            ptrace.seize(tid)
        except ptrace.ThreadGone:
            return False
        except ptrace.TraceRefused:
            if procfs.thread_state(self._pid, tid) in (*procfs.ENDED, None):
                return False
            if not self.samples:
                raise refusal.refused(self._pid) from None
            self.left_out.append(Unstopped(facts.tid, Why.REFUSED, None))
            return False
        return True

    def _hold(self, tid: int, facts: TaskFacts) -> None:
        asked = looked = time.monotonic_ns()
        end = asked + int(self._deadline * 1e9)
        ptrace.interrupt(tid)
        for tries in itertools.count():
            now = time.monotonic_ns()
            stop = ptrace.poll(tid)
            if stop is not None:
                self._take(tid, facts, stop, looked)
                return
            looked = now
            if now >= end:
                self._late[tid] = _Late(facts, looked)
                return
            ptrace.nap(1, tries)

    def _take(self, tid: int, facts: TaskFacts, stop: ptrace.Stop, looked_ns: int) -> None:
        """Read a thread that stands, and let it go. It ran, or waited for a CPU, at `looked_ns`."""
        if stop.gone:
            return
        fetched = self._file.fetch(0, tid)
        rewound = fetched and (
            self._policy is not Perturb.ALLOW and restart.keep_from_noticing(self._file, 0, tid)
        )
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        size = self._read_stack() if fetched else 0
        ptrace.detach(tid, stop.pass_on)
        held_us = (time.monotonic_ns() - looked_ns) / 1e3
        if fetched:
            thread = facts.thread(self._file.regs(0), self._file.xstate(0))
            stack = ctypes.string_at(self._stack, size)
            start = self._remote.base or 0
            self.samples.append(HeldThread(thread, now, held_us, start, stack, rewound))

    def _look_at_late(self) -> None:
        for tid, late in list(self._late.items()):
            now = time.monotonic_ns()
            try:
                stop = ptrace.poll(tid)
                if stop is None:
                    self._late[tid] = _Late(late.facts, now)
                    continue
                with critical():
                    self._take(tid, late.facts, stop, late.looked_ns)
            except PtraceError:
                pass  # it has ended
            del self._late[tid]

    def _end_late(self) -> None:
        """Wait a last time, but not for those that sleep uninterruptibly."""
        end = time.monotonic() + _AFTER
        while self._late and time.monotonic() < end:
            self._look_at_late()
            if all(
                procfs.thread_state(self._pid, tid) == procfs.UNINTERRUPTIBLE for tid in self._late
            ):
                break
            ptrace.nap(1, _ROUNDS)
        for tid, late in self._late.items():
            call = procfs.blocked(self._pid, tid)
            asleep = procfs.thread_state(self._pid, tid) == procfs.UNINTERRUPTIBLE
            why = Why.UNINTERRUPTIBLE if asleep else Why.LATE
            self.left_out.append(Unstopped(late.facts.tid, why, call))

    def _read_stack(self) -> int:
        """Bytes of the stack that could be read: those that are there.

        Others might keep us waiting, and the thread with us.
        """
        if not self._most:
            return 0
        sp = self._file.words[Reg.RSP]
        for start in (max(sp - RED_ZONE, 0), sp & -PAGE):  # that zone may be on an untouched page
            size = resident_part(self._pagemap, start, self._most)
            if size:
                break
        self._remote.base = start
        self._local.length = self._remote.length = size
        local, remote = ctypes.addressof(self._local), ctypes.addressof(self._remote)
        return process_vm.read_alone(self._memory, local, remote, 1)
