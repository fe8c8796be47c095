"""The memory of the exception that a dying thread handles, for the small core of the explainer."""

from __future__ import annotations

import bisect
import signal
import struct
from collections.abc import Callable

from collector.arch.x86_64 import PAGE, SP
from collector.elfcore.types import ProcessImage, Prot
from collector.explain.exceptions import STACK, find_thrown, words_of
from collector.ranges import Range

Read = Callable[[int, int], bytes]


def select_thrown(image: ProcessImage, read: Read) -> list[Range]:
    """Whole pages, in any order: what tells its type and text. Only if the process aborted."""
    if len(image.siginfo) < 4 or struct.unpack_from("<i", image.siginfo)[0] != signal.SIGABRT:
        return []
    writable = sorted((m.start, m.end) for m in image.mappings if m.prot & Prot.W)
    starts = [start for start, _ in writable]
    pages: set[int] = set()

    def remembered(address: int, size: int) -> bytes:
        data = read(address, size) if 0 <= address < 1 << 47 else b""
        pages.update(range(address & -PAGE, address + len(data), PAGE))
        return data

    def is_writable(address: int) -> bool:
        number = bisect.bisect_right(starts, address) - 1
        return number >= 0 and address < writable[number][1]

    thread = image.threads[0]
    words = (*thread.regs, *words_of(read(thread.regs[SP], STACK)))
    if find_thrown(remembered, filter(is_writable, words)) is None:
        return []
    return [(page, page + PAGE) for page in pages]
