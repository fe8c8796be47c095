"""A process stopped as a whole, for milliseconds, so that it does not notice.

    def work() -> ...:
        with StoppedProcess(pid) as stopped:     # every thread is stopped, its registers are read
            ...                                  # memory of this one instant
        return stopped.threads(), stopped.pause

    run_as_tracer(work)

Everything that takes time happens before or after the stop: threads are traced first, which stops
nobody, and described from /proc before and after. A thread whose system call would fail with EINTR
is set to start the call again (`restart`). Signals that arrive meanwhile are delivered at the end.
A process that SIGSTOP had stopped stays stopped. If this program dies, the kernel resumes all
threads as this module does. It neither reads nor changes memory: its caller does, while the process
stands.
"""

from __future__ import annotations

import contextlib
import enum
import gc
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from collector.elfcore.types import Thread
from collector.errors import CaptureError
from collector.linux import procfs, ptrace
from collector.linux.procfs import Blocked
from collector.linux.ptrace import Event, Options, PtraceError, Stop
from collector.native.cpu import xsave_layout
from collector.snapshot import refusal, restart, tasks
from collector.snapshot.tasks import TaskFacts

DEADLINE = 0.05  # seconds that all threads have to stop, from the first one on
_FIRST = 1.0  # seconds that the first has, on a busy machine
_PATIENCE = 0.005  # seconds for one that sleeps uninterruptibly: it will not stop
_TRIES = 8  # looks at one thread before others are looked at
_PRIORITY = 10  # of SCHED_FIFO, sched(7)
_SPARE = 64  # threads that may be born between counting and stopping
_AFTER = 1.0  # seconds after the release for those who did not stop in time
XSTATE_SIZE = 4096  # where CPUID does not tell


class Perturb(enum.StrEnum):
    """What may be done to a thread whose system call would return EINTR if it were stopped."""

    TRANSPARENT = "transparent"  # stop it, and let the call start again: a timeout begins anew
    NEVER = "never"  # do not stop it
    ALLOW = "allow"  # stop it, and let it have its EINTR, as a debugger does


class Why(enum.StrEnum):
    """Why a thread was not stopped."""

    PERTURB = "it would have noticed, which the policy forbids"
    UNINTERRUPTIBLE = "it sleeps uninterruptibly in the kernel"
    LATE = "it did not stop in time"
    REFUSED = "the kernel does not allow tracing it"


class Unstopped(NamedTuple):
    """A thread that ran on, and what is known of it. `tid` as in `Thread`."""

    tid: int
    why: Why
    call: Blocked | None  # where it was, from /proc
    thread: Thread | None = None  # its registers, where `registers_of` could tell them


class Pause(NamedTuple):
    """How long the process was disturbed, in milliseconds."""

    total: float  # from the first request to stop until the last thread went on
    worst: float  # the longest of any one thread
    worst_tid: int
    traced: float  # from the first thread traced until the last went on


