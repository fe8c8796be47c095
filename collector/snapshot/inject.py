"""System calls in a process that is not ours, made by one of its own stopped threads.

    with Injector(pid) as injector:              # before anything is stopped
        ...                                      # a thread of the process is stopped
        with injector.borrow(tid) as thread:     # it runs a stub (stub.py) instead of its own code
            result = thread.call()               # its next system call, from entry to exit
        ...                                      # stopped as before, nothing of it has changed

The stub lies in the unused end of the process's vdso, or of another executable mapping, so nothing
needs to be mapped, unmapped or allowed; it is written through /proc/PID/mem, and zeroed again. From
the moment when the thread's registers point to it, the thread can restore itself: whoever kills us,
at whatever point, leaves a process that runs on and is correct. What remains of it are a private
copy of that page and, after a kill, the bytes of the stub there, which the next use takes away.

A thread whose system calls are dispatched to itself (Syscall User Dispatch) is never borrowed: the
call would be a signal to it, and to switch that off from here would be for good if we died.

At the end the thread is in the same kind of stop as at the beginning, with the same registers, also
the kernel's own codes for interrupted system calls: the kernel itself decides how they go on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

from collector.arch import stub
from collector.arch.x86_64 import CODE_64_BIT, Reg
from collector.capture.image import decode_maps
from collector.elfcore.types import Mapping, Prot
from collector.errors import CaptureError
from collector.linux import procfs, ptrace
from collector.linux.pagemap import resident_part
from collector.linux.procfs import thread_with_memory
from collector.linux.ptrace import Event, Options, PtraceError, Stop, StopKind
from collector.snapshot import restart

_SIZE = 512  # bytes at the end of a mapping that are used; they must be zero
_MARK = b"\xccCOREWARD STUB\xcc\xcc"  # in their last bytes while a stub is there
_ALL_SIGNALS = (1 << 64) - 1
_ALL_BUT_SIGSYS = _ALL_SIGNALS & ~(1 << signal.SIGSYS - 1)
_DISPATCHED = "with syscall user dispatch"
_U64 = 1 << 64
_PATIENCE = 120.0  # seconds for a call; a fork takes 20 ms/GiB
_ENTRY_PATIENCE = 2.0  # seconds until it begins: some instructions, if the thread runs at all
_STOP_PATIENCE = 0.05  # seconds for a thread to stop
_IDLE_PATIENCE = 2.0  # seconds until nobody uses the stub of one that was killed
_RSEQ_CS = 8  # struct rseq of <linux/rseq.h>: where rseq_cs is

# Calls that change the signal mask while they wait, and which argument points to that mask: the
# kernel keeps the old mask where ptrace cannot restore it. rt_sigsuspend, pselect6, ppoll,
# epoll_pwait, epoll_pwait2, io_pgetevents, io_uring_enter
_MASKING = {130: 0, 270: 5, 271: 3, 281: 4, 441: 4, 333: 5, 426: 4}
_ARGUMENTS = (Reg.RDI, Reg.RSI, Reg.RDX, Reg.R10, Reg.R8, Reg.R9)
_RESTARTS = {
    ptrace.ERESTARTSYS,
    ptrace.ERESTARTNOINTR,
    ptrace.ERESTARTNOHAND,
    ptrace.ERESTART_RESTARTBLOCK,
}


class InjectionRefused(CaptureError):
    """Nothing can be injected into this process, now or at all; it was not touched."""


class Injector:
    """The place for stubs in process `pid`, and the right to use it. A context manager.

    Only one at a time and process. Raises InjectionRefused where there can be none.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.base = 0  # address of the stub
        self.seccomp: dict[int, int] = {}  # tid -> mode, of the threads that have one
        self._mem = self._pagemap = -1
        self._kept = False

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._lock = stack.enter_context(_locked(self.pid))
            try:
                memory = thread_with_memory(self.pid)
                self._mem = os.open(f"/proc/{memory}/mem", os.O_RDWR | os.O_CLOEXEC)
                stack.callback(os.close, self._mem)
                self._pagemap = os.open(f"/proc/{memory}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, self._pagemap)
                with open(f"/proc/{memory}/maps", "rb") as maps:
                    self.base = _place(decode_maps(maps.read()), self._read)
            except OSError as error:
                raise InjectionRefused(
                    f"cannot inject into process {self.pid}: {error.strerror}"
                ) from error
            if not self.base:
                raise InjectionRefused(
                    f"cannot inject into process {self.pid}: no executable mapping has {_SIZE} "
                    "unused bytes at its end"
                )
            self._clear_leftover()
            self.seccomp = _filtered(self.pid)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    # --- which thread ---------------------------------------------------------------------------

    def choose(self, stops: Iterable[Stop]) -> int:
        """The stopped thread that is best borrowed. Raises InjectionRefused if there is none."""
        best, best_rank = 0, 1 << 10
        reasons: dict[str, int] = {}
        for stop in stops:
            rank = self.rank(stop)
            if isinstance(rank, str):
                reasons[rank] = reasons.get(rank, 0) + 1
            elif rank < best_rank:
                best, best_rank = stop.tid, rank
            if best_rank == 0:
                break
        if not best:
            why = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
            raise InjectionRefused(
                f"cannot inject into process {self.pid}: none of its threads can be borrowed "
                f"({why or 'none is stopped'})"
            )
        return best

    def rank(self, stop: Stop) -> int | str:
        """How well a stopped thread can be borrowed, 0 is best; a string says why not."""
        if stop.kind not in (StopKind.INTERRUPT, StopKind.GROUP):
            return "about to get a signal"
        try:
            regs = ptrace.get_regs(stop.tid)
            dispatched = ptrace.dispatches_syscalls(stop.tid)
        except PtraceError:
            return "ended"
        if regs[Reg.CS] != CODE_64_BIT:
            return "running 32 bit code"
        if dispatched:
            return _DISPATCHED
        if stub.is_single_stepped(regs):
            return "being single stepped"
        filtered = 4 if stop.tid in self.seccomp else 0
        number, code = regs[Reg.ORIG_RAX], _U64 - regs[Reg.RAX]
        if number >= _U64 >> 1:  # it was not in a system call
            return "in a restartable sequence" if self._in_rseq(stop.tid) else 1 + filtered
        pointer = _MASKING.get(number)
        if pointer is not None and regs[_ARGUMENTS[pointer]]:
            return "waiting with a signal mask of its own"
        if restart.has_noticed(regs[Reg.RAX], number) or (
            code == ptrace.ERESTARTNOHAND and number in restart.RETURNS_EINTR
        ):
            return 2 + filtered
        return filtered if code in _RESTARTS else 1 + filtered

    def _in_rseq(self, tid: int) -> bool:
        """Whether a thread is, or may be, inside a critical section of rseq(2).

        The kernel would forget it when the thread goes on elsewhere.
        """
        area = ptrace.get_rseq(tid)
        return area != 0 and self._read(area + _RSEQ_CS, 8) != bytes(8)

    @contextlib.contextmanager
    def one_thread(self) -> Iterator[int]:
        """Any thread that can be borrowed, stopped for the block; the others run on.

        Those that would notice a stop are tried last. Only within `ptrace.run_as_tracer`.
        """
        reasons = []
        for tid in self._candidates():
            with _stopped(tid) as stop:
                if stop is None:
                    continue
                rank = self.rank(stop)
                if not isinstance(rank, str):
                    yield tid
                    return
                reasons.append(rank)
        why = ", ".join(sorted(set(reasons))) or "none stopped in time"
        raise InjectionRefused(
            f"cannot inject into process {self.pid}: none of its threads can be borrowed ({why})"
        )

    def _candidates(self) -> list[int]:
        """First those that are blocked harmlessly, then those that run, last who would notice."""
        ranked = []
        for tid in procfs.thread_ids(self.pid):
            if procfs.is_worker(self.pid, tid):
                continue
            call = procfs.blocked(self.pid, tid)
            rank = 1 if call is None else 2 if restart.would_notice(self.pid, call) else 0
            if procfs.thread_state(self.pid, tid) == procfs.UNINTERRUPTIBLE:
                rank = 3
            ranked.append((tid in self.seccomp, rank, tid))
        return [tid for _, _, tid in sorted(ranked)]

    # --- borrowing ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def borrow(
        self, tid: int, make: Callable[[Sequence[int], int], stub.Stub]
    ) -> Iterator[Borrowed]:
        """A stopped thread that is about to make the first call of a stub; given back at the end.

        make: the stub, from the registers and the signal mask with which the thread goes on.
        Raises InjectionRefused if a seccomp filter would see the calls, CaptureError if the
        thread or the process is killed meanwhile.
        """
        regs, mask = ptrace.get_regs(tid), ptrace.get_sigmask(tid)
        program = make(restart.by_hand(regs), mask)
        self._set_options(tid)
        self._write(program.code.ljust(_SIZE - len(_MARK), b"\0") + _MARK)
        self._check_program(tid, program.code)
        # from here on the thread restores itself, whatever becomes of us
        ptrace.set_regs(tid, program.start(regs, self.base))
        unsure = ptrace.dispatches_syscalls(tid) is None
        ptrace.set_sigmask(tid, _ALL_BUT_SIGSYS if unsure else _ALL_SIGNALS)
        thread = Borrowed(tid, unsure=unsure)
        self._kept = False
        try:
            yield thread
        finally:
            thread.give_back(regs, mask)
            if not self._kept and not thread.stuck:  # who is stuck needs the stub to get out
                self.clear()

    def _check_program(self, tid: int, code: bytes) -> None:
        """Raise InjectionRefused if the stub is not in the memory of the thread.

        Its process may have begun another program meanwhile: the id of its main thread is then
        that of the thread that called execve(2).
        """
        try:
            if ptrace.peek(tid, self.base) == int.from_bytes(code[:8], "little"):
                return
        except PtraceError:
            pass
        raise InjectionRefused(f"process {self.pid} has begun another program, or ended")

    def keep(self) -> None:
        """Somebody still runs the stub after the thread was given back: `clear` comes later."""
        self._kept = True

    def clear(self) -> None:
        """Zero the stub. Nobody may be running it."""
        with contextlib.suppress(InjectionRefused):  # the process has ended
            self._write(bytes(_SIZE))

    def clear_in(self, mem_fd: int) -> None:
        """Zero the stub in a copy of the process, which never runs it again."""
        os.pwrite(mem_fd, bytes(_SIZE), self.base)

    def _set_options(self, tid: int) -> None:
        options = Options.SYSGOOD | Options.CLONE | Options.FORK | Options.EXEC
        if tid not in self.seccomp:
            ptrace.set_options(tid, options)
            return
        try:
            ptrace.set_options(tid, options | Options.SUSPEND_SECCOMP)
        except PtraceError as error:
            raise InjectionRefused(
                f"cannot inject into process {self.pid}: it has a seccomp filter, and suspending "
                "that needs CAP_SYS_ADMIN and a kernel with CONFIG_CHECKPOINT_RESTORE"
            ) from error

    # --- the memory of the stub -----------------------------------------------------------------

    def _read(self, address: int, size: int, *, fetch: bool = False) -> bytes:
        """What is there; nothing where it would have to be fetched, which may last for ever."""
        try:
            if not fetch:
                size = resident_part(self._pagemap, address, size)
            return os.pread(self._mem, size, address)
        except (OSError, OverflowError):
            return b""

    def _write(self, data: bytes) -> None:
        try:
            os.pwrite(self._mem, data, self.base)
        except OSError as error:
            raise InjectionRefused(
                f"cannot write into the code of process {self.pid} ({error.strerror}): it has "
                "ended, or this kernel forbids it (proc_mem.force_override)"
            ) from error

    def _clear_leftover(self) -> None:
        """Take away the stub of one that was killed, once no thread is inside."""
        if not any(self._read(self.base, _SIZE)):
            return
        end = time.monotonic() + _IDLE_PATIENCE
        while ptrace.run_as_tracer(self._in_use):
            if time.monotonic() >= end:
                raise InjectionRefused(
                    f"cannot inject into process {self.pid}: one of its threads is still busy with "
                    "what an injector that was killed has left"
                )
            time.sleep(0.01)
        self.clear()

    def _in_use(self) -> bool:
        return any(self._is_inside(tid) for tid in procfs.thread_ids(self.pid))

    def _is_inside(self, tid: int) -> bool:
        call = procfs.blocked(self.pid, tid)
        if call is not None:
            return self.base <= call.ip < self.base + _SIZE
        if procfs.is_worker(self.pid, tid):
            return False
        with _stopped(tid) as stop:
            if stop is None:
                return tid in procfs.thread_ids(self.pid)
            return self.base <= ptrace.get_regs(tid)[Reg.RIP] < self.base + _SIZE


