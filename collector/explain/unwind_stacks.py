"""Unwind many stacks of one process that were copied at different moments.

A core has one memory, and these stacks lie over one another. So the core tells the mappings and
the objects, and each stack is put over its memory while it is unwound. Runs in the explaining
child only; registers and stacks come from any process, and are hostile.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import drgn

from collector.elfcore.reader import CoreFile
from collector.errors import CoreFormatError
from collector.explain.files import Root
from collector.explain.modules import Modules, text
from collector.explain.types import MAX_FRAMES, StackImage, UnwoundStacks
from collector.explain.unwind import Unwinder, addresses_of
from collector.model import Frame

_WORDS = 21  # of struct pt_regs (<asm/ptrace.h>): r15 to ss
_MAX_NUMBERS = 1 << 20  # frames of all stacks together
_MAX_DISTINCT = 1 << 14


def unwind_stacks(
    path: Path, stacks: Sequence[StackImage], *, root: Root, exe: Path | None
) -> UnwoundStacks:
    """The backtraces, in order. Raises OSError or CoreFormatError if the core cannot be read."""
    with CoreFile(path) as core:
        program = drgn.Program()
        try:
            program.set_core_dump(path)
        except Exception as error:
            raise CoreFormatError(f"the core cannot be read: {error}") from error
        with Modules(program, core, root, exe) as modules:
            modules.load_objects()
            overlay = _Overlay(program)
            addresses: set[int] = set()
            for stack in stacks:
                addresses.update(addresses_of(overlay.trace(stack) or ()))
            modules.load_debug(addresses)
            found = _Frames(Unwinder(program, modules))
            numbers = [found.numbers(overlay.trace(stack)) for stack in stacks]
            return UnwoundStacks(
                frames=found.frames, stacks=numbers, lost={**modules.lost, **found.lost}
            )


class _Overlay:
    """The memory of the program with one stack on top."""

    def __init__(self, program: drgn.Program) -> None:
        self._program = program
        self._top: StackImage | None = None
        self._covered: set[tuple[int, int]] = set()
        word = program.int_type("unsigned long", 8, False)
        members = [drgn.TypeMember(word, f"word{number}", number * 64) for number in range(_WORDS)]
        self._registers = program.struct_type("pt_regs", _WORDS * 8, members)

    def trace(self, stack: StackImage) -> drgn.StackTrace | None:
        """The backtrace of one stack; None if there is none."""
        self._top = stack
        place = stack.address, len(stack.data)
        try:
            if stack.data and place not in self._covered:
                self._program.add_memory_segment(*place, self._read)
                self._covered.add(place)
            raw = struct.pack(f"<{_WORDS}Q", *stack.regs[:_WORDS])
            registers = drgn.Object.from_bytes_(self._program, self._registers, raw)
            return self._program.stack_trace(registers)
        except Exception:  # drgn has many, and the registers may be anything
            return None

    def _read(self, address: int, count: int, offset: int, physical: bool) -> bytes:
        top = self._top
        if top is not None and top.address <= address:
            at = address - top.address
            if at + count <= len(top.data):
                return top.data[at : at + count]
        raise drgn.FaultError("this moment's stack was not copied so far", address)


class _Frames:
    """Frames with their names, each distinct one once."""

    def __init__(self, unwinder: Unwinder) -> None:
        self.frames: list[Frame] = []
        self.lost: dict[str, str] = {}
        self._unwinder = unwinder
        self._numbers: dict[Frame, int] = {}
        self._left = _MAX_NUMBERS

    def numbers(self, trace: drgn.StackTrace | None) -> list[int]:
        if trace is None:
            return []
        try:
            frames = self._unwinder.frames(trace, min(MAX_FRAMES, self._left))
        except Exception as error:
            self.lost["frames"] = text(str(error))
            return []
        found = []
        for frame in frames:
            if frame not in self._numbers:
                if len(self.frames) >= _MAX_DISTINCT:
                    self.lost["frames"] = f"more than {_MAX_DISTINCT} distinct frames"
                    break
                self._numbers[frame] = len(self.frames)
                self.frames.append(frame)
            found.append(self._numbers[frame])
        self._left -= len(found)
        return found
