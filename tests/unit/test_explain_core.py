"""The small core for the explainer: in memory alone, bounded, and nobody's to change."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from collector.arch.x86_64 import PAGE, SP
from collector.capture.core_file import write_explain_core
from collector.capture.job import MAX_EXPLAIN_CORE
from collector.elfcore.reader import CoreFile
from collector.elfcore.types import Mapping, ProcessImage, Prot, Thread
from collector.linux.bounded import bounded_file, bytes_of, seal
from collector.ranges import Range

RW = Prot.R | Prot.W
GIB = 1 << 30
STACK = Mapping(start=0x7000_0000, end=0x7000_0000 + 8 * PAGE, prot=RW, path="[stack]")
REGISTERS = tuple(STACK.end - 2 * PAGE + 256 if i == SP else 0 for i in range(27))
SECRET = b"on the stack"


@pytest.fixture
def file() -> Iterator[int]:
    fd = bounded_file("test", MAX_EXPLAIN_CORE)
    yield fd
    os.close(fd)


class Stack:
    """A memory of which all is there; the stack's last page has the secret."""

    def ranges(self, start: int, end: int) -> Sequence[Range]:
        return [(start, end)]

    def unknown(self, start: int, end: int) -> Sequence[Range]:
        return []

    def read_into(self, address: int, buffer: memoryview) -> int:
        at = STACK.end - PAGE - address
        if 0 <= at < len(buffer):
            buffer[at : at + len(SECRET)] = SECRET
        return len(buffer)

    def read(self, address: int, size: int) -> bytes:
        return b""


def image(*more: Mapping) -> ProcessImage:
    return ProcessImage(threads=[Thread(tid=1, regs=REGISTERS)], mappings=[*more, STACK])


def test_a_file_has_a_bound_and_an_end() -> None:
    fd = bounded_file("test", 2 * PAGE)
    try:
        # GIVEN a file with data up to its bound
        assert (os.fstat(fd).st_size, bytes_of(fd)) == (2 * PAGE, 0)
        assert os.pwrite(fd, b"data", 2 * PAGE - 4) == 4
        # THEN it takes no more, whoever has it
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"more", 2 * PAGE)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 3 * PAGE)
        assert bytes_of(fd) == PAGE
        # WHEN it is sealed THEN nobody changes it, and others can read it by its descriptor
        seal(fd)
        for change in (lambda: os.pwrite(fd, b"x", 0), lambda: os.ftruncate(fd, 0)):
            with pytest.raises(PermissionError):
                change()
        assert Path(f"/proc/self/fd/{fd}").read_bytes()[-4:] == b"data"
    finally:
        os.close(fd)


def test_what_somebody_has_mapped_is_not_sealed(file: int) -> None:
    with mmap.mmap(file, PAGE), pytest.raises(OSError, match="busy") as error:
        seal(file)
    assert error.value.errno == errno.EBUSY


def test_the_core_is_whole_and_no_larger_than_it_must_be(file: int) -> None:
    write_explain_core(file, image(), Stack(), [])
    seal(file)
    with CoreFile(Path(f"/proc/self/fd/{file}")) as core:
        assert core.read(STACK.end - PAGE, len(SECRET)) == SECRET
    assert os.fstat(file).st_size < 32 * PAGE


def test_a_process_that_would_have_it_fill_the_memory(file: int) -> None:
    # GIVEN a mapping of gigabytes whose name is that of the C library
    large = Mapping(start=PAGE, end=PAGE + GIB, prot=RW, path="/tmp/libc.so", offset=PAGE, inode=1)
    # WHEN the small core is written
    write_explain_core(file, image(large), Stack(), [])
    # THEN that is left out, and the stack is not
    with CoreFile(Path(f"/proc/self/fd/{file}")) as core:
        assert core.read(STACK.end - PAGE, len(SECRET)) == SECRET
        assert sum(p.segment.filesz for p in core.segments) <= STACK.size
