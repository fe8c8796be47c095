"""The memory that tells the goroutines of a Go process, for small cores.

As for interpreters (see `interpreted`) the reader of the explaining process runs here. It looks for
the runtime's slice of goroutines in all of the program's data, of which only where it is is kept.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable

from collector.arch.x86_64 import PAGE
from collector.elfcore.types import ProcessImage
from collector.explain.exported import Absent
from collector.explain.go_runtime import KEPT, find_go
from collector.ranges import Range

Read = Callable[[int, int], bytes]

_MAX_PAGES = 2048  # 8 MiB: a page for a goroutine, one or two for its stack


def select_goroutines(image: ProcessImage, read: Read) -> list[Range]:
    """Whole pages, in any order; none if it is no Go process."""
    pages: set[int] = set()

    def remembered(address: int, size: int) -> bytes:
        if len(pages) >= _MAX_PAGES:
            raise Absent("it would take too much memory")
        data = read(address, size) if 0 < address < 1 << 47 else b""
        pages.update(range(address & -PAGE, address + len(data), PAGE))
        return data

    with contextlib.suppress(Absent, struct.error):
        go = find_go(read, image.mappings, image.auxv, remembered)
        if go is None:
            return []
        go.message(remembered, KEPT)
        for _ in go.goroutines(KEPT):
            pass
    return [(page, page + PAGE) for page in pages]