class Borrowed:
    """A thread that runs a stub, call by call.

    unsure: its first call may be dispatched to it as SIGSYS, which it has not blocked: the kernel
    would take a blocked one as its death. That is then kept from it, and it is not borrowed.
    """

    def __init__(self, tid: int, *, unsure: bool = False) -> None:
        self.tid = tid
        self.child = 0  # the last task that it made, by its id here
        self.stuck = False  # it did not come back in time: it will give itself back
        self._unsure = unsure
        self._begun = False  # it has begun its first call
        self._inside = False  # a call has begun and not ended
        self._halted = False  # it did not run, and was stopped where it was
        self._gone = False

    def call(self) -> int:
        """Let it make its next system call; the result, or minus an errno."""
        self.enter()
        return self.leave()

    def enter(self) -> None:
        """Until the next system call begins.

        InjectionRefused if the first one is dispatched, or the thread does not run.
        """
        self._next(StopKind.SYSCALL, _ENTRY_PATIENCE)
        self._inside = self._begun = True
        if self._unsure:
            self._unsure = False
            ptrace.set_sigmask(self.tid, _ALL_SIGNALS)

    def leave(self) -> int:
        """Until it ends."""
        self._next(StopKind.SYSCALL)
        self._inside = False
        result = ptrace.get_regs(self.tid)[Reg.RAX]
        return result - _U64 if result >> 63 else result

    def give_back(self, regs: Sequence[int], mask: int) -> None:
        """Stop it as it was stopped, with the registers that it had."""
        if self._gone:
            return
        if self._inside:
            self.leave()
        if not self._halted:
            ptrace.interrupt(self.tid)
            ptrace.cont(self.tid)
            self._await(StopKind.INTERRUPT, StopKind.GROUP)
        # in this order: should we die in between, the stub ends its work
        ptrace.set_sigmask(self.tid, mask)
        ptrace.set_regs(self.tid, regs)

    def _next(self, kind: StopKind, patience: float | None = None) -> None:
        ptrace.syscall_step(self.tid)
        self._await(kind, patience=patience)

    def _halt(self) -> Stop | None:
        """Stop it before its first call, if it will not run: a frozen one stops all the same."""
        if self._begun:
            return None
        ptrace.interrupt(self.tid)
        stop = ptrace.wait(self.tid, time.monotonic() + _ENTRY_PATIENCE)
        if stop is not None and stop.kind in (StopKind.INTERRUPT, StopKind.GROUP):
            self._halted = True
            raise InjectionRefused(
                f"cannot inject into thread {self.tid}: it does not run (its cgroup is frozen, or "
                "it gets no CPU time)"
            )
        return stop

    def _await(self, *kinds: StopKind, patience: float | None = None) -> Stop:
        end = time.monotonic() + (patience or _PATIENCE)
        while True:
            stop = ptrace.wait(self.tid, end) or self._halt()
            if stop is None:
                self.stuck = self._gone = True  # it is not ours to touch while it runs
                raise CaptureError(f"thread {self.tid} is stuck in a system call of ours")
            if stop.kind in kinds:
                return stop
            if stop.gone:
                self._gone = True
                raise CaptureError(f"thread {self.tid} was killed while it was borrowed")
            if self._unsure and stop.signal == signal.SIGSYS:
                raise InjectionRefused(f"cannot inject into thread {self.tid}, {_DISPATCHED}")
            if stop.event is Event.EXEC:
                self._gone = True
                raise CaptureError(f"thread {self.tid} has begun another program")
            if stop.kind is StopKind.EVENT:
                self.child = ptrace.get_event_message(self.tid)
            # SIGSTOP: the kernel stops it again when it is let go
            ptrace.syscall_step(self.tid, stop.pass_on)


