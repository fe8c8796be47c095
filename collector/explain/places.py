"""What lies where in the address space of a core: mappings, their neighbours, stacks.

Pure. Mappings come from a dead process: their number is bounded by the reader, their names here.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Sequence

import msgspec

from collector.arch.x86_64 import FS_BASE, PAGE
from collector.diagnosis import Mapping
from collector.elfcore import types
from collector.elfcore.types import Prot, Thread

_AT_RANDOM, _AT_SYSINFO_EHDR = 25, 33  # <elf.h>
_NAMES = {_AT_RANDOM: "[stack]", _AT_SYSINFO_EHDR: "[vdso]"}
_VSYSCALL = 0xFFFF_FFFF_FF60_0000  # where every process has it, <asm/vsyscall.h>
_MAX_NAME = 1024  # characters
_REACH = 64 << 20  # bytes that one function takes of the stack at most
_ALL = Prot.R | Prot.W | Prot.X


class Places:
    """The mappings of one core, by address."""

    def __init__(self, mappings: Sequence[types.Mapping], auxv: bytes | None) -> None:
        self._mappings = _joined(sorted(mappings, key=lambda m: m.start))
        self._starts = [m.start for m in self._mappings]
        whole = (auxv or b"")[: len(auxv or b"") & -16]
        self._marks = {kind: at for kind, at in struct.iter_unpack("<QQ", whole) if kind in _NAMES}

    def at(self, address: int) -> Mapping | None:
        """What holds the address."""
        number = bisect.bisect_right(self._starts, address) - 1
        if number < 0 or address >= self._mappings[number].end:
            return None
        return self._named(self._mappings[number])

    def below(self, address: int) -> Mapping | None:
        """The nearest one that ends at or below it; distance: bytes from its last one."""
        number = bisect.bisect_right(self._starts, address) - 1
        if number >= 0 and address < self._mappings[number].end:
            number -= 1
        if number < 0:
            return None
        found = self._named(self._mappings[number])
        return msgspec.structs.replace(found, distance=address - found.end + 1)

    def above(self, address: int) -> Mapping | None:
        """The nearest one that begins above it; distance: bytes to its first one."""
        number = bisect.bisect_right(self._starts, address)
        if number == len(self._mappings):
            return None
        found = self._named(self._mappings[number])
        return msgspec.structs.replace(found, distance=found.start - address)

    def stack_of(self, thread: Thread, *, main: bool) -> Mapping | None:
        """The stack that it was started with. The C library puts a thread's own data on top of it;
        the main thread's is where the kernel puts its random bytes."""
        mark = self._marks.get(_AT_RANDOM) if main else thread.regs[FS_BASE]
        found = self.at(mark) if mark else None
        return found if found is not None and found.permissions[1] == "w" else None

    def is_in_heap(self, address: int) -> bool:
        """Whether memory there is such as allocators hand out: writable, private to no file."""
        found = self.at(address)
        return found is not None and found.permissions[1] == "w" and found.name is None

    def _named(self, m: types.Mapping) -> Mapping:
        name = m.path if m.start != _VSYSCALL else "[vsyscall]"
        for kind, at in self._marks.items():
            if name is None and m.start <= at < m.end:
                name = _NAMES[kind]
        letters = "".join(
            letter if m.prot & bit else "-"
            for letter, bit in (("r", Prot.R), ("w", Prot.W), ("x", Prot.X))
        )
        clean = None if name is None else name[:_MAX_NAME].encode("utf-8", "replace").decode()
        return Mapping(start=m.start, end=m.end, permissions=letters, name=clean)


def _joined(mappings: Sequence[types.Mapping]) -> list[types.Mapping]:
    """A mapping that a core holds in parts is one."""
    found: list[types.Mapping] = []
    for m in mappings:
        last = found[-1] if found else None
        if last is not None and last.end == m.start and _alike(last, m):
            found[-1] = msgspec.structs.replace(last, end=m.end)
        elif m.end > m.start:
            found.append(m)
    return found


def _alike(one: types.Mapping, other: types.Mapping) -> bool:
    if one.prot & _ALL != other.prot & _ALL or one.path != other.path:
        return False
    return one.path is None or one.offset + one.size == other.offset


def is_overflow(stack: Mapping, sp: int, address: int) -> bool:
    """Whether an access at `address` ran over the lower end of a thread's stack: the stack pointer
    has come to that end, or has passed it."""
    near = stack.start - _REACH <= sp < stack.start + PAGE
    return near and sp - PAGE <= address < stack.start
