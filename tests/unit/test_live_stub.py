"""Stubs restore all that they change: run here, by this very process, as if it were borrowed."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.arch import stub
from collector.arch.x86_64 import Reg

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="machine code of x86-64")

GETPPID, GETPID = 110, 39
CF, PF, AF, ZF, SF, DF, OF = (1 << bit for bit in (0, 2, 4, 6, 7, 10, 11))
CHANGED = (Reg.RAX, Reg.RCX, Reg.RDX, Reg.RBX, Reg.RSI, Reg.RDI, Reg.R8, Reg.R9, Reg.R10, Reg.R11)
VALUES = {register: 0x1111111111111111 * (number + 1) for number, register in enumerate(CHANGED)}
USR1, USR2 = (1 << number - 1 for number in (signal.SIGUSR1, signal.SIGUSR2))

# Runs behind the stub: stores what it finds at RESULTS, and returns to the caller of the whole.
_STORE = (
    b"\x48\xa3%s"  # movabs [RESULTS], rax
    b"\x48\xb8%s"  # movabs rax, RESULTS
    b"\x48\x89\x48\x08\x48\x89\x50\x10\x48\x89\x58\x18\x48\x89\x70\x20\x48\x89\x78\x28"
    b"\x4c\x89\x40\x30\x4c\x89\x48\x38\x4c\x89\x50\x40\x4c\x89\x58\x48"
    b"\x9c\x8f\x40\x50"  # pushfq; pop [rax + 0x50]
    b"\xfc\x5b\xc3"  # cld; pop rbx; ret
)


class Room:
    """An executable page with code and, in its second half, results."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, 8192, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._code = ctypes.c_char.from_buffer(self._page)
        self.address = ctypes.addressof(self._code)
        results = (self.address + 4096).to_bytes(8, "little")
        self.store = _STORE % (results, results)
        self._page[2048 : 2048 + len(self.store)] = self.store

    def run(self, number: int, flags: int, mask: int, *, descriptor: bool = False) -> list[int]:
        """Make a call through a stub; the registers of CHANGED afterwards, and the flags."""
        after = [0] * 27
        after[Reg.RIP], after[Reg.EFLAGS] = self.address + 2048, flags
        for register, value in VALUES.items():
            after[register] = value & (1 << 64) - 1
        make = stub.make_descriptor if descriptor else stub.call
        program = make(number, (), after, mask)
        prologue = b"\x53\xb8" + number.to_bytes(4, "little")  # push rbx; mov eax
        self._page[: len(prologue) + len(program.code)] = prologue + program.code
        ctypes.CFUNCTYPE(None)(self.address)()
        words = (ctypes.c_uint64 * 11).from_buffer(self._page, 4096)
        return list(words)


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield Room()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@given(st.sets(st.sampled_from([CF, PF, AF, ZF, SF, DF, OF])))
def test_registers_and_flags_are_those_asked_for(room: Room, flags: set[int]) -> None:
    """
    GIVEN registers and flags of a thread
    WHEN a stub has made its call
    THEN all of them are in place
    """
    found = room.run(GETPPID, sum(flags), 0)
    assert found[:10] == [VALUES[register] & (1 << 64) - 1 for register in CHANGED]
    assert found[10] & (CF | PF | AF | ZF | SF | DF | OF) == sum(flags)


@pytest.mark.parametrize("descriptor", [False, True])
def test_the_signal_mask_is_the_one_asked_for(room: Room, descriptor: bool) -> None:
    """
    GIVEN a stub with a signal mask
    WHEN it has run, also where the call gave an error that needs no undoing
    THEN exactly these signals are blocked
    """
    for number in (GETPPID, 1000) if not descriptor else (1000,):
        room.run(number, 0, USR1 | USR2, descriptor=descriptor)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == {signal.SIGUSR1, signal.SIGUSR2}
        room.run(number, 0, 0, descriptor=descriptor)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_a_descriptor_that_nobody_took_is_closed(room: Room) -> None:
    """
    GIVEN a stub that makes a descriptor
    WHEN it runs to its end without anybody looking
    THEN there are as many descriptors as before
    """
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    room.run(291, 0, 0, descriptor=True)  # epoll_create1
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


def test_a_stub_begins_with_its_call() -> None:
    """
    GIVEN registers of a stopped thread
    WHEN they are made to start a stub
    THEN number and arguments are in place, no call is to be restarted, and the stack is its own
    """
    regs = [1000 + register for register in Reg]
    program = stub.call(61, (5, 0, stub.WALL, 0), regs, 0)
    started = program.start(regs, 0x7000)
    expected = list(regs)
    expected[Reg.RIP], expected[Reg.RAX], expected[Reg.ORIG_RAX] = 0x7000, 61, (1 << 64) - 1
    expected[Reg.RDI], expected[Reg.RSI], expected[Reg.RDX], expected[Reg.R10] = 5, 0, stub.WALL, 0
    assert started == expected
