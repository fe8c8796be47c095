"""statx(2) without asking: what the kernel has of a file already.

stat(2) of a file on FUSE or on a network asks its server, who may not answer, and may be whoever
owns the process that is looked at. With AT_STATX_DONT_SYNC the kernel answers from its inode.
"""

from __future__ import annotations

import ctypes
import os

_AT_FDCWD, _DONT_SYNC = -100, 0x4000  # <linux/fcntl.h>
_NLINK = 0x4  # STATX_NLINK <linux/stat.h>
_SIZE, _NLINK_AT = 256, 16  # of struct statx, and stx_nlink in it

_libc = ctypes.CDLL(None, use_errno=True)


def link_count(path: str) -> int:
    """How many names the file has, as far as the kernel knows. Raises OSError if there is none."""
    found = ctypes.create_string_buffer(_SIZE)
    if _libc.statx(_AT_FDCWD, os.fsencode(path), _DONT_SYNC, _NLINK, found):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), path)
    return ctypes.c_uint32.from_buffer(found, _NLINK_AT).value
