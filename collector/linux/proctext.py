"""The `Name:  value` files of /proc (proc(5)): status, meminfo, and the memory cgroups' files.

A field is looked for where it is wanted, and no file is taken apart: a dying process waits for
some of these.
"""

from __future__ import annotations

import os

_READ = 65536  # bytes; more than the kernel ever puts into one of these
_PART = 32 << 10  # bytes read at a time: malloc(3) makes a mapping for each buffer of 64 KiB


def read(path: str, limit: int = _READ) -> bytes | None:
    """A small file of the kernel's in one read; None if it is not there (any more)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, limit)
        finally:
            os.close(fd)
    except OSError:
        return None


def read_all(fd: int, limit: int) -> bytes:
    """What an open file of /proc tells from here on, `limit` bytes at most. Raises OSError."""
    parts, left = [], limit
    while left > 0 and (part := os.read(fd, min(left, _PART))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def field(text: bytes, name: bytes) -> bytes | None:
    """What follows `name` and a colon at the begin of a line; None if there is no such line."""
    start = len(name) + 1
    if not text.startswith(name + b":"):
        at = text.find(b"\n" + name + b":")
        if at < 0:
            return None
        start += at + 1
    end = text.find(b"\n", start)
    return text[start:] if end < 0 else text[start:end]


def size(text: bytes, name: bytes) -> int | None:
    """A field of kB as bytes; None if there is none."""
    words = (field(text, name) or b"").split()
    if len(words) == 2 and words[1] == b"kB" and words[0].isdigit():
        return int(words[0]) * 1024
    return None
