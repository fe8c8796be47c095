"""The pin: keeps the memory of another process after that process is gone.

A read of /proc/PID/mem into a page of ours that is registered with our own userfaultfd(2) and not
there yet: the kernel takes a reference on the other address space, and blocks in the fault of our
page while it copies, holding no lock of the other process. Until that fault is resolved the
address space cannot be torn down; if we die it is. A pin does not keep the process from running,
nor the OOM reaper from emptying its memory.

The blocking read is glibc's aio_read(3): its threads block all signals and have no part in
Python's scheduling, so a busy interpreter does not delay a pin. One flaw is the kernel's: after
the agent was stopped and continued (SIGSTOP, a debugger), the threads of its pins spin until
release.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from types import TracebackType
from typing import Self

from collector.errors import HoldError
from collector.linux import userfaultfd
from collector.native.contract import PIN_MS

_PAGE = mmap.PAGESIZE
_READ_SIZE = 8  # bytes
_POLLIN = 1
_AIO_THREADS = 4096  # at most; far above any policy's number of pins


class _AioCb(ctypes.Structure):
    """struct aiocb of <aio.h>, glibc, 64 bit."""

    _fields_ = (
        ("fildes", ctypes.c_int),
        ("lio_opcode", ctypes.c_int),
        ("reqprio", ctypes.c_int),
        ("buf", ctypes.c_void_p),
        ("nbytes", ctypes.c_size_t),
        ("sigev_value", ctypes.c_void_p),
        ("sigev_signo", ctypes.c_int),
        ("sigev_notify", ctypes.c_int),
        ("sigev_pad", ctypes.c_int * 12),
        ("internal", ctypes.c_uint64 * 4),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_char * 32),
    )


class _AioInit(ctypes.Structure):
    """struct aioinit of <aio.h>."""

    _fields_ = tuple(
        (name, ctypes.c_int)
        for name in ("threads", "num", "locks", "usedba", "debug", "numusers", "idle_time", "rsvd")
    )


class _TimeSpec(ctypes.Structure):
    """struct timespec of <time.h>."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _PollFd(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


_SIGEV_NONE = 1
_END = _TimeSpec(0, PIN_MS * 1_000_000)  # for a reader that was unblocked

_libc = ctypes.CDLL(None, use_errno=True)
# Calls that return at once, or after microseconds: while a process waits for us, giving up the
# interpreter's lock may cost us its switch interval (5 ms) each time.
_quick = ctypes.PyDLL(None, use_errno=True)
_aio_lock = threading.Lock()
_aio_ready = False


class Slot:
    """A page that blocks whoever touches it, and the request that will touch it."""

    def __init__(self) -> None:
        _init_aio()
        try:
            self.uffd = userfaultfd.new()
        except OSError as error:
            raise HoldError(
                f"no userfaultfd: {error.strerror}; needs CAP_SYS_PTRACE, and seccomp to allow it"
            ) from error
        try:
            userfaultfd.enable(self.uffd)
            self.page = mmap.mmap(-1, _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.page))
            userfaultfd.register(self.uffd, self.address, _PAGE, userfaultfd.MISSING)
        except OSError as error:
            os.close(self.uffd)
            raise HoldError(f"userfaultfd cannot watch a page: {error.strerror}") from error
        self.request = _AioCb()
        self.poll = _PollFd(self.uffd, _POLLIN, 0)

    def block_reader(self, fd: int, address: int, timeout_ms: int) -> bool:
        """Start a read of `fd` at `address` into the page; whether it blocks there in time."""
        ctypes.memset(ctypes.byref(self.request), 0, ctypes.sizeof(self.request))
        self.request.fildes = fd
        self.request.buf = self.address
        self.request.nbytes = _READ_SIZE
        self.request.offset = address
        self.request.sigev_notify = _SIGEV_NONE
        if _quick.aio_read64(ctypes.byref(self.request)) != 0:
            raise HoldError(f"aio_read: {os.strerror(ctypes.get_errno())}")
        # Normally done within the first millisecond.
        if not _quick.poll(ctypes.byref(self.poll), ctypes.c_ulong(1), 1) and not _libc.poll(
            ctypes.byref(self.poll), ctypes.c_ulong(1), timeout_ms
        ):
            return False
        return userfaultfd.is_fault(self.uffd)

    def unblock(self) -> bool:
        """Let the reader go, wait for its end, and make the page as new.

        False if it has not come to the page yet, as where the other address space is locked: that
        is the other one's to decide, and nobody waits for it.
        """
        try:
            userfaultfd.fill_with_zeros(self.uffd, self.address, _PAGE)
        except OSError as error:
            raise HoldError(f"a pin cannot be released: {error.strerror}") from error
        pending = (ctypes.c_void_p * 1)(ctypes.addressof(self.request))
        if _quick.aio_error64(ctypes.byref(self.request)) == errno.EINPROGRESS:
            _libc.aio_suspend64(pending, 1, ctypes.byref(_END))
        if _quick.aio_error64(ctypes.byref(self.request)) == errno.EINPROGRESS:
            return False
        _quick.aio_return64(ctypes.byref(self.request))
        self.page.madvise(mmap.MADV_DONTNEED)
        return True

    def close(self) -> None:
        """Unmap the page. Nothing may be blocked on it."""
        os.close(self.uffd)
        self.page.close()


