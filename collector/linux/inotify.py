"""inotify(7): what is made in folders, told by a descriptor."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple, Self

CREATE, MOVED_TO, IGNORED, OVERFLOW = 0x100, 0x80, 0x8000, 0x4000  # <linux/inotify.h>
_ONLYDIR = 0x01000000
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows
_READ = 16 << 10  # bytes at a time

_libc = ctypes.CDLL(None, use_errno=True)


class Told(NamedTuple):
    """One event. `watch` is -1 for OVERFLOW; `name` is empty where the folder itself is meant."""

    watch: int
    mask: int
    name: str


class Inotify:
    """A context manager; `fileno` is readable when there is something to read."""

    def __init__(self) -> None:
        """OSError: a user has so many of them only."""
        self._fd = _checked(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))

    def fileno(self) -> int:
        return self._fd

    def watch(self, folder: str, mask: int = CREATE | MOVED_TO) -> int:
        """Tell what is made in a folder, or what `mask` says; the number of that watch. OSError."""
        name = os.fsencode(folder)
        return _checked(_libc.inotify_add_watch(self._fd, name, mask | _ONLYDIR))

    def read(self) -> Iterator[Told]:
        """What waits, without waiting for more."""
        try:
            data = os.read(self._fd, _READ)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            yield Told(watch, mask, os.fsdecode(data[at : at + length].rstrip(b"\0")))
            at += length

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _checked(result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
