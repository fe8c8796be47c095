"""What a faulting instruction did: each kind, as the assembler encodes it."""

from __future__ import annotations

import pytest

from collector.explain.x86 import access_of
from collector.model import Access

READ, WRITE = Access.READ, Access.WRITE

# The words of struct user_regs_struct: r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx,
# rdx, rsi, rdi, orig_rax, rip, cs, eflags, rsp, ss, fs_base, ... are 0x1000, 0x2000, and so on.
REGISTERS = [0x1000 * (number + 1) for number in range(27)]
REGISTERS[19] = 0x7FFE00001000  # rsp
REGISTERS[21] = 0x7F0000000000  # fs_base

INSTRUCTIONS = [
    ("movl $1,(%rax)", "c70001000000", 0xB000, WRITE),
    ("mov 8(%rdi,%rcx,4),%edx", "8b548f08", 0x3F008, READ),
    ("mov %r8,-16(%r13)", "4d8945f0", 0x2FF0, WRITE),
    ("mov %fs:0x28,%rax", "64488b042528000000", 0x7F0000000028, READ),
    ("addl $1,(%r12)", "4183042401", 0x4000, WRITE),
    ("cmpl $1,(%rsp)", "833c2401", 0x7FFE00001000, READ),
    ("cmpb $0,0x1234(%rip)", "803d3412000000", 0x1223B, READ),
    ("movb $5,0x1234(%rip)", "c6053412000005", 0x1223B, WRITE),
    ("mov 0x1234(%rip),%rax", "488b0534120000", 0x1223B, READ),
    ("call f", "e8fbffffff", 0x7FFE00000FF8, WRITE),
    ("push %rbp", "55", 0x7FFE00000FF8, WRITE),
    ("ret", "c3", 0x7FFE00001000, READ),
    ("call *(%rax)", "ff10", 0xB000, READ),
    ("call *%rax", "ffd0", 0x7FFE00000FF8, WRITE),
    ("call *(%rax)", "ff10", 0x7FFE00000FF8, WRITE),
    ("orq $0,(%rsp)", "48830c2400", 0x7FFE00001000, WRITE),
    ("rep movsb", "f3a4", 0xF000, WRITE),
    ("rep movsb", "f3a4", 0xE000, READ),
    ("rep stosq", "f348ab", 0xF000, WRITE),
    ("scasb", "ae", 0xF000, READ),
    ("lodsl", "ad", 0xE000, READ),
    ("movaps %xmm0,16(%rbp)", "0f294510", 0x5010, WRITE),
    ("movdqu (%rsi),%xmm1", "f30f6f0e", 0xE000, READ),
    ("vmovdqu %ymm1,0x20(%rdi)", "c5fe7f4f20", 0xF020, WRITE),
    ("vmovdqu64 %zmm17,0x80(%rdi)", "62e1fe487f4f02", 0xF080, WRITE),
    ("vpcmpeqb (%rdi),%ymm0,%ymm1", "c5fd740f", 0xF000, READ),
    ("vpcmpneqb (%rdi),%ymm16,%k1", "62f37d203f0f04", 0xF000, READ),
    ("vpcmpneqb 0x20(%rdi),%ymm16,%k1", "62f37d203f4f0104", 0xF020, READ),
    ("vpminub 0x40(%rdi),%ymm16,%ymm17", "62e17d20da4f02", 0xF040, READ),
    ("movzbl (%rax),%eax", "0fb600", 0xB000, READ),
    ("movslq (%r9,%r10,8),%rax", "4b6304d1", 0x49000, READ),
    ("lock cmpxchg %ecx,(%rdx)", "f00fb10a", 0xD000, WRITE),
    ("xchg %eax,(%rbx)", "8703", 0x6000, WRITE),
    ("lock incl (%r15)", "f041ff07", 0x1000, WRITE),
    ("notl (%r14)", "41f716", 0x2000, WRITE),
    ("divl (%r11)", "41f733", 0x7000, READ),
    ("testb $1,(%rcx)", "f60101", 0xC000, READ),
    ("sete (%rdi)", "0f9407", 0xF000, WRITE),
    ("movq %xmm0,(%rax)", "660fd600", 0xB000, WRITE),
    ("movq (%rax),%xmm0", "f30f7e00", 0xB000, READ),
    ("movd %xmm3,(%rax)", "660f7e18", 0xB000, WRITE),
    ("cvtsi2sdl (%rax),%xmm0", "f20f2a00", 0xB000, READ),
    ("movsd %xmm0,8(%rax)", "f20f114008", 0xB008, WRITE),
    ("movsd 8(%rax),%xmm0", "f20f104008", 0xB008, READ),
    ("movnti %rax,(%rdx)", "480fc302", 0xD000, WRITE),
    ("movbe (%rax),%ecx", "0f38f008", 0xB000, READ),
    ("movbe %ecx,(%rax)", "0f38f108", 0xB000, WRITE),
    ("crc32l (%rax),%ecx", "f20f38f108", 0xB000, READ),
    ("pextrd $1,%xmm0,(%rax)", "660f3a160001", 0xB000, WRITE),
    ("pshufb (%rax),%xmm0", "660f380000", 0xB000, READ),
    ("movl $7,0x1000", "c704250010000007000000", 0x1000, WRITE),
    ("mov (,%rax,8),%rcx", "488b0cc500000000", 0x58000, READ),
    ("lea (%rax),%rcx", "488d08", 0xB000, None),
    ("nop", "90", 0x0, None),
    ("prefetcht0 (%rax)", "0f1808", 0xB000, None),
    ("vpgatherdd %ymm0,(%rax,%ymm1,4),%ymm2", "c4e27d901488", 0xB000, None),
    ("ud2", "0f0b", 0x0, None),
    ("btsl $3,(%rax)", "0fba2803", 0xB000, WRITE),
    ("shll $2,(%rax)", "c12002", 0xB000, WRITE),
    ("sarl (%rax)", "d138", 0xB000, WRITE),
    ("imul $3,(%rax),%ecx", "6b0803", 0xB000, READ),
    ("cmpxchg16b (%rsi)", "480fc70e", 0xE000, WRITE),
    ("pushq (%rax)", "ff30", 0xB000, READ),
    ("popcnt (%rax),%rax", "f3480fb800", 0xB000, READ),
    ("shld $3,%eax,(%rcx)", "0fa40103", 0xC000, WRITE),
    ("vextracti128 $1,%ymm0,(%rax)", "c4e37d390001", 0xB000, WRITE),
    ("vinserti128 $1,(%rax),%ymm0,%ymm0", "c4e37d380001", 0xB000, READ),
    ("vbroadcastss (%rax),%ymm0", "c4e27d1800", 0xB000, READ),
    ("movntdq %xmm0,(%rax)", "660fe700", 0xB000, WRITE),
    ("movhps %xmm0,(%rax)", "0f1700", 0xB000, WRITE),
    ("movlps (%rax),%xmm0", "0f1200", 0xB000, READ),
    ("leave", "c9", 0x5000, None),
    ("pop (%rax)", "8f00", 0xB000, None),
    ("fldl (%rax)", "dd00", 0xB000, None),
]


