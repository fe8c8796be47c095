"""Memory on its way into a core: where it is staged, and what is read of it afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from elfcore_samples import NOTE, image, segment

from collector.capture.memory import ProcessMemory
from collector.elfcore.image import CoreImage
from collector.elfcore.reader import CoreFile
from collector.elfcore.sink import InPlaceWriter
from collector.elfcore.types import Segment
from collector.elfcore.writer import WriteResult, write_image
from collector.ranges import Range
from collector.snapshot.staging import WINDOW, Area, StagedMemory, Staging

PAGE = 4096


class Live:
    """The process itself: bytes "L" everywhere."""

    def ranges(self, start: int, end: int) -> Iterator[Range]:
        yield start, end

    def read_into(self, address: int, buffer: memoryview) -> int:
        buffer[:] = b"L" * len(buffer)
        return len(buffer)


def staged(staging: Staging, *areas: Area, present: list[Range], bad: list[Range]) -> StagedMemory:
    return StagedMemory(staging, areas, present, bad, cast(ProcessMemory, Live()))


def fill(staging: Staging, start: int, end: int, letter: bytes) -> None:
    staging.write(start, memoryview(letter * (end - start)))


def test_areas_that_grow_keep_what_they_have(tmp_path: Path) -> None:
    """
    GIVEN an area that was staged
    WHEN one that reaches over both of its ends is placed, and its ends are written
    THEN all of it reads as one, the middle as it was
    """
    with Staging(tmp_path) as staging:
        staging.place(0x5000, 0x7000)
        fill(staging, 0x5000, 0x7000, b"m")
        staging.place(0x4000, 0x9000)
        fill(staging, 0x4000, 0x5000, b"a")
        fill(staging, 0x7000, 0x9000, b"z")
        buffer = bytearray(0x5000)
        assert staging.read_into(0x4000, memoryview(buffer)) == 0x5000
        assert buffer == b"a" * 0x1000 + b"m" * 0x2000 + b"z" * 0x2000
        assert staging.read_into(0x8000, memoryview(buffer)) == 0x1000


def test_what_was_absent_at_the_instant_reads_as_zeros_whatever_was_there_before(
    tmp_path: Path,
) -> None:
    """
    GIVEN four staged pages, of which the second was gone at the instant
    WHEN they are read, and their ranges asked for
    THEN it is not among the ranges, and reads as zeros
    """
    with Staging(tmp_path) as staging:
        staging.place(0, 4 * PAGE)
        fill(staging, 0, 4 * PAGE, b"s")
        area = Area(0, 4 * PAGE, False)
        memory = staged(staging, area, present=[(0, PAGE), (2 * PAGE, 4 * PAGE)], bad=[])
        assert list(memory.ranges(0, 4 * PAGE)) == [(0, PAGE), (2 * PAGE, 4 * PAGE)]
        assert list(memory.ranges(PAGE, 3 * PAGE)) == [(2 * PAGE, 3 * PAGE)]
        assert memory.read(0, 4 * PAGE) == b"s" * PAGE + bytes(PAGE) + b"s" * 2 * PAGE


def test_a_file_is_staged_whole_and_the_rest_is_read_from_the_process(tmp_path: Path) -> None:
    """
    GIVEN an area of a file without present pages, behind memory that is not staged
    WHEN both are read at once
    THEN the one comes from the process, the other from the staging file
    """
    with Staging(tmp_path) as staging:
        staging.place(PAGE, 2 * PAGE)
        fill(staging, PAGE, 2 * PAGE, b"f")
        memory = staged(staging, Area(PAGE, 2 * PAGE, True), present=[], bad=[])
        assert list(memory.ranges(PAGE, 2 * PAGE)) == [(PAGE, 2 * PAGE)]
        assert memory.read(0, 3 * PAGE) == b"L" * PAGE + b"f" * PAGE + b"L" * PAGE


def test_a_read_ends_where_memory_could_not_be_copied(tmp_path: Path) -> None:
    """
    GIVEN three staged pages, of which the second could not be read
    WHEN they are read
    THEN the read ends before it, and goes on behind it
    """
    with Staging(tmp_path) as staging:
        staging.place(0, 3 * PAGE)
        fill(staging, 0, 3 * PAGE, b"s")
        area = Area(0, 3 * PAGE, False)
        memory = staged(staging, area, present=[(0, 3 * PAGE)], bad=[(PAGE, 2 * PAGE)])
        sizes = [len(memory.read(at, 3 * PAGE - at)) for at in (0, PAGE, 2 * PAGE)]
        assert sizes == [PAGE, 0, PAGE]


def test_no_room_on_the_disk_is_an_error_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Staging(tmp_path / "missing")


def test_large_areas_get_room_in_windows_and_what_follows_is_one_piece(tmp_path: Path) -> None:
    """
    GIVEN an area of many windows
    WHEN pages of two windows that follow each other are placed, and one far away
    THEN there is room for these windows, in two pieces, and for nothing else
    """
    area = (WINDOW, 20 * WINDOW + 5 * PAGE)
    with Staging(tmp_path) as staging:
        for at in (WINDOW + PAGE, 2 * WINDOW + 7 * PAGE, 20 * WINDOW):
            staging.place(at, at + PAGE, area)
        assert list(staging.pieces(0, 100 * WINDOW)) == [
            (WINDOW, 3 * WINDOW, 0),
            (20 * WINDOW, 20 * WINDOW + 5 * PAGE, 2 * WINDOW),
        ]
        assert staging.end == 2 * WINDOW + 5 * PAGE
        parts = list(staging.parts(2 * WINDOW, 20 * WINDOW + PAGE))
        assert parts == [
            (2 * WINDOW, 3 * WINDOW, WINDOW),
            (3 * WINDOW, 20 * WINDOW, None),
            (20 * WINDOW, 20 * WINDOW + PAGE, 2 * WINDOW),
        ]
        # AND what was never written reads as zeros
        fill(staging, 20 * WINDOW, 20 * WINDOW + PAGE, b"f")
        memory = staged(staging, Area(*area, False), present=[area], bad=[])
        assert memory.read(20 * WINDOW - PAGE, 2 * PAGE) == bytes(PAGE) + b"f" * PAGE


def core_around(
    fd: int, staging: Staging, memory: StagedMemory, segments: list[Segment]
) -> WriteResult:
    made = CoreImage(image(), segments, memory, note=NOTE, there=staging)
    return write_image(made, InPlaceWriter(fd))


def test_a_core_is_put_together_around_what_is_staged_in_it(tmp_path: Path) -> None:
    """
    GIVEN the file of a core with memory in it, some of which is not there any more, or not wanted
    WHEN the core is written around it
    THEN it is a core whose memory is that of the instant, and nothing else is in the file
    """
    first, second, other = 0x100000, 0x900000, 0xA00000
    with (tmp_path / "core").open("w+b") as file, Staging(file.fileno(), 1 << 20) as staging:
        staging.place(first, first + 4 * PAGE)
        staging.place(second, second + 2 * PAGE)
        staging.place(first + 4 * PAGE, first + 6 * PAGE)  # it has grown
        fill(staging, first, first + 6 * PAGE, b"s")
        fill(staging, second, second + 2 * PAGE, b"t")  # it is unmapped by now
        memory = StagedMemory(
            staging,
            [Area(first, first + 6 * PAGE, False)],
            [(first, first + PAGE), (first + 2 * PAGE, first + 6 * PAGE)],
            [(first + 3 * PAGE, first + 4 * PAGE)],
            cast(ProcessMemory, Live()),
            [(first, first + 6 * PAGE), (second, second + 2 * PAGE)],
        )
        segments = [segment(first, 6 * PAGE), segment(other, 3 * PAGE, 2 * PAGE)]
        memory.keep_only([(s.vaddr, s.vaddr + s.filesz) for s in segments])
        result = core_around(file.fileno(), staging, memory, segments)
        assert result.size == (tmp_path / "core").stat().st_size
        assert result.written == 2 * PAGE  # the rest was there
    assert b"t" * 64 not in (tmp_path / "core").read_bytes()
    with CoreFile(tmp_path / "core") as core:
        assert [(p.segment.vaddr, p.segment.filesz, p.segment.memsz) for p in core.segments] == [
            (first, 4 * PAGE, 4 * PAGE),
            (first + 4 * PAGE, 2 * PAGE, 2 * PAGE),
            (other, 2 * PAGE, 3 * PAGE),
        ]
        wanted = b"s" * PAGE + bytes(PAGE) + b"s" * PAGE + bytes(PAGE)
        assert core.read(first, 4 * PAGE) == wanted
        assert core.read(first + 4 * PAGE, 2 * PAGE) == b"s" * 2 * PAGE
        assert core.read(other, 2 * PAGE) == b"L" * 2 * PAGE
        assert [thread.tid for thread in core.threads] == [100, 101]


def test_large_holes_take_no_place_in_such_a_core(tmp_path: Path) -> None:
    start, far = 0x100000000, 0x100000000 + 40 * WINDOW
    with (tmp_path / "core").open("w+b") as file, Staging(file.fileno(), 1 << 20) as staging:
        area = (start, far + WINDOW)
        for at in (start, far):
            staging.place(at, at + PAGE, area)
            fill(staging, at, at + PAGE, b"s")
        memory = staged(
            staging, Area(*area, False), present=[(start, start + PAGE), (far, far + PAGE)], bad=[]
        )
        core_around(file.fileno(), staging, memory, [segment(start, far + WINDOW - start)])
    assert (tmp_path / "core").stat().st_size < 4 * WINDOW
    with CoreFile(tmp_path / "core") as core:
        assert core.read(far, 2 * PAGE) == b"s" * PAGE + bytes(PAGE)
        assert core.read(far - 8 * WINDOW, PAGE) == bytes(PAGE)


def test_a_head_for_which_there_is_no_room_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "core").open("w+b") as file, Staging(file.fileno(), PAGE) as staging:
        memory = staged(staging, Area(0, PAGE, False), present=[], bad=[])
        with pytest.raises(ValueError, match="does not fit before the memory"):
            core_around(file.fileno(), staging, memory, [])
