"""Unwind the threads of a core with drgn, and name what is found.

Runs in the explaining child only (see `run` for why), and reads nothing but the core and the files
that `modules` opens. A part that cannot be had is missing from the result and named in its `lost`.
"""

from __future__ import annotations

import contextlib
import math
import signal
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import drgn
import msgspec

from collector.arch.x86_64 import CODE_32_BIT, IP, NO_32_BIT_CODE, Reg
from collector.elfcore.reader import CoreFile
from collector.elfcore.types import Thread
from collector.errors import CoreFormatError
from collector.explain.demangle import demangle, is_mangled
from collector.explain.evidence import evidence_of
from collector.explain.find import Finder
from collector.explain.go_names import GoNames
from collector.explain.goroutines import Golang
from collector.explain.interpreted import Interpreted
from collector.explain.managed import managed, unknown_frames
from collector.explain.modules import Modules, ask, text
from collector.explain.types import MAX_FRAMES, MAX_MESSAGE, Explanation, ThreadFrames
from collector.explain.values import Values
from collector.explain.walk import Step, Walker
from collector.explain.x86 import access_of
from collector.model import SIGNAL_FRAME, Access, Frame
from collector.siginfo import SI_KERNEL

_SIGINFO = struct.Struct("=iii4xQ")  # si_signo, si_errno, si_code, si_addr of a fault
_LONGEST_INSTRUCTION = 15  # bytes, on x86
_MAX_THREADS = 65536
_ALL_SECONDS = 4.0  # of CPU that all threads may take where nobody asked for them
_MAX_ALL_FRAMES = 16384  # of all threads together
# Kinds of symbols that code may be named by; assemblers give their functions none.
_FUNCTIONS = (drgn.SymbolKind.FUNC, drgn.SymbolKind.IFUNC, drgn.SymbolKind.UNKNOWN)


