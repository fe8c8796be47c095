"""Open the files that a dead process had mapped, by the hostile paths that its core gives.

A path is resolved beneath the process's own root and cannot leave it (openat2(2),
RESOLVE_IN_ROOT, Linux >= 5.6): neither `..` nor a symbolic link that the process planted leads to
a file of the host. Only regular files of a bounded size are opened; a pipe or a device is never
touched. Whether a file is the right one is not decided here: build-ids are compared by who uses it.
"""

from __future__ import annotations

import ctypes
import os
import re
import stat
from pathlib import Path

_SYS_OPENAT2 = 437  # the same on all architectures
_RESOLVE_NO_MAGICLINKS = 0x02  # <linux/openat2.h>
_RESOLVE_IN_ROOT = 0x10
_MAX_FILE = 4 << 30  # bytes
_DEBUG_FOLDER = "/usr/lib/debug/.build-id"

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    """struct open_how of <linux/openat2.h>."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class Root:
    """A root folder, by its descriptor (O_PATH is enough); it is borrowed, not closed."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def open(self, path: str) -> int:
        """A descriptor to read the regular file `path`, seen from this root. Raises OSError."""
        name = os.fsencode(path)
        if b"\0" in name or not name.startswith(b"/"):
            raise OSError(f"{path!r} is not an absolute path")
        how = _OpenHow(
            flags=os.O_PATH | os.O_CLOEXEC, resolve=_RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS
        )
        found = _libc.syscall(
            _SYS_OPENAT2, self._fd, name, ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))
        )
        if found < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        try:
            return reopen(found)
        finally:
            os.close(found)

    def open_debug(self, build_id: str) -> int:
        """A descriptor to read the separate debugging information of a build-id. Raises OSError."""
        if not re.fullmatch(r"[0-9a-f]{4,128}", build_id):
            raise OSError("not a build-id")
        return self.open(f"{_DEBUG_FOLDER}/{build_id[:2]}/{build_id[2:]}.debug")


def reopen(fd: int) -> int:
    """A descriptor to read what `fd` stands for, if that is a regular file. Raises OSError.

    The file behind an O_PATH descriptor is looked at before it is opened: opening a pipe could
    block, opening a device could do anything.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a regular file")
    if status.st_size > _MAX_FILE:
        raise OSError(f"larger than {_MAX_FILE >> 30} GiB")
    return os.open(Path(f"/proc/self/fd/{fd}"), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
