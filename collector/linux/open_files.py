"""The open files of a process: the links of /proc/PID/fd (proc_pid_fd(5)), read and not followed.

Nothing is asked of the files themselves: one on a file system that does not answer holds nobody up.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import re
from pathlib import Path

from collector.circumstances import Descriptor

MOST = 256  # descriptors that are told, the lowest
_MOST_TARGET = 1024  # characters
_KERNELS_OWN = re.compile(r"anon_inode:\[?([\w.-]+)\]?|(\w+):\[\d+\]")


def open_files(pid: int) -> tuple[list[Descriptor], int]:
    """The lowest descriptors, and how many there are. OSError: the process has gone."""
    folder = Path(f"/proc/{pid}/fd")
    numbers = [int(name) for name in os.listdir(folder) if name.isdecimal()]  # noqa: PTH208
    found = []
    for number in heapq.nsmallest(MOST, numbers):
        with contextlib.suppress(OSError):  # closed meanwhile
            target = os.readlink(folder / str(number))[:_MOST_TARGET]
            found.append(Descriptor(fd=number, kind=kind_of(target), target=target))
    return found, len(numbers)


def decode(listed: bytes) -> tuple[list[Descriptor], int | None]:
    """The same of what list_descriptors() in native/descriptors.c has written.

    None: the kernel does not tell how many there are (before 6.2).
    """
    count, *lines = listed.removesuffix(b"\0").split(b"\0")
    found = []
    for line in lines:
        number, _, target = os.fsdecode(line).partition(" ")
        found.append(Descriptor(fd=int(number), kind=kind_of(target), target=target))
    found.sort(key=lambda one: one.fd)
    return found, int(count) or None


def kind_of(target: str) -> str:
    """By the link alone: `file`, `device`, `memfd`, `pipe`, `socket`, `eventfd`, ..."""
    if target.startswith("/memfd:"):
        return "memfd"
    if target.startswith("/dev/"):
        return "device"
    if target.startswith("/"):
        return "file"
    match = _KERNELS_OWN.fullmatch(target)
    return (match[1] or match[2]) if match is not None else "other"
