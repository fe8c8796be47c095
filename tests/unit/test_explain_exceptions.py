"""A C++ exception in memory: its type, its text, and which memory the small core needs for it."""

from __future__ import annotations

import struct

import msgspec
import pytest

from collector.arch.x86_64 import SP, Reg
from collector.capture.thrown import select_thrown
from collector.elfcore.types import Mapping, ProcessImage, Prot, Thread
from collector.explain.exceptions import Thrown, find_thrown

HEADER, TYPE, BASE, NAMES, TEXT, STACK = 0x5001_0080, 0x6000, 0x6100, 0x7000, 0x5002_0000, 0x9000
GNU, LLVM, RUST = 0x474E5543432B2B00, 0x434C4E47432B2B00, 0x4D4F5A0052555354
STRING = b"NSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"


def word(value: int) -> bytes:
    return struct.pack("<Q", value)


class Program:
    """Memory in pieces: an exception of type `names[0]` whose first bases are the others."""

    def __init__(
        self, *names: bytes, thrown: bytes = b"", kind: int = GNU, handlers: int = 1
    ) -> None:
        self.pieces: dict[int, bytes] = {
            HEADER: word(kind) + bytes(24) + thrown,
            HEADER - 80: word(TYPE) + bytes(32) + struct.pack("<i", handlers),
            TEXT: b"the text\0",
            STACK: word(1) + word(HEADER + 8) + word(HEADER),
        }
        for n, name in enumerate(names):
            at = TYPE + 0x100 * n
            base = word(at + 0x100) if n + 1 < len(names) else b""
            self.pieces[at] = word(0) + word(NAMES + 0x100 * n) + base
            self.pieces[NAMES + 0x100 * n] = name + b"\0"

    def read(self, address: int, size: int) -> bytes:
        for at, data in self.pieces.items():
            if at <= address < at + len(data):
                return data[address - at : address - at + size]
        return b""

    def find(self) -> Thrown | None:
        return find_thrown(self.read, [1, HEADER + 8, HEADER])


WITH_TEXT = word(0) + word(TEXT)


@pytest.mark.parametrize(
    ("program", "thrown"),
    [
        (
            Program(b"St12out_of_range", b"St11logic_error", b"St9exception", thrown=WITH_TEXT),
            Thrown("St12out_of_range", "the text"),
        ),
        (
            Program(b"4Mine", b"St13runtime_error", thrown=WITH_TEXT, kind=LLVM),
            Thrown("4Mine", "the text"),
        ),
        (Program(b"St9bad_alloc", b"St9exception", thrown=WITH_TEXT), Thrown("St9bad_alloc", None)),
        (Program(b"*4Mine", thrown=WITH_TEXT), Thrown("4Mine", None)),
        (Program(b"PKc", thrown=word(TEXT)), Thrown("PKc", "the text")),
        (Program(b"i", thrown=struct.pack("<i", -7)), Thrown("i", "-7")),
        (Program(STRING, thrown=word(TEXT) + word(3)), Thrown(STRING.decode(), "the")),
        (Program(b"i", thrown=b"\1"), Thrown("i", None)),
        (Program(b"i", thrown=bytes(4), handlers=0), None),  # it is over
        (Program(b"i", thrown=bytes(4), handlers=1 << 30), None),
        (Program(b"i", thrown=bytes(4), kind=RUST), None),
        (Program(b"no name", thrown=bytes(4)), None),
        (Program(), None),
    ],
)
def test_what_was_thrown(program: Program, thrown: Thrown | None) -> None:
    assert program.find() == thrown


def test_of_several_bases_the_first_one_counts() -> None:
    # GIVEN a type that derives from std::logic_error and from another class
    program = Program(b"4Mine", b"St11logic_error", thrown=WITH_TEXT)
    flags_and_count, offset = word(2 << 32), word(2)
    program.pieces[TYPE] = word(0) + word(NAMES) + flags_and_count + word(BASE) + offset
    # THEN its text is that of the first
    assert program.find() == Thrown("4Mine", "the text")


def test_types_that_derive_from_each_other_end() -> None:
    program = Program(b"4Mine", thrown=WITH_TEXT)
    program.pieces[TYPE] = word(0) + word(NAMES) + word(TYPE)
    assert program.find() == Thrown("4Mine", None)


def test_a_text_without_an_end_is_cut() -> None:
    program = Program(b"PKc", thrown=word(TEXT))
    program.pieces[TEXT] = b"x" * 100_000
    found = program.find()
    assert found == Thrown("PKc", "x" * 1024)


def image(program: Program, number: int = 6) -> ProcessImage:
    regs = [0] * 27
    regs[SP], regs[Reg.RBX] = STACK, 0x123
    return ProcessImage(
        threads=[Thread(tid=1, regs=tuple(regs))],
        mappings=[
            Mapping(start=0x6000, end=0x8000, prot=Prot.R),
            Mapping(start=0x50000000, end=0x50100000, prot=Prot.R | Prot.W),
        ],
        siginfo=struct.pack("<iii", number, 0, -6).ljust(128, b"\0"),
    )


def test_the_pages_that_tell_of_it_are_kept() -> None:
    program = Program(b"4Mine", b"St13runtime_error", thrown=WITH_TEXT)
    pages = {start for start, _ in select_thrown(image(program), program.read)}
    assert pages == {HEADER & -4096, TYPE & -4096, NAMES & -4096, TEXT & -4096}


@pytest.mark.parametrize("why", ["not aborted", "not writable", "no exception"])
def test_nothing_is_kept_of_others(why: str) -> None:
    program = Program(b"i", thrown=bytes(4), handlers=0 if why == "no exception" else 1)
    dead = image(program, 11 if why == "not aborted" else 6)
    if why == "not writable":
        dead = msgspec.structs.replace(dead, mappings=dead.mappings[:1])
    assert select_thrown(dead, program.read) == []
