"""Unwind the threads of a core with drgn, and name what is found.

Runs in the explaining child only (see `run` for why), and reads nothing but the core and the files
that `modules` opens. A part that cannot be had is missing from the result and named in its `lost`.
"""

from __future__ import annotations

import itertools
import signal
import struct
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TypeVar

import drgn

from collector.arch.x86_64 import CODE_32_BIT, IP, NO_32_BIT_CODE, Reg
from collector.elfcore.reader import CoreFile
from collector.errors import CoreFormatError
from collector.explain.demangle import demangle
from collector.explain.files import Root
from collector.explain.modules import Modules, text
from collector.explain.types import MAX_FRAMES, MAX_MESSAGE, Explanation, ThreadFrames
from collector.explain.x86 import access_of
from collector.model import Access, Frame
from collector.siginfo import SI_KERNEL

_T = TypeVar("_T")
_SIGINFO = struct.Struct("=iii4xQ")  # si_signo, si_errno, si_code, si_addr of a fault
_LONGEST_INSTRUCTION = 15  # bytes, on x86
_MAX_THREADS = 65536
_MAX_ALL_FRAMES = 16384  # of all threads together


def explain(path: Path, *, all_threads: bool, root: Root, exe: Path | None) -> Explanation:
    """What the core says. Raises OSError or CoreFormatError if it cannot be read at all."""
    started = time.monotonic()
    with CoreFile(path) as core:
        program = drgn.Program()
        try:
            program.set_core_dump(path)
        except Exception as error:
            raise CoreFormatError(f"the core cannot be read: {error}") from error
        with Modules(program, core, root, exe) as modules:
            modules.load_objects()
            narrow = {t.tid for t in core.threads if t.regs[Reg.CS] == CODE_32_BIT}
            unwinder = Unwinder(program, modules, narrow)
            frames = unwinder.dying_thread()
            threads = unwinder.all_threads() if all_threads else None
            return Explanation(
                frames=frames,
                threads=threads,
                modules=modules.report(),
                abort_message=unwinder.abort_message(frames or []),
                fault_access=_fault_access(core, modules),
                seconds=time.monotonic() - started,
                lost={**modules.lost, **unwinder.lost},
            )


def _fault_access(core: CoreFile, modules: Modules) -> Access | None:
    """What the instruction that the process died of did to memory, if it is certain."""
    siginfo = core.siginfo
    if siginfo is None or not core.threads:
        return None
    number, _, code, address = _SIGINFO.unpack_from(siginfo)
    if number not in (signal.SIGSEGV, signal.SIGBUS) or not 0 < code < SI_KERNEL:
        return None
    registers = core.threads[0].regs
    ip = registers[IP]
    if ip == address:
        return Access.EXECUTE
    return access_of(modules.code(ip, _LONGEST_INSTRUCTION), registers, address)


