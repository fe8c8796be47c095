"""The goroutines of a dead Go process, and why it panicked, by its memory.

Without symbols and files: the runtime's slice of all goroutines (`runtime.allgs`) is the one in its
uninitialised data whose elements are goroutines, and a goroutine has a word that leads to itself
(`g.sched.g`), from which the other fields are counted (src/runtime/runtime2.go, Go 1.18 to 1.25).
So the writer finds them as the explaining child does. Pure. The process may have written anything
there: each loop is bounded, and so are the goroutines that are looked at.
"""

from __future__ import annotations

import bisect
import contextlib
import re
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from collector.arch.x86_64 import PAGE
from collector.elfcore.types import Mapping, Prot
from collector.explain.exported import Absent, Read, exactly
from collector.ranges import Range, union

_MAGIC = b"\xff Go buildinf:"
_MAX_BUILD_INFO = 64 << 10  # bytes of an object's data in which it is looked for
_MAX_DATA = 4 << 20  # bytes of data that are looked through
_MAX_CANDIDATES = 1 << 14
_MAX_GOROUTINES = 1 << 20
KEPT = 256  # goroutines that a small core has
_MAX_MESSAGE = 1024  # bytes
_MAX_STACK = 1 << 30  # of a goroutine
_MAX_CALLERS = 12
_AT_ENTRY = 9  # <linux/auxvec.h>
_MINORS = range(18, 26)  # of Go 1.x whose goroutines are known
_G = 240  # bytes of a struct g that are read
_PANIC, _M = 32, 48  # in it
_SELF = range(56, 97, 8)  # where `sched.g` may be
_SCAN = 0x1000  # _Gscan
_STATES = {
    1: "runnable",
    2: "running",
    3: "in a system call",
    4: "waiting",
    8: "copying its stack",
    9: "preempted",
}
_DEAD = (0, 5, 6, 7)
_KIND = 23  # in struct _type, one byte
_KINDS = {
    **{2: "<q", 3: "<b", 4: "<h", 5: "<i", 6: "<q", 7: "<Q", 8: "<B", 9: "<H", 10: "<I", 11: "<Q"},
    **{13: "<f", 14: "<d"},
}
_BOOL, _STRING = 1, 24
_FATAL = re.compile(rb"fatal error: ([\x20-\x7e]{1,400})\n")


class Goroutine(NamedTuple):
    """One that is not dead. pc, sp, bp: where it goes on; None: its thread's registers say."""

    id: int
    state: str
    pc: int | None
    sp: int
    bp: int
    callers: tuple[int, ...]  # return addresses, by the frame pointers


class _Fields(NamedTuple):
    """Offsets in struct g."""

    own: int  # sched.g; sp and pc are before it
    bp: int
    call_sp: int  # syscallsp; syscallpc is behind it
    has_call_bp: bool  # and then syscallbp
    status: int
    id: int


