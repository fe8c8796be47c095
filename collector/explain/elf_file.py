"""Sections and symbols of the object files that a process had mapped.

Only of those that `explain.files` opens safely. They are as hostile as the core: sizes are bounded,
and a damaged file has no symbols. Source: elf(5).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection
from typing import NamedTuple

from collector.arch import elf as arch
from collector.arch.x86_64 import PAGE

_SYM = struct.Struct("<IBBHQQ")  # name, info, other, shndx, value, size: Elf64_Sym
_SHT_NOBITS = 8
_MAX_SECTIONS = 4096
_MAX_HEADERS = 64  # program headers of an object; normal ones have a dozen
_MAX_TABLE = 256 << 20  # bytes of a table of symbols, or of a section


class Section(NamedTuple):
    """A section, by its place in memory as the file has it, and in the file; bytes."""

    address: int
    offset: int
    size: int


class ElfFile:
    """An open object file; `fd` is borrowed. ValueError if it is none, or damaged."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        header = os.pread(fd, arch.EHDR.size, 0)
        if len(header) < arch.EHDR.size or header[:7] != arch.E_IDENT[:7]:
            raise ValueError("it is no 64-bit ELF file")
        fields = arch.EHDR.unpack(header)
        phoff, shoff = fields[5:7]
        phentsize, phnum, shentsize, shnum, names = fields[9:14]
        if phentsize != arch.PHDR.size or shentsize not in (0, arch.SHDR.size):
            raise ValueError("its headers have another size")
        self.base = self._base(phoff, phnum)
        self.sections = self._sections(shoff, shnum, names)

    def _base(self, offset: int, count: int) -> int:
        """The address, as the file has it, of its first mapped page."""
        size = min(count, _MAX_HEADERS) * arch.PHDR.size
        headers = arch.PHDR.iter_unpack(self._exactly(offset, size))
        loads = [header[3] for header in headers if header[0] == arch.PT_LOAD]
        return min(loads, default=0) & -PAGE

    def _sections(self, offset: int, count: int, names: int) -> dict[str, Section]:
        if not offset or not names < count <= _MAX_SECTIONS:
            return {}
        headers = list(arch.SHDR.iter_unpack(self._exactly(offset, count * arch.SHDR.size)))
        text = self._exactly(headers[names][4], min(headers[names][5], 1 << 20))
        found = {}
        for name, kind, _, address, place, size, *_ in headers:
            if kind != _SHT_NOBITS:
                word = text[name : text.find(b"\0", name)].decode("ascii", "replace")
                found[word] = Section(address, place, size)
        return found

    def section(self, name: str) -> bytes:
        """The bytes of a section; empty if the file has none of this name."""
        found = self.sections.get(name)
        return b"" if found is None else self._exactly(found.offset, found.size)

    def at(self, address: int, size: int) -> bytes:
        """Bytes by their address, as the file has it. ValueError if no section has them."""
        for one in self.sections.values():
            if one.address and one.address <= address <= address + size <= one.address + one.size:
                return self._exactly(one.offset + address - one.address, size)
        raise ValueError(f"no section has {address:#x}")

    def symbols(self, wanted: Collection[str]) -> dict[str, int]:
        """The values of those of the `wanted` symbols that the file has, as it has them."""
        found: dict[str, int] = {}
        for table, strings in ((".symtab", ".strtab"), (".dynsym", ".dynstr")):
            names = self.section(strings)
            places = {}
            for name in wanted:
                if name not in found:
                    at = names.find(b"\0" + name.encode() + b"\0")
                    if at >= 0:
                        places[at + 1] = name
            if not places:
                continue
            data = self.section(table)
            whole = memoryview(data)[: len(data) // _SYM.size * _SYM.size]
            for at, _, _, section, value, _ in _SYM.iter_unpack(whole):
                if section and at in places:
                    found.setdefault(places[at], value)
        return found

    def _exactly(self, offset: int, size: int) -> bytes:
        if size > _MAX_TABLE:
            raise ValueError(f"it has a table of {size >> 20} MiB")
        try:
            data = os.pread(self._fd, size, offset)
        except (OSError, OverflowError) as error:
            raise ValueError(f"it cannot be read: {error}") from error
        if len(data) != size:
            raise ValueError("it is cut off")
        return data
