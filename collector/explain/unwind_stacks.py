"""Unwind many stacks of one process that were copied at different moments.

A core has one memory, and these stacks lie over one another. So the core tells the mappings and
the objects, and each stack is put over its memory while it is unwound. Runs in the explaining
child only; registers and stacks come from any process, and are hostile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import drgn

from collector.elfcore.reader import CoreFile
from collector.errors import CoreFormatError
from collector.explain.find import Finder
from collector.explain.modules import Modules, text
from collector.explain.types import MAX_FRAMES, StackImage, UnwoundStacks
from collector.explain.unwind import Unwinder
from collector.model import Frame

_MAX_NUMBERS = 1 << 20  # frames of all stacks together
_MAX_DISTINCT = 1 << 14


def unwind_stacks(path: Path, finder: Finder, stacks: Sequence[StackImage]) -> UnwoundStacks:
    """The backtraces, in order. Raises OSError or CoreFormatError if the core cannot be read."""
    with CoreFile(path) as core:
        program = drgn.Program()
        try:
            program.set_core_dump(path)
        except Exception as error:
            raise CoreFormatError(f"the core cannot be read: {error}") from error
        with Modules(program, core, finder) as modules:
            overlay = _Overlay(program)
            unwinder = Unwinder(program, modules)
            places: set[int] = set()
            for stack in stacks:
                with contextlib.suppress(Exception):  # it is asked again below
                    overlay.cover(stack)
                    places |= unwinder.places(stack.regs)
            modules.load_debug(places)
            found = _Frames(unwinder, overlay)
            numbers = [found.numbers(stack) for stack in stacks]
            return UnwoundStacks(
                frames=found.frames, stacks=numbers, lost={**modules.lost, **found.lost}
            )


class _Overlay:
    """The memory of the program with one stack on top."""

    def __init__(self, program: drgn.Program) -> None:
        self._program = program
        self._top: StackImage | None = None
        self._covered: set[tuple[int, int]] = set()

    def cover(self, stack: StackImage) -> None:
        """Put one stack over the memory, until the next one. Raises what drgn raises."""
        self._top = stack
        place = stack.address, len(stack.data)
        if stack.data and place not in self._covered:
            self._program.add_memory_segment(*place, self._read)
            self._covered.add(place)

    def _read(self, address: int, count: int, offset: int, physical: bool) -> bytes:
        top = self._top
        if top is not None and top.address <= address:
            at = address - top.address
            if at + count <= len(top.data):
                return top.data[at : at + count]
        raise drgn.FaultError("this moment's stack was not copied so far", address)


class _Frames:
    """Frames with their names, each distinct one once."""

    def __init__(self, unwinder: Unwinder, overlay: _Overlay) -> None:
        self.frames: list[Frame] = []
        self.lost: dict[str, str] = {}
        self._unwinder = unwinder
        self._overlay = overlay
        self._numbers: dict[Frame, int] = {}
        self._left = _MAX_NUMBERS

    def numbers(self, stack: StackImage) -> list[int]:
        try:
            self._overlay.cover(stack)
            frames = self._unwinder.frames(stack.regs, min(MAX_FRAMES, self._left))
        except Exception as error:  # drgn has many, and the registers may be anything
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
