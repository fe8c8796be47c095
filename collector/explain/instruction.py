"""The instruction at which a thread died: its text, the addresses that it used, its null pointers.

Runs in the explaining child only, for it loads capstone. Of anything that cannot be decoded there
is no text, and no addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import capstone
from capstone import x86

from collector.arch.x86_64 import FS_BASE, GS_BASE, IP, Reg
from collector.diagnosis import Access

_MASK = (1 << 64) - 1
_WHOLE = {name.lower(): Reg[name].value for name in Reg.__members__ if name.startswith("R")}


class Operand(NamedTuple):
    """One place in memory that an instruction goes to."""

    address: int
    size: int  # bytes
    access: Access
    base: int | None  # what its base register held; None: it has none


class Decoded(NamedTuple):
    """A decoded instruction, with the registers at the fault put in."""

    code: bytes
    text: str  # in the notation of AT&T
    operands: tuple[Operand, ...]
    pointers: dict[str, int]  # the registers that its addresses are made of
    target: int | None  # where a call, jump or return by a register goes
    returns: bool
    privileged: bool


def decode(code: bytes, registers: Sequence[int]) -> Decoded | None:
    """The first instruction of `code`. registers: the 27 words of struct user_regs_struct."""
    machine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    machine.detail, machine.syntax = True, capstone.CS_OPT_SYNTAX_ATT
    found = next(machine.disasm(code, registers[IP], 1), None)
    if found is None:
        return None
    pointers: dict[str, int] = {}
    operands = tuple(
        _operand(found, operand, registers, pointers)
        for operand in found.operands
        if operand.type == x86.X86_OP_MEM and found.mnemonic[:3] not in ("lea", "nop")
    )
    return Decoded(
        code=bytes(found.bytes),
        text=f"{found.mnemonic} {found.op_str}".strip(),
        operands=operands,
        pointers=pointers,
        target=_target(found, registers),
        returns=found.group(capstone.CS_GRP_RET),
        privileged=found.group(capstone.CS_GRP_PRIVILEGE),
    )


def _operand(
    found: Any, operand: Any, registers: Sequence[int], pointers: dict[str, int]
) -> Operand:
    memory = operand.mem
    base = _value(found, memory.base, registers, pointers)
    index = _value(found, memory.index, registers, pointers) or 0
    segment = {x86.X86_REG_FS: FS_BASE, x86.X86_REG_GS: GS_BASE}.get(memory.segment)
    address = (base or 0) + index * memory.scale + memory.disp
    address += registers[segment] if segment is not None else 0
    writes = operand.access & capstone.CS_AC_WRITE
    return Operand(
        address=address & _MASK,
        size=operand.size,
        access=Access.WRITE if writes else Access.READ,
        base=base if memory.base != x86.X86_REG_RIP else None,
    )


def _value(
    found: Any, number: int, registers: Sequence[int], pointers: dict[str, int]
) -> int | None:
    """What a register of an address held; relative to the instruction pointer: the next one."""
    if number == x86.X86_REG_RIP:
        return registers[IP] + int(found.size)
    name = found.reg_name(number)
    if name is None or name not in _WHOLE:  # none, or (with a prefix) half of one
        return None
    pointers[name] = registers[_WHOLE[name]]
    return registers[_WHOLE[name]]


def _target(found: Any, registers: Sequence[int]) -> int | None:
    goes = found.group(capstone.CS_GRP_CALL) or found.group(capstone.CS_GRP_JUMP)
    if not goes or not found.operands or found.operands[0].type != x86.X86_OP_REG:
        return None
    name = found.reg_name(found.operands[0].reg)
    return registers[_WHOLE[name]] if name in _WHOLE else None
