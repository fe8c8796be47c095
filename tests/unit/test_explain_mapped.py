"""Build-ids of files, as another reader of ELF sees them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from collector.errors import CoreFormatError
from collector.explain.mapped import build_id_of_file

PROGRAMS = [Path(name).resolve() for name in (sys.executable, "/bin/true", "/bin/sh")]


@contextmanager
def contents(data: bytes) -> Iterator[int]:
    fd = os.memfd_create("object")
    try:
        os.write(fd, data)
        yield fd
    finally:
        os.close(fd)


def expected(path: Path) -> str:
    with path.open("rb") as file:
        (section,) = [s for s in ELFFile(file).iter_sections() if s.name == ".note.gnu.build-id"]
        (note,) = section.iter_notes()
        return str(note["n_desc"])


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_the_build_id_of_a_program(path: Path) -> None:
    with path.open("rb") as file:
        assert build_id_of_file(file.fileno()) == expected(path)


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF\x01" + bytes(100)])
def test_what_is_no_object_file_is_refused(data: bytes) -> None:
    with contents(data) as fd, pytest.raises(CoreFormatError, match="not an executable"):
        build_id_of_file(fd)


@given(at=st.integers(0, 0x400), junk=st.binary(min_size=1, max_size=16), size=st.integers(0, 4096))
def test_a_damaged_file_has_a_build_id_or_none_or_is_refused(
    at: int, junk: bytes, size: int
) -> None:
    data = bytearray(PROGRAMS[1].read_bytes()[:4096])
    data[at : at + len(junk)] = junk
    with contents(bytes(data[:size])) as fd:
        try:
            found = build_id_of_file(fd)
        except (CoreFormatError, OSError):
            return
    assert found is None or bytes.fromhex(found)
