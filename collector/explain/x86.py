"""What a faulting x86-64 instruction did to the address at which it faulted: read or write.

A decoder of just that much, and a careful one: it gives an answer only if an operand of the
instruction really has the faulting address, by the registers at the fault. For all else (unusual
encodings, vector addressing, addresses that do not match) the answer is None. The CPU's own error
code, where the kernel side recorded it, is better than this. Source: the opcode maps of the Intel
Software Developer's Manual, volume 2, appendix A.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from collector.arch.x86_64 import FS_BASE, GS_BASE, IP
from collector.model import Access

# Word numbers in struct user_regs_struct (<sys/user.h>) of registers 0-15 as instructions number
# them: rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 ... r15.
_NUMBERED = (10, 11, 12, 5, 19, 4, 13, 14, 9, 8, 7, 6, 3, 2, 1, 0)
_RSP, _RSI, _RDI = 4, 6, 7  # as instructions number them
_MASK = (1 << 64) - 1
_WIDEST = 64  # bytes of an operand


def _set(*parts: int | range) -> frozenset[int]:
    return frozenset(n for part in parts for n in ([part] if isinstance(part, int) else part))


# One-byte opcodes with a ModRM operand. Read-modify-write faults as a write.
_ARITHMETIC = range(0x00, 0x38, 8)  # add, or, adc, sbb, and, sub, xor
_WRITE_1 = _set(
    *_ARITHMETIC, *(n + 1 for n in _ARITHMETIC), range(0x86, 0x8A), 0x8C, 0xC0, 0xC1, 0xC6, 0xC7
) | _set(range(0xD0, 0xD4))
_READ_1 = _set(
    *(n + 2 for n in _ARITHMETIC), *(n + 3 for n in _ARITHMETIC), range(0x38, 0x3C)
) | _set(0x63, 0x69, 0x6B, 0x84, 0x85, 0x8A, 0x8B)
_PUSHES = _set(range(0x50, 0x58), 0x68, 0x6A, 0x9C, 0xE8)  # also calls
_POPS = _set(range(0x58, 0x60), 0x9D, 0xC2, 0xC3)  # also returns
# Two-byte opcodes (0F xx) with a ModRM operand; the vector ones are the same under VEX and EVEX.
_WRITE_2 = _set(0x11, 0x13, 0x17, 0x29, 0x2B, 0x7F, range(0x90, 0xA0), 0xA4, 0xA5, 0xAB, 0xAC) | (
    _set(0xAD, 0xB0, 0xB1, 0xB3, 0xBB, 0xC0, 0xC1, 0xC3, 0xD6, 0xE7)
)
_READ_2 = _set(
    *(0x10, 0x12, 0x14, 0x15, 0x16, 0x28, 0x2A, 0x2C, 0x2D, 0x2E, 0x2F),
    *(range(0x40, 0x50), range(0x51, 0x71), range(0x74, 0x77), 0xA3, 0xAF, 0xB6, 0xB7, 0xB8),
    *(range(0xBC, 0xC0), 0xC2, 0xC4, 0xC6, range(0xD0, 0xD6), range(0xD8, 0xE7)),
    *(range(0xE8, 0xF0), range(0xF1, 0xFF)),
)
# Three-byte opcodes 0F 38 xx and 0F 3A xx: stores among them, and what has vector addresses.
_WRITE_38 = _set(0x2E, 0x2F, 0x63, 0x8A, 0x8B, 0x8E, 0xF1)
_VECTOR_38 = _set(range(0x90, 0x94), range(0xA0, 0xA4), 0xC6, 0xC7)
_WRITE_3A = _set(range(0x14, 0x18), 0x19, 0x1B, 0x1D, 0x39, 0x3B)


class _Code:
    """The bytes of the instruction, read one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def peek(self) -> int:
        return self._data[self.at]

    def signed(self, size: int) -> int:
        if self.at + size > len(self._data):
            raise IndexError
        self.at += size
        return int.from_bytes(self._data[self.at - size : self.at], "little", signed=True)


class _Prefixes(NamedTuple):
    """What stands before the opcode. map: 1, 2, 0x38, 0x3A for the opcode maps above."""

    map: int
    opcode: int
    rex: int  # W 8, R 4, X 2, B 1
    repeat: int  # 0, or the last of F2, F3
    segment: int  # base address
    evex: bool


def access_of(code: bytes, registers: Sequence[int], address: int) -> Access | None:
    """What the instruction `code` did to `address`, or None.

    code: at least the bytes of the instruction, 15 are enough. registers: the 27 words of struct
    user_regs_struct at the fault.
    """
    try:
        reader = _Code(code)
        prefixes = _prefixes(reader, registers)
        if prefixes is None:
            return None
        found = {a for a, at in _operands(prefixes, reader, registers) if _hits(at, address)}
    except IndexError:  # cut off
        return None
    return found.pop() if len(found) == 1 else None


def _hits(start: int, address: int) -> bool:
    """An access that crosses into a page that is not there faults at that page's first byte."""
    return start == address or (address % 4096 == 0 and 0 < address - start < _WIDEST)


def _prefixes(code: _Code, registers: Sequence[int]) -> _Prefixes | None:
    repeat = segment = rex = 0
    byte = code.byte()
    while byte in (0x66, 0xF0, 0xF2, 0xF3, 0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65):
        if byte in (0xF2, 0xF3):
            repeat = byte
        elif byte in (0x64, 0x65):
            segment = registers[FS_BASE if byte == 0x64 else GS_BASE]
        byte = code.byte()
    if byte in (0xC4, 0xC5, 0x62):
        return _vector_prefixes(code, byte, segment)
    if byte & 0xF0 == 0x40:
        rex, byte = byte & 15, code.byte()
    if byte != 0x0F:
        return _Prefixes(1, byte, rex, repeat, segment, False)
    byte = code.byte()
    if byte in (0x38, 0x3A):
        return _Prefixes(byte, code.byte(), rex, repeat, segment, False)
    return _Prefixes(2, byte, rex, repeat, segment, False)