@contextlib.contextmanager
def critical() -> Iterator[None]:
    """For the caller's thread: real-time priority where allowed, and no garbage collection.

    Others wait meanwhile: not for copying gigabytes. May be nested.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    collecting, interval = gc.isenabled(), sys.getswitchinterval()
    gc.disable()
    sys.setswitchinterval(1.0)  # other threads of this program wait as well
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, policy, parameters)
        sys.setswitchinterval(interval)
        if collecting:
            gc.enable()


def resume_late(pid: int, late: set[int], policy: Perturb, seconds: float) -> None:
    """Resume threads that were asked to stop and did not in time, as soon as they stop.

    Takes threads that it resumed, or that have ended, out of `late`. Waits at most `seconds`, and
    not for threads that sleep uninterruptibly: the kernel resumes those when the tracer ends.
    """
    end = time.monotonic() + seconds
    for tid in list(late):
        try:
            stop = ptrace.poll(tid)
            while stop is None and time.monotonic() < end:
                if procfs.thread_state(pid, tid) in (procfs.UNINTERRUPTIBLE, None):
                    break
                ptrace.nap()
                stop = ptrace.poll(tid)
            if stop is None:
                continue
            if not stop.gone:
                file = ptrace.RegisterFile(1, XSTATE_SIZE)
                if policy is not Perturb.ALLOW and file.fetch(0, tid):
                    restart.keep_from_noticing(file, 0, tid)
                ptrace.detach(tid, stop.pass_on)
        except PtraceError:
            pass  # it has ended
        late.discard(tid)


class StoppedProcess:
    """All threads of `pid` (of this pid namespace), stopped from `with` until `release`.

    deadline: seconds that they have to stop; those that do not are in `left_out`. registers_of:
    reads raw thread records without stopping (`Probe.threads`), for the threads left out.
    Only within `ptrace.run_as_tracer`, whose end lets go of threads that had not stopped in time:
    end it soon after the release. Raises CaptureError if the process may not be traced, or ends.
    """

    def __init__(
        self,
        pid: int,
        policy: Perturb = Perturb.TRANSPARENT,
        deadline: float = DEADLINE,
        *,
        options: Options = Options.NONE,
        registers_of: Callable[[int], bytes] | None = None,
    ) -> None:
        if not ptrace.is_tracer():
            raise RuntimeError("StoppedProcess outside of run_as_tracer")
        self.pid = pid
        self.stops: dict[int, Stop] = {}  # how each thread stopped, by tid of this namespace
        self.rewound: list[int] = []  # tids whose system call was set to start again
        self.pause: Pause | None = None  # known after `release`
        self._policy, self._deadline = policy, deadline
        # new threads are traced as well, from the start; who begins another program is seen
        self._options = options | Options.CLONE | Options.EXEC
        self._registers_of = registers_of
        self._raw_others = b""
        self._slots: dict[int, int] = {}
        self._pending: dict[int, float] = {}  # traced and asked to stop, and when
        self._why: dict[int, Why] = {}
        self._workers: set[int] = set()  # the kernel's own: no threads of the process
        self._calls: dict[int, Blocked | None] = {}
        self._asked: dict[int, float] = {}
        self._facts: dict[int, TaskFacts] = {}
        self._held = False

    # --- stopping -------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        refusal.check(self.pid)
        self._prepare()
        try:
            with critical():
                self._traced_at = time.monotonic()
                self._seize(ask=False)
                self._stop()
        except BaseException:
            self.release()
            raise
        if not self.stops:
            self.release()
            raise CaptureError(self._why_none())
        return self

    def _prepare(self) -> None:
        """Describe the threads, and make and touch all memory that the stop needs."""
        for tid in procfs.thread_ids(self.pid):
            found = tasks.facts(self.pid, tid)
            if found is not None:
                self._facts[tid] = found
            if self._policy is Perturb.NEVER:
                call = procfs.blocked(self.pid, tid)
                if restart.would_notice(self.pid, call):
                    self._why[tid], self._calls[tid] = Why.PERTURB, call
        layout = xsave_layout()
        capacity = procfs.thread_count(self.pid) + _SPARE
        self._file = ptrace.RegisterFile(capacity, layout.size if layout else XSTATE_SIZE)
        self._more = [self._file]

    def _seize(self, *, ask: bool) -> bool:
        """Trace all threads that are not yet; ask them to stop. Whether there were any."""
        new = False
        for tid in procfs.thread_ids(self.pid):
            if tid in self._pending or tid in self.stops or tid in self._why:
                continue
            if self._is_worker(tid):
                continue
            try:
                ptrace.seize(tid, self._options)
            except ptrace.ThreadGone:
                continue
            except ptrace.TraceRefused:
                if not self._seizes_itself(tid):
                    continue
            new = True
            self._pending[tid] = 0.0
            if ask:
                self._ask(tid)
        return new

    def _is_worker(self, tid: int) -> bool:
        """Whether it is the kernel's own; asked once of each thread that is not described yet."""
        if tid not in self._facts and tid not in self._workers and procfs.is_worker(self.pid, tid):
            self._workers.add(tid)
        return tid in self._workers

    def _seizes_itself(self, tid: int) -> bool:
        """After a refusal: whether the thread is ours already, as new ones are from their birth."""
        status = procfs.read_thread(self.pid, tid, "status")
        fields = procfs.fields(status) if status else {}
        if not status or fields[b"State"][0].decode() in procfs.ENDED:
            return False
        if int(fields[b"TracerPid"][0]) == threading.get_native_id():
            return True
        if tid == self.pid or not self._pending:
            raise refusal.refused(self.pid)
        self._leave_out(tid, Why.REFUSED)
        return False

    def _ask(self, tid: int) -> None:
        self._pending[tid] = self._asked[tid] = time.monotonic()
        try:
            ptrace.interrupt(tid)
        except PtraceError:
            del self._pending[tid]  # it has ended

    def _stop(self) -> None:
        self._stopping_at = time.monotonic()
        for tid in list(self._pending):
            self._ask(tid)
        while True:
            self._collect()
            # all that we know stand still; somebody may have been born before its maker stopped
            known = len(self.stops) + len(self._workers)
            if not self._why and procfs.thread_count(self.pid) == known:
                break
            if self._is_late() or not self._seize(ask=True):
                break
        self._give_up(Why.LATE)
        if self._why and self._registers_of is not None:
            with contextlib.suppress(CaptureError, OSError):
                self._raw_others = self._registers_of(self.pid)
        self._held = True

    def _is_late(self) -> bool:
        """Whether who does not stand by now is left out. As long as nobody stands nobody waits."""
        now = time.monotonic()
        if not self.stops:
            return now >= self._stopping_at + max(self._deadline, _FIRST)
        return now >= self._first_at + self._deadline

    def _collect(self) -> None:
        """Wait for those that were asked; read the registers of each as soon as it stands."""
        waiting = deque(self._pending)
        patience = time.monotonic() + _PATIENCE
        tries = 0
        while waiting:
            tid = waiting[0]
            if self._has_stopped(tid):
                waiting.popleft()
                tries = 0
                continue
            ptrace.nap(len(waiting), tries)  # meanwhile others stop as well
            tries += 1
            if tries > _TRIES:
                waiting.rotate(-1)  # it may never stop, and others wait to be looked at
            if self._is_late():
                for other in waiting:  # it may be us who were kept from the CPU
                    self._has_stopped(other)
                return
            now = time.monotonic()
            if now >= patience:
                patience = now + _PATIENCE / 4
                if all(self._is_uninterruptible(tid) for tid in waiting):
                    self._give_up(Why.UNINTERRUPTIBLE)
                    return

    def _has_stopped(self, tid: int) -> bool:
        try:
            stop = ptrace.poll(tid)
        except PtraceError:
            stop = None
        else:
            if stop is None:
                return False
        del self._pending[tid]
        if stop is not None and not stop.gone:
            if not self.stops:
                self._first_at = time.monotonic()
            self._take(tid, stop)
        return True

    def _take(self, tid: int, stop: Stop) -> None:
        if stop.event is Event.EXEC:
            raise CaptureError(f"process {self.pid} has begun another program (execve)")
        slot = len(self._slots)
        file, at = self._place(slot)
        if not file.fetch(at, tid):
            return  # killed a moment ago
        self._slots[tid] = slot
        self.stops[tid] = stop
        if self._policy is not Perturb.ALLOW and restart.keep_from_noticing(file, at, tid):
            self.rewound.append(tid)

    def _place(self, slot: int) -> tuple[ptrace.RegisterFile, int]:
        """Where the registers of a slot are; a process that grows very fast makes room late."""
        size = self._file.capacity
        while slot >= size * len(self._more):
            self._more.append(ptrace.RegisterFile(size, self._file.xstate_size))
        return self._more[slot // size], slot % size

    def _is_uninterruptible(self, tid: int) -> bool:
        return procfs.thread_state(self.pid, tid) in (procfs.UNINTERRUPTIBLE, None)

    def _give_up(self, why: Why) -> None:
        for tid in list(self._pending):
            self._leave_out(tid, why)

    def _leave_out(self, tid: int, why: Why) -> None:
        self._pending.pop(tid, None)
        self._why[tid] = why
        self._calls[tid] = procfs.blocked(self.pid, tid)

    def _why_none(self) -> str:
        if self._why:
            reasons = ", ".join(sorted({why.value for why in self._why.values()}))
            return f"no thread of process {self.pid} could be stopped: {reasons}"
        return refusal.reason(self.pid) or f"process {self.pid} ended before it could be stopped"

    # --- going on -------------------------------------------------------------------------------

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def release(self) -> None:
        """Let all threads go on. Safe to call again.

        Whoever made one of them do something else meanwhile must have restored its registers
        and its signal mask, and have left it in a stop of the same kind.
        """
        if self.pause is not None:
            return
        worst, worst_tid = 0.0, self.pid
        with critical():
            for tid, stop in self.stops.items():
                self._resume(tid, stop.pass_on)
                held = time.monotonic() - self._asked.get(tid, self._stopping_at)
                if held > worst:
                    worst, worst_tid = held, tid
            now = time.monotonic()
        late = {tid for tid, why in self._why.items() if why in (Why.LATE, Why.UNINTERRUPTIBLE)}
        resume_late(self.pid, late | set(self._pending), self._policy, _AFTER)
        if self._held:
            total, traced = now - self._stopping_at, now - self._traced_at
            self.pause = Pause(total * 1e3, worst * 1e3, worst_tid, traced * 1e3)
        else:
            self.pause = Pause(0.0, 0.0, self.pid, 0.0)

    @staticmethod
    def _resume(tid: int, signal: int) -> None:
        try:
            ptrace.detach(tid, signal)
        except PtraceError:
            with contextlib.suppress(PtraceError):
                ptrace.poll(tid)  # killed meanwhile: reap it

    # --- what was found ---------------------------------------------------------------------------

    @property
    def tids(self) -> Sequence[int]:
        """The stopped threads, by their ids in this pid namespace."""
        return list(self.stops)

    def regs(self, tid: int) -> tuple[int, ...]:
        """The 27 general registers of a stopped thread as they were found."""
        file, at = self._place(self._slots[tid])
        return file.regs(at)

    def xstate(self, tid: int) -> bytes | None:
        """The XSAVE area of a stopped thread in the standard format."""
        file, at = self._place(self._slots[tid])
        return file.xstate(at)

    def threads(self) -> list[Thread]:
        """All threads whose registers are known, the main one first. Best after the release."""
        found = []
        for tid in sorted(self.stops, key=lambda tid: (tid != self.pid, tid)):
            facts = self._facts.get(tid) or tasks.facts(self.pid, tid) or tasks.gone(tid)
            found.append(facts.thread(self.regs(tid), self.xstate(tid)))
        return found + [other.thread for other in self.left_out if other.thread is not None]

    @property
    def left_out(self) -> list[Unstopped]:
        """The threads that ran on. Best asked after the release."""
        others = {thread.tid: thread for thread in self._decoded_others()}
        found = []
        for tid, why in self._why.items():
            facts = self._facts.get(tid)
            own = facts.tid if facts else tid
            found.append(Unstopped(own, why, self._calls.get(tid), others.get(own)))
        return found

    def _decoded_others(self) -> list[Thread]:
        if not self._raw_others:
            return []
        from collector.probe.iterators import decode_threads  # noqa: PLC0415  (only with BPF)

        return decode_threads(self._raw_others)
