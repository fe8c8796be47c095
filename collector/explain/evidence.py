"""What a core says of the fault that its process died of: where, by what, and beside what.

Runs in the explaining child only. What it makes is the beginning of a diagnosis: evidence, and a
category only where the core alone shows more than the kernel's codes do. `diagnose` does the rest.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from collector import siginfo
from collector.arch.x86_64 import IP, PAGE, SP, is_canonical
from collector.diagnosis import Access, Category, Confidence, Diagnosis, Evidence, Instruction
from collector.elfcore.reader import CoreFile
from collector.elfcore.types import Thread
from collector.errors import CoreFormatError
from collector.explain.demangle import demangle
from collector.explain.exceptions import STACK, find_thrown, words_of
from collector.explain.places import Places, is_overflow
from collector.siginfo import SI_KERNEL

if TYPE_CHECKING:
    from collector.explain.instruction import Decoded, Operand

Code = Callable[[int, int], bytes]  # address, bytes -> code, which may lie in a file only

_LONGEST_INSTRUCTION = 15  # bytes, on x86
_FAULTS = frozenset(
    [
        *(signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP),
        signal.SIGSYS,
    ]
)
_NEAR = 0x10000  # below it nothing is ever mapped: vm.mmap_min_addr
_FAR = 1 << 31  # offsets from a null pointer that a program may have
# What allocators write over memory that is given back: jemalloc, Firefox's jemalloc, CPython
_FREED = frozenset(int.from_bytes(bytes([byte]) * 8, "little") for byte in (0x5A, 0xE5, 0xDD))
_PAGE_SHIFT = 12  # glibc stores a pointer of its lists of free memory xor its own address >> 12
_STRING = "std::__cxx11::basic_string<char, "
_MAX_NAME = 512  # characters of the type of an exception
_CERTAIN, _LIKELY = Confidence.CERTAIN, Confidence.LIKELY

_Hint = tuple[Category, Confidence]


def evidence_of(core: CoreFile, code: Code) -> Diagnosis | None:
    """What the core says of the fault, or of the exception; None: there was neither.

    code: reads code at an address, empty where there is none.
    """
    told = siginfo.decode(core.siginfo or b"")
    if told is not None and told.signal == signal.SIGABRT and core.threads:
        return _aborted(core, code)
    if told is None or told.signal not in _FAULTS or told.code <= 0 or not core.threads:
        return None
    return _Fault(core, told, code).diagnosis()


def _aborted(core: CoreFile, code: Code) -> Diagnosis | None:
    """Of one that gave up: the exception that it could not handle, or was handling."""

    def read(address: int, size: int) -> bytes:
        with contextlib.suppress(CoreFormatError, OverflowError):
            return core.read(address, size)
        return code(address, size)  # names of types lie in files

    regs = core.threads[0].regs
    words = (*regs, *words_of(_as_far_as(core, regs[SP], STACK)))
    thrown = find_thrown(read, words)
    if thrown is None:
        return None
    mangled = f"_ZTI{thrown.type}"
    kind = demangle(mangled).removeprefix("typeinfo for ").removeprefix("_ZTI")
    kind = "std::string" if kind.startswith(_STRING) else kind
    return Diagnosis(evidence=Evidence(exception=kind[:_MAX_NAME], what=thrown.what))


def _as_far_as(core: CoreFile, address: int, size: int) -> bytes:
    """What the core has of it from its first byte on, in pieces of a page."""
    found = b""
    while len(found) < size:
        step = min(PAGE - (address + len(found)) % PAGE, size - len(found))
        try:
            found += core.read(address + len(found), step)
        except CoreFormatError:
            break
    return found


class _Fault:
    def __init__(self, core: CoreFile, told: siginfo.SigInfo, code: Code) -> None:
        self._core, self._told = core, told
        self._thread: Thread = core.threads[0]
        self._places = Places(core.mappings, core.auxv)
        self._ip, self._sp = self._thread.regs[IP], self._thread.regs[SP]
        self._code = code(self._ip, _LONGEST_INSTRUCTION)
        self._decoded = self._decode()

    def _decode(self) -> Decoded | None:
        if not self._code:
            return None
        # it loads capstone, which most of those that are explained can do without
        from collector.explain.instruction import decode  # noqa: PLC0415

        return decode(self._code, self._thread.regs)

    def diagnosis(self) -> Diagnosis:
        found: dict[str, Any] = {"instruction": self._instruction(), **self._stack()}
        hint = None
        if self._told.signal in (signal.SIGSEGV, signal.SIGBUS):
            address, access, hint = self._address()
            found |= {"address": address, "access": access, "null_registers": self._nulls()}
            if address is not None:
                around = self._around(address) if is_canonical(address) else {}
                freed = None if "mapping" in around else self._freed()
                hint = self._overflow(address, access) or freed or hint
                found |= around
        category, confidence = hint or (Category.UNKNOWN, Confidence.GUESS)
        return Diagnosis(category=category, confidence=confidence, evidence=Evidence(**found))

    def _instruction(self) -> Instruction | None:
        if self._decoded is not None:
            return Instruction(bytes=self._decoded.code.hex(), text=self._decoded.text)
        return Instruction(bytes=self._code.hex()) if self._code else None

    def _nulls(self) -> list[str]:
        if self._decoded is None:
            return []
        return [name for name, value in self._decoded.pointers.items() if value == 0]

    def _stack(self) -> dict[str, Any]:
        """The thread's own stack, or what else the stack pointer is in."""
        psinfo = self._core.notes.psinfo
        own = self._places.stack_of(
            self._thread, main=psinfo is not None and psinfo.pid == self._thread.tid
        )
        self._own_stack = own
        if own is not None and own.start <= self._sp < own.end:
            return {"stack": own, "sp_in_stack": True}
        here = self._places.at(self._sp)
        if here is None or here.permissions[1] != "w":
            return {"stack": own, "sp_in_stack": False}
        return {"stack": here}  # of a coroutine, or of a handler: nobody can tell

    def _around(self, address: int) -> dict[str, Any]:
        here = self._places.at(address)
        if here is not None:
            return {"mapping": here}
        return {"below": self._places.below(address), "above": self._places.above(address)}

    def _overflow(self, address: int, access: Access | None) -> _Hint | None:
        own = self._own_stack
        if own is None or access is Access.EXECUTE or self._told.signal != signal.SIGSEGV:
            return None
        over = is_overflow(own, self._sp, address)
        return (Category.STACK_OVERFLOW, _CERTAIN) if over else None

    # ---- which address it was

    def _address(self) -> tuple[int | None, Access | None, _Hint | None]:
        """The address, what was done to it, and what is wrong with it if the codes do not say."""
        if self._told.code != SI_KERNEL and self._told.address is not None:
            return self._told.address, None, self._far_from_null(self._told.address)
        decoded = self._decoded
        if decoded is None:
            return None, None, None
        if decoded.privileged:
            return None, None, (Category.PRIVILEGED_INSTRUCTION, _CERTAIN)
        target = self._return_address() if decoded.returns else decoded.target
        if target is not None and not is_canonical(target):
            return target, Access.EXECUTE, (Category.BAD_CALL, _CERTAIN)
        for operand in decoded.operands:
            if not is_canonical(operand.address):
                return operand.address, operand.access, (Category.NON_CANONICAL, _CERTAIN)
        for operand in decoded.operands:  # what else the CPU refuses without saying where
            if operand.size >= 16 and operand.address % operand.size:
                return operand.address, operand.access, (Category.MISALIGNED, _CERTAIN)
        if not is_canonical(self._sp):
            return self._sp, None, (Category.NON_CANONICAL, _LIKELY)
        return None, None, None

    def _return_address(self) -> int | None:
        try:
            return int.from_bytes(self._core.read(self._sp, 8), "little")
        except CoreFormatError:
            return None

    def _far_from_null(self, address: int) -> _Hint | None:
        """An element far from the start of an array or object that is not there."""
        operand = self._operand(address)
        if operand is None or operand.base != 0 or not _NEAR <= address < _FAR:
            return None
        return (Category.NEAR_NULL, _LIKELY) if self._places.at(address) is None else None

    def _operand(self, address: int) -> Operand | None:
        decoded: Decoded | None = self._decoded
        if decoded is None:
            return None
        return next((o for o in decoded.operands if 0 <= address - o.address < o.size), None)

    def _freed(self) -> _Hint | None:
        """Whether the pointer is what an allocator leaves in memory that was given back."""
        for operand in self._decoded.operands if self._decoded is not None else ():
            base = operand.base
            if base is None or base < _NEAR:
                continue
            if base in _FREED or self._places.is_in_heap(base << _PAGE_SHIFT):
                return Category.FREED_MEMORY, _LIKELY
        return None