class _Pool:
    """Slots that are ready, so that a pin need not make one while a process waits."""

    def __init__(self) -> None:
        self._spare: list[Slot] = []
        self._late: list[Slot] = []  # whose reader is still on its way
        self._lock = threading.Lock()

    def take(self) -> Slot:
        with self._lock:
            if self._spare:
                return self._spare.pop()
        return Slot()

    def give_back(self, slot: Slot) -> None:
        """A slot that may still have its reader."""
        with self._lock:
            late, self._late = [*self._late, slot], []
        for one in late:
            if one.unblock():
                self.give(one)
            else:
                with self._lock:
                    self._late.append(one)

    def give(self, slot: Slot) -> None:
        with self._lock:
            if len(self._spare) < SPARE:
                self._spare.append(slot)
                return
        slot.close()


SPARE = 8  # slots
_pool = _Pool()


class Pin:
    """An address space that stays until `release`. A context manager."""

    def __init__(self, mem_fd: int, address: int, timeout_ms: int = PIN_MS) -> None:
        """Pin the process whose /proc/PID/mem is open as `mem_fd`, by a byte that can be read.

        Takes 0.03 ms, 0.2 ms on an idle machine. `mem_fd` stays the caller's: it can be read while
        the pin holds, also after the process was reaped. Raises HoldError if `address` is 0, or
        the pin does not take within `timeout_ms`.
        """
        if not address:
            raise HoldError("no memory to pin: none of its addresses can be read")
        self._lock = threading.Lock()
        self._slot: Slot | None = None
        slot = _pool.take()
        try:
            # glibc queues requests on the same descriptor, so each pin keeps one of its own.
            self._fd = os.dup(mem_fd)
        except OSError as error:
            _pool.give(slot)
            raise HoldError(f"no descriptor for a pin: {error.strerror}") from error
        try:
            held = slot.block_reader(self._fd, address, timeout_ms)
        except BaseException:
            slot.close()
            os.close(self._fd)
            raise
        self._slot = slot
        if not held:
            self.release()
            raise HoldError(f"the memory at {address:#x} could not be pinned: is the process gone?")

    @classmethod
    def adopt(cls, slot: Slot, fd: int) -> Self:
        """The pin whose reader blocks in `slot` already; `fd` is its own descriptor of `mem`."""
        pin = cls.__new__(cls)
        pin._lock = threading.Lock()
        pin._slot = slot
        pin._fd = fd
        return pin

    def release(self) -> None:
        """Give the address space up; the kernel frees it now. Again does nothing."""
        with self._lock:
            slot, self._slot = self._slot, None
        if slot is not None:
            _pool.give_back(slot)
            os.close(self._fd)

    def __enter__(self) -> Pin:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def take_slot() -> Slot:
    """A slot for whoever starts its read himself. Raises HoldError if this process cannot pin."""
    return _pool.take()


def prepare() -> None:
    """Make what the first pins need. Raises HoldError if this process cannot pin at all."""
    slots = [_pool.take() for _ in range(SPARE)]
    for slot in slots:
        _pool.give(slot)


def _init_aio() -> None:
    """Let glibc have as many threads as there are pins; only before the first request."""
    global _aio_ready
    with _aio_lock:
        if not _aio_ready:
            try:
                _libc.aio_init(ctypes.byref(_AioInit(threads=_AIO_THREADS, num=64, idle_time=1)))
            except AttributeError as error:
                raise HoldError("this C library has no aio_init: pinning needs glibc") from error
            _aio_ready = True
