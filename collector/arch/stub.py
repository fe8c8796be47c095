"""Machine code that makes borrowed threads give themselves back, whatever becomes of us (x86-64).

A stub begins with the `syscall` instruction for which the thread is borrowed and goes on to what
must happen if nobody is there any more to see its result: what it made is undone, then the
signal mask, the flags and all registers are set to what they were, and the thread goes on where
it was stopped. Under a living tracer only the system calls are run; the tracer restores the rest.

A stub writes no memory and never leaves the thread's own stack: a signal handler that comes in
between finds all as it expects it. Position independent; the data lies behind the code. Which
thread is borrowed, and where the stub lies, is not known here. Numbers: <asm/unistd_64.h>,
<linux/sched.h>.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from collector.arch.x86_64 import Reg

MAX_SIZE = 384  # bytes that any of these stubs needs at most

CLOSE, RT_SIGPROCMASK, CLONE, EXIT, WAIT4, EXIT_GROUP, USERFAULTFD = 3, 14, 56, 60, 61, 231, 323

# clone(2). The child of a fork shares descriptors and file system information, so that what the
# process closes is closed; its end sends no signal, and only a wait with __WALL can see it.
_CLONE_VM, _CLONE_FS, _CLONE_FILES, _CLONE_SIGHAND = 0x100, 0x200, 0x400, 0x800
_CLONE_THREAD, _CLONE_SYSVSEM, _CLONE_UNTRACED = 0x10000, 0x40000, 0x00800000
_FORK = _CLONE_FS | _CLONE_FILES
_REAPER = (
    _CLONE_VM
    | _CLONE_FS
    | _CLONE_FILES
    | _CLONE_SIGHAND
    | _CLONE_THREAD
    | _CLONE_SYSVSEM
    | _CLONE_UNTRACED
)
WALL = 0x40000000  # __WALL of waitpid(2)

_SETMASK, _MASK_BYTES = 2, 8
_U64 = (1 << 64) - 1
_CF_PF_AF_ZF_SF, _DF, _OF, _TF = 0xD5, 1 << 10, 1 << 11, 1 << 8
_SYSCALL = b"\x0f\x05"

# What the calls above change, with the instruction `mov REG, [rip + disp32]`.
_LOADS = (
    (Reg.RAX, b"\x48\x8b\x05"),
    (Reg.RCX, b"\x48\x8b\x0d"),
    (Reg.RDX, b"\x48\x8b\x15"),
    (Reg.RBX, b"\x48\x8b\x1d"),
    (Reg.RSI, b"\x48\x8b\x35"),
    (Reg.RDI, b"\x48\x8b\x3d"),
    (Reg.R8, b"\x4c\x8b\x05"),
    (Reg.R9, b"\x4c\x8b\x0d"),
    (Reg.R10, b"\x4c\x8b\x15"),
    (Reg.R11, b"\x4c\x8b\x1d"),
)
_ARGUMENTS = (Reg.RDI, Reg.RSI, Reg.RDX, Reg.R10, Reg.R8, Reg.R9)


class Stub(NamedTuple):
    """What the thread is to do, and how it goes on afterwards."""

    number: int  # of the first system call
    arguments: tuple[int, ...]
    code: bytes  # with its data

    def start(self, regs: Sequence[int], base: int) -> list[int]:
        """The registers that make the thread begin with the stub at `base`."""
        words = list(regs)
        words[Reg.RIP], words[Reg.RAX], words[Reg.ORIG_RAX] = base, self.number, _U64
        for register, value in zip(_ARGUMENTS, self.arguments, strict=False):
            words[register] = value & _U64
        return words


def is_single_stepped(regs: Sequence[int]) -> bool:
    """Whether the trap flag is set, which a stub cannot restore."""
    return bool(regs[Reg.EFLAGS] & _TF)


def call(number: int, arguments: Sequence[int], after: Sequence[int], mask: int) -> Stub:
    """One system call that leaves nothing to be undone.

    after: the registers with which the thread goes on (restart.by_hand). mask: its blocked signals.
    """
    code = _Code()
    code.emit(_SYSCALL)
    code.restore(after, mask)
    return Stub(number, tuple(arguments), code.link())


def make_descriptor(number: int, arguments: Sequence[int], after: Sequence[int], mask: int) -> Stub:
    """A call that gives a descriptor, which is closed by the second call of the stub."""
    code = _Code()
    code.emit(_SYSCALL)
    code.emit(b"\x85\xc0")  # test eax, eax
    code.jump(b"\x0f\x88", "restore")  # js
    code.emit(b"\x89\xc7")  # mov edi, eax
    code.call(CLOSE)
    code.restore(after, mask)
    return Stub(number, tuple(arguments), code.link())


def fork(after: Sequence[int], mask: int, *, reaper: bool) -> Stub:
    """A copy of the process, which ends at once if it is let run.

    reaper: the second call makes a thread that blocks all signals, waits for the end of the copy
    and ends. Without it, or if it cannot be made, the borrowed thread waits for the copy's end:
    to be kept from it by its tracer.
    """
    code = _Code()
    code.emit(_SYSCALL)
    code.emit(b"\x48\x85\xc0")  # test rax, rax
    code.jump(b"\x0f\x84", "copy")  # je
    code.jump(b"\x0f\x88", "restore")  # js
    code.emit(b"\x89\xc3")  # mov ebx, eax
    if reaper:
        code.emit(b"\x31\xf6\x31\xd2\x45\x31\xd2\x45\x31\xc0")  # xor esi, edx, r10d, r8d
        code.set(b"\xbf", _REAPER)  # mov edi
        code.call(CLONE)
        code.emit(b"\x48\x85\xc0")
        code.jump(b"\x0f\x84", "reaper")
        code.jump(b"\x0f\x89", "restore")  # jns
    code.wait_for_copy()
    code.restore(after, mask)
    code.label("copy")
    code.emit(b"\x31\xff")  # xor edi, edi
    code.call(EXIT_GROUP)
    code.jump(b"\xe9", "copy")
    if reaper:
        code.label("reaper")
        code.wait_for_copy()
        code.label("end")
        code.emit(b"\x31\xff")
        code.call(EXIT)
        code.jump(b"\xe9", "end")
    return Stub(CLONE, (_FORK, 0, 0, 0, 0), code.link())


class _Code:
    """Instructions with labels, and the words of data that they refer to."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._labels: dict[str, int] = {}
        self._jumps: list[tuple[int, str]] = []  # where the 32-bit distance is
        self._references: list[tuple[int, int]] = []  # the same; which word of the data
        self._data: list[int] = []

    def emit(self, instructions: bytes) -> None:
        self._bytes += instructions

    def label(self, name: str) -> None:
        self._labels[name] = len(self._bytes)

    def jump(self, opcode: bytes, label: str) -> None:
        self._bytes += opcode + bytes(4)
        self._jumps.append((len(self._bytes) - 4, label))

    def set(self, opcode: bytes, value: int) -> None:
        """`mov r32, imm32`."""
        self._bytes += opcode + struct.pack("<I", value)

    def refer(self, opcode: bytes, word: int) -> None:
        """An instruction with a rip-relative operand: a word of data."""
        self._bytes += opcode + bytes(4)
        self._references.append((len(self._bytes) - 4, len(self._data)))
        self._data.append(word & _U64)

    def call(self, number: int) -> None:
        self.set(b"\xb8", number)  # mov eax
        self._bytes += _SYSCALL

    def wait_for_copy(self) -> None:
        """wait4(rbx, 0, __WALL, 0)."""
        self.emit(b"\x89\xdf\x31\xf6\x45\x31\xd2")  # mov edi, ebx; xor esi, r10d
        self.set(b"\xba", WALL)  # mov edx
        self.call(WAIT4)

    def restore(self, after: Sequence[int], mask: int) -> None:
        """Set mask, flags and registers, and go on. Nothing after the flags changes flags."""
        self.label("restore")
        self.set(b"\xbf", _SETMASK)  # mov edi
        self.refer(b"\x48\x8d\x35", mask)  # lea rsi
        self.set(b"\xba", 0)  # mov edx
        self.set(b"\x41\xba", _MASK_BYTES)  # mov r10d
        self.call(RT_SIGPROCMASK)
        flags = after[Reg.EFLAGS]
        overflow = 1 if flags & _OF else 0
        self.set(b"\xb8", (flags & _CF_PF_AF_ZF_SF) << 8 | overflow)
        self.emit(b"\x04\x7f\x9e")  # add al, 0x7f (sets OF if al was 1); sahf
        self.emit(b"\xfd" if flags & _DF else b"\xfc")  # std or cld
        for register, load in _LOADS:
            self.refer(load, after[register])
        self.refer(b"\xff\x25", after[Reg.RIP])  # jmp

    def link(self) -> bytes:
        for at, label in self._jumps:
            struct.pack_into("<i", self._bytes, at, self._labels[label] - at - 4)
        data = len(self._bytes) + 7 & -8
        for at, index in self._references:
            struct.pack_into("<i", self._bytes, at, data + 8 * index - at - 4)
        code = self._bytes.ljust(data, b"\xcc") + struct.pack(f"<{len(self._data)}Q", *self._data)
        assert len(code) <= MAX_SIZE
        return bytes(code)
