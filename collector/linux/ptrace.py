"""ptrace(2) and the waits that belong to it: typed, for x86-64, the only place of their numbers.

It knows single threads, not processes, and decides nothing: which threads to stop and how to let
them go is in `stop` and `rolling`.

A tracer is an OS thread: only the one that seized a thread may ask for anything else, and the
kernel lets go of all that it traces when it ends (`run_as_tracer`). That is also what makes the
death of the tracer harmless, provided that the stops were not yet consumed: a wait that consumes
the stop before the delivery of a signal makes the kernel forget that signal should the tracer die.
Therefore waits here only look (WNOWAIT), except for system call stops and exits.

All calls keep the interpreter's lock, so no other thread of this program can stretch a stop.
Sources: ptrace(2), waitid(2), <linux/ptrace.h>, <asm/user_64.h>, include/linux/errno.h.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from collector.arch.elf import NT_X86_XSTATE
from collector.arch.x86_64 import REGISTERS
from collector.errors import CaptureError
from collector.linux import procfs

_PEEKDATA, _CONT, _DETACH, _SYSCALL = 2, 7, 17, 24
_GETREGS, _SETREGS = 12, 13  # unlike the regset of the same, 64 bit wide also of 32-bit code
_SETOPTIONS, _GETEVENTMSG = 0x4200, 0x4201
_GETREGSET = 0x4204
_SEIZE, _INTERRUPT, _LISTEN = 0x4206, 0x4207, 0x4208
_GETSIGMASK, _SETSIGMASK = 0x420A, 0x420B
_GET_RSEQ_CONFIGURATION = 0x420F
_GET_SYSCALL_USER_DISPATCH_CONFIG = 0x4211

_P_PID = 1  # waitid(2)
_WNOHANG, _WSTOPPED, _WEXITED, _WNOWAIT = 1, 2, 4, 0x01000000
_WALL = 0x40000000  # threads as well, and children without SIGCHLD
_CLD_EXITED, _CLD_KILLED, _CLD_DUMPED = 1, 2, 3
_PEEK = _WNOHANG | _WSTOPPED | _WEXITED | _WNOWAIT | _WALL
_TAKE = _WNOHANG | _WSTOPPED | _WEXITED | _WALL
_REAP = _WNOHANG | _WEXITED | _WALL
_LOOK_S = 0.05  # between two looks whether a request to trace does not return

SIGTRAP = 5
_SYSGOOD_BIT = 0x80
_STOP_SIGNALS = frozenset((19, 20, 21, 22))  # SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU

_MASK_BYTES = 8  # of the kernel's sigset_t
_WORD = 8

# How the kernel itself marks an interrupted system call, in rax of a stopped thread.
ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK = 512, 513, 514, 516

# Between two looks at a thread that has not stopped yet. Each look of a real-time thread takes a
# CPU from those it waits for: looking every 5 us made stops a hundred times longer.
_POLL_NS = 20_000
_POLL_LATER_NS = 100_000
_SHORT = 4  # looks after short naps
_MANY = 32  # threads, for which naps are long from the first
_EAGER = 0.1  # seconds of such looks, then at most 1000 per second


class Options(enum.IntFlag):
    """PTRACE_O_*."""

    NONE = 0
    SYSGOOD = 1
    FORK = 1 << 1
    VFORK = 1 << 2
    CLONE = 1 << 3
    EXEC = 1 << 4
    VFORK_DONE = 1 << 5
    EXIT = 1 << 6
    SECCOMP = 1 << 7
    EXITKILL = 1 << 20
    SUSPEND_SECCOMP = 1 << 21


class Event(enum.IntEnum):
    """PTRACE_EVENT_*."""

    NONE = 0
    FORK = 1
    VFORK = 2
    CLONE = 3
    EXEC = 4
    VFORK_DONE = 5
    EXIT = 6
    SECCOMP = 7
    STOP = 128


class StopKind(enum.Enum):
    """Why a traced thread does not run."""

    INTERRUPT = "interrupt"  # asked for by `interrupt`, or a new thread of one that is traced
    GROUP = "group"  # the whole process is stopped by a signal such as SIGSTOP
    SIGNAL = "signal"  # about to get `signal`, which `cont` or `detach` must pass on
    SYSCALL = "syscall"  # at the entry or the exit of a system call (`syscall_step`)
    EVENT = "event"  # `event`, as asked for by Options
    EXITED = "exited"  # gone; `status` is its exit status
    KILLED = "killed"  # gone by `signal`


class Stop(NamedTuple):
    """A change of state of a traced thread. `status`: the exit status of one that exited."""

    tid: int
    kind: StopKind
    signal: int = 0
    event: Event = Event.NONE
    status: int = 0

    @property
    def gone(self) -> bool:
        """Whether the thread has ended."""
        return self.kind in (StopKind.EXITED, StopKind.KILLED)

    @property
    def pass_on(self) -> int:
        """The signal that the thread must be given when it goes on; 0: none."""
        return self.signal if self.kind is StopKind.SIGNAL else 0


class PtraceError(CaptureError):
    """A request failed. `tid` and `number` (errno) say on whom and how."""

    def __init__(self, request: str, tid: int, number: int) -> None:
        super().__init__(f"ptrace {request} of thread {tid}: {os.strerror(number)}")
        self.request, self.tid, self.number = request, tid, number


class ThreadGone(PtraceError):
    """ESRCH: the thread has ended, is not traced by this thread, or is not stopped."""


class TraceRefused(PtraceError):
    """EPERM: the thread may not be traced, is being traced already, or is ending."""


class Iovec(ctypes.Structure):
    """struct iovec (readv(2))."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _ChildInfo(ctypes.Structure):
    """siginfo_t as waitid(2) fills it."""

    _fields_ = (
        ("signo", ctypes.c_int),
        ("errno", ctypes.c_int),
        ("code", ctypes.c_int),
        ("pad", ctypes.c_int),
        ("pid", ctypes.c_int),
        ("uid", ctypes.c_uint),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 100),
    )


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_libc = ctypes.PyDLL(None, use_errno=True)  # PyDLL: the interpreter's lock is kept
_ptrace = _libc.ptrace
_ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_long)
_ptrace.restype = ctypes.c_long
_attach = ctypes.CDLL(None, use_errno=True).ptrace  # the lock is given up: this one may wait
_attach.argtypes, _attach.restype = _ptrace.argtypes, _ptrace.restype
# By tracer: a process whose thread it asks to trace, by the first of its threads, and since when
_attaching: dict[int, tuple[int, float]] = {}
_waitid = _libc.waitid
_waitid.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
_waitid.restype = ctypes.c_int
_nanosleep = _libc.nanosleep
_nanosleep.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
_errno = ctypes.get_errno
_pause, _longer_pause = _Timespec(0, _POLL_NS), _Timespec(0, _POLL_LATER_NS)
_pauses = ctypes.addressof(_pause), ctypes.addressof(_longer_pause)