@pytest.mark.parametrize(
    ("code", "address", "access"),
    [row[1:] for row in INSTRUCTIONS],
    ids=[f"{row[0]}-{row[2]:#x}" for row in INSTRUCTIONS],
)
def test_what_an_instruction_did(code: str, address: int, access: Access | None) -> None:
    # GIVEN an instruction and what happens to follow it
    following = bytes.fromhex(code).ljust(15, b"\x90")
    # THEN what it did to the address at which it faulted is known, or is left open
    assert access_of(following, REGISTERS, address) == access


def test_an_address_that_no_operand_has_is_left_open() -> None:
    for _, code, address, access in INSTRUCTIONS:
        if access is not None:
            assert access_of(bytes.fromhex(code), REGISTERS, address + 0x123457) is None


def test_an_access_that_crosses_into_a_missing_page() -> None:
    # GIVEN movups (%rax),%xmm0 with rax 8 bytes before the end of a page
    registers = [*REGISTERS]
    registers[10] = 0x7F0000000FF8
    code = bytes.fromhex("0f1000")
    # THEN the fault is at the start of the next page, and no later
    assert access_of(code, registers, 0x7F0000001000) == READ
    assert access_of(code, registers, 0x7F0000001001) is None


def test_code_that_is_cut_off_is_left_open() -> None:
    for _, code, address, access in INSTRUCTIONS:
        cut = access_of(bytes.fromhex(code)[:-1], REGISTERS, address)
        assert cut in (None, access)
    assert access_of(b"", REGISTERS, 0) is None
