"""Which bytes can be the end of a call: each form, as the assembler encodes it."""

from __future__ import annotations

import pytest

from collector.explain.x86_calls import called, follows_call, is_trampoline

CALLS = {
    "call f": "e811223344",
    "call *%rax": "ffd0",
    "call *%r11": "41ffd3",
    "call *(%rax)": "ff10",
    "call *8(%rax)": "ff5008",
    "call *8(%rsp)": "ff542408",
    "call *0x1234(%rbx)": "ff9334120000",
    "call *0x1234(%rip)": "ff1534120000",
    "call *(%rax,%rcx,8)": "ff14c8",
    "call *0x1234(,%rcx,8)": "ff14cd34120000",
    "call *0x1234(%rsp,%rcx,8)": "ff94cc34120000",
    "call *%fs:0x10": "64ff142510000000",
}
OTHERS = {
    "jmp *%rax": "ffe0",
    "push (%rax)": "ff30",
    "nop": "90",
    "mov %rsp,%rbp": "4889e5",
    "ret": "c3",
    "cut off": "ff14",
}


@pytest.mark.parametrize("code", CALLS.values(), ids=CALLS)
def test_calls(code: str) -> None:
    assert follows_call(bytes(7) + bytes.fromhex(code))


@pytest.mark.parametrize("code", OTHERS.values(), ids=OTHERS)
def test_other_code(code: str) -> None:
    assert not follows_call(bytes(7) + bytes.fromhex(code))


def test_bytes_that_are_too_few_are_none() -> None:
    assert not follows_call(bytes.fromhex("e811223344"))
    assert called(b"\xe8", 0x1000) is None
    assert called(bytes.fromhex("4889e5ffd0"), 0x1000) is None


def test_where_a_direct_call_goes() -> None:
    assert called(bytes.fromhex("e8fbffffff"), 0x1005) == 0x1000
    assert called(bytes.fromhex("e800000080"), 0x1000) == 2**64 - 2**31 + 0x1000


def test_what_handlers_return_to() -> None:
    assert is_trampoline(bytes.fromhex("48c7c00f0000000f05c3"))
    assert not is_trampoline(bytes.fromhex("48c7c03c0000000f05"))
    assert not is_trampoline(b"")
