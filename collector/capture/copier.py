"""Copying the memory of a process that waits: by coreward-copy, a small program in C.

It starts in a millisecond, where a writer takes a hundred; it can be killed, and left behind where
a page of the process keeps it waiting. The copy is a file in memory, so whoever has its descriptor
has it, however many processes it goes through. The mirror of collector/native/copier.h.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import subprocess
import time
from collections.abc import Callable, Sequence

from collector.capture.parts import Copy, Part, Source
from collector.errors import CaptureError
from collector.linux import children
from collector.linux.fresh import memory_file
from collector.native.build import COPIER, find

_GRACE_S = 1.0  # for a copier that did not keep to its time
_HURRY_S = 0.25  # the same, where others are kept waiting: one that starts late, or hangs
_EXIT_S = 0.1
_ORDER = struct.Struct("=QqQ5iIQ")  # struct order
_PART = struct.Struct("=QQqiI")  # struct part
_ANSWER = struct.Struct("=qQQQ")  # struct answer


class NoRoom(CaptureError):
    """Not all of it fits, and nothing was copied."""


def make_copy(
    parts: Sequence[Part],
    source: Source,
    room: int,
    seconds: float,
    *,
    whole: bool = False,
    copied: Callable[[], object] | None = None,
) -> Copy:
    """Copy these parts, the first ones first, as far as `room` bytes and the time go.

    It returns in time, whatever the process does. whole: rather nothing than not all of it.
    copied: others wait until this is called, at once when nothing more is copied; then the first
    part is copied even if the time is over. Raises NoRoom, CaptureError if nobody could copy, and
    OSError if its address space is gone.
    """
    until_ns = time.monotonic_ns() + int(seconds * 1e9)
    program = find(COPIER)
    if program is None:
        raise CaptureError(f"{COPIER} was not built: run `make setup`")
    if children.hanging() >= children.MAX_HANGING:
        raise CaptureError("too many processes hang in the kernel")
    with contextlib.ExitStack() as undo:
        area = memory_file()
        undo.callback(os.close, area)
        order = (
            room,
            until_ns,
            copied is not None,
            *source,
            area,
            whole,
            len(parts),
        )
        listed = [
            _PART.pack(part.start, part.end, part.offset, part.fd, part.kind) for part in parts
        ]
        fds = {area, source.pidfd, source.mem_fd, source.pagemap_fd, *(part.fd for part in parts)}
        with os.fdopen(os.memfd_create("coreward-order", os.MFD_CLOEXEC), "w+b") as file:
            file.write(b"".join((_ORDER.pack(*order), *listed)))
            file.flush()
            copier = children.start(
                [str(program)],
                0 if copied is None else children.AHEAD,
                stdin=file,
                stdout=subprocess.PIPE,
                pass_fds=tuple(fds - {-1}),
            )
        said = _answer_of(copier, seconds + (_GRACE_S if copied is None else _HURRY_S))
        if copied is not None:
            copied()
        if said:
            children.has_ended(copier.pid, _EXIT_S)  # else it would be a death of its own
        children.kill(copier, _EXIT_S)
        if len(said) != _ANSWER.size:
            raise CaptureError("its memory could not be copied in time")
        error, size, table, pieces = _ANSWER.unpack(said)
        if error:
            raise OSError(error, os.strerror(error))
        if whole and size > room:
            raise NoRoom(f"there are {size} bytes, and room for {room}")
        undo.pop_all()
    return Copy(area, size, table, pieces)


def _answer_of(copier: subprocess.Popen[bytes], seconds: float) -> bytes:
    """What it says; nothing if it does not in that time."""
    assert copier.stdout is not None
    with copier.stdout as pipe:
        answer = select.poll()
        answer.register(pipe, select.POLLIN)
        return os.read(pipe.fileno(), _ANSWER.size) if answer.poll(seconds * 1e3) else b""
