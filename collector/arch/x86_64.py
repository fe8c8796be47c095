"""Facts of x86-64 Linux that are no kernel interface: its pages, and where its registers are.

Register numbers are those of the words of struct user_regs_struct (<sys/user.h>), in which the
kernel, ptrace(2) and cores give them. Another architecture gets a module of its own.
"""

from __future__ import annotations

PAGE = 4096  # bytes
RED_ZONE = 128  # bytes below the stack pointer that belong to the function (System V psABI, 3.2.2)

REGISTERS = 27  # words of struct user_regs_struct
IP, SP, FS_BASE, GS_BASE = 16, 19, 21, 22
