"""Allocators that are recognised, and not read: by the name of their library, or their symbols.

What they sample is in tables of theirs whose form differs from build to build. Said is which one it
is, and whether its settings in the environment ask for samples.
"""

from __future__ import annotations

import contextlib
import re
from typing import NamedTuple

from collector.heap.memory import Memory, NotInCore
from collector.heap.objects import Objects
from collector.model import Allocator, HeapProfile

_MAX_STRINGS = 1 << 20  # bytes at the end of the first stack: arguments and environment
_AT_EXECFN = 31  # <linux/auxvec.h>: its string lies behind the environment
_PAGE = 4096


class _Kind(NamedTuple):
    """How an allocator is known: its library's name, symbols, and what asks it for samples."""

    library: str
    symbols: tuple[str, ...]
    setting: re.Pattern[bytes]


_KINDS = {
    Allocator.JEMALLOC: _Kind(
        "libjemalloc.",
        ("je_malloc_conf", "_rjem_malloc_conf", "malloc_conf", "je_arenas_lock"),
        re.compile(rb"\0_?(?:RJEM_)?MALLOC_CONF=[^\0]*prof:true[^\0]*\0"),
    ),
    Allocator.TCMALLOC: _Kind(
        "libtcmalloc",
        ("tc_malloc", "TCMallocInternalMalloc", "tc_version"),
        re.compile(rb"\0(?:HEAPPROFILE|TCMALLOC_SAMPLE_PARAMETER)=[^\0]+\0"),
    ),
    Allocator.MIMALLOC: _Kind("libmimalloc", ("mi_malloc", "mi_version"), re.compile(rb"(?!)")),
}


def find_others(memory: Memory, objects: Objects, auxv: bytes) -> list[HeapProfile]:
    """Those that the process has mapped, or is linked with."""
    found = []
    symbols = _symbols_of_main(objects)
    for allocator, kind in _KINDS.items():
        library = next((one for one in objects.all if one.name.startswith(kind.library)), None)
        if library is None and not symbols.intersection(kind.symbols):
            continue
        asked = kind.setting.search(_environment(memory, auxv))
        where = "the program itself" if library is None else library.name
        if asked is None:
            why = f"{allocator.value} (in {where}) is not asked for samples by its environment"
        else:
            said = asked.group()[1:-1].decode("utf-8", "replace")[:200]
            why = f"{allocator.value} (in {where}) samples ({said}), which only its own tools read"
        found.append(HeapProfile(allocator=allocator, lost={"profile": why}))
    return found


def _symbols_of_main(objects: Objects) -> set[str]:
    main = objects.main
    if main is None:
        return set()
    wanted = [name for kind in _KINDS.values() for name in kind.symbols]
    with contextlib.suppress(OSError, ValueError), objects.open(main) as opened:
        return set(opened.elf.symbols(wanted))
    return set()


def _environment(memory: Memory, auxv: bytes) -> bytes:
    """The strings that it was started with, as its first stack has them: execve(2)."""
    for at in range(0, len(auxv) - 15, 16):
        if int.from_bytes(auxv[at : at + 8], "little") == _AT_EXECFN:
            end = int.from_bytes(auxv[at + 8 : at + 16], "little")
            break
    else:
        return b""
    parts: list[bytes] = []
    at = end
    with contextlib.suppress(NotInCore):  # as far as it goes
        while end - at < _MAX_STRINGS:
            begin = max(0, (at - 1) & -_PAGE)
            parts.append(memory.block(begin, at - begin))
            at = begin
    return b"".join(reversed(parts)) + b"\0"
