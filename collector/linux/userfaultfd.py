"""userfaultfd(2), ioctl_userfaultfd(2), <linux/userfaultfd.h>. OSError: the kernel refused it.

Addresses and sizes are bytes, whole pages.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

from collector.arch.stub import USERFAULTFD as SYSCALL

USER_MODE_ONLY = 1  # flag of `new`: faults of the kernel itself are not handled
MISSING, WRITE_PROTECT = 1, 2  # modes of `register`
WP_HUGETLBFS_SHMEM, WP_UNPOPULATED, WP_ASYNC = 1 << 12, 1 << 13, 1 << 15  # features
_API_VERSION = 0xAA
_API, _REGISTER, _UNREGISTER, _ZEROPAGE = 0xC018AA3F, 0xC020AA00, 0x8010AA01, 0xC020AA04
_MESSAGE = struct.Struct("=B7xQQQ")  # event, then for a fault: flags, address, thread id
_PAGEFAULT = 0x12
_libc = ctypes.CDLL(None, use_errno=True)


def new(flags: int = os.O_CLOEXEC | os.O_NONBLOCK) -> int:
    """A descriptor for the memory of this process; to be enabled before anything else."""
    fd = int(_libc.syscall(SYSCALL, flags))
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return fd


def enable(fd: int, features: int = 0) -> None:
    """Agree with the kernel on its interface."""
    fcntl.ioctl(fd, _API, struct.pack("=QQQ", _API_VERSION, features, 0))


def register(fd: int, start: int, size: int, mode: int) -> None:
    """Watch an area from now on."""
    fcntl.ioctl(fd, _REGISTER, struct.pack("=QQQQ", start, size, mode, 0))


def unregister(fd: int, start: int, size: int) -> None:
    """Watch an area no more."""
    fcntl.ioctl(fd, _UNREGISTER, struct.pack("=QQ", start, size))


def fill_with_zeros(fd: int, start: int, size: int) -> None:
    """Let those go on that wait for missing pages; nothing happens if the pages are there."""
    try:
        fcntl.ioctl(fd, _ZEROPAGE, struct.pack("=QQQq", start, size, 0, 0))
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise


def is_fault(fd: int) -> bool:
    """Whether the next message is that of a fault; there must be one."""
    event, *_ = _MESSAGE.unpack(os.read(fd, _MESSAGE.size))
    return bool(event == _PAGEFAULT)
