"""Walk a stack from its innermost frame outwards, also where unwind information is missing.

drgn unwinds by call frame information (CFI), and without it by the frame pointer. That loses the
caller wherever the frame pointer is still the caller's: after a call through a bad pointer, and in
code in assembler. So each step that drgn did without CFI is done again here. Where code cannot be
unwound, the return address is at the stack pointer, behind the frame pointer, or somewhere on the
stack; what is taken must look like a return address, which follows a call instruction.

An object is loaded when the first frame in it turns up: few of the hundreds that may be mapped.
Runs in the explaining child only; registers and stack are hostile, and each walk is bounded.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import drgn

from collector.explain.blame import OUTERMOST
from collector.explain.modules import Modules, ask
from collector.explain.x86_calls import (
    LONGEST_CALL,
    TRAMPOLINE,
    before_signal,
    called,
    follows_call,
    is_trampoline,
)

_WORDS = 21  # of struct pt_regs (<asm/ptrace.h>): r15 to ss
# In the order of that struct, as drgn names them; words 15 and 20 are of no use for unwinding.
_NAMES = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx"),
    *("rsi", "rdi", "", "rip", "cs", "rflags", "rsp", ""),
)
_RBP, _RIP, _RSP = 4, 16, 19
# A step by the frame pointer tells none of these, a step by CFI all that were known before it.
_KEPT = frozenset(["rbx", "r12", "r13", "r14", "r15"])
_MAX_TRACES = 256  # of one walk: a new one starts where an object is loaded or CFI is missing
_MAX_ALL_TRACES = 16384  # further ones of all walks together: each is up to a thousand steps
_SCANNED = 128  # words of a stack that are looked through for one frame
_LARGEST_FRAME = 16 << 20  # bytes between a stack pointer and its frame pointer
# Registers for a try whether there is CFI, where no process has memory: not canonical.
_NOWHERE, _NOWHERE_SIZE = 0x0FFF_0000_0000_0000, 1 << 32


class Step(NamedTuple):
    """One frame, perhaps an inlined one. pc: the next instruction to run in it."""

    frame: drgn.StackFrame
    pc: int
    interrupted: bool  # it did not call: it died, was interrupted by a signal, or waits in a call
    signal: bool = False  # a signal handler returns here
    scanned: bool = False  # its return address was found by looking through the stack

    @property
    def place(self) -> int:
        """An address in the instruction that it is at; a return address is the next one's."""
        return self.pc - (not self.interrupted)


class _Start(NamedTuple):
    """Where a trace of drgn's begins: the words of struct pt_regs, and what Step has."""

    words: tuple[int, ...]
    interrupted: bool = True
    scanned: bool = False

    @property
    def pc(self) -> int:
        return self.words[_RIP]


