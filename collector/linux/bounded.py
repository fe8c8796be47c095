"""Files in memory that cannot outgrow a size, and that nobody can change any more: memfd_create(2).

The bound is a seal (fcntl(2), F_ADD_SEALS), so it holds for whoever has the descriptor. Memory is
taken only as the file is filled; it goes with the last descriptor, and no disk but swap has it.
"""

from __future__ import annotations

import fcntl
import os


def bounded_file(name: str, size: int) -> int:
    """A descriptor of a file of `size` bytes, all of them holes: a write beyond is EPERM.

    It can be made smaller, and then not larger again. OSError.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    except OSError:
        os.close(fd)
        raise
    return fd


def seal(fd: int) -> None:
    """From now on nobody changes it. OSError (EBUSY) if somebody has it mapped for writing."""
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)


def bytes_of(fd: int) -> int:
    """That it takes in memory, holes not counted."""
    return os.fstat(fd).st_blocks * 512
