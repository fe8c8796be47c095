"""Where CPython keeps what its frames are made of: offsets in bytes, for each version.

Since 3.13 an interpreter says so itself: `_PyRuntime` begins with a `_Py_DebugOffsets`
(Include/internal/pycore_debug_offsets.h; in 3.13 it is in pycore_runtime.h). For 3.11 and 3.12 the
offsets are those of its headers, which do not change within a version. Older ones have frames of
another kind, and are not read. Pure.

Not pystack, which reads a core as well (1.7.2, tried: 0.1 to 0.3 s and 30 MiB for a process of 80
MiB): it needs the whole heap in a file and the libraries at their paths on this host. Here frames
must come from a small core, made of the pages that this reader asked for while the process was
there, of a process whose files may be in another root, or gone.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from collector.explain.exported import Absent, Read, exactly

_COOKIE = b"xdebugpy"
_HEAD = struct.Struct("<8sQQ")  # cookie, version, whether it has no global lock
_MAX_OFFSET = 1 << 20  # of anything in a struct


class Layout(NamedTuple):
    """Offsets of fields, in their structs. Those with a default are the same in 3.11 and 3.12."""

    interpreters: int  # in _PyRuntimeState: the first interpreter
    threads: int  # in PyInterpreterState: the first thread
    thread_id: int  # in PyThreadState: what pthread_self(3) gives
    frame: int  # the innermost frame, or what leads to it
    through: int | None  # the offset of the innermost frame in what `frame` leads to
    previous: int  # in _PyInterpreterFrame
    code: int
    owner: int
    entry: int | None  # whether C code has called the interpreter for this frame
    shim: int  # or the least owner of a frame that has no function, and only marks such a call
    first_line: int  # in PyCodeObject
    bytecode: int
    ascii: int  # size of a PyASCIIObject, behind which the text is
    compact: int  # the same of a PyCompactUnicodeObject
    next_interpreter: int = 0
    next_thread: int = 8
    instruction: int = 56
    filename: int = 112
    name: int = 128
    lines: int = 136
    length: int = 16  # in PyASCIIObject
    state: int = 32
    bytes_size: int = 16
    bytes_data: int = 32


_NO_SHIM = 256  # an owner is one byte
_KNOWN = {
    (3, 11): Layout(
        interpreters=40,
        threads=16,
        thread_id=152,
        frame=56,
        through=8,
        previous=48,
        code=32,
        owner=69,
        entry=68,
        shim=_NO_SHIM,
        first_line=72,
        bytecode=184,
        ascii=48,
        compact=72,
    ),
    (3, 12): Layout(
        interpreters=40,
        threads=72,
        thread_id=136,
        frame=56,
        through=0,
        previous=8,
        code=0,
        owner=70,
        entry=None,
        shim=3,  # FRAME_OWNED_BY_CSTACK
        first_line=68,
        bytecode=192,
        ascii=40,
        compact=56,
    ),
}
# The words of each part of _Py_DebugOffsets, in their order: runtime, interpreter, thread, frame,
# code, object, type, tuple, list, (set,) dict, float, long, bytes, unicode
_PARTS = {
    (3, 13): (3, 13, 9, 6, 10, 2, 4, 3, 3, 3, 2, 3, 3, 4),
    (3, 14): (3, 16, 9, 8, 11, 2, 4, 3, 3, 4, 3, 2, 3, 3, 4),
}
_SHIMS = {(3, 13): 3, (3, 14): 3}  # FRAME_OWNED_BY_CSTACK; FRAME_OWNED_BY_INTERPRETER


def layout_of(read: Read, runtime: int, version: int | None) -> Layout:
    """runtime: the address of `_PyRuntime`. version: what `Py_Version` says. Absent: why there is
    none."""
    cookie, told, _ = _HEAD.unpack(exactly(read, runtime, _HEAD.size))
    if cookie == _COOKIE:
        return _told_layout(read, runtime + _HEAD.size, told)
    if version is None:
        raise Absent("the frames of a Python before 3.11 are not read")
    found = _KNOWN.get(number(version))
    if found is None:
        raise Absent(f"the frames of Python {spelled(version)} are not read")
    return found


def _told_layout(read: Read, at: int, version: int) -> Layout:
    key = number(version)
    parts = _PARTS.get(key)
    if parts is None:
        raise Absent(f"the frames of Python {spelled(version)} are not read")
    words = struct.unpack(f"<{sum(parts)}Q", exactly(read, at, 8 * sum(parts)))
    if max(words) > _MAX_OFFSET:
        raise Absent("its table of offsets is damaged")
    split = []
    for count in parts:
        split.append(words[:count])
        words = words[count:]
    runtime, interpreter, thread, frame, code = split[:5]
    data, text = split[-2:]
    return Layout(
        interpreters=runtime[2],
        next_interpreter=interpreter[2],
        threads=interpreter[3],
        next_thread=thread[2],
        thread_id=thread[5],
        frame=thread[4],
        through=None,
        previous=frame[1],
        code=frame[2],
        instruction=frame[3],
        owner=frame[5],
        entry=None,
        filename=code[1],
        name=code[3],
        lines=code[4],
        first_line=code[5],
        bytecode=code[9],
        state=text[1],
        length=text[2],
        ascii=text[3],
        compact=text[3] + 16,  # utf8_length, utf8
        bytes_size=data[1],
        bytes_data=data[2],
        shim=_SHIMS[key],
    )


def number(version: int) -> tuple[int, int]:
    """(3, 11) of PY_VERSION_HEX."""
    return version >> 24 & 0xFF, version >> 16 & 0xFF


def spelled(version: int) -> str:
    """`3.11.7` of PY_VERSION_HEX."""
    major, minor = number(version)
    return f"{major}.{minor}.{version >> 8 & 0xFF}"
