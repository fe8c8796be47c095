"""The example that writes minidumps: what another library reads in one of a living process."""

from __future__ import annotations

import itertools
import os
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection
from minidump.minidumpfile import MinidumpFile

from collector.arch.x86_64 import Reg
from collector.dumpers.plugin import HeldProcess
from collector.dumpers.protocol import Message
from collector.elfcore.notes import build_notes, image_of
from collector.elfcore.types import ParsedNotes
from tests.unit.elfcore_samples import thread
from tests.unit.live_event import living

EXAMPLES = Path(__file__).parents[2] / "examples" / "dumpers"
SEGV_MAPERR = 1
SI_TKILL = -6
FAULT = 0x1234


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """The module, which is no part of a package."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import minidumps  # noqa: PLC0415 - found only now

    yield minidumps
    del sys.modules["minidumps"]


def dying(event: Message, *, code: int, threads: int = 2, below: int = 0) -> HeldProcess:
    """The process of an event, as if it had died with its stack pointers in its stack."""
    found = HeldProcess(event)
    stack = next(m for m in found.mappings() if m.path == "[stack]")
    program = next(m for m in found.mappings() if m.path == found.exe and m.prot & 1)
    image = []
    for number in range(threads):
        regs = list(thread(found.pid).regs)
        regs[Reg.RSP] = stack.end - 0x1000 - below + number * 0x200
        regs[Reg.RIP] = program.start + 0x40 + number
        image.append(
            msgspec.structs.replace(
                thread(found.pid + number, xstate=bytes(24) + b"\x80\x1f" + bytes(486)),
                regs=tuple(regs),
            )
        )
    siginfo = struct.pack("<iii4xQ", signal.SIGSEGV, 0, code, FAULT).ljust(128, b"\0")
    notes = ParsedNotes(threads=tuple(image), siginfo=siginfo, auxv=b"AUXV" * 4)
    os.ftruncate(event.fds["notes"], 0)
    os.pwrite(event.fds["notes"], build_notes(image_of(notes, found.mappings())), 0)
    return HeldProcess(event)


def build_id_of(path: str) -> str:
    with open(path, "rb") as file:
        for section in ELFFile(file).iter_sections():
            if isinstance(section, NoteSection):
                for note in section.iter_notes():
                    if note["n_type"] == "NT_GNU_BUILD_ID":
                        return str(note["n_desc"])
    raise AssertionError(f"{path} has no build id")


def streams(content: bytes) -> dict[int, bytes]:
    """The raw streams by type."""
    count, directory = struct.unpack_from("<II", content, 8)
    found = {}
    for number in range(count):
        kind, size, rva = struct.unpack_from("<III", content, directory + 12 * number)
        found[kind] = content[rva : rva + size]
    return found


def test_another_library_reads_the_process_in_it(example: object) -> None:
    with living() as (event, _):
        # GIVEN a process that has died of a bad address
        process = dying(event, code=SEGV_MAPERR)
        first, second = process.threads()
        # WHEN its minidump is read
        content = example.minidump(process)
        read = MinidumpFile.parse_bytes(content)
        # THEN it says who died, of what, and where
        (died,) = read.exception.exception_records
        record = died.ExceptionRecord
        assert (died.ThreadId, record.ExceptionCode_raw) == (first.tid, signal.SIGSEGV)
        assert (record.ExceptionFlags, record.ExceptionAddress) == (SEGV_MAPERR, FAULT)
        assert read.misc_info.ProcessId == process.pid
        assert read.sysinfo.PlatformId.name == "VER_PLATFORM_CRASHPAD_LINUX"
        assert read.sysinfo.NumberOfProcessors == min(os.cpu_count() or 1, 255)
        assert read.sysinfo.BuildNumber < 1 << 16
        # AND each thread has its registers, and its stack the bytes of the process
        assert [one.ThreadId for one in read.threads.threads] == [first.tid, second.tid]
        for one, thread_ in zip(read.threads.threads, (first, second), strict=True):
            seen = one.ContextObject
            assert seen.MxCsr == 0x1F80
            wanted = [thread_.regs[n] for n in (Reg.RIP, Reg.RSP, Reg.R15, Reg.RDI)]
            assert [seen.Rip, seen.Rsp, seen.R15, seen.Rdi] == wanted
            assert seen.SegCs == thread_.regs[Reg.CS] & 0xFFFF
        stack = next(m for m in process.mappings() if m.path == "[stack]")
        low = first.regs[Reg.RSP] - 128 & -16
        memory = read.get_reader()
        assert memory.read(low, stack.end - low) == process.read(low, stack.end - low)
        ip = first.regs[Reg.RIP]
        assert memory.read(ip - 0x40, 8) == process.read(ip - 0x40, 8)
        # AND the modules are those of the process, the program first, with their build ids
        modules = read.modules.modules
        assert modules[0].name == process.exe
        mapped = {m.path for m in process.mappings() if (m.path or "").endswith(".so.6")}
        assert mapped <= {module.name for module in modules}
        assert "linux-gate.so" in {module.name for module in modules}
        for module in modules:
            parts = [m for m in process.mappings() if m.path == module.name]
            if parts:
                assert (module.baseaddress, module.endaddress) == (parts[0].start, parts[-1].end)
        assert (
            build_id_of(process.exe or "")
            == example.build_id_at(process, modules[0].baseaddress).hex()
        )
        # AND it has what readers of Linux look for
        found = streams(content)
        assert found[0x47670008] == b"AUXV" * 4
        assert found[0x47670006] == b"python3\0a\nb\0"
        assert found[0x47670009] == Path(f"/proc/{process.pid}/maps").read_bytes()


def test_a_signal_that_somebody_sent_has_the_place_and_no_address(example: object) -> None:
    with living() as (event, _):
        process = dying(event, code=SI_TKILL)
        read = MinidumpFile.parse_bytes(example.minidump(process))
        (died,) = read.exception.exception_records
        assert died.ExceptionRecord.ExceptionAddress == process.threads()[0].regs[Reg.RIP]
        assert died.ExceptionRecord.ExceptionFlags == SI_TKILL & 0xFFFFFFFF


def test_memory_is_bounded_and_never_there_twice(example: object) -> None:
    with living() as (event, _):
        # GIVEN two threads on one stack, and a limit
        fields = tuple((k, "2048" if k == "limit" else v) for k, v in event.fields)
        process = dying(Message("DUMP", fields, event.fds), code=SEGV_MAPERR, threads=3)
        # WHEN
        read = MinidumpFile.parse_bytes(example.minidump(process))
        # THEN no more memory is in it, and no byte of it twice
        segments = sorted(
            (one.start_virtual_address, one.end_virtual_address)
            for one in read.memory_segments.memory_segments
        )
        assert sum(high - low for low, high in segments) <= 2048
        assert all(one[1] <= next_[0] for one, next_ in itertools.pairwise(segments))
        assert len(read.threads.threads) == 3


def test_a_stack_pointer_that_leads_nowhere_is_a_thread_without_memory(example: object) -> None:
    with living() as (event, _):
        process = HeldProcess(event)  # whose registers are no addresses
        read = MinidumpFile.parse_bytes(example.minidump(process))
        assert [one.ThreadId for one in read.threads.threads] == [process.pid, process.pid + 1]
        assert [one.Stack.MemoryLocation.DataSize for one in read.threads.threads] == [0, 0]
        assert not read.memory_segments.memory_segments
