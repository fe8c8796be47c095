"""What the variables of frames hold, and what registers point to, as text for people.

Runs in the explaining child only: values are the dead process's, types are those of its files, and
both are hostile. So nothing large is formatted, pointers are not followed without a bound, and all
that is kept is bounded in length and number.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Sequence

import drgn

from collector.arch.x86_64 import PAGE
from collector.elfcore.reader import CoreFile
from collector.elfcore.types import Prot, Segment
from collector.explain.modules import Modules, ask, text
from collector.explain.types import FrameValues, Pointer, Variable
from collector.explain.walk import Step

FRAMES = 8  # of one thread, the innermost
_MAX_FRAMES = 1024  # of all threads together
_MAX_VARIABLES = 64  # of one frame
_MAX_SIZE = 1024  # bytes of a value that is shown
_MAX_VALUE = 500  # characters
_STRING = 80  # bytes of a string that are shown
_AROUND = 16  # bytes before and behind where a register points to
_REGISTERS = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)
_POINTER, _ARRAY = drgn.TypeKind.POINTER, drgn.TypeKind.ARRAY


class Values:
    """Of the frames of one program."""

    def __init__(self, program: drgn.Program, core: CoreFile, modules: Modules) -> None:
        self._program, self._modules = program, modules
        self._segments = sorted((p.segment for p in core.segments), key=lambda one: one.vaddr)
        self._starts = [one.vaddr for one in self._segments]
        self._files = sorted(core.notes.files or (), key=lambda file: file.start)
        self._file_starts = [file.start for file in self._files]
        self._left = _MAX_FRAMES

    def of_frames(self, steps: Sequence[Step]) -> list[FrameValues]:
        """Arguments and local variables of the innermost frames that have any."""
        found = []
        for number, step in enumerate(steps[:FRAMES]):
            if self._left == 0:
                break
            self._left -= 1
            names = ask(step.frame.locals) or []
            if names:
                variables = [self._variable(step.frame, name) for name in names[:_MAX_VARIABLES]]
                found.append(FrameValues(frame=number, variables=variables))
        return found

    def _variable(self, frame: drgn.StackFrame, name: str) -> Variable:
        try:
            value = frame[name]
            kind = value.type_
            return Variable(
                name=text(name),
                type=text(kind.type_name()),
                value=text(self._shown(value))[:_MAX_VALUE],
            )
        except Exception as error:  # its type, its place, or its memory cannot be had
            return Variable(name=text(name), lost=text(str(error))[:_MAX_VALUE])

    def _shown(self, value: drgn.Object) -> str:
        if value.absent_:
            return "<optimized out>"
        kind = _plain(value.type_)
        if kind.kind == _POINTER:
            address = int(value.value_())
            said = self._string(address) if _is_text(kind.type) else None
            return f"{address:#x}" + (f" {said}" if said else self._symbol(address))
        size = drgn.sizeof(kind)
        if size > _MAX_SIZE:
            return f"<{size} bytes>"
        return str(
            value.format_(
                columns=_MAX_VALUE,
                dereference=False,
                symbolize=False,
                string=kind.kind == _ARRAY,
                type_name=False,
                members_same_line=True,
                elements_same_line=True,
            )
        )

    def of_registers(self, step: Step) -> list[Pointer]:
        """What each general register of a frame is, and what it points to."""
        known = ask(step.frame.registers) or {}
        return [self._pointer(name, known[name]) for name in _REGISTERS if name in known]

    def _pointer(self, name: str, value: int) -> Pointer:
        segment = self._segment(value)
        if segment is None:
            return Pointer(register=name, value=value)
        flags = "".join(
            letter if segment.flags & bit else "-"
            for letter, bit in (("r", Prot.R), ("w", Prot.W), ("x", Prot.X))
        )
        self._modules.load_object(value)
        return Pointer(
            register=name,
            value=value,
            mapping=f"{segment.vaddr:#x}-{segment.vaddr + segment.memsz:#x} {flags}",
            file=self._file(value),
            symbol=self._symbol(value).strip() or None,
            string=self._string(value),
            before=self._bytes(value - _AROUND, value),
            after=self._bytes(value, value + _AROUND),
        )

    def _segment(self, address: int) -> Segment | None:
        index = bisect.bisect_right(self._starts, address) - 1
        found = self._segments[index] if index >= 0 else None
        return found if found is not None and address < found.vaddr + found.memsz else None

    def _file(self, address: int) -> str | None:
        index = bisect.bisect_right(self._file_starts, address) - 1
        if index < 0 or address >= self._files[index].end:
            return None
        return text(self._files[index].path)

    def _symbol(self, address: int) -> str:
        symbol = ask(lambda: self._program.symbol(address))
        name = ask(lambda: symbol.name) if symbol is not None else None
        if symbol is None or not name:
            return ""
        return f" <{text(name)}+{address - symbol.address:#x}>"

    def _string(self, address: int) -> str | None:
        """The text at an address, in quotes; None if there is none of at least four characters."""
        data = self._read(address, _STRING)
        said = data.split(b"\0")[0]
        if len(said) < 4 or not all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in said):
            return None
        more = "..." if len(said) == _STRING else ""
        return '"' + said.decode().replace("\\", "\\\\").replace('"', '\\"') + f'"{more}'

    def _bytes(self, start: int, end: int) -> str | None:
        data = self._read(start, end - start)
        return data.hex(" ") if data else None

    def _read(self, address: int, size: int) -> bytes:
        """As many bytes as there are in the core, from the start on."""
        for count in (size, min(size, PAGE - address % PAGE)):
            with contextlib.suppress(Exception):
                return bytes(self._program.read(address, count))
        segment = self._segment(address)
        if segment is None or segment.flags & Prot.W:
            return b""
        return self._modules.code(address, size)  # as its file has it


def _plain(kind: drgn.Type) -> drgn.Type:
    """The type behind its names."""
    for _ in range(64):
        if kind.kind != drgn.TypeKind.TYPEDEF:
            break
        kind = kind.type
    return kind


def _is_text(kind: drgn.Type) -> bool:
    kind = _plain(kind)
    return kind.kind == drgn.TypeKind.INT and ask(lambda: kind.size) == 1