def _vector_prefixes(code: _Code, kind: int, segment: int) -> _Prefixes | None:
    """VEX (C4, C5) and EVEX (62); their R, X and B are stored inverted."""
    first = code.byte()
    if kind == 0xC5:
        rex, number, repeat = (~first >> 5) & 4, 1, first & 3
    else:
        rex, number = (~first >> 5) & 7, first & (7 if kind == 0x62 else 31)
        second = code.byte()
        rex, repeat = rex | (second >> 4) & 8, second & 3
        if kind == 0x62:
            code.byte()
    opcode_map = {1: 2, 2: 0x38, 3: 0x3A}.get(number)
    if opcode_map is None:
        return None
    implied = (0, 0, 0xF3, 0xF2)[repeat]
    return _Prefixes(opcode_map, code.byte(), rex, implied, segment, kind == 0x62)


def _operands(p: _Prefixes, code: _Code, registers: Sequence[int]) -> Iterator[tuple[Access, int]]:
    """Each way the instruction goes to memory, with the address; some candidates too many."""
    if p.map == 1:
        yield from _implied(p, code, registers)
        if p.opcode not in _WRITE_1 | _READ_1 | {0x80, 0x81, 0x83, 0xF6, 0xF7, 0xFE, 0xFF}:
            return
    modrm = code.byte()
    access = _access(p, modrm >> 3 & 7)
    if access is not None and modrm >> 6 != 3:
        for at in _addresses(p, modrm, code, registers):
            yield access, at


def _implied(p: _Prefixes, code: _Code, registers: Sequence[int]) -> Iterator[tuple[Access, int]]:
    """The stack, and the string instructions."""
    sp, si, di = (registers[_NUMBERED[n]] for n in (_RSP, _RSI, _RDI))
    opcode = p.opcode
    indirect = opcode == 0xFF and code.peek() >> 3 & 7 in (2, 3, 6)  # call, push
    if indirect or opcode in _PUSHES:
        yield Access.WRITE, sp - 8
    elif opcode in _POPS:
        yield Access.READ, sp
    elif opcode in (0xA4, 0xA5):
        yield Access.READ, si + p.segment
        yield Access.WRITE, di
    elif opcode in (0xAA, 0xAB):
        yield Access.WRITE, di
    elif opcode in (0xA6, 0xA7, 0xAC, 0xAD):
        yield Access.READ, si + p.segment
    if opcode in (0xA6, 0xA7, 0xAE, 0xAF):
        yield Access.READ, di


def _access(p: _Prefixes, extension: int) -> Access | None:
    """What the ModRM operand is for; `extension` is ModRM's middle field."""
    opcode = p.opcode
    if p.map == 1:
        if opcode in (0x80, 0x81, 0x83):
            return Access.READ if extension == 7 else Access.WRITE
        if opcode in (0xF6, 0xF7):
            return Access.WRITE if extension in (2, 3) else Access.READ
        if opcode in (0xFE, 0xFF):
            return Access.WRITE if extension < 2 else Access.READ
        return Access.WRITE if opcode in _WRITE_1 else Access.READ
    if p.map == 0x38:
        if opcode in _VECTOR_38:
            return None
        if opcode == 0xF1 and p.repeat == 0xF2:  # crc32
            return Access.READ
        return Access.WRITE if opcode in _WRITE_38 else Access.READ
    if p.map == 0x3A:
        return Access.WRITE if opcode in _WRITE_3A else Access.READ
    return _access_2(opcode, extension, p.repeat)


def _access_2(opcode: int, extension: int, repeat: int) -> Access | None:
    if opcode == 0x7E:  # movd, movq
        return Access.READ if repeat == 0xF3 else Access.WRITE
    if opcode == 0xBA:  # bt, bts, btr, btc with a number
        return Access.READ if extension == 4 else Access.WRITE
    if opcode == 0xC7 and extension == 1:  # cmpxchg16b
        return Access.WRITE
    if opcode in _WRITE_2:
        return Access.WRITE
    return Access.READ if opcode in _READ_2 else None


def _addresses(p: _Prefixes, modrm: int, code: _Code, registers: Sequence[int]) -> Iterator[int]:
    """Effective addresses of a ModRM memory operand, wrapped to 64 bits.

    There is more than one candidate where the length of what follows (immediates), or the scale of
    a compressed displacement (EVEX), would have to be known.
    """

    def register(number: int, extend: int) -> int:
        return registers[_NUMBERED[number | (8 if p.rex & extend else 0)]]

    mode, rm = modrm >> 6, modrm & 7
    if mode == 0 and rm == 5:
        displacement = code.signed(4)
        for immediate in (0, 1, 2, 4):
            yield registers[IP] + code.at + immediate + displacement + p.segment & _MASK
        return
    base = p.segment
    if rm == 4:
        sib = code.byte()
        if (sib >> 3 & 7) != 4 or p.rex & 2:
            base += register(sib >> 3 & 7, 2) << (sib >> 6)
        rm = sib & 7
    if mode == 0 and rm == 5:  # only with SIB: no base, but 32 bits
        yield base + code.signed(4) & _MASK
        return
    base += register(rm, 1)
    displacement = code.signed((0, 1, 4)[mode]) if mode else 0
    scales = (1, 2, 4, 8, 16, 32, 64) if p.evex and mode == 1 else (1,)
    for scale in scales:
        yield base + displacement * scale & _MASK
