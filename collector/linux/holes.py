"""fallocate(2): a hole where a file has had data."""

from __future__ import annotations

import ctypes
import errno
import os

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # FALLOC_FL_*, <linux/falloc.h>
_CANNOT = (errno.EOPNOTSUPP, errno.ENOSYS)
_ZEROS = bytes(1 << 20)
_fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def punch(fd: int, offset: int, size: int) -> None:
    """Make these bytes zero: as a hole, or written where the file system knows none (Linux 2.6.38).

    OSError as fallocate(2) and pwrite(2).
    """
    if _fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, size) == 0:
        return
    error = ctypes.get_errno()
    if error not in _CANNOT:
        raise OSError(error, os.strerror(error))
    end = offset + size
    while offset < end:
        offset += os.pwrite(fd, memoryview(_ZEROS)[: end - offset], offset)
