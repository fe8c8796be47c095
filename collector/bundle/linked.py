"""By which names the dynamic linker of a dead process knows its libraries.

The kernel's table has the paths of the mapped files, where links are resolved. The linker's list
has the names by which they were opened, which a debugger looks for: libx.so.1, not libx.so.1.2.3.
The list is in the process's memory and hostile: bounded, and read where it can be.
Source: <link.h> (struct r_debug, struct link_map), elf(5).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from collector.arch import elf as arch
from collector.arch.x86_64 import PAGE
from collector.errors import CoreFormatError

Read = Callable[[int, int], bytes]
_AT_PHDR, _AT_PHNUM = 3, 5  # <elf.h>
_PT_DYNAMIC, _PT_PHDR, _DT_DEBUG = 2, 6, 21
_PAIR = struct.Struct("<QQ")
_LINK_MAP = struct.Struct("<QQQQ")  # l_addr, l_name, l_ld, l_next
_MAP_AT = 8  # of r_debug: its r_map
_MOST = 4096  # libraries
_MAX_HEADERS = 64
_MAX_DYNAMIC = 4096  # bytes
_MAX_NAME = 4096


def linked_names(auxv: bytes, read: Read) -> list[tuple[int, str]]:
    """An address in each library, and its name; as many as can be read.

    read(address, size) raises CoreFormatError where there is no memory.
    """
    found: list[tuple[int, str]] = []
    try:
        for address, name in _walk(auxv, read):
            found.append((address, name))
    except (CoreFormatError, struct.error, OverflowError):  # cut off: what there is will do
        pass
    return found


def main_program(auxv: bytes) -> int:
    """An address in the main program; 0: it is not known."""
    known: dict[int, int] = dict(_PAIR.iter_unpack(auxv[: len(auxv) & -_PAIR.size]))
    return known.get(_AT_PHDR, 0)


def _walk(auxv: bytes, read: Read) -> Iterator[tuple[int, str]]:
    dynamic = _dynamic(auxv, read)
    r_debug = dict(_PAIR.iter_unpack(dynamic)).get(_DT_DEBUG) if dynamic else None
    if not r_debug:
        return  # linked statically
    (at,) = struct.unpack("<Q", read(r_debug + _MAP_AT, 8))
    seen: set[int] = set()
    while at and at not in seen and len(seen) < _MOST:
        seen.add(at)
        _, name_at, section, following = _LINK_MAP.unpack(read(at, _LINK_MAP.size))
        if name_at and (name := _text(read, name_at)):
            yield section, name
        at = following


def _dynamic(auxv: bytes, read: Read) -> bytes:
    """The main program's dynamic section; empty: it has none."""
    known = dict(_PAIR.iter_unpack(auxv[: len(auxv) & -_PAIR.size]))
    at, count = known.get(_AT_PHDR), min(known.get(_AT_PHNUM, 0), _MAX_HEADERS)
    if not at:
        return b""
    headers = list(arch.PHDR.iter_unpack(read(at, count * arch.PHDR.size)))
    own = next((header[3] for header in headers if header[0] == _PT_PHDR), None)
    bias = 0 if own is None else at - own
    for kind, _, _, address, _, _, size, _ in headers:
        if kind == _PT_DYNAMIC:
            return read(bias + address & (1 << 64) - 1, min(size, _MAX_DYNAMIC) & -_PAIR.size)
    return b""


def _text(read: Read, at: int) -> str:
    """A string that ends with a zero; empty if it is none, or not UTF-8."""
    data = b""
    while b"\0" not in data and len(data) < _MAX_NAME:
        here = at + len(data)
        data += read(here, PAGE - here % PAGE)
    text, end, _ = data.partition(b"\0")
    try:
        return text.decode() if end else ""
    except UnicodeDecodeError:
        return ""
