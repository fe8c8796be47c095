"""The copy of a process's memory: what is in it, and that nothing keeps it waiting.

The process is this one: /proc/self/mem needs no rights.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.capture.copy import CopiedMemory, HeldMemory
from collector.capture.image import decode_maps
from collector.capture.memory import ProcessMemory
from collector.elfcore.types import Mapping

PAGE, MIB = 4096, 1 << 20
LONG = 60.0  # seconds


class Own:
    """This process, and an area of it."""

    def __init__(self, area: mmap.mmap) -> None:
        self.area = area
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(area))
        self.end = self.start + len(area)
        self.pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
        self.mem = os.open("/proc/self/mem", os.O_RDONLY)
        found = decode_maps(Path("/proc/self/maps").read_bytes())
        self.mappings: list[Mapping] = [m for m in found if m.start < self.end > self.start < m.end]
        self.memory = ProcessMemory(self.mem, self.pagemap, self.mappings, {})

    def copied(self, room: int = 1 << 40, seconds: float = LONG) -> CopiedMemory:
        copy = CopiedMemory(self.memory, self.pagemap, self.mappings)
        copy.fill([(self.start, self.end)], room, seconds)
        return copy

    def close(self) -> None:
        os.close(self.mem)
        os.close(self.pagemap)


@pytest.fixture
def anonymous() -> Iterator[Own]:
    """12 MiB; pages 0, 1 and 2000 were touched."""
    area = mmap.mmap(-1, 12 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    for page in (0, 1, 2000):
        area[page * PAGE : page * PAGE + 5] = b"%05d" % page
    own = Own(area)
    yield own
    own.close()


def test_what_was_there_is_there_when_the_process_has_changed(anonymous: Own) -> None:
    copy = anonymous.copied()
    anonymous.area[:5] = b"later"
    first, last = (anonymous.start + page * PAGE for page in (0, 2000))
    assert copy.read(first, 5) == b"00000"
    assert copy.read(first + PAGE, 5) == b"00001"
    assert copy.read(first + PAGE - 2, 4) == b"\0\x0000"
    assert copy.read(last, 2 * PAGE) == b"02000".ljust(PAGE, b"\0")
    found = list(copy.ranges(anonymous.start, anonymous.end))
    assert found == [(first, first + 2 * PAGE), (last, last + PAGE)]
    assert list(copy.ranges(first + PAGE, last)) == [(first + PAGE, first + 2 * PAGE)]
    assert (copy.copied, copy.missing) == (3 * PAGE, 0)


def test_what_has_no_room_is_named(anonymous: Own) -> None:
    copy = anonymous.copied(room=2 * PAGE)
    last = anonymous.start + 2000 * PAGE
    assert (copy.copied, copy.missing) == (2 * PAGE, PAGE)
    # as what cannot be read: it is there, and is not had
    assert list(copy.ranges(last, anonymous.end)) == [(last, last + PAGE)]
    assert copy.read(last, 5) == b""


def test_no_time_at_all(anonymous: Own) -> None:
    copy = anonymous.copied(seconds=0)
    assert (copy.copied, copy.missing) == (0, 3 * PAGE)


def test_more_than_one_piece_and_none_of_it_in_one_go() -> None:
    area = mmap.mmap(-1, 9 * MIB + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, len(area), PAGE):
        area[at : at + 8] = at.to_bytes(8, "little")
    own = Own(area)
    copy = own.copied()
    buffer = bytearray(len(area))
    assert copy.read_into(own.start, memoryview(buffer)) == len(area)
    assert buffer == area[:]
    own.close()


def test_pages_of_a_file_that_nobody_has_touched(tmp_path: Path) -> None:
    content = os.urandom(3 * MIB)
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("r+b") as file:
        area = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
    area[5 * PAGE : 5 * PAGE + 4] = b"mine"
    own = Own(area)
    copy = own.copied()
    assert copy.read(own.start, 3 * MIB) == area[:]
    assert copy.missing == 0
    own.close()


class Stubborn(ProcessMemory):
    """Reads of some pages come back only when the test is over."""

    def __init__(self, own: Own, low: int, high: int) -> None:
        super().__init__(own.mem, own.pagemap, own.mappings, {})
        self.over = threading.Event()
        self._low, self._high = low, high

    def read_into(self, address: int, buffer: memoryview) -> int:
        if address < self._high and address + len(buffer) > self._low:
            self.over.wait()
        return super().read_into(address, buffer)


def test_memory_that_keeps_its_readers_waiting_is_left_behind(anonymous: Own) -> None:
    last = anonymous.start + 2000 * PAGE
    memory = Stubborn(anonymous, last, last + PAGE)
    copy = CopiedMemory(memory, anonymous.pagemap, anonymous.mappings)
    copy.fill([(anonymous.start, anonymous.end)], 1 << 40, 0.5)
    assert copy.read(anonymous.start, 5) == b"00000"
    assert copy.missing == PAGE
    memory.over.set()
    assert copy.read(last, 5) == b""  # it came too late, and is not taken


def test_what_is_not_in_memory_is_waited_for_once(anonymous: Own) -> None:
    absent = anonymous.start + 3000 * PAGE
    memory = Stubborn(anonymous, absent, anonymous.end)
    held = HeldMemory(memory, anonymous.pagemap, patience=0.1)
    assert held.read(anonymous.start, 5) == b"00000"
    assert [held.read(absent, 8) for _ in range(1000)] == [b""] * 1000
    assert held.read(anonymous.start + PAGE, 5) == b"00001"
    memory.over.set()
