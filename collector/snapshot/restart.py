"""Which system calls tell the program that somebody stopped it, and how to keep it from noticing.

When a blocked thread is woken for ptrace, most system calls end with a code that makes the kernel
start them again. Some end with EINTR instead, although no signal was handled. Before such a thread
goes on, its EINTR is replaced by ERESTARTNOHAND, the kernel's own code for "start again, but if
a handler is run, let the call fail with EINTR". So the kernel decides at the last moment, together
with the delivery of signals: a signal that arrives before, during or after loses nothing.

For calls with a timeout that time begins anew. close(2) and whatever else has done its work when
it says EINTR is not in the table. Numbers: <asm/unistd_64.h>.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from collector.arch.x86_64 import REGISTERS, Reg
from collector.linux.procfs import Blocked
from collector.linux.ptrace import (
    ERESTART_RESTARTBLOCK,
    ERESTARTNOHAND,
    ERESTARTNOINTR,
    ERESTARTSYS,
    RegisterFile,
)

_U64 = 1 << 64
EINTR = _U64 - 4  # as rax has it
RESTART = _U64 - ERESTARTNOHAND
_SYS_RESTART_SYSCALL = 219
_SYSCALL_INSTRUCTION = 2  # bytes
_NO_CALL = _U64 - 1

# epoll_wait, epoll_pwait, epoll_pwait2, semop, semtimedop, rt_sigtimedwait, io_getevents,
# io_uring_enter
_ALWAYS = frozenset((232, 281, 441, 65, 220, 128, 208, 426))
# With SO_RCVTIMEO or SO_SNDTIMEO: connect, accept, sendto, recvfrom, sendmsg, recvmsg, accept4,
# recvmmsg, sendmmsg
_SOCKET = frozenset((42, 43, 44, 45, 46, 47, 288, 299, 307))
# The same where the descriptor is a socket: read, write, readv, writev
_FILE = frozenset((0, 1, 19, 20))
RETURNS_EINTR = _ALWAYS | _SOCKET | _FILE


def would_notice(pid: int, call: Blocked | None) -> bool:
    """Whether a thread that is blocked in this call might get EINTR if it were stopped."""
    if call is None or call.number is None:
        return False
    if call.number not in _FILE:
        return call.number in RETURNS_EINTR
    try:
        return os.readlink(f"/proc/{pid}/fd/{call.args[0]}").startswith("socket:")
    except OSError:
        return False


def has_noticed(rax: int, orig_rax: int) -> bool:
    """Whether a stopped thread with these registers is about to return EINTR, and need not."""
    return rax == EINTR and orig_rax in RETURNS_EINTR


def keep_from_noticing(file: RegisterFile, slot: int, tid: int) -> bool:
    """Set a stopped thread to start its call again, if it would have noticed; whether it was.

    Its registers have been fetched into `slot`, where they stay as they were found. One request
    to the kernel: there is no moment at which the death of this program would do harm.
    """
    words, base = file.words, REGISTERS * slot
    if not has_noticed(words[base + Reg.RAX], words[base + Reg.ORIG_RAX]):
        return False
    words[base + Reg.RAX] = RESTART
    file.store(slot, tid)
    words[base + Reg.RAX] = EINTR
    return True


def by_hand(regs: Sequence[int]) -> list[int]:
    """Do to registers what the kernel does with its restart codes, for a thread without a signal.

    For one that was used for something else after it had been stopped: then the kernel does not
    look at the codes any more.
    """
    words = list(regs)
    code = _U64 - words[Reg.RAX]
    if words[Reg.ORIG_RAX] >= _U64 >> 1:  # it was not in a system call
        return words
    if has_noticed(words[Reg.RAX], words[Reg.ORIG_RAX]) or code in (
        ERESTARTSYS,
        ERESTARTNOINTR,
        ERESTARTNOHAND,
    ):
        words[Reg.RAX] = words[Reg.ORIG_RAX]
    elif code == ERESTART_RESTARTBLOCK:
        words[Reg.RAX] = _SYS_RESTART_SYSCALL
    else:
        return words
    words[Reg.RIP] -= _SYSCALL_INSTRUCTION
    words[Reg.ORIG_RAX] = _NO_CALL
    return words
