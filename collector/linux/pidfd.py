"""Process descriptors: who is at the other end of a socket, and is it really dumping core.

Wraps pidfd_open(2), pidfd_getfd(2), SO_PEERPIDFD (unix(7), Linux >= 6.5) and PIDFD_GET_INFO
(<linux/pidfd.h>, Linux >= 6.13; with coredump facts >= 6.16). It decides nothing: whom to believe
is up to the backends.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from typing import NamedTuple

from collector.errors import HoldError
from collector.linux import procfs

_libc = ctypes.CDLL(None, use_errno=True)
_quick = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter's lock: calls of some µs

_SO_PEERPIDFD = 77  # <asm-generic/socket.h>
_SYS_PIDFD_GETFD = 438  # <asm-generic/unistd.h>, the same on every architecture since 5.6

# struct pidfd_info, PIDFD_INFO_SIZE_VER1: mask, cgroupid; pid, tgid, ppid, ruid, rgid, euid, egid,
# suid, sgid, fsuid, fsgid; exit_code; coredump_mask, coredump_signal
_INFO = struct.Struct("=QQ11IiII")
_PIDFD_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11  # _IOWR(0xFF, 11, struct pidfd_info)
_DUMPED = 1  # of coredump_mask: it is dumping core, or has done so
_WANT_PID, _WANT_CREDS, _WANT_COREDUMP, _WANT_COREDUMP_SIGNAL = 1, 2, 16, 64


class PidfdInfo(NamedTuple):
    """Facts of PIDFD_GET_INFO, as seen from our namespaces. None: this kernel does not say."""

    pid: int  # of the thread group
    ruid: int | None
    dumped: bool | None  # it is dumping core, or has done so
    coredump_signal: int | None


def peer_pidfd(sock: int) -> int:
    """A new pidfd of the process that connected the socket `sock`; the caller closes it.

    Works while that process dies. Raises HoldError where the kernel has no SO_PEERPIDFD (< 6.5)
    or the process was reaped.
    """
    found, size = ctypes.c_int(-1), ctypes.c_uint32(ctypes.sizeof(ctypes.c_int))
    where = ctypes.byref(found), ctypes.byref(size)
    if _quick.getsockopt(sock, socket.SOL_SOCKET, _SO_PEERPIDFD, *where) < 0:
        reason = os.strerror(ctypes.get_errno())
        raise HoldError(f"no process descriptor of a socket's peer: {reason}")
    return found.value


def getfd(pidfd: int, fd: int) -> int:
    """A copy (close-on-exec) of descriptor `fd` of another process; the caller closes it.

    Needs CAP_SYS_PTRACE. Raises HoldError if the process or its descriptor is gone.
    """
    got = _libc.syscall(_SYS_PIDFD_GETFD, pidfd, fd, 0)
    if got < 0:
        reason = os.strerror(ctypes.get_errno())
        raise HoldError(f"cannot take descriptor {fd} of another process: {reason}")
    return int(got)


def info(pidfd: int) -> PidfdInfo:
    """PIDFD_GET_INFO. Raises HoldError before Linux 6.13, and if the process was reaped."""
    buffer = bytearray(_INFO.size)
    want = _WANT_PID | _WANT_CREDS | _WANT_COREDUMP | _WANT_COREDUMP_SIGNAL
    struct.pack_into("=Q", buffer, 0, want)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError as error:
        if error.errno == errno.ESRCH:
            raise HoldError("the process is gone") from error
        raise HoldError(f"the kernel has no PIDFD_GET_INFO: {error.strerror}") from error
    fields = _INFO.unpack(buffer)
    has, tgid, ruid = fields[0], fields[3], fields[5]
    if not has & _WANT_PID or tgid == 0:
        raise HoldError("the process is not visible in this pid namespace")
    return PidfdInfo(
        pid=tgid,
        ruid=ruid if has & _WANT_CREDS else None,
        dumped=bool(fields[14] & _DUMPED) if has & _WANT_COREDUMP else None,
        coredump_signal=fields[15] if has & _WANT_COREDUMP_SIGNAL else None,
    )


def pid_of(pidfd: int) -> int:
    """The pid behind a pidfd in our pid namespace, from /proc/self/fdinfo (proc_pid_fdinfo(5)).

    Raises HoldError if the process was reaped or is not visible here.
    """
    pid = procfs.number(procfs.read(f"/proc/self/fdinfo/{pidfd}") or b"", b"Pid")
    if pid:
        return pid
    raise HoldError("the process is gone or not visible in this pid namespace")


def is_dumping(pidfd: int, pid: int, tid: int) -> bool:
    """Whether the process is dumping core right now, or has just been.

    Asks the pidfd; before Linux 6.16 the `CoreDumping` line of /proc/PID/status (>= 4.15).
    """
    try:
        dumped = info(pidfd).dumped
        if dumped is not None:
            return dumped
    except HoldError:
        pass  # an older kernel; status tells as well
    # of the thread that died: the main thread may have ended before, and tells nothing then
    return procfs.is_dumping(procfs.read(f"/proc/{pid}/task/{tid}/status") or b"")