class Go:
    """The runtime of one process. read: its memory, as many bytes as there are."""

    def __init__(
        self, read: Read, search: Read, bss: list[Range], slots: int, version: str
    ) -> None:
        """search: as `read`, for what is only looked through. bss: uninitialised data. slots: where
        `runtime.allgs` is. Absent: it is not there."""
        self._read, self._search, self._bss, self.version = read, search, bss, version
        self._array, self.count, _ = struct.unpack("<QQQ", exactly(read, slots, 24))
        self._fields = _fields_of(read, _word(read, self._array), version)

    def goroutines(self, most: int) -> Iterator[Goroutine]:
        """The first ones that are not dead. Absent: memory is missing."""
        for number in range(min(self.count, most)):
            address = _word(self._read, self._array + 8 * number)
            found = self._goroutine(address)
            if found is not None:
                yield found

    def message(self, anywhere: Read, most: int) -> str | None:
        """What the runtime says of its end: the value of a panic, or of a fatal error.

        anywhere: reads also what is in the program's file only. most: as many goroutines are asked.
        """
        for number in range(min(self.count, most)):
            with contextlib.suppress(Absent):
                address = _word(self._read, self._array + 8 * number)
                data = exactly(self._read, address, _G)
                state = self._u32(data, self._fields.status) & ~_SCAN
                panic = _word_in(data, _PANIC)
                if panic and state == 2 and (said := self._value(panic, anywhere)) is not None:
                    return said
        return self._fatal()

    def _goroutine(self, address: int) -> Goroutine | None:
        data, fields = exactly(self._read, address, _G), self._fields
        status = self._u32(data, fields.status) & ~_SCAN
        if status in _DEAD:
            return None
        state = _STATES.get(status, f"state {status}")
        number = _word_in(data, fields.id)
        if status == 2:
            return Goroutine(number, state, None, 0, 0, ())
        sp, pc = (_word_in(data, fields.own - at) for at in (16, 8))
        bp = _word_in(data, fields.bp)
        if status == 3:
            sp, pc, bp = (_word_in(data, fields.call_sp + at) for at in (0, 8, 16))
            bp = bp if fields.has_call_bp else 0
        low, high = _word_in(data, 0), _word_in(data, 8)
        return Goroutine(number, state, pc, sp, bp, tuple(self._callers(bp, low, high)))

    def _callers(self, bp: int, low: int, high: int) -> Iterator[int]:
        """As far as the frame pointers rise within the stack."""
        for _ in range(_MAX_CALLERS):
            if not low <= bp <= high - 16 or bp % 8:
                return
            data = self._read(bp, 16)
            if len(data) < 16:
                return
            low = bp + 16
            bp, pc = struct.unpack("<QQ", data)
            yield pc

    @staticmethod
    def _u32(data: bytes, at: int) -> int:
        return int.from_bytes(data[at : at + 4], "little")

    def _value(self, panic: int, anywhere: Read) -> str | None:
        """That of a struct _panic: the runtime has made a string of errors before it says them."""
        kind, value = struct.unpack("<QQ", exactly(self._read, panic + 8, 16))
        number = exactly(anywhere, kind + _KIND, 1)[0] & 31
        if number == _STRING:
            address, size = struct.unpack("<QQ", exactly(self._read, value, 16))
            return anywhere(address, min(size, _MAX_MESSAGE)).decode("utf-8", "replace")
        if number == _BOOL:
            return "true" if exactly(anywhere, value, 1)[0] else "false"
        layout = _KINDS.get(number)
        if layout is None:
            return None
        return str(struct.unpack(layout, exactly(anywhere, value, struct.calcsize(layout)))[0])

    def _fatal(self) -> str | None:
        """What `runtime.throw` has written: it is kept in `runtime.printBacklog`."""
        for start, end in self._bss:
            for at in range(start, end, PAGE):
                data = self._search(at, min(PAGE, end - at))
                if b"fatal error: " in data and (found := _FATAL.search(data)) is not None:
                    self._read(at, 1)
                    return found[1].decode()
        return None


def _fields_of(read: Read, first: int, version: str) -> _Fields:
    """first: the goroutine of main(), whose number is 1 in each program. Absent: it is not."""
    data = exactly(read, first, _G)
    own = own_word(first, data)
    minor = re.match(r"go1\.(\d{1,3})\b", version)
    if own is not None and minor is not None and int(minor[1]) in _MINORS:
        bp = own + (24 if int(minor[1]) >= 25 else 32)  # behind ctxt, until 1.24 ret, and lr
        end = bp + (16 if int(minor[1]) >= 23 else 8)  # syscallbp
        found = _Fields(
            own=own, bp=bp, call_sp=bp + 8, has_call_bp=end > bp + 8, status=end + 32, id=end + 40
        )
        if _word_in(data, found.id) == 1:
            return found
    raise Absent(f"those of {version} have a form that is not known")


