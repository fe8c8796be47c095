"""Facts of x86-64 Linux that are no kernel interface: its pages, and where its registers are.

Register numbers are those of the words of struct user_regs_struct (<sys/user.h>), in which the
kernel, ptrace(2) and cores give them. Another architecture gets a module of its own.
"""

from __future__ import annotations

import enum

PAGE = 4096  # bytes
RED_ZONE = 128  # bytes below the stack pointer that belong to the function (System V psABI, 3.2.2)

REGISTERS = 27  # words of struct user_regs_struct
CODE_64_BIT, CODE_32_BIT = 0x33, 0x23  # cs: __USER_CS and __USER32_CS of <asm/segment.h>

NO_32_BIT = "it is a 32-bit process, and only of 64-bit ones there are cores and backtraces"
NO_32_BIT_CODE = "it ran 32-bit code, which cannot be unwound"


class Reg(enum.IntEnum):
    """Where a register is among the 27 words of struct user_regs_struct (<sys/user.h>)."""

    R15 = 0
    R14 = 1
    R13 = 2
    R12 = 3
    RBP = 4
    RBX = 5
    R11 = 6
    R10 = 7
    R9 = 8
    R8 = 9
    RAX = 10
    RCX = 11
    RDX = 12
    RSI = 13
    RDI = 14
    ORIG_RAX = 15
    RIP = 16
    CS = 17
    EFLAGS = 18
    RSP = 19
    SS = 20
    FS_BASE = 21
    GS_BASE = 22
    DS = 23
    ES = 24
    FS = 25
    GS = 26


def is_32_bit(auxv: bytes) -> bool:
    """Whether a process with this auxiliary vector (/proc/PID/auxv) runs a 32-bit program.

    The vector has words of the program's size. Types are small numbers: two 32-bit words taken for
    one are not.
    """
    whole = len(auxv) & -16
    return any(int.from_bytes(auxv[at + 4 : at + 8], "little") for at in range(0, whole, 16))


def is_canonical(address: int) -> bool:
    """Whether this is an address at all, for a CPU that uses 48 bits of them."""
    return address < 1 << 47 or address >= (1 << 64) - (1 << 47)


IP, SP, FS_BASE, GS_BASE = Reg.RIP.value, Reg.RSP.value, Reg.FS_BASE.value, Reg.GS_BASE.value
