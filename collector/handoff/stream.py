"""The head of a core stream: ELF header, program headers and notes, before any memory.

The kernel writes a core front to back and waits when nobody reads, so the notes of all threads
can be had at the cost of the notes alone. This module finds out where they end; what they say is
for `collector.elfcore`.
"""

from __future__ import annotations

import os
import select
import struct
import time
from typing import NamedTuple

from collector.errors import HoldError

NOTES_LIMIT = 64 << 20  # bytes; 4,000 threads have 13 MB
_FIRST_READ = 256 << 10  # bytes; what about 60 threads need

_ET_CORE, _PT_NOTE, _PN_XNUM = 4, 4, 0xFFFF  # <elf.h>


class _Layout(NamedTuple):
    """Where a class of ELF file keeps the fields that are needed here, bytes."""

    header: struct.Struct  # e_type, e_phoff, e_phentsize, e_phnum
    header_size: int
    segment: struct.Struct  # p_type, p_offset, p_filesz
    segment_size: int


_LAYOUTS = {
    1: _Layout(struct.Struct("<16xH10xI10xHH"), 52, struct.Struct("<II8xI"), 32),
    2: _Layout(struct.Struct("<16xH14xQ14xHH"), 64, struct.Struct("<I4xQ16xQ"), 56),
}


def notes_end(head: bytes | bytearray | memoryview, limit: int = NOTES_LIMIT) -> int:
    """Offset at which the notes of a core end; `head` holds at least its first 120 bytes.

    Relies on what the kernel's writer always does: the program headers follow the ELF header, and
    the first is the PT_NOTE, whose bytes follow the last. Raises HoldError for anything else, and
    if the end is beyond `limit`.
    """
    layout = _LAYOUTS.get(head[4])
    if bytes(head[:4]) != b"\x7fELF" or layout is None or head[5] != 1:
        raise HoldError(f"the core stream does not begin as an ELF file: {bytes(head[:8]).hex()}")
    kind, phoff, phentsize, phnum = layout.header.unpack_from(head)
    if (kind, phoff, phentsize) != (_ET_CORE, layout.header_size, layout.segment_size):
        raise HoldError(f"not a core's ELF header: type {kind}, program headers at {phoff}")
    p_type, offset, size = layout.segment.unpack_from(head, layout.header_size)
    segments, rest = divmod(offset - phoff, phentsize)
    # With PN_XNUM the true count is at the end of the file; the place of the notes gives it too.
    if p_type != _PT_NOTE or rest or segments < 1 or phnum not in (segments, _PN_XNUM):
        raise HoldError(f"a core stream whose notes are not first: type {p_type} at {offset}")
    end: int = offset + size
    if end > limit:
        raise HoldError(f"{end} bytes of headers and notes, more than the limit of {limit}")
    return end


def read_notes(fd: int, limit: int = NOTES_LIMIT, timeout_s: float = 10.0) -> bytearray:
    """Read from the start of a core stream to the end of its notes, and a little beyond perhaps.

    Returns exactly the headers and notes. The descriptor is left where the last read ended: what
    was read of the memory behind the notes is dropped. Raises HoldError if the stream is not a
    core, ends early, is over `limit` bytes, or stalls for `timeout_s` seconds in all.
    """
    deadline = time.monotonic() + timeout_s
    buffer = bytearray(min(_FIRST_READ, max(limit, 4096)))
    os.set_blocking(fd, False)
    try:
        have = _fill(fd, buffer, 0, 120, deadline)
        end = notes_end(buffer, limit)
        if end > len(buffer):
            # one allocation, never appended to: the process is waiting
            whole = bytearray(end)
            whole[:have] = memoryview(buffer)[:have]
            buffer = whole
        _fill(fd, buffer, have, end, deadline)
    finally:
        os.set_blocking(fd, True)
    del buffer[end:]
    return buffer


def _fill(fd: int, buffer: bytearray, have: int, need: int, deadline: float) -> int:
    """Read until `buffer` holds `need` bytes, of which `have` are there; returns how many are."""
    view = memoryview(buffer)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    try:
        while have < need:
            try:
                got = os.readv(fd, [view[have:]])
            except BlockingIOError:
                left = deadline - time.monotonic()
                if left <= 0 or not poll.poll(left * 1000):
                    raise HoldError(f"the core stream stalled after {have} bytes") from None
                continue
            except OSError as error:
                raise HoldError(f"the core stream broke after {have} bytes: {error}") from error
            if got == 0:
                raise HoldError(f"the core stream ended after {have} bytes, before its notes did")
            have += got
    finally:
        view.release()
    return have