class Walker:
    """Walks through the stacks of one program."""

    def __init__(self, program: drgn.Program, modules: Modules) -> None:
        self._program = program
        self._modules = modules
        word = program.int_type("unsigned long", 8, False)
        members = [drgn.TypeMember(word, f"word{number}", number * 64) for number in range(_WORDS)]
        self._registers = program.struct_type("pt_regs", _WORDS * 8, members)
        self._has_cfi: dict[int, bool] = {}
        self._traces = _MAX_ALL_TRACES  # that are left
        program.add_memory_segment(_NOWHERE, _NOWHERE_SIZE, _ones)

    def walk(self, registers: Sequence[int], most: int) -> list[Step]:
        """At most so many frames, the innermost first.

        registers: at least the 21 words of struct pt_regs. Raises what drgn raises.
        """
        steps: list[Step] = []
        start: _Start | None = _Start(tuple(registers[:_WORDS]))
        for _ in range(_MAX_TRACES):
            if start is None or len(steps) >= most or (steps and not self._traces):
                break
            self._traces -= bool(steps)  # the first of each walk is for nothing
            start = self._one_trace(start, steps, most)
        return steps[:most]

    def _one_trace(self, start: _Start, steps: list[Step], most: int) -> _Start | None:
        """Add the frames of one trace as far as they are certain; where to go on, or None."""
        pc, interrupted, scanned = start.pc, start.interrupted, start.scanned
        groups = _groups(self._trace(start))
        group = next(groups, None)
        while group is not None and len(steps) < most:
            frame = group[-1]
            place = pc - (not interrupted)
            if not interrupted and pc == 0:
                return None  # the outermost frame of a coroutine, for example
            if self._modules.load_object(place):  # the rest was made without it
                return _Start(_words(frame, pc), interrupted, scanned)
            following = next(groups, None)
            outer = following[-1] if following is not None else None
            if outer is not None and not (self._modules.is_code(place) and _by_cfi(frame, outer)):
                outer = None  # a guess
            signal = outer is not None and outer.interrupted
            mark = len(steps)
            steps += [Step(one, pc, interrupted, signal, scanned) for one in group]
            if outer is None:
                return self._go_on(steps, mark, frame)
            next_pc = _pc(outer)
            if next_pc is None:
                return None  # the outermost frame has no caller
            group, pc, interrupted, scanned = following, next_pc, outer.interrupted, False
        return None

    def _trace(self, start: _Start) -> drgn.StackTrace:
        """drgn looks a return address up as if it had been interrupted there: in the call."""
        words = list(start.words)
        words[_RIP] = max(start.pc - (not start.interrupted), 0)
        return self._trace_of(words)

    def _trace_of(self, words: Sequence[int]) -> drgn.StackTrace:
        raw = struct.pack(f"<{_WORDS}Q", *words)
        registers = drgn.Object.from_bytes_(self._program, self._registers, raw)
        return self._program.stack_trace(registers)

    # ---- one step without CFI

    def _go_on(self, steps: list[Step], mark: int, frame: drgn.StackFrame) -> _Start | None:
        """Where the caller of the last physical frame goes on; its frames are steps[mark:]."""
        last = steps[-1]
        words = list(_words(frame, last.pc))
        if not self._modules.is_code(last.place):  # the frame pointer is still the caller's
            return self._at_stack_pointer(words) or self._on_stack(words, None)
        if self._unwinds(last.place) or self._is_outermost(last):
            return None  # its return address is not in the core; or it has none
        if not last.interrupted and is_trampoline(self._modules.code(last.pc, TRAMPOLINE)):
            with contextlib.suppress(Exception):
                before = before_signal(self._program.read, words[_RSP])
                steps[mark:] = [step._replace(signal=True) for step in steps[mark:]]
                return _Start(tuple(before))
        return (
            (self._at_stack_pointer(words) if last.interrupted else None)
            or self._on_stack(words, last)
            or self._at_frame_pointer(words)
            or self._on_stack(words, None)
        )

    def _at_stack_pointer(self, words: Sequence[int]) -> _Start | None:
        """As a call leaves it, before the function that was called has done anything."""
        target = self._word(words[_RSP])
        if target is None or self._is_return(target) is False:
            return None
        return _Start(_changed(words, rip=target, rsp=words[_RSP] + 8), interrupted=False)

    def _at_frame_pointer(self, words: Sequence[int]) -> _Start | None:
        pointer = words[_RBP]
        if not words[_RSP] <= pointer < words[_RSP] + _LARGEST_FRAME:
            return None
        outer, target = self._word(pointer), self._word(pointer + 8)
        if outer is None or target is None or self._is_return(target) is False:
            return None
        found = _changed(words, rip=target, rsp=pointer + 16, rbp=outer)
        return _Start(found, interrupted=False)

    def _on_stack(self, words: Sequence[int], last: Step | None) -> _Start | None:
        """The first return address on the stack; with `last`, behind a direct call of its code."""
        entry = self._entry(last) if last is not None else None
        if last is not None and entry is None:
            return None
        for number in range(_SCANNED):
            target = self._word(words[_RSP] + 8 * number)
            if target is None:
                return None
            if entry is None and self._is_trampoline(target):  # the handler of a signal
                found = _changed(words, rip=target, rsp=words[_RSP] + 8 * (number + 1))
                return _Start(found, interrupted=False)
            if not self._is_return(target):
                continue
            code = self._modules.code(target - LONGEST_CALL, LONGEST_CALL)
            if entry is None or called(code, target) == entry:
                found = _changed(words, rip=target, rsp=words[_RSP] + 8 * (number + 1))
                return _Start(found, interrupted=False, scanned=entry is None)
        return None

    def _entry(self, step: Step) -> int | None:
        """Where the function that a frame is in begins."""
        return ask(lambda: int(self._program.symbol(step.place).address))

    def _is_outermost(self, step: Step) -> bool:
        name = ask(lambda: str(self._program.symbol(step.place).name))
        return not step.interrupted and name in OUTERMOST

    def _is_return(self, target: int) -> bool | None:
        """Whether a word can be a return address; None: its code cannot be looked at."""
        if target < LONGEST_CALL or not self._modules.is_code(target - 1):
            return False
        code = self._modules.code(target - LONGEST_CALL, LONGEST_CALL)
        return follows_call(code) if code else None

    def _is_trampoline(self, target: int) -> bool:
        if target < 1 << 12 or not self._modules.is_code(target):
            return False
        return is_trampoline(self._modules.code(target, TRAMPOLINE))

    def _word(self, address: int) -> int | None:
        return ask(lambda: int(self._program.read_u64(address)))

    def _unwinds(self, place: int) -> bool:
        """Whether there is CFI for the code at `place`: tried on a stack that no process has."""
        if place not in self._has_cfi and len(self._has_cfi) < _MAX_TRACES * 64:
            words = [_NOWHERE + _NOWHERE_SIZE // 2] * _WORDS
            words[_RIP] = place
            groups = _groups(self._trace_of(words))
            first, second = next(groups), next(groups, None)
            self._has_cfi[place] = second is not None and _by_cfi(first[-1], second[-1])
        return self._has_cfi.get(place, True)


def _groups(trace: drgn.StackTrace) -> Iterator[list[drgn.StackFrame]]:
    """The frames that share their registers: inlined ones, and the function that they are in."""
    group = []
    for frame in trace:
        group.append(frame)
        if not frame.is_inline:
            yield group
            group = []
    if group:
        yield group


def _by_cfi(frame: drgn.StackFrame, outer: drgn.StackFrame) -> bool:
    """Whether the step from one frame to the next was done by CFI, not by the frame pointer."""
    return bool(_KEPT & outer.registers().keys()) or not _KEPT & frame.registers().keys()


def _pc(frame: drgn.StackFrame) -> int | None:
    try:
        pc: int = frame.pc
    except LookupError:
        return None
    return pc


def _words(frame: drgn.StackFrame, pc: int) -> tuple[int, ...]:
    """The registers of a frame as words of struct pt_regs; 0 for what is not known."""
    known = frame.registers()
    return _changed([known.get(name, 0) for name in _NAMES], rip=pc)


def _changed(
    words: Sequence[int], *, rip: int, rsp: int | None = None, rbp: int | None = None
) -> tuple[int, ...]:
    changed = list(words)
    changed[_RIP] = rip
    if rsp is not None:
        changed[_RSP] = rsp & (1 << 64) - 1
    if rbp is not None:
        changed[_RBP] = rbp
    return tuple(changed)


def _ones(address: int, count: int, offset: int, physical: bool) -> bytes:
    """Memory whose words are 1, which is no address: what is read there leads nowhere."""
    return bytes(int((address + n) % 8 == 0) for n in range(count))
