"""Open the files that a dead process had mapped, by the hostile paths that its core gives.

A path is resolved beneath the process's own root and cannot leave it: neither `..` nor a symbolic
link that the process planted leads to a file of the host. It is followed here, step by step, and
not by openat2(2) with RESOLVE_IN_ROOT, which no filter of system calls can look into (`confine`).
Only regular files of a bounded size are opened; a pipe or a device is never
touched. Whether a file is the right one is not decided here: build-ids are compared by who uses it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections import deque
from pathlib import Path

_MAX_FILE = 4 << 30  # bytes
_MAX_LINKS = 40  # in one path, as the kernel's own: path_resolution(7)
_DEBUG_FOLDER = "/usr/lib/debug/.build-id"
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Root:
    """A root folder, by its descriptor (O_PATH is enough); it is borrowed, not closed."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._jail = _path_of(fd)

    def open(self, path: str) -> int:
        """A descriptor to read the regular file `path`, seen from this root. Raises OSError.

        After a plain chroot(2) paths of mappings begin with the folder that is its root now: they
        are told as we see them.
        """
        if self._jail and path.startswith(f"{self._jail}/"):
            with contextlib.suppress(OSError):
                return self._open(path.removeprefix(self._jail))
        return self._open(path)

    def _open(self, path: str) -> int:
        name = os.fsencode(path)
        if b"\0" in name or not name.startswith(b"/"):
            raise OSError(f"{path!r} is not an absolute path")
        found = self._find(name)
        try:
            return reopen(found)
        finally:
            os.close(found)

    def _find(self, path: bytes) -> int:
        """An O_PATH descriptor of what the path leads to, from here and never above. OSError."""
        way: list[int] = []  # the folders that lead here, each taken from the one before
        steps, links = deque(path.split(b"/")), 0
        try:
            while steps:
                step = steps.popleft()
                if step == b"..":
                    _go_up(way)
                elif step not in (b"", b"."):
                    way.append(os.open(step, _LOOK, dir_fd=way[-1] if way else self._fd))
                    if not stat.S_ISLNK(os.fstat(way[-1]).st_mode):
                        continue
                    links += 1
                    if links > _MAX_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                    target = os.readlink(b"", dir_fd=way[-1])
                    _go_up(way)
                    if target.startswith(b"/"):
                        while way:
                            _go_up(way)
                    steps.extendleft(reversed(target.split(b"/")))
            if not way:
                raise OSError("not a regular file")
            return way.pop()
        finally:
            while way:
                _go_up(way)

    def open_debug(self, build_id: str) -> int:
        """A descriptor to read the separate debugging information of a build-id. Raises OSError."""
        if not re.fullmatch(r"[0-9a-f]{4,128}", build_id):
            raise OSError("not a build-id")
        return self.open(f"{_DEBUG_FOLDER}/{build_id[:2]}/{build_id[2:]}.debug")


def _path_of(fd: int) -> str:
    """Where a folder is in our own mount namespace; empty for the root of any, and if unknown."""
    with contextlib.suppress(OSError):
        path = os.readlink(f"/proc/self/fd/{fd}")
        return path.rstrip("/") if path.startswith("/") and not path.endswith(" (deleted)") else ""
    return ""


def _go_up(way: list[int]) -> None:
    """To the folder before, or nowhere: there is none above the root."""
    if way:
        os.close(way.pop())


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
