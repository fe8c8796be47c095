"""The table of lines of a Go program: which function, file and line an address of code belongs to.

It is a section of the program's file, also where symbols were stripped. Sources: Go's
src/runtime/symtab.go, symtabinl.go, runtime2.go (`_func`) and src/debug/gosym/pclntab.go. Read
here: the two forms since 1.18. Pure; the file is hostile, and each loop is bounded.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Callable
from typing import NamedTuple

_HEADER = struct.Struct("<IxxBB8Q")  # magic, minLC, ptrSize, then words
_GO_118, _GO_120 = 0xFFFFFFF0, 0xFFFFFFF1
_MAX_FUNCTIONS = 1 << 22
_MAX_STEPS = 1 << 16  # of one table of values
_MAX_INLINED = 64  # functions in one place
_MAX_NAME = 256  # bytes of a function's or file's name; of a longer one there are the first
_NO_FUNCDATA = 0xFFFFFFFF
_INLINE_INDEX, _INLINE_TREE = 2, 3  # PCDATA_InlTreeIndex, FUNCDATA_InlTree


class Place(NamedTuple):
    """Where an address is. `inline`: of a function that is part of the next one's code."""

    function: str
    file: str | None
    line: int | None
    inline: bool


class _Form(NamedTuple):
    """Offsets, in bytes, of what differs between versions."""

    counts: int  # of nfuncdata in _func, its last byte
    inlined: int  # size of an inlinedCall
    name: int  # in it
    parent: int


_FORMS = {_GO_118: _Form(39, 20, 12, 16), _GO_120: _Form(43, 16, 4, 8)}


class _Function(NamedTuple):
    """Offsets of struct _func, and the address of its first instruction."""

    at: int
    entry: int
    name: int
    pcfile: int
    pcln: int
    unit: int
    pcdata: tuple[int, ...]
    funcdata: tuple[int, ...]


class LineTable:
    """A table, as the file has it, which must be placed before something is looked up.

    names: how far behind its begin the names of functions begin. text: the address of the code, as
    the file has it; 0 where the loader would fill it in. ValueError if it is of another
    version or damaged; looking something up may also raise struct.error or IndexError.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) < _HEADER.size:
            raise ValueError("there is none")
        magic, unit, pointer, functions, _, self.text, *offsets = _HEADER.unpack_from(data)
        if magic not in _FORMS or unit != 1 or pointer != 8:
            raise ValueError(f"its form {magic:#x} is not known")
        if functions > _MAX_FUNCTIONS or max(offsets) > len(data):
            raise ValueError("it is damaged")
        self._form, self._data = _FORMS[magic], data
        self.names, self._units, self._files, self._values, self._functions = offsets
        table = memoryview(data)[self._functions :][: 8 * functions + 4]
        self._starts = [start for start, _ in struct.iter_unpack("<II", table[:-4])]
        (self._end,) = struct.unpack("<I", table[-4:])
        self._text = 0
        self._inlined: int | None = None
        self._read: Callable[[int, int], bytes] | None = None

    def place(self, text: int, inlined: int | None, read: Callable[[int, int], bytes]) -> None:
        """Say where the code begins in memory, and where it is told which functions are inlined:
        the file's address, for `read(address, size)`; None: such functions are not named."""
        self._text, self._inlined, self._read = text, inlined, read

    def places(self, pc: int, following: int) -> list[Place]:
        """Of a return address: the innermost function first. Empty: it is none of this program.

        following: the next one of the stack. Where that already stands for the function around
        an inlined one, as runtime.Callers gives it, it is not repeated.
        """
        function = self._function(pc - 1)
        if function is None:
            return []
        places = []
        at = max(pc - 1, function.entry)
        for _ in range(_MAX_INLINED):
            index = self._value(function, self._of(function.pcdata, _INLINE_INDEX), at)
            call = self._inlined_call(function, index)
            name, parent = call or (function.name, None)
            file, line = self._line(function, at)
            places.append(Place(self._text_at(self.names + name), file, line, call is not None))
            if parent is None:
                break
            at = function.entry + parent
            if following == at + 1:
                break
        return places

    def _function(self, address: int) -> _Function | None:
        number = bisect.bisect_right(self._starts, address - self._text) - 1
        if number < 0 or address - self._text >= self._end:
            return None
        (offset,) = struct.unpack_from("<I", self._data, self._functions + 8 * number + 4)
        at = self._functions + offset
        entry, name, _, _, _, pcfile, pcln, count, unit = struct.unpack_from("<9I", self._data, at)
        counts = at + self._form.counts
        total = count + self._data[counts]
        if total > 1 << 10:
            raise ValueError("a function has too much")
        words = struct.unpack_from(f"<{total}I", self._data, counts + 1)
        return _Function(
            at, self._text + entry, name, pcfile, pcln, unit, words[:count], words[count:]
        )

    @staticmethod
    def _of(words: tuple[int, ...], number: int) -> int:
        return words[number] if number < len(words) else 0

    def _value(self, function: _Function, table: int, address: int) -> int:
        """pcvalue(): what a table of pairs of differences says for the address; -1: nothing."""
        if not table:
            return -1
        at, pc, value = self._values + table, function.entry, -1
        for step in range(_MAX_STEPS):
            delta, at = self._varint(at)
            if delta == 0 and step:
                break
            value += -(delta >> 1) - 1 if delta & 1 else delta >> 1
            delta, at = self._varint(at)
            pc += delta
            if address < pc:
                return value
        return -1

    def _varint(self, at: int) -> tuple[int, int]:
        value = shift = 0
        while shift < 35:
            byte = self._data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
        raise ValueError("a number has no end")

    def _inlined_call(self, function: _Function, index: int) -> tuple[int, int] | None:
        """The name of the function that is inlined, and where in `function` it is called."""
        if (
            index < 0
            or self._inlined is None
            or self._read is None
            or len(function.funcdata) <= _INLINE_TREE
        ):
            return None
        offset = function.funcdata[_INLINE_TREE]
        if offset == _NO_FUNCDATA:
            return None
        form = self._form
        data = self._read(self._inlined + offset + index * form.inlined, form.inlined)
        (name,) = struct.unpack_from("<I", data, form.name)
        (parent,) = struct.unpack_from("<I", data, form.parent)
        return name, parent

    def _line(self, function: _Function, address: int) -> tuple[str | None, int | None]:
        file = self._value(function, function.pcfile, address)
        line = self._value(function, function.pcln, address)
        if file < 0 or line < 0:
            return None, None
        (offset,) = struct.unpack_from("<I", self._data, self._units + 4 * (function.unit + file))
        if offset == _NO_FUNCDATA:
            return None, None
        return self._text_at(self._files + offset), line

    def _text_at(self, at: int) -> str:
        return self._data[at : at + _MAX_NAME].partition(b"\0")[0].decode("utf-8", "replace")
