"""What x86-64 code tells of calls: whether an address follows one, and where a signal came in.

For the steps of a backtrace for which there is no unwind information (see `walk`). Source: the
Intel Software Developer's Manual, volume 2, CALL; <bits/sigcontext.h> and <sys/ucontext.h>.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

LONGEST_CALL = 7  # bytes, without prefixes
_CALL_NEAR = 0xE8  # with a displacement of 32 bits
_GROUP_5 = 0xFF  # whose extension 2 is an indirect call
# What a signal handler returns to: mov $15,%rax (rt_sigreturn) in both its forms, and syscall.
_TRAMPOLINES = (bytes.fromhex("48c7c00f0000000f05"), bytes.fromhex("b80f0000000f05"))
TRAMPOLINE = max(map(len, _TRAMPOLINES))  # bytes
_GREGS = 40  # offset of uc_mcontext.gregs in ucontext_t
# The words of gregs, as the kernel lays them down: r8 ... r15, rdi, rsi, rbp, rbx, rdx, rax, rcx,
# rsp, rip, eflags. Each as its place in struct pt_regs (<asm/ptrace.h>).
_PT_REGS = (9, 8, 7, 6, 3, 2, 1, 0, 14, 13, 4, 5, 12, 10, 11, 19, 16, 18)


def follows_call(code: bytes) -> bool:
    """Whether the last of these bytes, LONGEST_CALL of them, can be the end of a call."""
    if len(code) < LONGEST_CALL:
        return False
    if code[-5] == _CALL_NEAR:
        return True
    return any(
        code[-size] == _GROUP_5 and _length_of_indirect(code[-size:]) == size
        for size in range(2, LONGEST_CALL + 1)
    )


def called(code: bytes, address: int) -> int | None:
    """Where the direct call goes whose last bytes these are, before `address`; None: it is none."""
    if len(code) < 5 or code[-5] != _CALL_NEAR:
        return None
    return address + int.from_bytes(code[-4:], "little", signed=True) & (1 << 64) - 1


def _length_of_indirect(code: bytes) -> int:
    """Bytes of a call of group 5 with its ModRM, SIB and displacement; 0: it is no near call."""
    mode, extension, rm = code[1] >> 6, code[1] >> 3 & 7, code[1] & 7
    if extension != 2:
        return 0
    if mode == 3:
        return 2
    size = 2 + (0, 1, 4)[mode]
    if rm == 4:  # SIB
        if len(code) < 3:
            return 0
        return size + 1 + (4 if mode == 0 and code[2] & 7 == 5 else 0)
    return size + (4 if mode == 0 and rm == 5 else 0)


def is_trampoline(code: bytes) -> bool:
    """Whether this is the code to which a signal handler returns."""
    return code.startswith(_TRAMPOLINES)


def before_signal(read: Callable[[int, int], bytes], sp: int) -> list[int]:
    """The 21 words of struct pt_regs as they were when the signal came in.

    sp: in the trampoline, where it points to the ucontext_t. Whatever `read` raises goes through.
    """
    words = [0] * 21
    size = struct.calcsize(f"<{len(_PT_REGS)}Q")
    for place, word in zip(
        _PT_REGS, struct.unpack(f"<{len(_PT_REGS)}Q", read(sp + _GREGS, size)), strict=True
    ):
        words[place] = word
    return words