def _check(result: int, request: str, tid: int) -> None:
    if result != -1:
        return
    number = _errno()
    if number == errno.ESRCH:
        raise ThreadGone(request, tid, number)
    if number == errno.EPERM:
        raise TraceRefused(request, tid, number)
    raise PtraceError(request, tid, number)


# --- beginning and ending -----------------------------------------------------------------------


def seize(tid: int, options: Options = Options.NONE) -> None:
    """Trace a thread without stopping it. If its process is stopped by SIGSTOP, see `listen`.

    TraceRefused where it is not allowed (`refusal` says why), ThreadGone if there is none.
    """
    own = threading.get_native_id()
    _here.first = getattr(_here, "first", tid)  # `tid` itself may be gone while we wait
    _attaching[own] = _here.first, time.monotonic()
    try:
        _check(_attach(_SEIZE, tid, 0, options), "SEIZE", tid)
    finally:
        del _attaching[own]


def set_options(tid: int, options: Options) -> None:
    """Replace the options of a stopped thread."""
    _check(_ptrace(_SETOPTIONS, tid, 0, options), "SETOPTIONS", tid)


def detach(tid: int, signal: int = 0) -> None:
    """Let a stopped thread go on untraced, with a signal if one is being delivered.

    A process that SIGSTOP had stopped stays stopped.
    """
    _check(_ptrace(_DETACH, tid, 0, signal), "DETACH", tid)