@contextlib.contextmanager
def _stopped(tid: int) -> Iterator[Stop | None]:
    """One thread, stopped for the block; None if it does not stop, or may not be traced."""
    try:
        ptrace.seize(tid)
        ptrace.interrupt(tid)
    except PtraceError:
        yield None
        return
    stop = ptrace.wait(tid, time.monotonic() + _STOP_PATIENCE)
    if stop is None or stop.gone:
        yield None
        return
    regs = ptrace.get_regs(tid)
    if restart.has_noticed(regs[Reg.RAX], regs[Reg.ORIG_RAX]):
        regs[Reg.RAX] = restart.RESTART
        ptrace.set_regs(tid, regs)
    try:
        yield stop
    finally:
        with contextlib.suppress(PtraceError):
            ptrace.detach(tid, stop.pass_on)


@contextlib.contextmanager
def _locked(pid: int) -> Iterator[None]:
    """Keep other injectors away: a lock on a file of /proc that only its user can open (0400).

    Whoever can open a file can lock it, so it is none that everybody can read.
    """
    try:
        fd = os.open(f"/proc/{pid}/personality", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise InjectionRefused(f"there is no process {pid}") from error
    except OSError as error:
        raise InjectionRefused(f"cannot inject into process {pid}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK:
            raise
        raise InjectionRefused(f"another program is injecting into process {pid} now") from error
    finally:
        os.close(fd)


def _place(mappings: Sequence[Mapping], read: Callable[..., bytes]) -> int:
    """Where an executable mapping has unused bytes at its end; the vdso first. 0: nowhere."""
    executable = [m for m in mappings if m.prot & Prot.X and not m.shared and m.path]
    executable.sort(key=lambda m: m.path != "[vdso]")
    for m in executable:
        if m.path == "[vdso]" or m.inode:
            found = read(m.end - _SIZE, _SIZE, fetch=m.path == "[vdso]")
            if len(found) == _SIZE and (not any(found) or found.endswith(_MARK)):
                return m.end - _SIZE
    return 0


def _filtered(pid: int) -> dict[int, int]:
    """Threads with a seccomp mode (seccomp(2)), and which."""
    found = {}
    for tid in procfs.thread_ids(pid):
        fields = procfs.fields(procfs.read_thread(pid, tid, "status") or b"")
        mode = int(fields.get(b"Seccomp", [b"0"])[0])
        if mode:
            found[tid] = mode
    return found
