"""Which functions of Python a thread of a dead CPython process was in, by its memory.

The chain is `_PyRuntime`, its interpreters, their threads, the frames of each, and the code object
of a frame, which tells name, file and lines (`python_layout` says where). The functions come in
*runs*: all that one call of the interpreter's evaluation loop runs, which is one native frame.
Pure. The process may have written anything there: counts and sizes are bounded, and nothing is
followed without end.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from collector.explain.exported import Absent, Read, exactly, exported
from collector.explain.python_layout import Layout, layout_of

_NAMES = ("python", "libpython")  # of files that have an interpreter; the program itself may, too
_MAX_OBJECTS = 16  # that are looked into
_MAX_INTERPRETERS = 64
_MAX_THREADS = 4096
_MAX_CALLS = 256  # of one thread; the innermost are read
_MAX_TEXT = 1024  # characters
_MAX_LINES = 1 << 16  # bytes of a table of lines
_MAX_CODES = 1 << 14  # code objects that are kept
_POINTER = ~7  # references have flags in the bits that an address has not
_KINDS = {1: "latin-1", 2: "utf-16-le", 4: "utf-32-le"}
_AT_ENTRY = 9  # <linux/auxvec.h>


class Call(NamedTuple):
    """A function that was called, and where it is in its file."""

    function: str
    file: str
    line: int | None


class Run(NamedTuple):
    """What one call of the evaluation loop runs, innermost first."""

    calls: tuple[Call, ...]


class _Code(NamedTuple):
    function: str
    file: str
    first_line: int
    lines: bytes


class Python:
    """The interpreter of one process. read: its memory, as many bytes as there are."""

    def __init__(self, read: Read, runtime: int, layout: Layout) -> None:
        self._read, self._layout = read, layout
        self._codes: dict[int, _Code] = {}
        self._known: dict[int, int] = {}
        self._others = self._find_threads(runtime)

    def _state_of(self, thread_id: int) -> int | None:
        """The PyThreadState of a thread. No further than needed: a process may have thousands, and
        what is read of them is kept in small cores."""
        while thread_id not in self._known:
            found = next(self._others, None)
            if found is None:
                return None
            self._known.setdefault(*found)
        return self._known[thread_id]

    def _find_threads(self, runtime: int) -> Iterator[tuple[int, int]]:
        """What pthread_self() gives, and the PyThreadState; as far as they can be read."""
        layout, left = self._layout, _MAX_THREADS
        interpreter = self._word(runtime + layout.interpreters)
        for _ in range(_MAX_INTERPRETERS):
            if not interpreter or not left:
                return
            with contextlib.suppress(Absent):
                thread = self._word(interpreter + layout.threads)
                while thread and left:
                    left -= 1
                    yield self._word(thread + layout.thread_id), thread
                    thread = self._word(thread + layout.next_thread)
            try:
                interpreter = self._word(interpreter + layout.next_interpreter)
            except Absent:
                return

    def runs(self, thread_id: int) -> tuple[list[Run], str | None]:
        """Those of the thread whose pthread_self() this is, the innermost first; and why the outer
        ones are missing, if they are."""
        runs: list[Run] = []
        calls: list[Call] = []
        why = None
        try:
            for call in self._calls(thread_id):
                if call is not None:
                    calls.append(call)
                elif calls:
                    runs.append(Run(tuple(calls)))
                    calls = []
        except Absent as error:
            why = str(error)
        return ([*runs, Run(tuple(calls))] if calls else runs), why

    def _calls(self, thread_id: int) -> Iterator[Call | None]:
        """The functions, the innermost first, with None behind the last one of each run."""
        state = self._state_of(thread_id)
        if state is None:
            return
        layout = self._layout
        frame = self._word(state + layout.frame)
        if layout.through is not None:
            frame = self._word(frame + layout.through)
        for _ in range(_MAX_CALLS):
            if not frame:
                return
            size = max(layout.owner, layout.entry or 0, layout.instruction + 7) + 1
            data = exactly(self._read, frame, size)
            marks = data[layout.owner] >= layout.shim
            if not marks:
                yield self._call(data)
            if marks or (layout.entry is not None and data[layout.entry]):
                yield None
            frame = _word_in(data, layout.previous)
        raise Absent(f"only the innermost {_MAX_CALLS} are read")

    def _call(self, frame: bytes) -> Call:
        address = _word_in(frame, self._layout.code) & _POINTER
        code = self._codes.get(address) or self._code(address)
        if len(self._codes) < _MAX_CODES:
            self._codes[address] = code
        offset = _word_in(frame, self._layout.instruction) - address - self._layout.bytecode
        line = line_at(code.lines, code.first_line, offset // 2)
        return Call(code.function, code.file, line)

    def _code(self, address: int) -> _Code:
        layout = self._layout
        size = max(layout.filename, layout.name, layout.lines, layout.first_line) + 8
        data = exactly(self._read, address, size)
        (first,) = struct.unpack_from("<i", data, layout.first_line)
        lines = b""
        with contextlib.suppress(Absent):
            lines = self._bytes(_word_in(data, layout.lines))
        return _Code(
            self._text(_word_in(data, layout.name)),
            self._text(_word_in(data, layout.filename)),
            first,
            lines,
        )

    def _bytes(self, address: int) -> bytes:
        size = self._word(address + self._layout.bytes_size)
        return exactly(self._read, address + self._layout.bytes_data, min(size, _MAX_LINES))

    def _text(self, address: int) -> str:
        """A str: all names of functions and files are of the compact kind (PEP 393)."""
        layout = self._layout
        head = exactly(self._read, address, layout.ascii)
        (state,) = struct.unpack_from("<I", head, layout.state)
        size = min(_word_in(head, layout.length), _MAX_TEXT)
        for shift in (2, 8, 16):  # how wide the field before is depends on the version and build
            kind, compact, is_ascii = state >> shift & 7, state >> shift & 8, state >> shift & 16
            if kind in _KINDS and compact:
                at = address + (layout.ascii if is_ascii else layout.compact)
                data = exactly(self._read, at, size * kind) if size else b""
                return data.decode(_KINDS[kind], "replace")
        raise Absent(f"there is no text at {address:#x}")

    def _word(self, address: int) -> int:
        return _word_in(exactly(self._read, address, 8), 0)


def _word_in(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 8], "little")


def find_python(
    read: Read, objects: Iterable[tuple[str, int, int]], auxv: bytes
) -> tuple[Python | None, str | None]:
    """The interpreter, or why there are no frames of it; neither: it is no CPython process.

    objects: path, and [start, end) in memory, of each that is mapped.
    """
    for runtime, version in _runtimes(read, objects, auxv):
        try:
            return Python(read, runtime, layout_of(read, runtime, version)), None
        except (Absent, struct.error) as error:
            return None, str(error)
    return None, None


def version_of_python(
    read: Read, objects: Iterable[tuple[str, int, int]], auxv: bytes
) -> int | None:
    """PY_VERSION_HEX of 3.11 and later; None: it is none, or older."""
    return next((version for _, version in _runtimes(read, objects, auxv)), None)


def _runtimes(
    read: Read, objects: Iterable[tuple[str, int, int]], auxv: bytes
) -> Iterator[tuple[int, int | None]]:
    """Where a `_PyRuntime` is, and the `Py_Version` beside it."""
    pairs = struct.iter_unpack("<QQ", auxv[: len(auxv) & -16])
    entry = next((value for kind, value in pairs if kind == _AT_ENTRY), 0)
    looked = 0
    for path, start, end in objects:
        if not PurePosixPath(path).name.startswith(_NAMES) and not start <= entry < end:
            continue
        looked += 1
        if looked > _MAX_OBJECTS:
            return
        runtime = exported(read, start, "_PyRuntime")
        if runtime is not None:
            at = exported(read, start, "Py_Version")
            data = b"" if at is None else read(at, 4)
            yield runtime, int.from_bytes(data, "little") if len(data) == 4 else None


def line_at(table: bytes, first: int, unit: int) -> int | None:
    """The line of the instruction with this number, by `co_linetable`.

    Its form is that since 3.11: Objects/locations.md of CPython. None: it has no line.
    """
    at, line, end = 0, first, 0
    try:
        while end <= unit:
            head = table[at]
            kind, end = head >> 3 & 15, end + (head & 7) + 1
            at += 1
            here: int | None = None
            if kind == 15:  # no location
                pass
            elif kind in (13, 14):
                value, at = _varint(table, at)
                line += -(value >> 1) if value & 1 else value >> 1
                for _ in range(3 if kind == 14 else 0):
                    _, at = _varint(table, at)
                here = line
            elif kind >= 10:
                line, at = line + kind - 10, at + 2
                here = line
            else:
                at, here = at + 1, line
            if end > unit:
                return here
    except IndexError:  # the table is damaged, or cut
        pass
    return None


def _varint(table: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 36:
        byte = table[at]
        at += 1
        value |= (byte & 63) << shift
        if not byte & 64:
            break
        shift += 6
    return value, at
