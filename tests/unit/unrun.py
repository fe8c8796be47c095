"""Processes that never ran: objects laid into memory, registers and a stack written by hand.

Their cores are written by the project's own writer, so that unwinding can be tested without any
process that dies.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec
from elftools.elf.elffile import ELFFile

from collector.arch.x86_64 import IP, PAGE, SP
from collector.capture.select import carve, select_none
from collector.elfcore.sink import SparseWriter
from collector.elfcore.types import CorewardNote, Mapping, ProcessImage, Prot, PsInfo, Thread
from collector.elfcore.writer import write_core
from tests.unit.elfcore_samples import Memory

BASE, LIBRARY = 0x555555554000, 0x7F0000000000  # where objects are mapped
STACK = 0x7FFE00000000  # lowest address of the stack, whose rest reads as zeros
STACK_SIZE = 0x10000
RBP, CS = 4, 17  # word numbers in struct user_regs_struct
_NUMBERS = {"rsi": 13, "rdi": 14}


def compiled(
    folder: Path, source: str, *flags: str, name: str = "prog", suffix: str = ".s"
) -> Path:
    """A position-independent program (or with -shared a library) made of `source`."""
    text = folder / f"{name}{suffix}"
    text.write_text(source)
    program = folder / name
    command = ["gcc", "-nostdlib", "-pie", "-Wl,-z,noexecstack", "-Wl,--build-id", *flags]
    subprocess.run([*command, str(text), "-o", str(program)], check=True)
    return program


class Loaded:
    """An object in the memory of a process."""

    def __init__(self, path: Path, base: int) -> None:
        self.path, self.base = path, base
        with open(path, "rb") as file:
            elf = ELFFile(file)
            table = elf.get_section_by_name(".symtab")
            found = table.iter_symbols() if table is not None else ()
            self._symbols = {symbol.name: symbol["st_value"] for symbol in found}
            self.loads = [s for s in map(_load, elf.iter_segments("PT_LOAD")) if s[1]]
            self.build_id = next(
                (
                    note["n_desc"]
                    for section in elf.iter_sections("SHT_NOTE")
                    for note in section.iter_notes()
                    if note["n_type"] == "NT_GNU_BUILD_ID"
                ),
                None,
            )

    def at(self, symbol: str, offset: int = 0) -> int:
        """The address of a symbol."""
        return self.base + self._symbols[symbol] + offset

    def returns(self, function: str, number: int = 0) -> int:
        """The address behind a call in a function, the first for 0."""
        shown = subprocess.run(
            ["objdump", "-d", "--no-show-raw-insn", f"--disassemble={function}", str(self.path)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        lines = re.findall(r"^\s+([0-9a-f]+):\t(\S+)", shown, re.MULTILINE)
        calls = [i for i, (_, word) in enumerate(lines) if word.startswith("call")]
        return self.base + int(lines[calls[number] + 1][0], 16)


def _load(segment: object) -> tuple[int, int, int, Prot]:
    header = segment.header  # type: ignore[attr-defined]
    return header.p_vaddr, header.p_filesz, header.p_offset, Prot(header.p_flags)


class Unrun:
    """A process of one or more objects, with a stack and other memory."""

    def __init__(self, *objects: Loaded) -> None:
        self.pieces: dict[int, bytes] = {}
        self.mappings: list[Mapping] = []
        for one in objects:
            self.add(one)
        self._stack = bytearray(STACK_SIZE)
        self.mappings.append(
            Mapping(start=STACK, end=STACK + STACK_SIZE, prot=Prot.R | Prot.W, path="[stack]")
        )
        self._threads: list[Thread] = []

    def add(self, one: Loaded, base: int | None = None, shown: str | None = None) -> None:
        """Map an object; elsewhere than it says, or under another name."""
        base = one.base if base is None else base
        data = one.path.read_bytes()
        for vaddr, size, offset, prot in one.loads:
            start, end = base + (vaddr & -PAGE), base + (vaddr + size + PAGE - 1 & -PAGE)
            mapped = Mapping(
                start=start, end=end, prot=prot, offset=offset & -PAGE, path=shown or str(one.path)
            )
            self.mappings.append(mapped)
            if not offset or prot & Prot.W:  # as in a kernel's core: headers and data
                self.pieces[start] = data[offset & -PAGE :][: end - start].ljust(end - start, b"\0")

    def rename(self, path: str, shown: str) -> None:
        """Another name for a mapped file."""
        self.mappings = [
            msgspec.structs.replace(m, path=shown) if m.path == path else m for m in self.mappings
        ]

    def area(self, start: int, data: bytes, prot: Prot = Prot.R | Prot.W) -> None:
        """Anonymous memory."""
        end = start + len(data) + PAGE - 1 & -PAGE
        self.mappings.append(Mapping(start=start, end=end, prot=prot))
        self.pieces[start] = data.ljust(end - start, b"\0")

    def push(self, at: int, *words: int) -> int:
        """Put words on the stack at an offset from its start; returns the address of the first."""
        struct.pack_into(f"<{len(words)}Q", self._stack, at, *words)
        return STACK + at

    def thread(self, tid: int, ip: int, sp: int, rbp: int = 0, name: str = "", **more: int) -> None:
        """One more thread; the first one died. more: other registers by their names."""
        regs = [0] * 27
        regs[IP], regs[SP], regs[RBP], regs[CS] = ip, sp, rbp, 0x33
        for register, value in more.items():
            regs[_NUMBERS[register]] = value
        self._threads.append(Thread(tid=tid, regs=tuple(regs), name=name, signal=11))

    def core(
        self,
        folder: Path,
        siginfo: tuple[int, int, int] = (11, 1, 0),
        note: CorewardNote | None = None,
        auxv: Sequence[tuple[int, int]] = (),
    ) -> Path:
        """Its core, with all of its memory that is not in files. siginfo: signal, code, address;
        auxv: types and values."""
        number, code, address = siginfo
        mappings = sorted(self.mappings, key=lambda mapping: mapping.start)
        image = ProcessImage(
            threads=self._threads,
            mappings=mappings,
            auxv=b"".join(struct.pack("<2Q", *pair) for pair in ((6, PAGE), *auxv, (0, 0))),
            siginfo=struct.pack("<iii4xQ", number, 0, code, address).ljust(128, b"\0"),
            psinfo=PsInfo(pid=self._threads[0].tid, fname=b"prog", psargs=b"prog"),
        )
        pieces = {**self.pieces, STACK: bytes(self._stack)}
        keep = [(start, start + len(data)) for start, data in sorted(pieces.items())]
        path = folder / "core"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            segments = carve(select_none(mappings), keep)
            write_core(image, segments, Memory(pieces), SparseWriter(fd), note=note)
        finally:
            os.close(fd)
        return path


def functions(frames: Sequence[object] | None) -> list[str | None]:
    return [frame.function for frame in frames or []]  # type: ignore[attr-defined]
