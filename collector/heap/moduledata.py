"""What a Go program's linker told its runtime of it: `moduledata`, src/runtime/symtab.go of Go.

It is there also where symbols were stripped, and found by its first words, which lead into the
table of lines. With it the head of the runtime's list of buckets is found without a symbol: the
only word of the uninitialised data that leads to one.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable
from typing import NamedTuple

from collector.heap.memory import Memory, NotInCore
from collector.ranges import Range

# Numbers of its words: text and etext; bss, ebss, noptrbss, enoptrbss
_TEXT, _BSS = 22, 28
_WORDS = 44
_GOFUNC = {18: 38, 19: 38, **dict.fromkeys(range(20, 26), 40), 27: 43}  # by Go 1.x; 1.26: unseen
_MAX_BSS = 16 << 20  # bytes that are looked through
_MAX_STACK = 1030  # words of a bucket's stack
_MEM_PROFILE = 1  # bucketType


class ModuleData(NamedTuple):
    """Addresses in memory. inlined: of what tells which functions are inlined; None: not known."""

    text: Range
    bss: tuple[Range, ...]
    inlined: int | None


def find_module(
    memory: Memory, data: Iterable[tuple[int, bytes]], table: int, names: int, minor: int | None
) -> ModuleData | None:
    """In the program's writable data. table: the address of its table of lines, names: how far
    behind that its names of functions begin; minor: 19 for Go 1.19."""
    wanted = struct.pack("<QQ", table, table + names)
    for base, part in data:
        at = part.find(wanted)
        while at >= 0:
            if at % 8 == 0:
                with contextlib.suppress(NotInCore):
                    found = _module(memory.words(base + at, _WORDS), minor)
                    if found is not None:
                        return found
            at = part.find(wanted, at + 1)
    return None


def _module(words: tuple[int, ...], minor: int | None) -> ModuleData | None:
    text = words[_TEXT], words[_TEXT + 1]
    first, last = words[_TEXT - 2 : _TEXT]  # minpc, maxpc
    if not text[0] <= first < last <= text[1]:
        return None
    bss = [(words[at], words[at + 1]) for at in (_BSS, _BSS + 2)]
    whole = tuple((begin, end) for begin, end in bss if 0 < end - begin <= _MAX_BSS)
    number = _GOFUNC.get(minor or 0)
    return ModuleData(text, whole, None if number is None else words[number])


def find_buckets(memory: Memory, module: ModuleData) -> int | None:
    """The address of `mbuckets`, the head of the list; None: there is none, or not one only."""
    found = []
    for begin, end in module.bss:
        with contextlib.suppress(NotInCore):
            part = memory.block(begin, end - begin & -8)
            for number, (word,) in enumerate(struct.iter_unpack("<Q", part)):
                if word and word % 8 == 0 and not begin <= word < end:
                    with contextlib.suppress(NotInCore):
                        if _is_bucket(memory, word, module.text):
                            found.append(begin + 8 * number)
    return found[0] if len(found) == 1 else None


def _is_bucket(memory: Memory, at: int, text: Range) -> bool:
    """Whether a bucket of the memory profile is there, by its stack."""
    _, _, kind, _, size, depth = memory.words(at, 6)
    if kind != _MEM_PROFILE or not size or not 0 < depth <= _MAX_STACK:
        return False
    return all(text[0] < pc <= text[1] for pc in memory.words(at + 48, depth))
