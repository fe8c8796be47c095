"""What a siginfo_t says (sigaction(2), <asm-generic/siginfo.h>); the layout is that of 64-bit.

Pure. The bytes are those of the kernel: as delivered (struct kernel_siginfo, 48 bytes), or in a
core's NT_SIGINFO (128 bytes). Nothing of it is made up: what a code does not promise is None.
"""

from __future__ import annotations

import signal
import struct
from typing import NamedTuple

_HEAD = struct.Struct("<iii4x")  # si_signo, si_errno, si_code
_ADDRESS = struct.Struct("<16xQ")  # si_addr
_SENDER = struct.Struct("<16xiI")  # si_pid, si_uid
_SYSCALL = struct.Struct("<24xi")  # si_syscall
_SHORTEST = 32  # bytes that hold all of these
SI_KERNEL = 0x80
SYS_SECCOMP = 1  # of SIGSYS
# SI_USER and SI_TKILL: si_pid and si_uid are those of the sender. The kernel lets no process say so
# of another signal than one to itself (rt_sigqueueinfo(2)); of SI_QUEUE anybody may say anything.
_SENT = frozenset({0, -6})


class SigInfo(NamedTuple):
    """One delivered signal."""

    signal: int
    code: int
    address: int | None  # si_addr, of a fault that the hardware reported
    sender: tuple[int, int] | None  # si_pid in the receiver's pid namespace (0: none), si_uid
    syscall: int | None  # the system call that a SIGSYS is about


def decode(info: bytes) -> SigInfo | None:
    """None for bytes that are too few, as of a signal that came without any."""
    if len(info) < _SHORTEST:
        return None
    signo, _, code = _HEAD.unpack_from(info)
    is_fault = code > 0 and code != SI_KERNEL
    is_call = signo == signal.SIGSYS and code == SYS_SECCOMP
    return SigInfo(
        signal=signo,
        code=code,
        address=_ADDRESS.unpack_from(info)[0] if is_fault else None,
        sender=_sender(info) if code in _SENT else None,
        syscall=_SYSCALL.unpack_from(info)[0] if is_call else None,
    )


def _sender(info: bytes) -> tuple[int, int] | None:
    pid, uid = _SENDER.unpack_from(info)
    return (pid, uid) if pid >= 0 else None
