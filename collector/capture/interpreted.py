"""The memory in which an interpreter keeps the functions that threads are in, for small cores.

The reader that the explaining process has runs here, over the process's memory; the pages that it
looked at are kept. That is some 50 pages for a process with a few frames, and bounded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from collector.arch.x86_64 import FS_BASE, PAGE
from collector.elfcore.types import FileEntry, ProcessImage
from collector.explain.exported import Absent
from collector.explain.managed import is_java, version_of_node, words_before
from collector.explain.mapped import joined
from collector.explain.python_frames import find_python
from collector.ranges import Range

Read = Callable[[int, int], bytes]

_MAX_PAGES = 1024  # 4 MiB
_MAX_THREADS = 64  # whose functions are looked for, the one that died first


def select_interpreted(image: ProcessImage, read: Read) -> list[Range]:
    """Whole pages, in any order; none if it is no process of an interpreter that is known."""
    pages: set[int] = set()

    def remembered(address: int, size: int) -> bytes:
        if len(pages) >= _MAX_PAGES:
            raise Absent("it would take too much memory")
        data = read(address, size)
        pages.update(range(address & -PAGE, address + len(data), PAGE))
        return data

    parts = (
        FileEntry(start=m.start, end=m.end, offset=m.offset, path=m.path)
        for m in image.mappings
        if m.path is not None and m.path.startswith("/")
    )
    objects = list(joined(parts))
    with contextlib.suppress(Absent):
        if is_java(objects):
            words_before(remembered, image.auxv)
        python, _ = find_python(remembered, objects, image.auxv)
        if python is None:
            node = version_of_node(remembered, objects, image.auxv)
            return [(page, page + PAGE) for page in pages] if node or is_java(objects) else []
        for thread in image.threads[:_MAX_THREADS]:
            python.runs(thread.regs[FS_BASE])
            if len(pages) >= _MAX_PAGES:
                break
    return [(page, page + PAGE) for page in pages]
