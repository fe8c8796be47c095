"""Names in Go programs without symbols (-ldflags=-s): by the table that their runtime has."""

from __future__ import annotations

import struct

import drgn

from collector.explain.elf_file import ElfFile
from collector.explain.modules import Modules, text
from collector.explain.pclntab import LineTable, Place

_TABLES = (".gopclntab", ".data.rel.ro.gopclntab")
_MAX_TABLE = 96 << 20  # bytes; Kubernetes' programs have 30 MiB
_TEXT = ".text"


class GoNames:
    """Of the programs of one core; usually there is one at most. Each file is looked at once."""

    def __init__(self, modules: Modules) -> None:
        self._modules = modules
        self._tables: dict[str, LineTable | None] = {}

    def at(self, module: drgn.Module, address: int) -> Place | None:
        """The function, without inlined ones, file and line of an address in an instruction."""
        if module.name not in self._tables:
            self._tables[module.name] = self._table(module)
        table = self._tables[module.name]
        if table is None:
            return None
        try:
            places = table.places(address + 1, 0)
        except (ValueError, struct.error, IndexError):  # it is damaged
            return None
        if not places or not places[0].function:
            return None
        place = places[0]
        return place._replace(file=None if place.file is None else text(place.file))

    def _table(self, module: drgn.Module) -> LineTable | None:
        fd, bias = self._modules.file(module), module.loaded_file_bias
        if fd is None or bias is None:
            return None
        try:
            elf = ElfFile(fd)
            name = next((one for one in _TABLES if one in elf.sections), None)
            if name is None or elf.sections[name].size > _MAX_TABLE or _TEXT not in elf.sections:
                return None
            table = LineTable(elf.section(name))
        except (ValueError, struct.error):
            return None
        # with cgo the C library's start-up code is first in .text: then the header says where
        table.place((table.text or elf.sections[_TEXT].address) + bias, None, elf.at)
        return table
