"""Filters of system calls for the calling process: seccomp(2), in the classic BPF of bpf(4).

A filter here is a list of what is allowed; all else is refused. It sees numbers in registers only,
never what they point to. Other ways into the kernel than the 64-bit one, which have numbers of
their own (int 0x80, x32), are the end of the process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

from collector.arch.syscalls import syscall_number

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2  # <linux/prctl.h>, <linux/seccomp.h>
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000  # SECCOMP_RET_*
_AUDIT_ARCH_X86_64 = 0xC000003E  # <linux/audit.h>
_X32_BIT = 0x40000000  # <asm/unistd.h>
_NEW = 424  # from here on: calls that older kernels lack, and whoever makes them expects that
# struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6]
_NR, _ARCH, _ARGS = 0, 4, 16
# BPF_LD | BPF_W | BPF_ABS; BPF_JMP | BPF_JEQ, JGE, JSET with a constant; BPF_RET with one
_LOAD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter

_libc = ctypes.CDLL(None, use_errno=True)


class Call(NamedTuple):
    """A call that is allowed, if the low 32 bits of one argument are as they should be."""

    name: str
    argument: int = 0  # the first is 0
    one_of: tuple[int, ...] = ()  # values; (): any
    with_bits: int = 0  # at least one of these is set; 0: it does not matter
    without_bits: int = 0  # none of these is set


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install(allowed: Sequence[Call]) -> None:
    """From now on, for all threads that are made later: only these calls. For good.

    What is refused is EPERM, and ENOSYS for calls that older kernels do not have. Needs
    PR_SET_NO_NEW_PRIVS or CAP_SYS_ADMIN. Raises OSError if the kernel does not take it.
    """
    code = assemble(allowed)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // _INSTRUCTION.size, ctypes.addressof(buffer))
    zero = ctypes.c_ulong(0)
    at = ctypes.c_ulong(ctypes.addressof(program))
    if _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), at, zero, zero) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"PR_SET_SECCOMP: {os.strerror(error)}")


def assemble(allowed: Sequence[Call]) -> bytes:
    """The filter as the kernel takes it."""
    code = [
        *_load(_ARCH),
        _INSTRUCTION.pack(_JEQ, 1, 0, _AUDIT_ARCH_X86_64),
        *_return(_KILL),
        *_load(_NR),
        _INSTRUCTION.pack(_JGE, 0, 1, _X32_BIT),
        *_return(_KILL),
    ]
    for call in allowed:
        block = _block(call)
        code += [_INSTRUCTION.pack(_JEQ, 0, len(block), syscall_number(call.name)), *block]
    code += [
        _INSTRUCTION.pack(_JGE, 0, 1, _NEW),
        *_return(_ERRNO | errno.ENOSYS),
        *_return(_ERRNO | errno.EPERM),
    ]
    return b"".join(code)


def _block(call: Call) -> list[bytes]:
    """What decides about one call; it never goes on to what follows."""
    if not (call.one_of or call.with_bits or call.without_bits):
        return _return(_ALLOW)
    code = _load(_ARGS + 8 * call.argument)
    refuse = _return(_ERRNO | errno.EPERM)
    if call.without_bits:
        code += [_INSTRUCTION.pack(_JSET, 0, 1, call.without_bits), *refuse]
    if call.with_bits:
        code += [_INSTRUCTION.pack(_JSET, 1, 0, call.with_bits), *refuse]
    for value in call.one_of:
        code += [_INSTRUCTION.pack(_JEQ, 0, 1, value), *_return(_ALLOW)]
    return code + (refuse if call.one_of else _return(_ALLOW))


def _load(offset: int) -> list[bytes]:
    return [_INSTRUCTION.pack(_LOAD, 0, 0, offset)]


def _return(value: int) -> list[bytes]:
    return [_INSTRUCTION.pack(_RET, 0, 0, value)]