class Unwinder:
    """Backtraces of one program. narrow: tids of threads in 32-bit code, which have none."""

    def __init__(
        self, program: drgn.Program, modules: Modules, narrow: Collection[int] = ()
    ) -> None:
        self._narrow = narrow
        self._program = program
        self._modules = modules
        self.lost: dict[str, str] = {}

    def dying_thread(self) -> list[Frame] | None:
        try:
            thread = self._program.crashed_thread()
            if thread.tid in self._narrow:
                self.lost["frames"] = NO_32_BIT_CODE
                return None
            self._modules.load_debug(addresses_of(thread.stack_trace()))
            trace = thread.stack_trace()
            frames = self.frames(trace, MAX_FRAMES)
        except Exception as error:  # drgn has many, and the core is hostile
            self.lost["frames"] = text(f"the dying thread cannot be unwound: {error}")
            return None
        if len(trace) > MAX_FRAMES:
            self.lost["outer_frames"] = f"only the innermost {MAX_FRAMES} frames are kept"
        self._note_unknown(frames)
        return frames

    def _note_unknown(self, frames: list[Frame]) -> None:
        """Name the objects whose frames are bare addresses because their files are missing."""
        touched = {frame.module for frame in frames}
        missing = [f for f in self._modules.report() if not f.found and f.path in touched]
        if missing:
            self.lost["symbols"] = text("; ".join(f"{f.path}: {f.why}" for f in missing))

    def all_threads(self) -> list[ThreadFrames]:
        """Every thread of the core, in its order, as far as the bounds allow."""
        threads = list(itertools.islice(self._program.threads(), _MAX_THREADS))
        addresses: set[int] = set()
        for thread in threads:
            addresses.update(addresses_of(_ask(thread.stack_trace) or ()))
        self._modules.load_debug(addresses)
        result = []
        left = _MAX_ALL_FRAMES
        for thread in threads:
            unwound = self._thread(thread, min(MAX_FRAMES, left))
            left -= len(unwound.frames)
            result.append(unwound)
        return result

    def _thread(self, thread: drgn.Thread, most: int) -> ThreadFrames:
        if most == 0:
            why = f"the threads before it have {_MAX_ALL_FRAMES} frames"
            return ThreadFrames(tid=thread.tid, frames=[], lost=why)
        if thread.tid in self._narrow:
            return ThreadFrames(tid=thread.tid, frames=[], lost=NO_32_BIT_CODE)
        try:
            trace = thread.stack_trace()
            frames = self.frames(trace, most)
        except Exception as error:
            return ThreadFrames(tid=thread.tid, frames=[], lost=text(str(error)))
        cut = f"only the innermost {most} frames are kept" if len(trace) > most else None
        return ThreadFrames(tid=thread.tid, frames=frames, lost=cut)

    def frames(self, trace: drgn.StackTrace, most: int) -> list[Frame]:
        """At most so many frames of a backtrace, with their names."""
        frames = []
        for frame in itertools.islice(trace, most):
            pc = _pc(frame)
            if pc is not None:  # the outermost frame is often an empty one
                frames.append(self._frame(frame, pc))
        return frames

    def _frame(self, frame: drgn.StackFrame, pc: int) -> Frame:
        # a return address may be the first byte of the next function
        module = _ask(lambda: self._program.module(pc - (not frame.interrupted)))
        symbol = _ask(frame.symbol)
        source = _ask(frame.source)
        function = _ask(lambda: frame.function_name)
        if symbol is not None and not frame.is_inline:
            mangled = symbol.name.startswith("_Z")  # its words say more than the bare name
            function = demangle(symbol.name) if mangled or function is None else function
        return Frame(
            pc=pc,
            function=text(function) if function else None,
            offset=pc - symbol.address if symbol is not None and not frame.is_inline else None,
            file=text(source.filename) if source is not None and source.filename else None,
            line=source.line if source is not None and source.line else None,
            module=self._modules.path(module) if module is not None else None,
            build_id=module.build_id.hex() if module is not None and module.build_id else None,
            inline=frame.is_inline,
        )

    def abort_message(self, frames: list[Frame]) -> str | None:
        """What glibc said before it aborted (its `__abort_msg`), for people; None if it did not."""
        if not any(frame.function == "abort" for frame in frames):
            return None
        symbol = _ask(lambda: self._program.symbol("__abort_msg"))
        if symbol is None:
            return None
        try:  # struct abort_msg_s { unsigned int size; char msg[]; }, <include/stdlib.h> of glibc
            pointer = int.from_bytes(self._program.read(symbol.address, 8), "little")
            if pointer == 0:
                return None
            size = int.from_bytes(self._program.read(pointer, 4), "little")
            message = self._program.read(pointer + 4, max(0, min(size - 4, MAX_MESSAGE)))
        except Exception as error:
            self.lost["abort_message"] = text(f"not in the core: {error}")
            return None
        return text(message.split(b"\0")[0].decode("utf-8", "replace").strip()) or None


def _pc(frame: drgn.StackFrame) -> int | None:
    try:
        pc: int = frame.pc
    except LookupError:
        return None
    return pc


def addresses_of(trace: Iterable[drgn.StackFrame]) -> list[int]:
    """Code addresses of a backtrace, moved into the calling instruction."""
    pcs = ((_pc(frame), frame.interrupted) for frame in trace)
    return [pc - (not interrupted) for pc, interrupted in pcs if pc is not None]


def _ask(question: Callable[[], _T]) -> _T | None:
    """drgn's answer, or None where it has none: the file or the memory is missing or damaged."""
    try:
        return question()
    except Exception:
        return None
