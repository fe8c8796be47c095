"""The C++ exception that a thread handles, or that nobody caught, as its memory says.

Pure: it reads through a function, which in the writer is the process's memory (what is read is then
kept for the explainer), and in the explaining child the core. The layout is that of the Itanium C++
ABI for exceptions (2.2.1) as libstdc++ and libc++ have it; where `what()` finds its text, that of
their std::logic_error and std::runtime_error, which are the same. Everything read is hostile: the
number and size of the reads are bounded, and nothing is followed twice.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

Read = Callable[[int, int], bytes]  # address, size -> as many bytes as there are

STACK = 16 << 10  # bytes above the stack pointer in which a pointer to it is looked for
_CLASSES = frozenset(struct.pack("<Q", n) for n in (0x474E5543432B2B00, 0x434C4E47432B2B00))
_TYPE, _COUNT, _OBJECT = -80, -40, 32  # from the header that unwinding uses
_MOST_HANDLERS = 1000
_MAX_BASES = 8
_MAX_NAME, _MAX_TEXT = 512, 1024  # bytes
_WITH_TEXT = frozenset([b"St11logic_error", b"St13runtime_error"])
_STRING = b"NSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"
_NUMBERS = {b"i": "<i", b"j": "<I", b"l": "<q", b"m": "<Q", b"x": "<q", b"y": "<Q"}
_WORD = struct.Struct("<Q")


class Thrown(NamedTuple):
    """An exception: the mangled name of its type, and its text, if it has one that can be read."""

    type: str
    what: str | None


def find_thrown(read: Read, words: Iterable[int]) -> Thrown | None:
    """The first exception in use that one of the words points to. words: bounded by the caller."""
    for word in dict.fromkeys(words):
        if word % 16 or word < 1 << 16 or read(word, 8) not in _CLASSES:
            continue
        count = read(word + _COUNT, 4)
        handlers = int.from_bytes(count, "little", signed=True) if len(count) == 4 else 0
        if not 0 < abs(handlers) < _MOST_HANDLERS:  # 0: it is over, and its memory given back
            continue
        names = _names(read, _pointer(read, word + _TYPE))
        if names:
            return Thrown(names[0].decode("ascii"), _what(read, names, word + _OBJECT))
    return None


def words_of(data: bytes) -> tuple[int, ...]:
    """The aligned words of a piece of memory."""
    return struct.unpack(f"<{len(data) // 8}Q", data[: len(data) & -8])


def _names(read: Read, type_info: int) -> list[bytes]:
    """The mangled names of a type and of its first bases, as far as they are at its beginning."""
    found: list[bytes] = []
    while type_info and len(found) < _MAX_BASES:
        name = _string(read, _pointer(read, type_info + 8), _MAX_NAME).removeprefix(b"*")
        if not name or not all(0x21 <= byte < 0x7F for byte in name):
            break
        found.append(name)
        type_info = _base(read, type_info)
    return found


def _base(read: Read, type_info: int) -> int:
    """That of the base class at offset 0; 0: none, or nonsense that leads nowhere."""
    word = _pointer(read, type_info + 16)
    flags, count = word & 0xFFFF_FFFF, word >> 32
    if flags < 16 and 0 < count < 64:  # of several bases: __vmi_class_type_info
        at_start = _pointer(read, type_info + 32) >> 8 == 0
        return _pointer(read, type_info + 24) if at_start else 0
    return word


def _what(read: Read, names: list[bytes], thrown: int) -> str | None:
    name = names[0]
    if _WITH_TEXT.intersection(names):
        return _text(_string(read, _pointer(read, thrown + 8), _MAX_TEXT))
    if name in (b"PKc", b"Pc"):
        return _text(_string(read, _pointer(read, thrown), _MAX_TEXT))
    if name == _STRING:
        size = min(_pointer(read, thrown + 8), _MAX_TEXT)
        return _text(read(_pointer(read, thrown), size)) if size else None
    layout = _NUMBERS.get(name)
    if layout is not None:
        data = read(thrown, struct.calcsize(layout))
        if len(data) == struct.calcsize(layout):
            return str(struct.unpack(layout, data)[0])
    return None


def _pointer(read: Read, address: int) -> int:
    data = read(address, 8)
    return int(_WORD.unpack(data)[0]) if len(data) == 8 else 0


def _string(read: Read, address: int, most: int) -> bytes:
    """Up to its NUL; what has none is cut. Page by page: the next one may not be there."""
    found = b""
    while address and len(found) < most:
        data = read(address, min(4096 - address % 4096, most - len(found)))
        end = data.find(b"\0")
        if end >= 0 or not data:
            return found + data[: max(end, 0)]
        found, address = found + data, address + len(data)
    return found


def _text(data: bytes) -> str | None:
    return data.decode("utf-8", "replace") or None
