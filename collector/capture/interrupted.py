"""Stacks that signal handlers have left: a handler may run on a stack of its own (sigaltstack(2)).

The kernel leaves a struct ucontext (<asm/ucontext.h>, <asm/sigcontext.h>) on the stack that the
handler runs on. It has the bounds of that stack, by which it is found, and the registers of what
was interrupted.
"""

from __future__ import annotations

MOST = 64 << 10  # bytes of a stack that are looked through, from its stack pointer up

_LARGEST = 64 << 20  # bytes of a stack for handlers
_FLAGS = 8  # uc_flags has three bits
# words of the struct, of 8 bytes: uc_flags, uc_link, ss_sp, ss_flags, ss_size, then r8, r9, ...
_BASE, _SIZE, _RSP = 2, 4, 5 + 15


def interrupted_sp(start: int, stack: bytes) -> int | None:
    """The stack pointer of what a handler on this stack has interrupted; None: there is none.

    start: address of the bytes, a multiple of 8. What is there is the process's word.
    """
    words = memoryview(stack)[: len(stack) & -8].cast("Q")
    for index in range(_BASE, len(words) - (_RSP - _BASE)):
        base, first = words[index], index - _BASE
        at = start + 8 * index
        if not 0 <= at - base < _LARGEST or base == 0:
            continue
        flags, link = words[first], words[first + 1]
        if flags < _FLAGS and link == 0 and at - base < words[first + _SIZE]:
            return words[first + _RSP]
    return None
