"""Memory on its way into a core: where it is staged, and what is read of it afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from collector.capture.memory import ProcessMemory
from collector.ranges import Range
from collector.snapshot.staging import Area, StagedMemory, Staging

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
