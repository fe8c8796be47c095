"""What a copier is asked to copy of a process that waits, and where the copy is."""

from __future__ import annotations

import enum
from typing import NamedTuple

import msgspec


class Kind(enum.IntEnum):
    """What of a part is copied; enum kind."""

    IN_MEMORY = 0  # or in swap, and not the zero page
    ALL = 1
    OF_FILE = 2  # what its file has data for
    ABSENT = 3  # what is not in memory: it comes last, and has a quarter of a second for all


class Part(NamedTuple):
    """Addresses [start, end), whole pages."""

    start: int
    end: int
    kind: Kind
    fd: int = -1
    offset: int = 0  # in that file


class Source(NamedTuple):
    """A process whose memory is copied."""

    pid: int  # of a thread that has its memory, for as long as `pidfd` has not ended
    pidfd: int
    mem_fd: int  # /proc/PID/mem and pagemap
    pagemap_fd: int


class Copy(msgspec.Struct, frozen=True, array_like=True):
    """A copy that was made; its memory lasts as long as the descriptor is open anywhere."""

    fd: int
    size: int  # bytes that were there to be copied
    table: int  # offset of the table of pieces in the file
    pieces: int
    hasty: bool = False  # others waited: it may lack what was there, or only in a file
