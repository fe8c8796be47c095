"""The disk's reserve (`store.min_free`), seen by one of several writers at work.

A writer looks at the free space after each `_LOOK` bytes, and leaves room for what every writer may
put on the disk until its own next look: so all of them together do not go below the reserve. Where
there is too little it asks for room, which others' cores may have to give. The core ends where
there is none.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from collector.policy.types import Codec, Compress
from collector.policy.units import show_size

_LOOK = 4 << 20  # bytes of a core between two looks, and of one write
_MIB = 1 << 20

# For the bytes that the core has on disk, and those that must be free: whether they are now
AskForRoom = Callable[[int, int], bool]


def unseen(compress: Compress, writers: int) -> int:
    """Bytes that so many writers may put on the disk until each has looked again."""
    in_hand = 2 if compress.codec is Codec.NONE else 4 + compress.workers  # blocks of its pool
    return _LOOK * in_hand * writers


class SpaceWatch:
    """Called before each write: whether the core ends here. `why` says it then, for people."""

    def __init__(self, fd: int, min_free: int, unseen: int, ask: AskForRoom) -> None:
        """fd: of the core. min_free: bytes; 0: the core goes on until the disk is full."""
        self._fd = fd
        self._min_free = min_free
        self._unseen = unseen
        self._ask = ask
        self._seen = -_LOOK
        self.why = ""

    def __call__(self) -> bool:
        written = _written(self._fd)
        if written - self._seen < _LOOK:
            return False
        self._seen = written
        free, wanted = free_bytes(self._fd), self._min_free + self._unseen
        if free >= wanted or self._ask(written, wanted) or not self._min_free:
            return False
        self.why = (
            f"the core ends where the disk's reserve begins: {free // _MIB} MiB were free, "
            f"store.min_free is {show_size(self._min_free)}, and what is being written may take "
            f"{show_size(self._unseen)}"
        )
        return True


def free_bytes(place: int | Path) -> int:
    """What may still be written to the file system of a file."""
    space = os.statvfs(place)
    return space.f_bavail * space.f_frsize


def _written(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512