def find_go(
    read: Read, mappings: Iterable[Mapping], auxv: bytes, kept: Read | None = None
) -> Go | None:
    """The runtime of a Go process; None: it is none. Absent: why its goroutines are not found.

    kept: what is read through it is all that finding it again needs, in a core that has no more.
    """
    kept = kept or read
    mappings = sorted(mappings, key=lambda one: one.start)
    data, bss = _data_of(mappings, auxv)
    version = _version(kept, *data[0]) if data else None
    if version is None:
        return None
    writable = union((m.start, m.end) for m in mappings if m.prot & Prot.W)
    slots = _find_slots(read, data, writable)
    if slots is None:
        raise Absent(f"those of {version} are not in the core, or have another form")
    return Go(kept, read, bss, slots, version)


def program_version(read: Read, mappings: Iterable[Mapping], auxv: bytes) -> str | None:
    """`go1.19.8`; None: it is no Go program."""
    data, _ = _data_of(sorted(mappings, key=lambda one: one.start), auxv)
    return _version(read, *data[0]) if data else None


def _data_of(mappings: list[Mapping], auxv: bytes) -> tuple[list[Range], list[Range]]:
    """The program's writable data; and of that what is in no file, behind it."""
    pairs = struct.iter_unpack("<QQ", auxv[: len(auxv) & -16])
    entry = next((value for kind, value in pairs if kind == _AT_ENTRY), 0)
    path = next((m.path for m in mappings if m.start <= entry < m.end), None)
    found: list[Range] = []
    bss: list[Range] = []
    left = _MAX_DATA
    for m in mappings if path is not None else ():
        behind = bool(found) and m.start == found[-1][1] and m.path is None
        if m.prot & Prot.W and (m.path == path or behind) and left:
            part = m.start, min(m.end, m.start + left)
            left -= part[1] - part[0]
            found.append(part)
            if behind:
                bss.append(part)
    return union(found), union(bss)


def _version(read: Read, start: int, end: int) -> str | None:
    """`go1.19.8`: src/debug/buildinfo of Go, the form since 1.18."""
    for at in range(start, min(end, start + _MAX_BUILD_INFO), PAGE):
        data = read(at, PAGE)
        found = data.find(_MAGIC)
        if found >= 0 and found % 16 == 0 and len(data) > found + 33 and data[found + 15] & 2:
            size = min(data[found + 32], 127)
            return data[found + 33 : found + 33 + size].decode("ascii", "replace")
    return None


def _find_slots(read: Read, data: list[Range], writable: list[Range]) -> int | None:
    """The address of the slice of all goroutines."""
    starts = [start for start, _ in writable]

    def is_writable(address: int) -> bool:
        number = bisect.bisect_right(starts, address) - 1
        return number >= 0 and address < writable[number][1]

    left = _MAX_CANDIDATES
    for start, end in data:
        for page in range(start, end, PAGE):
            words = read(page, min(PAGE, end - page))
            for number, (word,) in enumerate(struct.iter_unpack("<Q", words[: len(words) & -8])):
                if not word or word % 8 or not is_writable(word):
                    continue
                if _is_slots(read, page + 8 * number):
                    return page + 8 * number
                left -= 1
                if not left:
                    return None
    return None


def _is_slots(read: Read, at: int) -> bool:
    with contextlib.suppress(Absent):
        array, count, room = struct.unpack("<QQQ", exactly(read, at, 24))
        if not 0 < count <= room <= _MAX_GOROUTINES:
            return False
        for number in range(min(count, 3)):
            address = _word(read, array + 8 * number)
            if own_word(address, exactly(read, address, _G)) is None:
                return False
        return True
    return False


def own_word(address: int, data: bytes) -> int | None:
    """Where a struct g has the word that leads to itself; None: it is none."""
    low, high = _word_in(data, 0), _word_in(data, 8)
    if address % 8 or not 0 <= high - low <= _MAX_STACK:
        return None
    return next((at for at in _SELF if _word_in(data, at) == address), None)


def _word(read: Read, address: int) -> int:
    return _word_in(exactly(read, address, 8), 0)


def _word_in(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 8], "little")
