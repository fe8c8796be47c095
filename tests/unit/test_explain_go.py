"""Goroutines and panics in the memory of Go programs, as its runtime lays them out."""

from __future__ import annotations

import contextlib
import random
import struct

import msgspec
import pytest

from collector.arch.x86_64 import PAGE
from collector.capture.goroutines import select_goroutines
from collector.elfcore.types import Mapping, ProcessImage, Prot, Thread
from collector.explain.exported import Absent
from collector.explain.go_runtime import Go, Goroutine, find_go

EXE, TEXT, DATA, BSS, HEAP = "/srv/app", 0x400000, 0x500000, 0x503000, 0xC000000000
ENTRY = TEXT + 0x100
AUXV = struct.pack("<4Q", 9, ENTRY, 0, 0)
SLOTS, MESSAGE, ARRAY, TYPES = BSS + 0x120, BSS + 0x1800, HEAP, TEXT + 0x2000
RW = Prot.R | Prot.W
MAPPINGS = [
    Mapping(start=TEXT, end=TEXT + 0x10000, prot=Prot.R | Prot.X, path=EXE),
    Mapping(start=DATA, end=BSS, prot=RW, path=EXE, offset=0x10000),
    Mapping(start=BSS, end=BSS + 0x3000, prot=RW),
    Mapping(start=HEAP, end=HEAP + 0x400000, prot=RW),
]


class Program:
    """A Go program of this version."""

    def __init__(self, version: str = "go1.19.8") -> None:
        self.memory = {m.start: bytearray(m.end - m.start) for m in MAPPINGS}
        minor = int(version.split(".")[1])
        self.ret, self.shift = minor < 25, 8 * (minor >= 23) - 8 * (minor >= 25)
        self.goroutines: list[int] = []
        info = b"\xff Go buildinf:" + bytes([8, 2]) + bytes(16)
        self.put(DATA, info.ljust(32, b"\0") + bytes([len(version)]) + version.encode())
        # other slices, and words that lead somewhere
        self.words(BSS, HEAP + 0x1000, 3, 4, HEAP, BSS, 7)

    def put(self, address: int, data: bytes) -> None:
        start = max(start for start in self.memory if start <= address)
        self.memory[start][address - start : address - start + len(data)] = data

    def words(self, address: int, *words: int) -> None:
        self.put(address, struct.pack(f"<{len(words)}Q", *words))

    def read(self, address: int, size: int) -> bytes:
        start = max((start for start in self.memory if start <= address), default=None)
        if start is None:
            return b""
        return bytes(self.memory[start][address - start : address - start + size])

    def go(self, status: int, pc: int = 0, callers: tuple[int, ...] = (), panic: int = 0) -> int:
        """One more goroutine; its address."""
        number = len(self.goroutines)
        at = HEAP + 0x10000 + 0x1000 * number
        stack = at + 0x400
        self.words(at, stack, stack + 0x400, 0, 0, panic)
        sp = bp = stack + 0x80
        for step, caller in enumerate(callers):
            following = sp + 0x20 * (step + 1) if step + 1 < len(callers) else 0
            self.words(sp + 0x20 * step, following, caller)
        self.words(at + 56, sp, pc, at, 0, *([0] if self.ret else []), 0, bp, sp, pc, bp)
        self.put(at + 144 + self.shift, struct.pack("<IIQ", status, 0, number + 1))
        self.goroutines.append(at)
        self.words(ARRAY, *self.goroutines)
        self.words(SLOTS, ARRAY, number + 1, 512)
        return at

    def panics(self, kind: int, value: bytes) -> int:
        """A struct _panic with a value of this kind; its address."""
        self.put(TYPES + 23, bytes([kind]))
        at = HEAP + 0x300000
        self.words(at, 0, TYPES, at + 0x100, 0)
        self.put(at + 0x100, value)
        self.put(at + 0x200, b"no order 7")
        return at

    def find(self) -> Go:
        found = find_go(self.read, MAPPINGS, AUXV)
        assert found is not None
        return found


WAITING, RUNNING, IN_CALL, DEAD, SCANNED = 4, 2, 3, 6, 0x1004


@pytest.mark.parametrize(
    "version", ["go1.18", "go1.19.8", "go1.22.1", "go1.23.0", "go1.24.2", "go1.25.5"]
)
def test_goroutines_without_symbols(version: str) -> None:
    # GIVEN a program with goroutines in each state
    program = Program(version)
    program.go(RUNNING)
    waits = program.go(WAITING, 0x401000, (0x402000, 0x403000))
    program.go(DEAD)
    program.go(SCANNED, 0x401000, (0x402000,))
    program.go(IN_CALL, 0x404000)
    # WHEN they are looked for
    found = program.find()
    # THEN they are there, with their callers by the frame pointers, but for the one that ended
    stack = waits + 0x480
    assert (found.version, found.count) == (version, 5)
    one, two, three, four = found.goroutines(100)
    assert one == Goroutine(1, "running", None, 0, 0, ())
    assert two == Goroutine(2, "waiting", 0x401000, stack, stack, (0x402000, 0x403000))
    assert (three.id, three.state, three.callers) == (4, "waiting", (0x402000,))
    assert (four.id, four.state, four.pc) == (5, "in a system call", 0x404000)
    # AND no more than so many are looked at
    assert len(list(found.goroutines(2))) == 2


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (24, struct.pack("<QQ", HEAP + 0x300200, 10), "no order 7"),
        (24, struct.pack("<QQ", HEAP + 0x300200, 1 << 60), "no order 7" + "\0" * 1014),
        (2, struct.pack("<q", -3), "-3"),
        (1, b"\1", "true"),
        (25, b"", None),  # a struct: the runtime prints its address
    ],
)
def test_the_value_of_a_panic(kind: int, value: bytes, said: str | None) -> None:
    program = Program()
    program.go(WAITING, panic=HEAP)  # it waits: it has recovered, or will
    program.go(RUNNING, panic=program.panics(kind, value))
    assert program.find().message(program.read, 100) == said


