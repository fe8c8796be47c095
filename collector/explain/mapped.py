"""Which object files a core says were mapped where, and their build-ids in memory.

Only what finding modules without the dynamic linker's list needs. All of it comes from the dead
process: paths are names, not permissions, and memory may be absent or nonsense.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from collector.arch import elf as arch
from collector.arch.x86_64 import PAGE
from collector.elfcore.notes import iter_notes
from collector.elfcore.types import FileEntry, Prot, Segment
from collector.errors import CoreFormatError
from collector.ranges import union

_NT_GNU_BUILD_ID = 3  # elf(5)
_MAX_NOTE_SEGMENT = 4096  # bytes of an object's notes that are looked at
_MAX_HEADERS = 64  # program headers of an object; normal ones have a dozen


class MappedFile(NamedTuple):
    """One object file in memory: its path, and the addresses [start, end) that it spans."""

    path: str
    start: int
    end: int


def mapped_objects(files: Sequence[FileEntry], segments: Sequence[Segment]) -> list[MappedFile]:
    """The files of NT_FILE that are mapped from their first byte on, and as code.

    A small core may have no segment for code at all: then any mapped file may be an object.
    """
    code = union((s.vaddr, s.vaddr + s.memsz) for s in segments if s.flags & Prot.X and s.memsz)

    def has_code(file: MappedFile) -> bool:
        first = bisect.bisect_right(code, file.start, key=lambda area: area[1])
        return first < len(code) and code[first][0] < file.end

    return [file for file in joined(files) if not code or has_code(file)]


def joined(entries: Iterable[FileEntry]) -> Iterator[MappedFile]:
    """Entries of the same file that follow each other, the first of them mapped at offset 0."""
    current: MappedFile | None = None
    for entry in entries:
        if current is not None and entry.path == current.path and entry.offset != 0:
            current = current._replace(end=max(current.end, entry.end))
            continue
        if current is not None:
            yield current
        current = None
        if entry.offset == 0 and entry.start < entry.end:
            current = MappedFile(entry.path, entry.start, entry.end)
    if current is not None:
        yield current


def build_id_in_memory(read: Callable[[int, int], bytes], start: int) -> str | None:
    """The build-id of the object that is mapped at `start`, in hex; None if memory has none.

    read(address, size) raises any exception where the core has no memory.
    """
    try:
        return _build_id(read, start)
    except Exception:  # absent memory is the same as no build-id
        return None


def bias_in_memory(read: Callable[[int, int], bytes], start: int) -> int | None:
    """What was added to an object's own addresses when it was mapped at `start`.

    Without its headers it is taken for one that can be anywhere, which all libraries are and most
    programs; None where that cannot be: below 4 GiB. read: as in `build_id_in_memory`.
    """
    with contextlib.suppress(Exception):
        headers = _headers(read, start)
        if headers:
            return start - _first_page(headers)
    return start if start >= 1 << 32 else None


def build_id_of_file(fd: int) -> str | None:
    """The build-id of an open object file, in hex; None if it has none.

    OSError as reading gives it, CoreFormatError if it is not a 64-bit ELF file, or damaged.
    """
    header = os.pread(fd, arch.EHDR.size, 0)
    if len(header) < arch.EHDR.size or header[:7] != arch.E_IDENT[:7]:
        raise CoreFormatError("not an executable: not a 64-bit ELF file")
    try:
        return _build_id(lambda at, size: os.pread(fd, size, at), 0, mapped=False)
    except (struct.error, OverflowError) as error:
        raise CoreFormatError(f"not an executable: {error}") from error


def _build_id(read: Callable[[int, int], bytes], start: int, *, mapped: bool = True) -> str | None:
    """mapped: its segments are where the program headers say, not at their places in the file."""
    headers = _headers(read, start)
    base = _first_page(headers) if mapped and headers else 0
    for kind, _, offset, vaddr, _, size, _, _ in headers:
        if kind != arch.PT_NOTE or size > _MAX_NOTE_SEGMENT:
            continue
        try:
            for note in iter_notes(read(start + vaddr - base if mapped else offset, size)):
                if (note.owner, note.type) == (b"GNU", _NT_GNU_BUILD_ID):
                    return note.data.hex() if 2 <= len(note.data) <= 64 else None
        except CoreFormatError:  # notes aligned to 8, not to 4: not the build-id's
            continue
    return None


def _headers(
    read: Callable[[int, int], bytes], start: int
) -> list[tuple[int, int, int, int, int, int, int, int]]:
    """The program headers of the object at `start`; none if it is no object of 64 bits."""
    header = arch.EHDR.unpack(read(start, arch.EHDR.size))
    phoff, phentsize, phnum = header[5], header[9], header[10]
    if header[0][:7] != arch.E_IDENT[:7] or phentsize != arch.PHDR.size or phnum > _MAX_HEADERS:
        return []
    return list(arch.PHDR.iter_unpack(read(start + phoff, phnum * arch.PHDR.size)))


def _first_page(headers: Sequence[tuple[int, ...]]) -> int:
    """The address of the first mapped page, as the object counts. ValueError: none is."""
    return min(header[3] for header in headers if header[0] == arch.PT_LOAD) & -PAGE
