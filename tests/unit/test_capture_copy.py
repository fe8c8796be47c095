"""The copy of a process's memory: what is in it, and that nothing keeps it waiting.

The process is this one: its copier inherits /proc/self/mem, which needs no rights.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from collector.capture import copier
from collector.capture.copier import NoRoom, make_copy
from collector.capture.copy import CopiedMemory, HeldMemory, parts_of
from collector.capture.image import decode_maps
from collector.capture.memory import ProcessMemory
from collector.capture.parts import Kind, Part, Source
from collector.elfcore.types import Mapping
from collector.errors import CaptureError
from collector.native.build import build_copier

PAGE, MIB = 4096, 1 << 20
LONG = 60.0  # seconds


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_copier(tmp_path_factory.mktemp("copier"))


@pytest.fixture(autouse=True)
def built(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copier, "find", lambda name: program)


class Own:
    """This process, and an area of it."""

    def __init__(self, area: mmap.mmap) -> None:
        self.area = area
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(area))
        self.end = self.start + len(area)
        self.pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
        self.mem = os.open("/proc/self/mem", os.O_RDONLY)
        self.pidfd = os.pidfd_open(os.getpid())
        found = decode_maps(Path("/proc/self/maps").read_bytes())
        self.mappings: list[Mapping] = [m for m in found if m.start < self.end > self.start < m.end]
        self.memory = ProcessMemory(self.mem, self.pagemap, self.mappings, {})

    @property
    def source(self) -> Source:
        return Source(os.getpid(), self.pidfd, self.mem, self.pagemap)

    def copied(
        self, room: int = 1 << 40, seconds: float = LONG, *, whole: bool = False
    ) -> CopiedMemory:
        parts = parts_of([(self.start, self.end)], self.memory, self.mappings)
        return self.copied_parts(parts, room, seconds, whole=whole)

    def copied_parts(
        self, parts: list[Part], room: int = 1 << 40, seconds: float = LONG, *, whole: bool = False
    ) -> CopiedMemory:
        copy = make_copy(parts, self.source, room, seconds, whole=whole)
        try:
            return CopiedMemory(copy, self.mappings)
        finally:
            os.close(copy.fd)

    def close(self) -> None:
        os.close(self.pidfd)
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


def test_what_was_not_copied_in_time_is_told_apart_from_what_nobody_could_look_for(
    anonymous: Own,
) -> None:
    # GIVEN a copy for which others waited, of a part of what was there
    parts = parts_of([(anonymous.start, anonymous.end)], anonymous.memory, anonymous.mappings)
    copy = make_copy(parts, anonymous.source, 2 * PAGE, LONG)
    hasty = msgspec.structs.replace(copy, hasty=True)
    # WHEN what only a file has was not wanted
    known = CopiedMemory(hasty, anonymous.mappings)
    unknown = CopiedMemory(hasty, anonymous.mappings, lambda start, end: False)
    os.close(copy.fd)
    # THEN it is named, beside what did not come
    last = anonymous.start + 2000 * PAGE
    assert known.not_in_time == unknown.not_in_time == [(last, last + PAGE)]
    assert known.unknown(anonymous.start, anonymous.end) == []
    assert unknown.unknown(anonymous.start, anonymous.end) == [
        (anonymous.start + 2 * PAGE, last),
        (last + PAGE, anonymous.end),
    ]


def test_others_go_on_when_nothing_more_is_copied(
    anonymous: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copier, "_HURRY_S", LONG)
    parts = parts_of([(anonymous.start, anonymous.end)], anonymous.memory, anonymous.mappings)
    gone: list[str] = []
    # WHEN the time is over before it began
    copy = make_copy(parts, anonymous.source, 1 << 40, 0, copied=lambda: gone.append("on"))
    anonymous.area[:5] = b"later"
    # THEN what comes first was copied even so
    assert gone == ["on"]
    assert CopiedMemory(copy, anonymous.mappings).read(anonymous.start, 5) == b"00000"
    os.close(copy.fd)


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


def test_what_has_no_room_as_a_whole_is_not_begun(anonymous: Own) -> None:
    with pytest.raises(NoRoom, match=f"{3 * PAGE} bytes, and room for {2 * PAGE}"):
        anonymous.copied(room=2 * PAGE, whole=True)


def test_pages_that_cannot_be_read_are_passed_over(anonymous: Own) -> None:
    # GIVEN a mapping of a file that has become shorter
    with os.fdopen(os.memfd_create("short"), "r+b") as file:
        file.truncate(3 * PAGE)
        area = mmap.mmap(file.fileno(), 3 * PAGE, flags=mmap.MAP_PRIVATE)
        area[:] = b"x" * len(area)
        file.truncate(PAGE)
    own = Own(area)
    # WHEN all of it is copied
    copy = own.copied_parts([Part(own.start, own.end, Kind.ALL)])
    # THEN what is there is had, and what is missing is named
    assert copy.read(own.start, 3 * PAGE) == b"x" * PAGE
    assert (copy.copied, copy.missing) == (PAGE, 2 * PAGE)
    own.close()


def test_shared_memory_is_read_from_its_file_to_the_last_byte() -> None:
    # GIVEN an object with a hole, and a length that is no whole page
    with os.fdopen(os.memfd_create("shared"), "r+b") as file:
        size = 8 * MIB + 100
        file.truncate(size)
        os.pwrite(file.fileno(), b"first", 0)
        os.pwrite(file.fileno(), b"last", size - 4)
        area = mmap.mmap(file.fileno(), size)
        own = Own(area)
        end = own.start + (size + PAGE - 1 & -PAGE)
        copy = own.copied_parts([Part(own.start, end, Kind.OF_FILE, file.fileno(), 0)])
    last = own.start + 8 * MIB
    assert copy.read(own.start, 5) == b"first"
    assert copy.read(last, PAGE) == area[8 * MIB :].ljust(PAGE, b"\0")
    assert list(copy.ranges(own.start, end)) == [
        (own.start, own.start + PAGE),
        (last, last + PAGE),
    ]
    assert copy.missing == 0
    own.close()


def test_a_copier_that_does_not_answer_is_left_in_time(
    anonymous: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubborn = tmp_path / "stubborn"
    stubborn.write_text("#!/bin/sh\nexec sleep 1000\n")
    stubborn.chmod(0o700)
    monkeypatch.setattr(copier, "find", lambda name: stubborn)
    monkeypatch.setattr(copier, "_GRACE_S", 0.1)
    with pytest.raises(CaptureError, match="could not be copied in time"):
        anonymous.copied(seconds=0)


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


def test_what_is_not_in_memory_is_waited_for_once(anonymous: Own) -> None:
    absent = anonymous.start + 3000 * PAGE
    memory = Stubborn(anonymous, absent, anonymous.end)
    held = HeldMemory(memory, anonymous.pagemap, patience=0.1)
    assert held.read(anonymous.start, 5) == b"00000"
    assert [held.read(absent, 8) for _ in range(1000)] == [b""] * 1000
    assert held.read(anonymous.start + PAGE, 5) == b"00001"
    memory.over.set()
