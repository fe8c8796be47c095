"""Small processes to make cores of: values for the tests of elfcore."""

from __future__ import annotations

import struct

from collector.arch.x86_64 import PAGE
from collector.elfcore.types import (
    CorewardNote,
    Mapping,
    ProcessImage,
    Prot,
    PsInfo,
    RawNote,
    Segment,
    Thread,
)

NOTE = CorewardNote(record="00112233445566aa", version="0.1.0", capture="full", consistent=True)
# x87, SSE and AVX: the features' mask is at 464 and 512, and debuggers believe it.
XSTATE = (
    bytes(range(232)) * 2 + struct.pack("<6Q", 7, 0, 0, 0, 0, 0) + struct.pack("<8Q", 7, *[0] * 7)
).ljust(832, b"\x33")
MAIN = "/opt/prog\udcff"  # a name that is not UTF-8


def thread(tid: int, xstate: bytes | None = XSTATE) -> Thread:
    return Thread(
        tid=tid,
        regs=tuple(tid * 100 + i for i in range(27)),
        ppid=1,
        pgrp=tid,
        sid=7,
        signal=11,
        sigpend=1 << 63,
        sighold=5,
        utime=1_500_001,
        stime=2_000_000,
        cutime=3,
        xstate=xstate,
    )


def image(threads: int = 2) -> ProcessImage:
    return ProcessImage(
        threads=[thread(100 + i) for i in range(threads)],
        mappings=[
            Mapping(start=0x400000, end=0x401000, prot=Prot.R | Prot.X, path=MAIN),
            Mapping(start=0x401000, end=0x403000, prot=Prot.R, path=MAIN, offset=PAGE),
            Mapping(start=0x500000, end=0x600000, prot=Prot.R | Prot.W, path="[heap]"),
            Mapping(start=0x700000, end=0x701000, prot=Prot.R | Prot.W),
        ],
        auxv=struct.pack("<4Q", 6, PAGE, 0, 0),
        siginfo=struct.pack("<iii4xQ", 11, 0, 1, 0xDEAD).ljust(128, b"\0"),
        psinfo=PsInfo(pid=100, ppid=1, uid=1000, gid=1000, fname=b"prog", psargs=b"prog -x"),
        xsave_layout=bytes(32),
        extra=(RawNote(owner=b"Vendor", type=9, data=b"abc"),),
        note=NOTE,
    )


class Memory:
    """A MemorySource over a dict of address -> bytes; what is in no piece cannot be read."""

    def __init__(self, pieces: dict[int, bytes]) -> None:
        self.pieces = pieces
        self.reads: list[tuple[int, int]] = []

    def ranges(self, start: int, end: int) -> list[tuple[int, int]]:
        found = ((max(at, start), min(at + len(b), end)) for at, b in sorted(self.pieces.items()))
        return [(a, b) for a, b in found if a < b]

    def read_into(self, address: int, buffer: memoryview) -> int:
        self.reads.append((address, len(buffer)))
        for at, data in self.pieces.items():
            if at <= address < at + len(data):
                piece = data[address - at : address - at + len(buffer)]
                buffer[: len(piece)] = piece
                return len(piece)
        return 0


def segment(vaddr: int, memsz: int, filesz: int | None = None) -> Segment:
    return Segment(
        vaddr=vaddr,
        memsz=memsz,
        filesz=memsz if filesz is None else filesz,
        flags=Prot.R | Prot.W,
    )
