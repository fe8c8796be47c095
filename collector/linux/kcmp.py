"""kcmp(2): whether two tasks have the same of something; Linux >= 3.5 with CONFIG_KCMP."""

from __future__ import annotations

import ctypes

_libc = ctypes.CDLL(None, use_errno=True)
_SYS_KCMP = 312  # x86-64
_VM = 1  # KCMP_VM <linux/kcmp.h>


def has_same_memory(one: int, other: int) -> bool:
    """Whether two tasks (ids of this pid namespace) have one address space.

    False also where that cannot be known: a task has ended, may not be traced by us, or the kernel
    has no kcmp(2).
    """
    return int(_libc.syscall(_SYS_KCMP, one, other, _VM, 0, 0)) == 0
