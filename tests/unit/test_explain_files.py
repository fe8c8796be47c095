"""Finding the files of a dead process: hostile paths, hostile notes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from elftools.elf.elffile import ELFFile

from collector.elfcore.types import FileEntry, Prot, Segment
from collector.explain.files import Root
from collector.explain.mapped import MappedFile, build_id_in_memory, mapped_objects


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A container's root with a library in it, and a secret beside it."""
    folder = tmp_path / "root"
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / "libx.so").write_text("library")
    (tmp_path / "secret").write_text("secret")
    yield folder


def opened(root: Path, path: str) -> str:
    """What is read from `path` beneath `root`."""
    folder = os.open(root, os.O_PATH)
    try:
        with open(Root(folder).open(path)) as file:
            return file.read()
    finally:
        os.close(folder)


def test_paths_and_links_stay_beneath_the_root(root: Path) -> None:
    # GIVEN links that are right in the container, and a file that only a way out of it would find
    (root / "lib" / "libx.so.1").symlink_to("/lib/libx.so")
    (root / "out").symlink_to("../secret")
    # THEN its absolute links are its own
    assert opened(root, "/lib/libx.so.1") == "library"
    # AND nothing leads outside
    for path in ("/out", "/../secret", str(root.parent / "secret"), "lib/libx.so", "/lib\0/x"):
        with pytest.raises(OSError):
            opened(root, path)


def test_a_long_way_within_the_root(root: Path) -> None:
    # GIVEN links over links, some of them up and down again
    (root / "usr").mkdir()
    (root / "usr" / "lib").symlink_to("../lib")
    (root / "l1").symlink_to("./usr/lib//../usr/lib/")
    (root / "l2").symlink_to("/../../l1/libx.so")
    assert opened(root, "/l1/../lib/./libx.so") == "library"
    assert opened(root, "/l2") == "library"
    # AND links in a circle
    (root / "c1").symlink_to("c2")
    (root / "c2").symlink_to("/c1")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        opened(root, "/c1/libx.so")
    for path in ("/", "/lib/..", "/lib/libx.so/x"):
        with pytest.raises(OSError):
            opened(root, path)
    # THEN no descriptor stays open
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_only_regular_files_are_opened(root: Path) -> None:
    # GIVEN a pipe that nobody writes, which to open would block for ever
    os.mkfifo(root / "pipe")
    # THEN neither it nor a folder is opened
    for path in ("/pipe", "/lib"):
        with pytest.raises(OSError, match="not a regular file"):
            opened(root, path)


def entry(start: int, end: int, offset: int, path: str) -> FileEntry:
    return FileEntry(start=start, end=end, offset=offset, path=path)


def code(start: int, end: int) -> Segment:
    return Segment(vaddr=start, memsz=end - start, filesz=0, flags=Prot.R | Prot.X)


LIBRARY = [entry(0x1000, 0x2000, 0, "/lib/a.so"), entry(0x2000, 0x5000, 4096, "/lib/a.so")]
DATA = [entry(0x7000, 0x8000, 0, "/usr/share/data"), entry(0x9000, 0xA000, 12288, "/lib/b.so")]


def test_mapped_objects_are_those_with_code_from_their_start() -> None:
    # GIVEN an object in two pieces, a data file, and a piece of a file without its start
    found = mapped_objects(LIBRARY + DATA, [code(0x2000, 0x3000), code(0x9000, 0xA000)])
    # THEN the object is found, as one
    assert found == [MappedFile("/lib/a.so", 0x1000, 0x5000)]


def test_an_object_that_is_mapped_twice_is_two() -> None:
    again = [entry(0xB000, 0xC000, 0, "/lib/a.so")]
    assert mapped_objects(LIBRARY + again, []) == [
        MappedFile("/lib/a.so", 0x1000, 0x5000),
        MappedFile("/lib/a.so", 0xB000, 0xC000),
    ]


def test_in_a_core_without_code_segments_any_mapped_file_may_be_an_object() -> None:
    assert mapped_objects(LIBRARY + DATA, []) == [
        MappedFile("/lib/a.so", 0x1000, 0x5000),
        MappedFile("/usr/share/data", 0x7000, 0x8000),
    ]


def test_pieces_that_go_back_do_not_end_an_object_before_it_begins() -> None:
    # GIVEN a damaged list, and code that lies around all of it
    back = [entry(0x2000, 0x3000, 0, "/lib/a.so"), entry(0x500, 0x1000, 4096, "/lib/a.so")]
    assert mapped_objects(back, [code(0, 0x9000)]) == [MappedFile("/lib/a.so", 0x2000, 0x3000)]


def test_objects_are_found_among_overlapping_code_in_no_order() -> None:
    random = Random(2)
    files = [entry(at, at + 8, 0, "/lib/a.so") for at in range(1, 400, 9)]
    for _ in range(50):
        places = [random.randrange(400) for _ in range(12)]
        areas = [code(at, at + random.randrange(20)) for at in places]
        found = {file.start for file in mapped_objects(files, [*areas, code(500, 501)])}
        assert found == {
            file.start
            for file in files
            for at in areas
            if at.memsz and at.vaddr < file.end and file.start < at.vaddr + at.memsz
        }


def test_the_build_id_is_found_in_the_mapped_object() -> None:
    # GIVEN the first bytes of an object, as they are mapped
    path = Path("/usr/bin/python3").resolve()
    with open(path, "rb") as file:
        note = next(ELFFile(file).get_section_by_name(".note.gnu.build-id").iter_notes())
    start, image = 0x7F0000000000, path.read_bytes()[:8192]

    def read(address: int, size: int) -> bytes:
        offset = address - start
        if not 0 <= offset <= len(image) - size:
            raise ValueError("not in the core")
        return image[offset : offset + size]

    # THEN its build-id is that of the file; memory that is not there has none
    assert build_id_in_memory(read, start) == note["n_desc"]
    assert build_id_in_memory(read, start + 4096) is None
    assert build_id_in_memory(read, 0) is None