def explain(
    path: Path,
    finder: Finder,
    *,
    all_threads: bool = False,
    full: bool = False,
    then: Callable[[Explanation, list[ThreadFrames]], None] | None = None,
) -> Explanation:
    """What the core says. Raises OSError or CoreFormatError if it cannot be read at all.

    full: with the variables of the innermost frames of each thread, and what registers point to.
    then: called first without threads, when the dying one is explained; and again with all of
    them, as far as there is time, if there are more.
    """
    started = time.monotonic()
    with CoreFile(path) as core:
        program = drgn.Program()
        try:
            program.set_core_dump(path)
        except Exception as error:
            raise CoreFormatError(f"the core cannot be read: {error}") from error
        with Modules(program, core, finder) as modules:
            unwinder = Unwinder(program, modules, Interpreted(core, modules.code))
            frames = unwinder.dying_thread(core.threads)
            golang = Golang(core, modules.code)
            values = Values(program, core, modules) if full else None
            threads = unwinder.all_threads(core.threads, values) if all_threads else None
            # who asks for all threads has the record already
            found = None if all_threads else ask(lambda: managed(core, modules.code, finder))
            explanation = Explanation(
                frames=frames,
                runtime=None if found is None else found.runtime,
                report=None if found is None else found.report,
                threads=threads,
                modules=modules.report(),
                goroutines=golang.goroutines(unwinder.frames, whole=all_threads),
                abort_message=unwinder.abort_message(frames or []) or golang.message(),
                fault_access=_fault_access(core, modules),
                diagnosis=ask(lambda: evidence_of(core, modules.code)),
                seconds=time.monotonic() - started,
                lost={**modules.lost, **unwinder.lost, **golang.lost, **unknown_frames(found)},
            )
            if then is not None:
                then(explanation, [])
                if len(core.threads) > 1:
                    until = time.process_time() + _ALL_SECONDS
                    with contextlib.suppress(Exception):  # what was told stands
                        then(explanation, unwinder.all_threads(core.threads, until=until))
            return explanation


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
    """Backtraces of one program, with the names of what is in them."""

    def __init__(
        self, program: drgn.Program, modules: Modules, interpreted: Interpreted | None = None
    ) -> None:
        """interpreted: what adds the functions of an interpreter; None: they are not asked for."""
        self._program = program
        self._modules = modules
        self._interpreted = interpreted
        self._walker = Walker(program, modules)
        self._go_names = GoNames(modules)
        self.lost: dict[str, str] = {}

    def dying_thread(self, threads: Sequence[Thread]) -> list[Frame] | None:
        """The backtrace of the first thread; None: `lost` says why there is none."""
        if not threads:
            self.lost["frames"] = "the core has no threads"
            return None
        if threads[0].regs[Reg.CS] == CODE_32_BIT:
            self.lost["frames"] = NO_32_BIT_CODE
            return None
        try:
            self._modules.load_debug(self.places(threads[0].regs))
            frames = self.frames(threads[0].regs, MAX_FRAMES + 1)
            if self._interpreted is not None:
                frames, why = self._interpreted.added(threads[0].regs, frames)
                if why is not None:
                    self.lost["interpreted_frames"] = text(why)
        except Exception as error:  # drgn has many, and the core is hostile
            self.lost["frames"] = text(f"the dying thread cannot be unwound: {error}")
            return None
        if len(frames) > MAX_FRAMES:
            self.lost["outer_frames"] = f"only the innermost {MAX_FRAMES} frames are kept"
        frames = frames[:MAX_FRAMES]
        self._note_unknown(frames)
        return frames

    def _note_unknown(self, frames: list[Frame]) -> None:
        """Name the objects whose frames are bare addresses because their files are missing."""
        touched = {frame.module for frame in frames}
        missing = [f for f in self._modules.report() if not f.found and f.path in touched]
        if missing:
            self.lost["symbols"] = text("; ".join(f"{f.path}: {f.why}" for f in missing))
        if bare := self._modules.without_debug({path for path in touched if path is not None}):
            self.lost["debug_info"] = text("; ".join(bare))

    def all_threads(
        self,
        threads: Sequence[Thread],
        values: Values | None = None,
        until: float = math.inf,
    ) -> list[ThreadFrames]:
        """Every thread of the core, in its order, as far as the bounds allow.

        until: of time.process_time(); those behind it have no frames.
        """
        threads = threads[:_MAX_THREADS]
        places: set[int] = set()
        for thread in threads:
            if time.process_time() > until:
                break
            with contextlib.suppress(Exception):  # it is asked again below
                places.update(self.places(thread.regs))
        self._modules.load_debug(places)
        result = []
        left = _MAX_ALL_FRAMES
        for thread in threads:
            if time.process_time() > until:
                unwound = ThreadFrames(tid=thread.tid, frames=[], lost="there was no time for it")
            else:
                unwound = self._thread(thread, min(MAX_FRAMES, left), values)
            left -= len(unwound.frames)
            result.append(unwound)
        self._note_unknown([frame for thread in result for frame in thread.frames])
        return result

    def _thread(self, thread: Thread, most: int, values: Values | None) -> ThreadFrames:
        found = ThreadFrames(tid=thread.tid, name=thread.name or None, frames=[])

        def without(why: str) -> ThreadFrames:
            return msgspec.structs.replace(found, lost=text(why))

        if most == 0:
            return without(f"the threads before it have {_MAX_ALL_FRAMES} frames")
        if thread.regs[Reg.CS] == CODE_32_BIT:
            return without(NO_32_BIT_CODE)
        try:
            steps = self._walker.walk(thread.regs, most + 1)
            frames = [self._frame(step) for step in steps[:most]]
        except Exception as error:
            return without(str(error))
        cut = f"only the innermost {most} frames are kept" if len(steps) > most else None
        native = len(frames)
        if self._interpreted is not None:
            frames, why = self._interpreted.added(thread.regs, frames)
            cut = cut or why
        if len(frames) > most:
            cut = f"only the innermost {most} frames are kept"
        found = msgspec.structs.replace(found, frames=frames[:most], lost=cut)
        if values is None:
            return found
        registers = values.of_registers(steps[0]) if steps else []
        shown = values.of_frames(steps)
        if len(frames) > native:
            places = [number for number, frame in enumerate(frames) if frame.language is None]
            shown = [msgspec.structs.replace(one, frame=places[one.frame]) for one in shown]
            shown = [one for one in shown if one.frame < most]
        return msgspec.structs.replace(found, values=shown, registers=registers)

    def places(self, registers: Sequence[int]) -> set[int]:
        """The code addresses of a backtrace, in the calling instructions; loads its objects."""
        return {step.place for step in self._walker.walk(registers, MAX_FRAMES + 1)}

    def frames(self, registers: Sequence[int], most: int) -> list[Frame]:
        """At most so many frames of a backtrace, with their names.

        registers: at least the first 21 words of struct user_regs_struct.
        """
        return [self._frame(step) for step in self._walker.walk(registers, most)]

    def _frame(self, step: Step) -> Frame:
        module = self._modules.at(step.place)
        frame = Frame(
            pc=step.pc,
            module=self._modules.path(module) if module is not None else None,
            build_id=module.build_id.hex() if module is not None and module.build_id else None,
            module_offset=self._modules.offset(module, step.pc) if module is not None else None,
            scanned=step.scanned,
        )
        if step.signal:
            return msgspec.structs.replace(frame, function=SIGNAL_FRAME)
        if not self._modules.is_code(step.place):
            return frame  # a symbol of data is no function
        inline = step.frame.is_inline
        symbol = None if inline else ask(step.frame.symbol)
        if symbol is not None and symbol.kind not in _FUNCTIONS:
            symbol = None
        name = ask(lambda: symbol.name) if symbol is not None else None
        source = ask(step.frame.source)
        function = ask(lambda: step.frame.function_name)
        if function is None and name is None and module is not None:
            place = self._go_names.at(module, step.place)
            if place is not None:
                return msgspec.structs.replace(
                    frame, function=text(place.function), file=place.file, line=place.line
                )
        if name is not None and (function is None or is_mangled(name)):
            function = demangle(name)  # its words say more than the bare name
        return msgspec.structs.replace(
            frame,
            function=text(function) if function else None,
            offset=step.pc - symbol.address if symbol is not None else None,
            file=text(source.filename) if source is not None and source.filename else None,
            line=source.line if source is not None and source.line else None,
            inline=inline,
        )

    def abort_message(self, frames: list[Frame]) -> str | None:
        """What glibc said before it aborted (its `__abort_msg`), for people; None if it did not."""
        if not any(frame.function == "abort" for frame in frames):
            return None
        symbol = ask(lambda: self._program.symbol("__abort_msg"))
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
