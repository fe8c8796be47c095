"""Backtraces of stacks that are broken in the ways in which real ones are."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from collector.elfcore.types import Prot
from collector.explain.files import Root
from collector.explain.find import Finder
from collector.explain.types import Explanation
from collector.explain.unwind import explain
from collector.model import SIGNAL_FRAME, Frame
from tests.unit.unrun import BASE, STACK, Loaded, Unrun, compiled, functions

# `_start` calls `main`, `main` calls `outer`, that calls `calls` through a register. Those of the
# one kind have frame pointers, as at -O0; those of the other have none, as at -O2.
_POINTERS = """
    .macro function name, target
    .globl \\name
    .type \\name, @function
\\name:
    .cfi_startproc
    push %rbp
    .cfi_def_cfa_offset 16
    .cfi_offset rbp, -16
    mov %rsp, %rbp
    .cfi_def_cfa_register rbp
    sub $16, %rsp
    call \\target
    leave
    .cfi_def_cfa rsp, 8
    ret
    .cfi_endproc
    .size \\name, . - \\name
    .endm
"""
_NONE = """
    .macro function name, target
    .globl \\name
    .type \\name, @function
\\name:
    .cfi_startproc
    sub $24, %rsp
    .cfi_def_cfa_offset 32
    call \\target
    add $24, %rsp
    .cfi_def_cfa_offset 8
    ret
    .cfi_endproc
    .size \\name, . - \\name
    .endm
"""
_PROGRAM = """
    .text
    function calls, *%rdi
    function outer, calls
    function main, outer
    function above, bare
    .globl _start
    .type _start, @function
_start:
    .cfi_startproc
    .cfi_undefined rip
    call main
    hlt
    .cfi_endproc
    .size _start, . - _start
    # functions in assembler, without unwind information
    .globl bare
    .type bare, @function
bare:
    sub $40, %rsp
    call bare_leaf
    add $40, %rsp
    ret
    .size bare, . - bare
    .globl bare_leaf
    .type bare_leaf, @function
bare_leaf:
    mov %rdi, (%rsi)
    ret
    .size bare_leaf, . - bare_leaf
    .globl restore
    .type restore, @function
restore:
    mov $15, %rax
    syscall
    .size restore, . - restore
    .data
    .globl table
    .type table, @object
    .size table, 64
table:
    .fill 64, 1, 0xc3
