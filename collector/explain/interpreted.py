"""Put the functions of an interpreter between the native frames that run them.

Runs in the explaining child only. One native frame of CPython's evaluation loop runs a number of
Python functions; they stand before it, as inlined functions stand before the one that they are in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from collector.arch.x86_64 import FS_BASE
from collector.elfcore.reader import CoreFile
from collector.errors import CoreFormatError
from collector.explain.blame import OUTERMOST
from collector.explain.mapped import joined
from collector.explain.modules import text
from collector.explain.python_frames import Call, Run, find_python
from collector.model import Frame

PYTHON = "python"
_LOOP = "_PyEval_EvalFrameDefault"  # since 3.6


class Interpreted:
    """The interpreter of a core's process. code: reads what is in a mapped file only."""

    def __init__(self, core: CoreFile, code: Callable[[int, int], bytes]) -> None:
        self._core, self._code = core, code
        files = core.notes.files or ()
        self._python, self._why = find_python(self._read, joined(files), core.auxv or b"")

    def _read(self, address: int, size: int) -> bytes:
        with contextlib.suppress(CoreFormatError, OverflowError):
            return self._core.read(address, size)
        return self._code(address, size)

    def added(
        self, registers: Sequence[int], frames: Sequence[Frame]
    ) -> tuple[list[Frame], str | None]:
        """The frames of a thread with those of the interpreter, and what is missing of these."""
        loops = [number for number, frame in enumerate(frames) if _is_loop(frame)]
        if not loops:
            return list(frames), None
        if self._python is None:
            return list(frames), self._why and f"those of Python: {self._why}"
        runs, why = self._python.runs(registers[FS_BASE])
        if why is not None:
            why = f"those of Python: {why}"
        elif len(runs) != len(loops) and frames[-1].function in OUTERMOST:
            # the innermost ones belong together all the same: what is cut is cut outside
            why = f"Python has {len(runs)} calls of its interpreter, the stack {len(loops)}"
        return _merged(frames, dict(zip(loops, runs, strict=False))), why


def _is_loop(frame: Frame) -> bool:
    """Also of what the compiler has split off from it."""
    return not frame.inline and (frame.function or "").split(".", 1)[0] == _LOOP


def _merged(frames: Sequence[Frame], runs: dict[int, Run]) -> list[Frame]:
    merged: list[Frame] = []
    for number, frame in enumerate(frames):
        if number in runs:
            merged += [_frame(call, frame) for call in runs[number].calls]
        merged.append(frame)
    return merged


def _frame(call: Call, loop: Frame) -> Frame:
    return Frame(
        pc=loop.pc,
        function=text(call.function),
        file=text(call.file),
        line=call.line,
        language=PYTHON,
    )