# --- stopping and going on ----------------------------------------------------------------------


def interrupt(tid: int) -> None:
    """Ask a seized thread to stop; `wait` tells when it has."""
    _check(_ptrace(_INTERRUPT, tid, 0, 0), "INTERRUPT", tid)


def cont(tid: int, signal: int = 0) -> None:
    """Let a stopped thread run on, traced."""
    _check(_ptrace(_CONT, tid, 0, signal), "CONT", tid)


def syscall_step(tid: int, signal: int = 0) -> None:
    """Let a stopped thread run to the next entry or exit of a system call."""
    _check(_ptrace(_SYSCALL, tid, 0, signal), "SYSCALL", tid)


def listen(tid: int) -> None:
    """Leave a thread in its group stop, but let SIGCONT reach it."""
    _check(_ptrace(_LISTEN, tid, 0, 0), "LISTEN", tid)


def poll(tid: int) -> Stop | None:
    """The state of a traced thread if it has stopped or ended; None while it runs.

    A stop is told as long as it lasts, again and again, but for system call stops and ends.
    ThreadGone if the thread is not (or no more) traced by this process.
    """
    info = _ChildInfo()
    address = ctypes.addressof(info)
    _check(_waitid(_P_PID, tid, address, _PEEK), "wait", tid)
    if not info.pid:
        return None
    found = _decode(tid, info.code, info.status)
    if found.kind is StopKind.SYSCALL or (found.gone and not _is_own_child(tid)):
        # else a tracer's death would send the trap to the thread; and the dead want to be reaped
        _waitid(_P_PID, tid, address, _TAKE)
    return found


def wait(tid: int, deadline: float) -> Stop | None:
    """`poll` until the thread stops or ends, or until `deadline` (time.monotonic()): then None."""
    begun = time.monotonic()
    for tries in itertools.count():
        found = poll(tid)
        if found is not None:
            return found
        now = time.monotonic()
        if now >= deadline:
            return None
        if now - begun < _EAGER:
            nap(1, tries)
        else:
            time.sleep(0.001)
    return None


def nap(waiting: int = 1, tries: int = 0) -> None:
    """Sleep for a moment while so many threads are on their way to a stop: they need the CPUs.

    tries: how often the same was waited for before.
    """
    _nanosleep(_pauses[waiting > _MANY or tries > _SHORT], None)


def _decode(tid: int, code: int, status: int) -> Stop:
    if code == _CLD_EXITED:
        return Stop(tid, StopKind.EXITED, status=status)
    if code in (_CLD_KILLED, _CLD_DUMPED):
        return Stop(tid, StopKind.KILLED, signal=status)
    signal, event = status & 0xFF, status >> 8
    if event == Event.STOP:
        kind = StopKind.GROUP if signal in _STOP_SIGNALS else StopKind.INTERRUPT
        return Stop(tid, kind, signal, Event.STOP)
    if event:
        return Stop(tid, StopKind.EVENT, signal, Event(event))
    if signal == SIGTRAP | _SYSGOOD_BIT:
        return Stop(tid, StopKind.SYSCALL, SIGTRAP)
    return Stop(tid, StopKind.SIGNAL, signal)


def _is_own_child(tid: int) -> bool:
    """Whether somebody in this program waits for it as its parent."""
    status = procfs.read(f"/proc/{tid}/status") or b""
    is_process = procfs.number(status, b"Tgid") == tid
    return is_process and procfs.number(status, b"PPid") == os.getpid()


# --- asking a stopped thread --------------------------------------------------------------------


