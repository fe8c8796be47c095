"""The object files that a core says were mapped, to look into them for an allocator."""

from __future__ import annotations

import bisect
import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from collector.elfcore.reader import CoreFile
from collector.elfcore.types import Prot
from collector.errors import CoreFormatError
from collector.explain.elf_file import ElfFile
from collector.explain.files import Root, reopen
from collector.explain.mapped import (
    MappedFile,
    build_id_in_memory,
    build_id_of_file,
    mapped_objects,
)
from collector.heap.memory import Memory, NotInCore

_DELETED = " (deleted)"
_MAX_OBJECTS = 4096
_MAX_PIECE = 8 << 20  # bytes of a piece of an object's writable data that are looked through
_MAX_DATA = 64 << 20  # and of all pieces together
_AT_ENTRY = 9  # <linux/auxvec.h>
_AT_NULL = 0


Data = Sequence[tuple[int, bytes]]  # writable data of an object: address, bytes


class Object(NamedTuple):
    """A mapped object file. `main`: it is the program itself."""

    file: MappedFile
    main: bool

    @property
    def name(self) -> str:
        return PurePosixPath(self.file.path.removesuffix(_DELETED)).name


class OpenObject(NamedTuple):
    """Its file, and what is added to addresses in it to have those in memory.

    verified: the core holds the build-id of GNU's linker, and the file has the same.
    """

    elf: ElfFile
    bias: int
    verified: bool


class Objects:
    """root: where paths are looked up. exe: the main program's file, tried first."""

    def __init__(self, core: CoreFile, memory: Memory, root: Root, exe: Path | None) -> None:
        self._memory, self._root, self._exe = memory, root, exe
        self._segments = sorted((p.segment for p in core.segments), key=lambda one: one.vaddr)
        self._starts = [one.vaddr for one in self._segments]
        files = mapped_objects(core.notes.files or (), self._segments)[:_MAX_OBJECTS]
        entry = _entry_of(core.auxv or b"")
        self.all = [Object(file, file.start <= entry < file.end) for file in files]

    @property
    def main(self) -> Object | None:
        return next((one for one in self.all if one.main), None)

    @contextlib.contextmanager
    def open(self, which: Object) -> Iterator[OpenObject]:
        """Its file, if that is the one that was mapped. OSError or ValueError says why not."""
        fd = self._open(which)
        try:
            in_memory = build_id_in_memory(self._memory.block, which.file.start)
            try:
                if in_memory is not None and in_memory != build_id_of_file(fd):
                    raise ValueError("its file is another one than was mapped (build-id)")
            except CoreFormatError as error:
                raise ValueError(str(error)) from error
            elf = ElfFile(fd)
            yield OpenObject(elf, which.file.start - elf.base, in_memory is not None)
        finally:
            os.close(fd)

    def _open(self, which: Object) -> int:
        if which.main and self._exe is not None:
            with contextlib.suppress(OSError):
                fd = os.open(self._exe, os.O_PATH | os.O_CLOEXEC)
                try:
                    return reopen(fd)
                finally:
                    os.close(fd)
        return self._root.open(which.file.path.removesuffix(_DELETED))

    def data(self, which: Object) -> Data:
        """What the core has of its writable data, with the addresses: the file's own, and the
        anonymous memory right behind (.bss)."""
        found, end, left = [], which.file.start, _MAX_DATA
        for segment in self._segments:
            inside = which.file.start <= segment.vaddr < which.file.end
            behind = segment.vaddr == end >= which.file.end
            if not inside and not behind:
                continue
            end = segment.vaddr + segment.memsz
            size = min(segment.filesz, _MAX_PIECE, left)
            if segment.flags & Prot.W and size:
                left -= size
                with contextlib.suppress(NotInCore):
                    found.append((segment.vaddr, self._memory.block(segment.vaddr, size)))
            if behind:
                break
        return found

    def is_writable(self, address: int) -> bool:
        """Whether the process could write there."""
        number = bisect.bisect_right(self._starts, address) - 1
        if number < 0:
            return False
        segment = self._segments[number]
        return bool(segment.flags & Prot.W) and address < segment.vaddr + segment.memsz


def _entry_of(auxv: bytes) -> int:
    """The address at which the program began: getauxval(3)."""
    for at in range(0, len(auxv) - 15, 16):
        key = int.from_bytes(auxv[at : at + 8], "little")
        if key == _AT_ENTRY:
            return int.from_bytes(auxv[at + 8 : at + 16], "little")
        if key == _AT_NULL:
            break
    return 0
