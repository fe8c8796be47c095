"""Where an object that is mapped has a symbol that it exports, by its memory alone.

No file is opened: the headers, the dynamic section and the hash table of an object are mapped with
it. So the writer finds a symbol as the explaining child does, whatever became of the file. Source:
elf(5), and the GNU hash table as glibc's `do_lookup_x` reads it. Pure; all of it is hostile, and
each look-up reads a bounded number of bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from collector.arch import elf as arch
from collector.arch.x86_64 import PAGE

Read = Callable[[int, int], bytes]  # address, size -> as many bytes as there are

_PT_DYNAMIC = 2
_DT_STRTAB, _DT_SYMTAB, _DT_GNU_HASH = 5, 6, 0x6FFFFEF5
_MAX_HEADERS = 64
_MAX_DYNAMIC = 4096  # bytes of a dynamic section
_MAX_CHAIN = 4096  # symbols with hashes in one bucket
_PIECE = 64  # symbols of a chain that are read at a time
_SYM = struct.Struct("<IBBHQQ")  # name, info, other, shndx, value, size: Elf64_Sym
_HASH = struct.Struct("<IIII")  # buckets, first symbol, words of the filter, its shift


class Absent(Exception):
    """Memory that is needed is not there, or has no sense."""


def exactly(read: Read, address: int, size: int) -> bytes:
    """All of it, or Absent."""
    data = read(address, size) if 0 < address < 1 << 47 else b""
    if len(data) != size:
        raise Absent(f"memory at {address:#x} is missing")
    return data


def exported(read: Read, start: int, name: str) -> int | None:
    """The address of a symbol of the object whose first byte is at `start`; None: it has none."""
    try:
        return _lookup(read, start, name.encode())
    except (Absent, struct.error):
        return None


def _lookup(read: Read, start: int, name: bytes) -> int | None:
    header = arch.EHDR.unpack(exactly(read, start, arch.EHDR.size))
    if header[0][:7] != arch.E_IDENT[:7] or not 0 < header[10] <= _MAX_HEADERS:
        return None
    headers = list(
        arch.PHDR.iter_unpack(exactly(read, start + header[5], header[10] * arch.PHDR.size))
    )
    first = min((one[3] for one in headers if one[0] == arch.PT_LOAD), default=0) & -PAGE
    bias = start - first
    dynamic = next(((one[3], one[6]) for one in headers if one[0] == _PT_DYNAMIC), None)
    if dynamic is None:
        return None
    data = exactly(read, bias + dynamic[0], min(dynamic[1], _MAX_DYNAMIC) & -16)
    found = dict(reversed(list(struct.iter_unpack("<QQ", data))))

    def place(tag: int) -> int:
        """glibc has added the bias already, musl has not."""
        value = found.get(tag, 0)
        if not value:
            raise Absent("its dynamic section lacks a table")
        return int(value if value >= start else value + bias)

    table, symbols, names = place(_DT_GNU_HASH), place(_DT_SYMTAB), place(_DT_STRTAB)
    for number in _candidates(read, table, _hash(name)):
        symbol = _SYM.unpack(exactly(read, symbols + _SYM.size * number, _SYM.size))
        if symbol[3] and read(names + symbol[0], len(name) + 1) == name + b"\0":
            return (bias + int(symbol[4])) & (1 << 64) - 1
    return None


def _candidates(read: Read, table: int, wanted: int) -> list[int]:
    """The numbers of the symbols with this hash, but for its last bit."""
    buckets, first, words, _ = _HASH.unpack(exactly(read, table, _HASH.size))
    if not buckets:
        return []
    heads = table + _HASH.size + 8 * words
    (number,) = struct.unpack("<I", exactly(read, heads + 4 * (wanted % buckets), 4))
    found: list[int] = []
    if number < first:
        return found
    chain = heads + 4 * buckets
    for at in range(number, number + _MAX_CHAIN, _PIECE):
        data = read(chain + 4 * (at - first), 4 * _PIECE)
        for step, (one,) in enumerate(struct.iter_unpack("<I", data[: len(data) & -4])):
            if one | 1 == wanted | 1:
                found.append(at + step)
            if one & 1:  # the last one of the bucket
                return found
        if len(data) < 4 * _PIECE:
            break
    return found


def _hash(name: bytes) -> int:
    value = 5381
    for byte in name:
        value = (value * 33 + byte) & 0xFFFF_FFFF
    return value