def get_regs(tid: int) -> list[int]:
    """The 27 general registers of a stopped thread, in the order of `Reg`."""
    words = (ctypes.c_uint64 * REGISTERS)()
    _check(_ptrace(_GETREGS, tid, 0, ctypes.addressof(words)), "GETREGS", tid)
    return list(words)


def set_regs(tid: int, regs: Sequence[int]) -> None:
    """Replace all 27 general registers of a stopped thread, in one step."""
    words = (ctypes.c_uint64 * REGISTERS)(*regs)
    _check(_ptrace(_SETREGS, tid, 0, ctypes.addressof(words)), "SETREGS", tid)


def get_sigmask(tid: int) -> int:
    """The blocked signals of a stopped thread: bit N-1 is signal N."""
    mask = ctypes.c_uint64()
    result = _ptrace(_GETSIGMASK, tid, _MASK_BYTES, ctypes.addressof(mask))
    _check(result, "GETSIGMASK", tid)
    return mask.value


def set_sigmask(tid: int, mask: int) -> None:
    """Replace the blocked signals of a stopped thread."""
    words = ctypes.c_uint64(mask)
    result = _ptrace(_SETSIGMASK, tid, _MASK_BYTES, ctypes.addressof(words))
    _check(result, "SETSIGMASK", tid)


def peek(tid: int, address: int) -> int:
    """The word at an address of a stopped thread's own memory. PtraceError: there is none."""
    ctypes.set_errno(0)
    word = _ptrace(_PEEKDATA, tid, address, 0)
    if word == -1 and _errno():
        _check(word, "PEEKDATA", tid)
    return int(word) & (1 << 64) - 1


def get_event_message(tid: int) -> int:
    """What goes with the last event: the new thread's id, the exit status, ..."""
    message = ctypes.c_ulong()
    _check(_ptrace(_GETEVENTMSG, tid, 0, ctypes.addressof(message)), "GETEVENTMSG", tid)
    return message.value


