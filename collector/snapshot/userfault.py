"""Asynchronous write protection of another process's memory: userfaultfd(2), ioctl_userfaultfd(2).

The process itself makes the descriptor (injected), we take it over: then the areas that we register
are watched by the kernel alone. A write to a protected page costs the writer one fault, nobody
waits for us, and PAGEMAP_SCAN (linux.pagemap) tells which pages were written. When the last copy
of the descriptor is closed, also by our death, all is as before. Linux >= 6.7. What to protect and
when is not known here.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Self

from collector.arch import stub
from collector.errors import CaptureError, HoldError
from collector.linux import pidfd, ptrace, userfaultfd
from collector.snapshot.inject import InjectionRefused, Injector

_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK | userfaultfd.USER_MODE_ONLY
_FEATURES = userfaultfd.WP_HUGETLBFS_SHMEM | userfaultfd.WP_UNPOPULATED | userfaultfd.WP_ASYNC
_HUGE = 2 << 20  # bytes of a huge page
_STEP, _MAX_STEPS = 8 << 20, 4096
_PIDFD_THREAD = os.O_EXCL  # pidfd_open(2), Linux >= 6.9


def check_available() -> None:
    """Raises CaptureError if this kernel has no asynchronous write protection."""
    try:
        fd = userfaultfd.new(_FLAGS)
    except OSError as error:
        raise CaptureError(f"no userfaultfd: {error.strerror}") from error
    WriteProtection(fd).close()


class WriteProtection:
    """The right to protect areas of one process, until `close`. A context manager."""

    def __init__(self, fd: int) -> None:
        """Take over a userfaultfd of that process; it is closed here, also on an error.

        Raises CaptureError if this kernel cannot protect asynchronously.
        """
        self._fd = fd
        try:
            userfaultfd.enable(fd, _FEATURES)
        except OSError as error:
            os.close(fd)
            raise CaptureError(
                f"this kernel has no asynchronous write protection (Linux >= 6.7): {error.strerror}"
            ) from error

    def register(self, start: int, end: int) -> bool:
        """Watch an area. False: it cannot be (of another userfaultfd, or of a device)."""
        try:
            userfaultfd.register(self._fd, start, end - start, userfaultfd.WRITE_PROTECT)
        except OSError as error:
            if error.errno == errno.ESRCH:
                raise
            return False
        return True

    def unregister(self, start: int, end: int) -> bool:
        """Watch an area no more. In steps, each of some 0.3 ms: its page faults wait meanwhile."""
        step = max(_STEP, (end - start) // _MAX_STEPS & -_HUGE)
        at = start
        while at < end:
            stop = min(end, at + step & -_HUGE)  # the kernel splits the huge page at a border
            try:
                userfaultfd.unregister(self._fd, at, stop - at)
            except OSError:
                return False
            at = stop
        return True

    def close(self) -> None:
        """End all protection. Safe to call again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def protection_of(injector: Injector) -> WriteProtection:
    """Have the process make a userfaultfd, and take it over.

    One of its threads stands for some 0.3 ms. Not within a tracer's work that goes on for long:
    see Injector.one_thread. Raises InjectionRefused or CaptureError.
    """
    return WriteProtection(ptrace.run_as_tracer(lambda: _steal(injector)))


def _steal(injector: Injector) -> int:
    number, arguments = stub.USERFAULTFD, (_FLAGS,)
    with (
        injector.one_thread() as tid,
        injector.borrow(
            tid, lambda regs, mask: stub.make_descriptor(number, arguments, regs, mask)
        ) as thread,
    ):
        theirs = thread.call()
        if theirs < 0:
            raise InjectionRefused(
                f"process {injector.pid} cannot have a userfaultfd: {os.strerror(-theirs)}"
            )
        try:
            return _take(injector.pid, tid, theirs)
        finally:
            thread.call()  # it closes its own


def _take(pid: int, tid: int, theirs: int) -> int:
    try:
        process = os.pidfd_open(tid, _PIDFD_THREAD)  # works when the main thread has ended, too
    except OSError:
        process = os.pidfd_open(pid)
    try:
        return pidfd.getfd(process, theirs)
    except HoldError as error:
        raise CaptureError(str(error)) from error
    finally:
        with contextlib.suppress(OSError):
            os.close(process)
