"""A core that is pulled, piece by piece and in any order, is the core that is written."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from elfcore_samples import NOTE, Memory, image, segment
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.arch.x86_64 import PAGE
from collector.elfcore.holes import MIN_HOLE
from collector.elfcore.image import CoreImage
from collector.elfcore.sink import SparseWriter
from collector.elfcore.writer import write_core

BASE = 0x100000000000
FAR = BASE + MIN_HOLE + (1 << 20)
DATA = random.Random(3).randbytes(70 * PAGE)
SEGMENTS = [
    segment(BASE, 80 * PAGE),  # memory, a hole, memory
    segment(BASE + 100 * PAGE, 4 * PAGE, 0),  # not in the core
    segment(BASE + 110 * PAGE, 3 * PAGE, 2 * PAGE),  # a part of it is
    segment(FAR, MIN_HOLE + 8 * PAGE),  # a hole so large that it is a segment of its own
]
PIECES = {
    BASE: DATA[: 50 * PAGE],
    BASE + 60 * PAGE: DATA[50 * PAGE : 60 * PAGE],
    BASE + 110 * PAGE: DATA[60 * PAGE : 62 * PAGE],
    FAR + MIN_HOLE: DATA[62 * PAGE : 70 * PAGE],
}
OVERRIDES = [(BASE + 5 * PAGE + 17, b"put back"), (BASE + 61 * PAGE - 4, b"over a boundary")]


def pulled() -> tuple[CoreImage, Memory]:
    memory = Memory(PIECES)
    return CoreImage(image(), SEGMENTS, memory, note=NOTE, overrides=OVERRIDES), memory


def written() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "core")
        with path.open("wb") as file:
            memory, writer = Memory(PIECES), SparseWriter(file.fileno())
            write_core(image(), SEGMENTS, memory, writer, note=NOTE, overrides=OVERRIDES)
        return path.read_bytes()


WHOLE = written()


def test_the_whole_core_is_what_the_writer_writes() -> None:
    core, _ = pulled()
    assert core.size == len(WHOLE)
    assert core.read(0, core.size) == WHOLE
    assert core.header == WHOLE[: len(core.header)]


def test_fewer_bytes_at_the_end_and_none_behind_it() -> None:
    core, _ = pulled()
    assert core.read(core.size - 5, 100) == WHOLE[-5:]
    assert core.read(core.size, 1) == b""
    assert core.read(core.size + PAGE, 1) == b""


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) + PAGE), st.integers(0, 90 * PAGE))))
def test_any_range_has_the_bytes_of_the_whole(ranges: list[tuple[int, int]]) -> None:
    core, _ = pulled()
    for offset, length in ranges:
        assert core.read(offset, length) == WHOLE[offset : offset + length]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(WHOLE)), st.integers(1, 3 * PAGE))
def test_no_page_is_read_that_was_not_asked_for(offset: int, length: int) -> None:
    core, memory = pulled()
    memory.reads.clear()
    core.read(offset, length)
    most = (offset + length + PAGE - 1 & -PAGE) - (offset & -PAGE)
    # what cannot be read is tried again behind it, a page further on: count distinct pages
    pages = {page for at, size in memory.reads for page in range(at & -PAGE, at + size, PAGE)}
    assert len(pages) * PAGE <= most


def test_data_and_holes_of_a_core_that_is_pulled() -> None:
    core, memory = pulled()
    # WHEN all data is looked for, as cp does
    at, found = 0, []
    while data := core.data_at(at):
        found.append(data)
        at = data[1]
    # THEN what is between is zero, and nothing was read for it
    assert memory.reads == []
    assert found[0] == (0, len(core.header))
    ends = [0, *(end for _, end in found)]
    starts = [*(start for start, _ in found), core.size]
    assert not any(any(WHOLE[a:b]) for a, b in zip(ends, starts, strict=True))
    assert sum(end - start for start, end in found) < 80 * PAGE + len(core.header)
    # AND from within data it is the rest of that
    start, end = found[1]
    assert core.data_at(start + 5) == (start + 5, end)
    assert core.data_at(core.size) is None
