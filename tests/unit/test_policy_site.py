"""The site of a death, as a limit counts it."""

from __future__ import annotations

import signal
import struct

import msgspec

from collector.arch.x86_64 import IP, SP
from collector.model import CrashSite, FatalSignal, Sender, StackPage
from collector.policy.site import site_of
from tests.unit.event_samples import fatal

LIBC, PROGRAM, PLUGIN = (
    (0x7F0000, 0x7F8000, 0x1000),
    (0x400000, 0x402000, 0),
    (0x500000, 0x501000, 0),
)
CODE = [LIBC, PROGRAM, PLUGIN]
TOP = 0x10F80  # so near to the end of its page that its callers are on two


def abort(*callers: int, **changes: object) -> FatalSignal:
    """A thread that stands in libc, with these words at distances on its stack."""
    who = fatal().who
    regs = [0] * 27
    regs[IP], regs[SP] = 0x7F0100, TOP
    stack = bytearray(2 * 4096)
    for at, word in enumerate(callers):
        struct.pack_into("<Q", stack, TOP - 0x10000 + 64 * at, word)
    pages = (StackPage(address=0x10000, data=bytes(stack[:4096])),)
    pages += (StackPage(address=0x11000, data=bytes(stack[4096:])),)
    sender = Sender(pid=who.key.pid, comm="a", uid=0)
    death = msgspec.structs.replace(
        fatal(), signal=signal.SIGABRT, si_code=-6, regs=tuple(regs), stack=pages, sender=sender
    )
    return msgspec.structs.replace(death, **changes)


def test_a_fault_has_its_instruction() -> None:
    here = CrashSite(build_id="aa", offset=16)
    fault = msgspec.structs.replace(fatal(), si_code=1, site=here)
    assert site_of(fault, CODE) == here
    assert site_of(msgspec.structs.replace(fault, si_code=None), CODE) is None


def test_an_abort_has_its_callers() -> None:
    # GIVEN words into libc, into data, into the program and a plugin, on two pages of stack
    death = abort(0x7F0200, 0x99, 0x400123, 0x500040, 0x401000, 0x401111)
    # THEN the first three that are code of others count, as offsets in their files
    assert site_of(death, CODE) == (0x123, 0x40, 0x1000)
    # AND they are the same where a copy of it is loaded elsewhere
    moved = [(0xA00000, 0xA02000, 0), (0xB00000, 0xB01000, 0), LIBC]
    copy = abort(0x7F0200, 0xA00123, 0xB00040, 0xA01000)
    assert site_of(copy, moved) == site_of(death, CODE)
    # AND others where another function failed
    assert site_of(abort(0x400777, 0x500040, 0x401000), CODE) != site_of(death, CODE)


def test_what_cannot_be_told_has_no_site() -> None:
    other = Sender(pid=1, comm="killer", uid=0)
    assert site_of(abort(0x400123, sender=other), CODE) is None
    assert site_of(abort(0x400123, stack=()), CODE) is None
    assert site_of(abort(0x400123), ()) is None
    assert site_of(abort(0x99), CODE) is None
    # a page that BPF could not read ends it
    gap = abort(0x99, 0x99, 0x400123)
    assert site_of(msgspec.structs.replace(gap, stack=gap.stack[1:]), CODE) is None
