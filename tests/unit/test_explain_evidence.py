"""What a core alone says of a fault: the whole beginning of its diagnosis."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from collector.arch.x86_64 import FS_BASE, IP, SP, Reg
from collector.diagnosis import (
    Access,
    Category,
    Confidence,
    Diagnosis,
    Evidence,
    Instruction,
    Mapping,
)
from collector.elfcore import types
from collector.elfcore.reader import CoreFile
from collector.elfcore.sink import SparseWriter
from collector.elfcore.types import ProcessImage, Prot, PsInfo, Segment, Thread
from collector.elfcore.writer import write_core
from collector.explain.evidence import evidence_of
from tests.unit.elfcore_samples import Memory

RX, RO, RW, NONE = Prot.R | Prot.X, Prot.R, Prot.R | Prot.W, Prot(0)
EXE = "/opt/victim"
CODE, HEAP, GUARD, THREAD, STACK = 0x401000, 0x5550_0000_0000, 0x7F00_0000, 0x7F01_0000, 0x7FF0_0000
MAPPINGS = [
    types.Mapping(start=CODE, end=CODE + 0x2000, prot=RX, path=EXE),
    types.Mapping(start=CODE + 0x2000, end=CODE + 0x3000, prot=RO, path=EXE, offset=0x2000),
    types.Mapping(start=GUARD, end=THREAD, prot=NONE),
    types.Mapping(start=THREAD, end=THREAD + 0x8000, prot=RW),
    types.Mapping(start=STACK, end=STACK + 0x8000, prot=RW),
    types.Mapping(start=HEAP, end=HEAP + 0x100000, prot=RW),
]
AUXV = struct.pack("<4Q", 25, STACK + 0x7F00, 0, 0)
MAIN_STACK = Mapping(start=STACK, end=STACK + 0x8000, permissions="rw-", name="[stack]")
THREAD_STACK = Mapping(start=THREAD, end=THREAD + 0x8000, permissions="rw-")
BELOW = Mapping(start=STACK, end=STACK + 0x8000, permissions="rw-", name="[stack]")


def mapping(start: int, size: int, permissions: str, **more: object) -> Mapping:
    return Mapping(start=start, end=start + size, permissions=permissions, **more)  # type: ignore[arg-type]


def core_of(
    folder: Path,
    *,
    number: int = 11,
    si_code: int = 1,
    address: int = 0,
    tid: int = 700,
    top: int = 0,
    **registers: int,
) -> CoreFile:
    """A core of pid 700, whose main thread stands in its stack unless said otherwise.

    top: the word at the stack pointer.
    """
    regs = [0x1111] * 27
    regs[IP], regs[SP], regs[FS_BASE] = CODE, STACK + 0x4000, THREAD + 0x7000
    for name, value in registers.items():
        regs[Reg[name.upper()]] = value
    image = ProcessImage(
        threads=[Thread(tid=tid, regs=tuple(regs))],
        mappings=MAPPINGS,
        auxv=AUXV,
        siginfo=struct.pack("<iii4xQ", number, 0, si_code, address).ljust(128, b"\0"),
        psinfo=PsInfo(pid=700),
    )
    segments = []
    for m in MAPPINGS:
        held = m.start <= regs[SP] < m.end
        size = m.size if held else 0
        segments.append(Segment(vaddr=m.start, memsz=m.size, filesz=size, flags=m.prot))
    fd = os.open(folder / "core", os.O_RDWR | os.O_CREAT, 0o600)
    memory = Memory({regs[SP]: struct.pack("<Q", top)})
    write_core(image, segments, memory, SparseWriter(fd))
    os.close(fd)
    return CoreFile(folder / "core")


LOAD = bytes.fromhex("8b4708")  # movl 8(%rdi), %eax
LOADED = Instruction(bytes="8b4708", text="movl 8(%rdi), %eax")
CODE_BELOW = {"below": mapping(CODE + 0x2000, 0x1000, "r--", name=EXE)}


def near(address: int, below: Mapping, above: Mapping) -> dict[str, Mapping]:
    """Both neighbours of an address where nothing is, with their distances."""
    up = {name: getattr(above, name) for name in ("start", "end", "permissions", "name")}
    down = {name: getattr(below, name) for name in ("start", "end", "permissions", "name")}
    return {
        "below": Mapping(**down, distance=address - below.end + 1),
        "above": Mapping(**up, distance=above.start - address),
    }


EXE_CODE = mapping(CODE, 0x2000, "r-x", name=EXE)
EXE_DATA = mapping(CODE + 0x2000, 0x1000, "r--", name=EXE)
HEAP_HERE = mapping(HEAP, 0x100000, "rw-")
GUARD_HERE = mapping(GUARD, 0x10000, "---")
IN_STACK = {"stack": MAIN_STACK, "sp_in_stack": True}
UNKNOWN = (Category.UNKNOWN, Confidence.GUESS)
R, W, X = Access.READ, Access.WRITE, Access.EXECUTE
NON_CANONICAL = 0xDEAD_BEEF_0000_1000
MANGLED = HEAP >> 12  # what glibc leaves in the last piece of its lists of free memory

FAULTS = [
    pytest.param(
        {"address": 8, "rdi": 0},
        LOAD,
        UNKNOWN,
        {
            "address": 8,
            "null_registers": ["rdi"],
            "instruction": LOADED,
            "above": mapping(CODE, 0x2000, "r-x", name=EXE, distance=CODE - 8),
            **IN_STACK,
        },
        id="near null",
    ),
    pytest.param(
        {"address": 0x200008, "rdi": 0, "rcx": 0x40000},
        bytes.fromhex("8b448f08"),  # movl 8(%rdi, %rcx, 4), %eax
        UNKNOWN,
        {},
        id="another address than the instruction's",
    ),
    pytest.param(
        {"address": 0x100008, "rdi": 0, "rcx": 0x40000},
        bytes.fromhex("8b448f08"),
        (Category.NEAR_NULL, Confidence.LIKELY),
        {
            "address": 0x100008,
            "null_registers": ["rdi"],
            "instruction": Instruction(bytes="8b448f08", text="movl 8(%rdi, %rcx, 4), %eax"),
            "above": mapping(CODE, 0x2000, "r-x", name=EXE, distance=CODE - 0x100008),
            **IN_STACK,
        },
        id="an element of an array that is not there",
    ),
    pytest.param(
        {"address": MANGLED + 8, "rdi": MANGLED},
        LOAD,
        (Category.FREED_MEMORY, Confidence.LIKELY),
        {
            "address": MANGLED + 8,
            "instruction": LOADED,
            **near(MANGLED + 8, MAIN_STACK, HEAP_HERE),
            **IN_STACK,
        },
        id="what glibc leaves in freed memory",
    ),
    pytest.param(
        {"si_code": 0x80, "rdi": 0x5A5A_5A5A_5A5A_5A5A},
        LOAD,
        (Category.FREED_MEMORY, Confidence.LIKELY),
        {
            "address": 0x5A5A_5A5A_5A5A_5A62,
            "access": R,
            "instruction": LOADED,
            **IN_STACK,
        },
        id="what jemalloc leaves in freed memory",
    ),
    pytest.param(
        {"si_code": 0x80, "rdi": NON_CANONICAL},
        LOAD,
        (Category.NON_CANONICAL, Confidence.CERTAIN),
        {"address": NON_CANONICAL + 8, "access": R, "instruction": LOADED, **IN_STACK},
        id="not canonical",
    ),
    pytest.param(
        {"si_code": 0x80, "rax": NON_CANONICAL},
        bytes.fromhex("ffd0"),
        (Category.BAD_CALL, Confidence.CERTAIN),
        {
            "address": NON_CANONICAL,
            "access": X,
            "instruction": Instruction(bytes="ffd0", text="callq *%rax"),
            **IN_STACK,
        },
        id="a call through what is no address",
    ),
    pytest.param(
        {"si_code": 0x80, "top": NON_CANONICAL},
        bytes.fromhex("c3"),
        (Category.BAD_CALL, Confidence.CERTAIN),
        {
            "address": NON_CANONICAL,
            "access": X,
            "instruction": Instruction(bytes="c3", text="retq"),
            **IN_STACK,
        },
        id="a return to what is no address",
    ),
    pytest.param(
        {"si_code": 0x80, "rdi": HEAP + 8},
        bytes.fromhex("0f2907"),
        (Category.MISALIGNED, Confidence.CERTAIN),
        {
            "address": HEAP + 8,
            "access": W,
            "instruction": Instruction(bytes="0f2907", text="movaps %xmm0, (%rdi)"),
            "mapping": HEAP_HERE,
            **IN_STACK,
        },
        id="a vector that is not aligned",
    ),
    pytest.param(
        {"si_code": 0x80},
        bytes.fromhex("f4"),
        (Category.PRIVILEGED_INSTRUCTION, Confidence.CERTAIN),
        {"instruction": Instruction(bytes="f4", text="hlt"), **IN_STACK},
        id="an instruction of the kernel's",
    ),
    pytest.param(
        {"address": STACK - 8, "rsp": STACK},
        bytes.fromhex("50"),
        (Category.STACK_OVERFLOW, Confidence.CERTAIN),
        {
            "address": STACK - 8,
            "instruction": Instruction(bytes="50", text="pushq %rax"),
            **near(STACK - 8, THREAD_STACK, MAIN_STACK),
            **IN_STACK,
        },
        id="the main thread's stack overflows",
    ),
    pytest.param(
        {"si_code": 2, "address": THREAD - 0x3000, "rsp": THREAD - 0x4000, "tid": 701},
        b"",
        (Category.STACK_OVERFLOW, Confidence.CERTAIN),
        {
            "address": THREAD - 0x3000,
            "mapping": GUARD_HERE,
            "stack": THREAD_STACK,
            "sp_in_stack": False,
        },
        id="another thread's stack overflows by a large frame",
    ),
    pytest.param(
        {"si_code": 2, "address": THREAD - 0x3000, "rsp": THREAD + 0x4000, "tid": 701},
        b"",
        UNKNOWN,
        {
            "address": THREAD - 0x3000,
            "mapping": GUARD_HERE,
            "stack": THREAD_STACK,
            "sp_in_stack": True,
        },
        id="a guard page without an overflow",
    ),
    pytest.param(
        {"address": 0x10000, "rsp": HEAP + 0x100},
        b"",
        UNKNOWN,
        {
            "address": 0x10000,
            "above": mapping(CODE, 0x2000, "r-x", name=EXE, distance=CODE - 0x10000),
            "stack": HEAP_HERE,
        },
        id="a stack of the program's own making",
    ),
    pytest.param(
        {"number": 4, "si_code": 2},
        b"\x06" * 15,
        UNKNOWN,
        {"instruction": Instruction(bytes="06" * 15), **IN_STACK},
        id="bytes that are no instruction",
    ),
    pytest.param(
        {"number": 8},
        bytes.fromhex("f7f9"),
        UNKNOWN,
        {"instruction": Instruction(bytes="f7f9", text="idivl %ecx"), **IN_STACK},
        id="a division",
    ),
]


@pytest.mark.parametrize(("fault", "code", "hint", "evidence"), FAULTS)
def test_what_a_core_says_of_a_fault(
    fault: dict[str, int],
    code: bytes,
    hint: tuple[Category, Confidence],
    evidence: dict[str, object],
    tmp_path: Path,
) -> None:
    with core_of(tmp_path, **fault) as core:
        found = evidence_of(core, lambda address, size: code if address == CODE else b"")
    if not evidence:  # only the category matters
        assert found is not None
        assert (found.category, found.confidence) == hint
        return
    category, confidence = hint
    expected = Evidence(**evidence)  # type: ignore[arg-type]
    assert found == Diagnosis(category=category, confidence=confidence, evidence=expected)


@pytest.mark.parametrize(("number", "si_code"), [(6, -6), (11, -6), (11, 0), (15, 0)])
def test_a_signal_that_was_sent_is_no_fault(number: int, si_code: int, tmp_path: Path) -> None:
    with core_of(tmp_path, number=number, si_code=si_code) as core:
        assert evidence_of(core, lambda _address, _size: b"") is None