def test_the_text_of_a_fatal_error() -> None:
    program = Program()
    program.go(WAITING)
    program.put(DATA + 0x1000, b"fatal error: a constant\n")
    program.put(MESSAGE, b"fatal error: all goroutines are asleep - deadlock!\n")
    assert program.find().message(program.read, 100) == "all goroutines are asleep - deadlock!"


def test_the_pages_that_tell_them_are_enough() -> None:
    # GIVEN the pages that are selected for a small core, of a program with more than it keeps
    program = Program()
    program.go(RUNNING, panic=program.panics(24, struct.pack("<QQ", HEAP + 0x300200, 10)))
    for _ in range(500):
        program.go(WAITING, 0x401000, (0x402000, 0x403000))
    image = ProcessImage(
        threads=[Thread(tid=1, regs=(0,) * 27)], mappings=MAPPINGS, auxv=AUXV, siginfo=b""
    )
    kept = {start for start, _ in select_goroutines(image, program.read)}
    # THEN they are one for each goroutine, and a few
    assert len(kept) < 256 + 16

    def small(address: int, size: int) -> bytes:
        wanted = range(address & -PAGE, address + size, PAGE)
        return program.read(address, size) if kept.issuperset(wanted) else b""

    # AND with nothing but them the first goroutines are the same, and the panic
    found = find_go(small, MAPPINGS, AUXV)
    assert found is not None
    assert list(found.goroutines(256)) == list(program.find().goroutines(256))
    assert found.message(small, 256) == "no order 7"
    with pytest.raises(Absent):
        list(found.goroutines(300))


@pytest.mark.parametrize("what", ["version", "entry"])
def test_other_programs_have_none(what: str) -> None:
    program = Program()
    program.go(WAITING)
    if what == "version":
        program.put(DATA, bytes(64))
    auxv = b"" if what == "entry" else AUXV
    assert find_go(program.read, MAPPINGS, auxv) is None
    image = ProcessImage(threads=[], mappings=MAPPINGS, auxv=auxv, siginfo=b"")
    assert select_goroutines(image, program.read) == []


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("slots", "those of go1.19.8 are not in the core"),
        ("self", "those of go1.19.8 are not in the core"),
        ("first", "those of go1.19.8 have a form that is not known"),
        ("newer", "those of go1.99.0 have a form that is not known"),
    ],
)
def test_what_cannot_be_read_is_said(what: str, why: str) -> None:
    program = Program("go1.99.0" if what == "newer" else "go1.19.8")
    at = program.go(WAITING)
    if what == "slots":
        program.words(SLOTS, ARRAY, 0, 0)
    elif what == "self":
        program.words(at + 72, at + 8)
    elif what == "first":
        program.words(at + 152, 77)
    with pytest.raises(Absent, match=why):
        find_go(program.read, MAPPINGS, AUXV)


@pytest.mark.parametrize("seed", range(10))
def test_memory_that_leads_anywhere_ends(seed: int) -> None:
    # GIVEN a program whose data is nothing but pointers to each other, with huge counts
    some = random.Random(seed)
    program = Program()
    at = program.go(RUNNING, panic=HEAP)
    words = [some.choice([at, ARRAY, SLOTS, HEAP + 8, 1 << 20]) for _ in range(1500)]
    program.words(BSS, *words[:36])
    program.words(SLOTS + 24, *words[36:1400])
    program.words(SLOTS, at, 1 << 20, 1 << 20)
    count = 0

    def read(address: int, size: int) -> bytes:
        nonlocal count
        count += 1
        assert size <= PAGE
        return program.read(address, size)

    # WHEN it is read THEN it ends, with a bounded number of reads
    with contextlib.suppress(Absent):
        found = find_go(read, MAPPINGS, AUXV)
        assert found is not None
        found.message(read, 1000)
        list(found.goroutines(1000))
    assert count < 50_000


def test_stacks_that_lead_back_end() -> None:
    program = Program()
    at = program.go(WAITING, 0x401000, (0x402000,))
    program.words(at + 0x480, at + 0x480, 0x402000)
    (one,) = program.find().goroutines(1)
    assert one.callers == (0x402000,)


def test_data_without_an_end_is_cut() -> None:
    # GIVEN a program that says that it has 64 GiB of data, and no goroutines
    program = Program()
    huge = [msgspec.structs.replace(m, end=BSS + (64 << 30)) for m in MAPPINGS if m.start == BSS]
    seen = set()

    def read(address: int, size: int) -> bytes:
        seen.add(address)
        return program.read(address, size)

    # THEN a bounded part of it is looked through
    with pytest.raises(Absent):
        find_go(read, [*MAPPINGS[:2], *huge], AUXV)
    assert len(seen) < 1200