"""


@pytest.fixture(scope="module", params=["frame pointers", "none"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    macros = _POINTERS if request.param == "frame pointers" else _NONE
    folder = tmp_path_factory.mktemp("program")
    return Loaded(compiled(folder, macros + _PROGRAM), BASE)


def stack_of(process: Unrun, program: Loaded, *names: str, at: int = 0x8000) -> tuple[int, int]:
    """The stack of functions that wait in their first call, the innermost first.

    Returns the stack pointer in the innermost one after its call, and its frame pointer.
    """
    has_pointers = program.path.with_suffix(".s").read_text().startswith(_POINTERS)
    sp = at
    frames = []
    for name in names:
        size = 16 if has_pointers else 24
        frames.append((sp, sp + size, name))
        sp += size + (16 if has_pointers else 8)
    for number, (_, end, _name) in enumerate(frames):
        caller = names[number + 1] if number + 1 < len(names) else None
        target = program.returns(caller) if caller else 0
        if has_pointers:
            outer = STACK + frames[number + 1][1] if number + 1 < len(names) else 0
            process.push(end, outer, target)
        else:
            process.push(end, target)
    return STACK + at, STACK + frames[0][1] if has_pointers else 0


def explained(core: Path, *, all_threads: bool = False) -> Explanation:
    """As the child does it, in this process: a child for each would take its second."""
    root = os.open("/", os.O_PATH)
    try:
        finder = Finder(Root(root), None, {}, core.stat().st_mtime)
        return explain(core, finder, all_threads=all_threads)
    finally:
        os.close(root)


def died(process: Unrun, folder: Path) -> Explanation:
    return explained(process.core(folder))


CALLERS = ["calls", "outer", "main", "_start"]


@pytest.mark.parametrize("kind", ["null", "low", "data", "unmapped"])
def test_a_call_through_a_bad_pointer_keeps_its_caller(
    kind: str, program: Loaded, tmp_path: Path
) -> None:
    # GIVEN a process that has called nothing, data, or memory that is not there
    process = Unrun(program)
    sp, rbp = stack_of(process, program, *CALLERS)
    process.push(sp - STACK - 8, program.returns("calls"))
    ip = {"null": 0, "low": 0x123, "data": program.at("table"), "unmapped": 0x12345678}[kind]
    process.thread(1, ip, sp - 8, rbp)
    # WHEN it is explained
    explanation = died(process, tmp_path)
    # THEN all callers are there, and what was called has no name
    assert functions(explanation.frames) == [None, *CALLERS]
    assert explanation.lost == {}


@pytest.mark.parametrize("leaf", [True, False])
def test_functions_without_unwind_information(leaf: bool, program: Loaded, tmp_path: Path) -> None:
    # GIVEN a function in assembler, called by C, which faults itself or in one that it has called
    process = Unrun(program)
    sp, rbp = stack_of(process, program, "above", "outer", "main", "_start")
    process.push(sp - STACK - 8, program.returns("above"))
    names = ["bare"]
    if leaf:
        process.thread(1, program.at("bare"), sp - 8, rbp)
    else:
        sp -= 56
        process.push(sp - STACK, program.returns("bare"), 7, program.returns("main"))
        process.thread(1, program.at("bare_leaf"), sp, rbp)
        names = ["bare_leaf", "bare"]
    # THEN each caller is there, and a word that only looks like a return address does no harm
    frames = died(process, tmp_path).frames
    assert functions(frames) == [*names, "above", "outer", "main", "_start"]
    assert not any(frame.scanned for frame in frames or [])


def test_a_frame_that_is_found_by_scanning_is_marked(program: Loaded, tmp_path: Path) -> None:
    # GIVEN a bad pointer that was called, and a stack pointer that was moved since
    process = Unrun(program)
    sp, rbp = stack_of(process, program, *CALLERS)
    process.push(sp - STACK - 24, 7, BASE, program.returns("calls"))
    process.thread(1, 0x123, sp - 24, rbp)
    # THEN its caller is the first return address on the stack
    frames = died(process, tmp_path).frames or []
    assert functions(frames)[:2] == [None, "calls"]
    assert [frame.scanned for frame in frames[:3]] == [False, True, False]


def test_a_stack_ends_where_nothing_looks_like_a_return_address(
    program: Loaded, tmp_path: Path
) -> None:
    # GIVEN a jump to nowhere with nothing but code addresses that no call precedes on the stack
    process = Unrun(program)
    at = process.push(0x8000, *[program.at("main"), program.at("table")] * 40)
    process.thread(1, 0x123, at, at)
    # THEN there is the innermost frame alone
    assert functions(died(process, tmp_path).frames) == [None]


def test_a_backtrace_ends_at_the_entry_of_the_program(tmp_path: Path) -> None:
    # GIVEN an entry in assembler without unwind information, as musl has it
    source = _NONE + _PROGRAM.replace(".cfi_undefined rip", ".cfi_endproc").replace(
        "    hlt\n    .cfi_endproc\n", "    hlt\n"
    )
    program = Loaded(compiled(tmp_path, source), BASE)
    process = Unrun(program)
    sp, rbp = stack_of(process, program, *CALLERS)
    # AND what an earlier call has left above it on the stack
    process.push(sp - STACK + 128, *[program.returns("main")] * 8)
    process.thread(1, program.returns("calls"), sp, rbp)
    # THEN nothing follows it
    assert functions(died(process, tmp_path).frames) == CALLERS


@pytest.mark.parametrize("absurd", [0, 1, (1 << 64) - 1, 1 << 63])
def test_an_absurd_return_address_costs_no_other_frame(
    absurd: int, program: Loaded, tmp_path: Path
) -> None:
    # GIVEN a coroutine, whose outermost function returns to nowhere, and another thread
    process = Unrun(program)
    sp, rbp = stack_of(process, program, "calls", "outer")
    process.push(0x8000 + 56, absurd)  # in both kinds two frames before
    process.thread(1, program.returns("calls"), sp, rbp)
    sp, rbp = stack_of(process, program, *CALLERS, at=0xA000)
    process.thread(2, program.returns("calls"), sp, rbp)
    # WHEN all threads are asked for
    explanation = explained(process.core(tmp_path), all_threads=True)
    # THEN the frames up to there are there, and those of the other thread
    assert functions(explanation.frames)[:2] == ["calls", "outer"]
    assert len(explanation.frames or []) == (2 if absurd == 0 else 3)
    assert [functions(t.frames)[:2] for t in explanation.threads or []] == [CALLERS[:2]] * 2
    assert explanation.lost == {}


def test_absurd_registers_are_one_frame(program: Loaded, tmp_path: Path) -> None:
    process = Unrun(program)
    for number, value in enumerate([0, (1 << 64) - 1, 1 << 63, 7]):
        process.thread(number + 1, value, value, value)
    threads = explained(process.core(tmp_path), all_threads=True).threads or []
    assert [[frame.pc for frame in t.frames] for t in threads] == [[0], [2**64 - 1], [2**63], [7]]


def test_where_a_signal_handler_returns(program: Loaded, tmp_path: Path) -> None:
    # GIVEN a signal handler that waits in a call; what it returns to has no unwind information
    process = Unrun(program)
    sp, rbp = stack_of(process, program, "calls")
    top = 0x8000 + 24  # in both kinds
    process.push(top, program.at("restore"))
    # AND the signal came in at the first instruction of `bare`, which `above` had called
    inner, inner_rbp = stack_of(process, program, "above", "main", "_start", at=0xA000)
    process.push(inner - STACK - 8, program.returns("above"))
    words = [0] * 18
    words[10], words[15], words[16] = inner_rbp, inner - 8, program.at("bare")
    process.push(top + 8 + 40, *words)
    process.thread(1, program.returns("calls"), sp, rbp)
    # THEN the handler's frame, the marker and the interrupted frames are there
    frames = died(process, tmp_path).frames
    assert functions(frames) == ["calls", SIGNAL_FRAME, "bare", "above", "main", "_start"]
    assert frames is not None and (frames[1].offset, frames[2].offset) == (None, 0)


def test_each_frame_can_be_symbolised_later(tmp_path: Path) -> None:
    # GIVEN a program that is stripped, and one at the address that the linker gave it
    source = _NONE + _PROGRAM
    movable = Loaded(compiled(tmp_path, source, name="movable"), BASE)
    fixed = Loaded(compiled(tmp_path, source, "-no-pie", name="fixed"), 0)
    for program in (movable, fixed):
        process = Unrun(program)
        sp, rbp = stack_of(process, program, *CALLERS)
        process.thread(1, program.returns("calls"), sp, rbp)
        core = process.core(tmp_path)
        expected = [program.returns(name) - program.base for name in CALLERS]

        def facts(frames: list[Frame] | None) -> list[tuple[str | None, str | None, int | None]]:
            return [(f.module, f.build_id, f.module_offset) for f in frames or []]

        # THEN each frame has its module, its build-id, and its address as the file counts
        named = explained(core).frames
        assert functions(named) == CALLERS
        wanted = [(str(program.path), program.build_id, address) for address in expected]
        assert facts(named) == wanted
        # AND if the file is gone the same of those that can be unwound
        program.path.rename(tmp_path / "gone")
        bare = explained(core).frames
        assert functions(bare)[:1] == [None]
        assert facts(bare)[:1] == wanted[:1]


def test_an_object_that_lies_about_its_addresses(program: Loaded, tmp_path: Path) -> None:
    # GIVEN a program whose headers in memory, for its file is gone, claim absurd addresses
    process = Unrun(Loaded(program.path, BASE))
    process.rename(str(program.path), "/gone")
    header = bytearray(process.pieces[BASE])
    phoff, count = struct.unpack_from("<Q", header, 32)[0], struct.unpack_from("<H", header, 56)[0]
    for number in range(count):
        struct.pack_into("<Q", header, phoff + 56 * number + 16, 2**64 - 4096)  # p_vaddr
    process.pieces[BASE] = bytes(header)
    process.thread(1, program.at("bare"), STACK + 0x100)
    # THEN its frame is there, and its address in the file is a number of 64 bits
    frames = explained(process.core(tmp_path)).frames or []
    assert [frame.pc for frame in frames] == [program.at("bare")]
    assert 0 <= (frames[0].module_offset or 0) < 2**64


def test_jitted_code(program: Loaded, tmp_path: Path) -> None:
    # GIVEN code with a frame pointer that was made at run time; `calls` has called it
    process = Unrun(program)
    jit = 0x7F1200000000
    process.area(jit, bytes.fromhex("90909090ffd0c3"), Prot.R | Prot.W | Prot.X)
    sp, rbp = stack_of(process, program, *CALLERS)
    at = process.push(sp - STACK - 32, jit + 6, 7, rbp, program.returns("calls"))
    process.thread(1, program.at("bare_leaf"), at, at + 16)
    # THEN its frame is between those of the program, without a name
    frames = died(process, tmp_path).frames or []
    assert functions(frames) == ["bare_leaf", None, *CALLERS]
    assert (frames[1].module, frames[1].pc) == (None, jit + 6)