class _RseqConfiguration(ctypes.Structure):
    """struct ptrace_rseq_configuration of <linux/ptrace.h>."""

    _fields_ = (
        ("pointer", ctypes.c_uint64),
        ("size", ctypes.c_uint32),
        ("signature", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


def get_rseq(tid: int) -> int:
    """Where a stopped thread has its struct rseq (rseq(2), Linux >= 5.13); 0: it has none."""
    found = _RseqConfiguration()
    size = ctypes.sizeof(found)
    result = _ptrace(_GET_RSEQ_CONFIGURATION, tid, size, ctypes.addressof(found))
    if result == -1 and _errno() == errno.EIO:  # an older kernel
        return 0
    _check(result, "GET_RSEQ_CONFIGURATION", tid)
    return int(found.pointer)


class _DispatchConfiguration(ctypes.Structure):
    """struct ptrace_sud_config of <linux/ptrace.h>."""

    _fields_ = (
        ("mode", ctypes.c_uint64),
        ("selector", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
    )


def dispatches_syscalls(tid: int) -> bool | None:
    """Whether system calls of a stopped thread may raise SIGSYS instead of being made.

    That is PR_SET_SYSCALL_USER_DISPATCH of prctl(2). None: this kernel does not tell
    (Linux < 6.4).
    """
    found = _DispatchConfiguration()
    size = ctypes.sizeof(found)
    result = _ptrace(_GET_SYSCALL_USER_DISPATCH_CONFIG, tid, size, ctypes.addressof(found))
    if result == -1 and _errno() == errno.EIO:
        return None
    _check(result, "GET_SYSCALL_USER_DISPATCH_CONFIG", tid)
    return bool(found.mode)


class RegisterFile:
    """Room for the registers of `capacity` threads, made and touched before anybody is stopped.

    Slots are 0 <= slot < capacity. `xstate_size`: bytes of this machine's XSAVE area.
    """

    def __init__(self, capacity: int, xstate_size: int) -> None:
        self.capacity = capacity
        self.xstate_size = xstate_size
        self.words = (ctypes.c_uint64 * (REGISTERS * capacity))()
        self._first_word = ctypes.addressof(self.words)
        self._areas = ctypes.create_string_buffer(xstate_size * capacity)
        ctypes.memset(self._areas, 0xFF, xstate_size * capacity)  # zeros alone map no memory
        self._vectors = (Iovec * capacity)()
        self._first_vector = ctypes.addressof(self._vectors)
        areas_at = ctypes.addressof(self._areas)
        for slot, vector in enumerate(self._vectors):
            vector.base, vector.length = areas_at + xstate_size * slot, xstate_size

    def fetch(self, slot: int, tid: int) -> bool:
        """Read all registers of a stopped thread. False: it is gone or not stopped."""
        if _ptrace(_GETREGS, tid, 0, self._first_word + _WORD * REGISTERS * slot):
            return False
        vector = self._first_vector + ctypes.sizeof(Iovec) * slot
        if _ptrace(_GETREGSET, tid, NT_X86_XSTATE, vector):
            self._vectors[slot].length = 0  # a CPU without XSAVE
        return True

    def store(self, slot: int, tid: int) -> bool:
        """Write the general registers of this slot to a stopped thread. False: it is gone."""
        return not _ptrace(_SETREGS, tid, 0, self._first_word + _WORD * REGISTERS * slot)

    def regs(self, slot: int) -> tuple[int, ...]:
        """The 27 general registers."""
        return tuple(self.words[REGISTERS * slot : REGISTERS * (slot + 1)])

    def xstate(self, slot: int) -> bytes | None:
        """The XSAVE area in the standard format; None if this machine has none."""
        size = int(self._vectors[slot].length)
        at = self.xstate_size * slot
        return bytes(memoryview(self._areas)[at : at + size]) if size else None


# --- who traces ---------------------------------------------------------------------------------

_T = TypeVar("_T")
_here = threading.local()


def is_tracer() -> bool:
    """Whether the calling thread runs under `run_as_tracer`."""
    return getattr(_here, "tracer", False)


def _guard(finished: threading.Event) -> None:
    """Wait for a tracer, and see to it that none waits for ever.

    A process that begins another program waits, in execve(2), for the end of its other threads:
    those that are traced end when they are reaped. A request to trace one thread more waits for
    that execve(2); so it is another thread than the tracer that has to reap (ptrace(2), BUGS).
    """
    while not finished.wait(_LOOK_S):
        for tid, since in list(_attaching.values()):
            if time.monotonic() - since >= _LOOK_S:
                _reap_threads(tid)


def _reap_threads(tid: int) -> None:
    """Reap the traced threads that have ended of the process of `tid`, but for its first one."""
    pid = procfs.number(procfs.read(f"/proc/{tid}/status") or b"", b"Tgid")
    if pid is None:
        return
    for other in procfs.thread_ids(pid):
        if other != pid and procfs.thread_state(pid, other) in (*procfs.ENDED, None):
            info = _ChildInfo()
            _waitid(_P_PID, other, ctypes.addressof(info), _REAP)


def run_as_tracer(work: Callable[[], _T]) -> _T:
    """Run `work` in an OS thread of its own and give what it returns or raises.

    When it is back that thread has ended, and with it all tracing that it began: also of threads
    that had been asked to stop, did not within the time, and so could not be detached.
    """
    if is_tracer():
        return work()
    results: list[_T] = []
    failures: list[BaseException] = []
    ids: list[int] = []
    finished = threading.Event()

    def run() -> None:
        ids.append(threading.get_native_id())
        _here.tracer = True
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)
        finally:
            finished.set()

    thread = threading.Thread(target=run, name="tracer")
    thread.start()
    try:
        _guard(finished)  # not join(), which takes its own interruption for the end (bpo-45274)
    except BaseException:  # an interrupt of the user: the work must let go first
        _guard(finished)
        raise
    thread.join()
    while os.path.exists(f"/proc/self/task/{ids[0]}"):  # noqa: PTH110  join() is a little early
        time.sleep(0.0001)
    if failures:
        raise failures[0]
    return results[0]
