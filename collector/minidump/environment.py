"""The environment of a process, from its memory in a core.

The kernel puts it on the main thread's stack before the first instruction: the pointers to the
arguments, a zero, those to the variables, a zero, the auxiliary vector. The core has a copy of that
vector, by which the place is found. The process may have written anything there since.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from collector.arch.x86_64 import PAGE
from collector.errors import CoreFormatError

Read = Callable[[int, int], bytes]
_AT_RANDOM = 25  # <elf.h>: an address on that stack, above all of this
_REACH = 4 << 20  # bytes below it that are looked at: there may be as many pointers
_MOST = 256 << 10  # bytes of variables
_MOST_ONE = 32 << 10  # bytes of one
_MOST_COUNT = 4096
_MAX_AUXV = 1024  # bytes; the kernel's has 416 at most. What is looked for in all of that memory


def environment(auxv: bytes, read: Read) -> bytes:
    """The variables, each with a zero at its end; as many as can be read, empty if none can.

    read(address, size) raises CoreFormatError where there is no memory.
    """
    whole = auxv[: len(auxv) & -16]
    mark = dict(struct.iter_unpack("<QQ", whole)).get(_AT_RANDOM)
    if not mark or not 0 < len(whole) <= _MAX_AUXV:
        return b""
    below = _below(mark, read)
    at = below.rfind(whole)
    if at < 8 or at % 8 != -(mark - len(below)) % 8:
        return b""
    words = struct.unpack(f"<{at // 8}Q", below[at % 8 : at])
    pointers: list[int] = []
    for word in reversed(words[:-1]):  # but for the zero that ends them
        if word == 0 or len(pointers) == _MOST_COUNT:
            break
        pointers.append(word)
    found = bytearray()
    for pointer in reversed(pointers):
        text = _text(pointer, read)
        if text is None or len(found) + len(text) > _MOST:
            break
        if text:  # else it was redacted, or is gone
            found += text + b"\0"
    return bytes(found)


def _below(mark: int, read: Read) -> bytes:
    """The memory right below an address, as far down as there is some."""
    parts: list[bytes] = []
    at, low = mark, max(0, mark - _REACH)
    while at > low:
        start = max(low, (at - 1) & -PAGE)
        try:
            parts.append(read(start, at - start))
        except CoreFormatError:
            break
        at = start
    return b"".join(reversed(parts))


def _text(at: int, read: Read) -> bytes | None:
    """A string that ends with a zero; None: there is none."""
    data = b""
    while b"\0" not in data:
        if len(data) > _MOST_ONE:
            return None
        here = at + len(data)
        try:
            data += read(here, PAGE - here % PAGE)
        except CoreFormatError:
            return None
    return data[: data.index(b"\0")]
