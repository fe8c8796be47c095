"""Minidumps of cores: what another library reads in one, and that hostile cores are bounded."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import pytest
from minidump.minidumpfile import MinidumpFile
from minidump.streams.ModuleListStream import MINIDUMP_MODULE_LIST

from collector.arch.x86_64 import PAGE, Reg
from collector.cli import main
from collector.elfcore.layout import Placed
from collector.elfcore.reader import CoreFile
from collector.elfcore.types import Prot, Segment, Thread
from collector.errors import CoreFormatError
from collector.minidump import memory
from collector.minidump.environment import environment
from collector.minidump.memory import Stacks
from collector.minidump.of_core import Minidump
from collector.model import HostFacts, Outcome, Record, SnapshotFacts
from collector.store.store import Store
from tests.unit.elfcore_samples import NOTE, thread
from tests.unit.store_samples import SEGFAULT
from tests.unit.unrun import BASE, LIBRARY, STACK, STACK_SIZE, Loaded, Unrun, compiled

PROGRAM = ".globl _start\n_start: ud2\n"
AT_PHDR, AT_RANDOM = 3, 25
SEGV_MAPERR, FAULT = 1, 0x1234
RECORD = msgspec.structs.replace(
    SEGFAULT,
    lost={},
    outcome=Outcome.COMPLETE,
    cmdline=["victim", "-x", "a b"],
    age_s=60.0,
    host=HostFacts(name="h", kernel="6.1.0-18-amd64", cpu="Intel(R) Xeon(R)"),
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a program and a library."""
    folder = tmp_path_factory.mktemp("built")
    compiled(folder, PROGRAM)
    compiled(folder, PROGRAM, "-shared", name="lib.so")
    return folder


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: Path) -> Iterator[Case]:
    monkeypatch.setenv("COREWARD_STORE", str(tmp_path / "store"))
    with Store(tmp_path / "store", create=True) as store:
        yield Case(tmp_path, store, built)


class Case:
    """A record with a core of two threads, a program and a library, in a store."""

    def __init__(self, folder: Path, store: Store, built: Path) -> None:
        self.folder = folder
        self.library = Loaded(built / "lib.so", LIBRARY)
        self.program = Loaded(built / "prog", BASE)
        process = Unrun(self.library, self.program)
        process.thread(815, BASE + 5, STACK + 0x1000, rbp=7, rsi=8, name="worker-3")
        process.thread(816, LIBRARY + 6, STACK + 0x8000, name="other")
        process.push(0x1000, *range(100))
        process.push(0x8000, *range(100, 200))
        self.environment(process)
        store.put(RECORD)
        auxv = [(AT_PHDR, BASE + 64), (AT_RANDOM, STACK + 0xF000)]
        where = store.folder(RECORD.id)
        self.path = process.core(where, (11, SEGV_MAPERR, FAULT), note=NOTE, auxv=auxv)

    def environment(self, process: Unrun) -> None:
        """As the kernel lays it: arguments, variables, the auxiliary vector, and their texts."""
        text = process.push(0xF100, *struct.unpack("<2Q", b"A=1\0B=2\0C=three\0"))
        words = [STACK + 0xF200, 0, text, text + 4, text + 8, 0]
        process.push(0xE000, *words, 6, PAGE, AT_PHDR, BASE + 64, AT_RANDOM, STACK + 0xF000, 0, 0)

    def export(self) -> bytes:
        out = self.folder / "out.dmp"
        assert main(["export", RECORD.id, "--minidump", "-o", str(out), "--force"]) == 0
        return out.read_bytes()


def streams(content: bytes) -> dict[int, bytes]:
    """The raw streams by type."""
    count, directory = struct.unpack_from("<II", content, 8)
    entries = struct.iter_unpack("<III", content[directory : directory + 12 * count])
    return {kind: content[at : at + size] for kind, size, at in entries if kind}


def debug_id(content: bytes, module: Any) -> str:
    """The build-id of a module as the library has located it."""
    place = module.CvRecord
    record = content[place.Rva : place.Rva + place.DataSize]
    assert record[:4] == b"LEpB"  # MD_CVINFOELF_SIGNATURE, 0x4270454c
    return record[4:].hex()


def modules_of(content: bytes) -> list[Any]:
    """The library's raw list, which has the CodeView records."""
    return MINIDUMP_MODULE_LIST.parse(BytesIO(streams(content)[4])).Modules


def test_another_library_reads_the_core_in_it(case: Case) -> None:
    # WHEN a death is exported
    content = case.export()
    read = MinidumpFile.parse_bytes(content)
    with CoreFile(case.path) as core:
        # THEN it says who died, of what, and where
        (died,) = read.exception.exception_records
        record = died.ExceptionRecord
        assert (died.ThreadId, record.ExceptionCode_raw) == (core.threads[0].tid, 11)
        assert (record.ExceptionFlags, record.ExceptionAddress) == (SEGV_MAPERR, FAULT)
        # AND each thread has the registers of the core, and its stack from the red zone on
        assert [one.ThreadId for one in read.threads.threads] == [815, 816]
        for one, of_core in zip(read.threads.threads, core.threads, strict=True):
            seen, regs = one.ContextObject, of_core.regs
            for name in Reg.__members__:
                if name not in ("ORIG_RAX", "FS_BASE", "GS_BASE", "EFLAGS"):
                    segment = name in ("CS", "DS", "ES", "FS", "GS", "SS")
                    field = f"Seg{name.title()}" if segment else name.title()
                    assert getattr(seen, field) == regs[Reg[name]], name
            low = regs[Reg.RSP] - 128
            high = STACK + STACK_SIZE if of_core.tid == 816 else STACK + 0x8000 - 128
            assert one.Stack.StartOfMemoryRange == low
            assert read.get_reader().read(low, high - low) == core.read(low, high - low)
    # AND the modules are the core's, the program first, with their build-ids
    found = modules_of(content)
    names = [module.name for module in read.modules.modules]
    assert names == [str(case.program.path), str(case.library.path)]
    assert [debug_id(content, one) for one in found] == [
        case.program.build_id,
        case.library.build_id,
    ]
    assert [module.baseaddress for module in read.modules.modules] == [BASE, LIBRARY]
    # AND the system is that of the record, not this one
    assert read.sysinfo.PlatformId.name == "VER_PLATFORM_CRASHPAD_LINUX"
    assert (read.sysinfo.MajorVersion, read.sysinfo.MinorVersion) == (6, 1)
    assert read.misc_info.ProcessId == 815
    assert read.misc_info.ProcessCreateTime == int(RECORD.time.timestamp()) - 60
    assert struct.unpack_from("<I", content, 20)[0] == int(RECORD.time.timestamp())


def test_texts_of_linux(case: Case) -> None:
    content = case.export()
    found = streams(content)
    assert found[0x47670006] == b"victim\0-x\0a b\0"
    assert found[0x47670007] == b"A=1\0B=2\0C=three\0"
    assert found[0x47670008][:16] == struct.pack("<2Q", 6, PAGE)
    maps = found[0x47670009].decode().splitlines()
    assert f"{BASE:x}-" in maps[0] and maps[0].endswith(f" {case.program.path}")
    assert any(line.endswith(" [stack]") for line in maps)
    status = dict(line.split(":\t") for line in found[0x47670004].decode().splitlines())
    assert (status["Name"], status["Pid"], status["Threads"]) == ("victim", "815", "2")
    # AND the names of threads, as the format's later versions have them
    count, *_ = struct.unpack_from("<I", found[24])
    names = {}
    for number in range(count):
        tid, at = struct.unpack_from("<IQ", found[24], 4 + 12 * number)
        size = struct.unpack_from("<I", content, at)[0]
        names[tid] = content[at + 4 : at + 4 + size].decode("utf-16-le")
    assert names == {815: "worker-3", 816: "other"}


def test_a_snapshot_has_no_signal(case: Case) -> None:
    with CoreFile(case.path) as core:
        taken = SnapshotFacts(mode="full-stop", method="fork", why="", consistent=True)
        snapshot = msgspec.structs.replace(RECORD, snapshot=taken, host=None)
        content = b"".join(Minidump(core, snapshot).parts())
    read = MinidumpFile.parse_bytes(content)
    (asked,) = read.exception.exception_records
    # (MD_EXCEPTION_CODE_LIN_DUMP_REQUESTED)
    assert asked.ExceptionRecord.ExceptionCode_raw == 0xFFFFFFFF
    assert asked.ExceptionRecord.ExceptionAddress == BASE + 5


def test_it_goes_down_a_pipe_and_never_over_a_file(
    case: Case, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    content = case.export()
    assert main(["export", "--minidump"]) == 0
    assert capfdbinary.readouterr().out == content
    assert main(["export", "--minidump", "-o", str(case.folder / "out.dmp")]) == 2
    assert b"exists; --force replaces it" in capfdbinary.readouterr().err


# ---------------------------------------------------------------------------- what is taken


def area(start: int, size: int, there: int | None = None) -> Placed:
    """A mapping of a core whose data are at the same place in its file."""
    filesz = size if there is None else there
    segment = Segment(vaddr=start, memsz=size, filesz=filesz, flags=Prot.R | Prot.W)
    return Placed(segment=segment, offset=start)


def at(sp: int) -> Thread:
    regs = list(thread(1).regs)
    regs[Reg.RSP] = sp
    return msgspec.structs.replace(thread(1), regs=tuple(regs))


def taken(stacks: Stacks, sp: int, *, first: bool = False) -> tuple[int, int]:
    found = stacks.take(at(sp), first=first)
    return found.address, found.address + found.size


def test_stacks_are_cut_off_where_they_are_deep() -> None:
    stacks = Stacks([area(0x100000, 8 << 20)], 1 << 40)
    assert taken(stacks, 0x100080, first=True) == (0x100000, 0x100000 + memory.MAX_FIRST)
    assert stacks.cut == 1
    low = 0x100000 + (8 << 20) - 0x1000
    assert taken(stacks, low) == (low - 128, 0x100000 + (8 << 20))
    assert stacks.cut == 1


def test_no_byte_is_taken_twice() -> None:
    stacks = Stacks([area(0x100000, 0x10000)], 1 << 40)
    assert taken(stacks, 0x108080) == (0x108000, 0x110000)
    assert taken(stacks, 0x104080) == (0x104000, 0x108000)  # to where the other one begins
    assert taken(stacks, 0x10C080) == (0x10C000, 0x10C000)  # inside of it


def test_a_stack_that_ran_over() -> None:
    stacks = Stacks([area(0x200000, 0x10000)], 1 << 40)
    assert taken(stacks, 0x1FF000) == (0x200000, 0x210000)
    # AND stack pointers that lead nowhere
    for nowhere in (0, 5, 0x210080, (1 << 64) - 8):
        assert taken(stacks, nowhere)[0] == taken(stacks, nowhere)[1]


def test_what_the_core_does_not_have_is_not_taken() -> None:
    # GIVEN a mapping that is there in part, and a file that ends in another one
    stacks = Stacks([area(0x100000, 0x10000, 0x4000), area(0x120000, 0x10000)], 0x128000)
    assert taken(stacks, 0x102080) == (0x102000, 0x104000)
    assert taken(stacks, 0x124080) == (0x124000, 0x128000)
    assert taken(stacks, 0x12A080)[0] == taken(stacks, 0x12A080)[1]


def test_all_stacks_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MAX_MEMORY", 0x3000)
    stacks = Stacks([area(number << 20, 0x2000) for number in range(1, 9)], 1 << 40)
    sizes = [end - start for start, end in (taken(stacks, (n << 20) + 128) for n in range(1, 9))]
    assert sizes == [0x2000, 0x1000, 0, 0, 0, 0, 0, 0]
    assert stacks.cut == 7


def test_an_environment_that_leads_nowhere() -> None:
    # GIVEN pointers to nowhere, or a vector that is not in memory
    auxv = struct.pack("<4Q", AT_RANDOM, 0x20000, 0, 0)
    page = bytearray(b"x" * PAGE)

    def read(address: int, size: int) -> bytes:
        if not 0x1F000 <= address <= address + size <= 0x20000:
            raise CoreFormatError("not there")
        return bytes(page[address - 0x1F000 :][:size])

    assert environment(auxv, read) == b""
    page[-32:] = auxv
    for pointers in ([0x99999], [1 << 63]):
        words = struct.pack(f"<{len(pointers) + 2}Q", 0, *pointers, 0)
        page[-32 - len(words) : -32] = words
        assert environment(auxv, read) == b""
    assert environment(auxv[:16] + bytes(16), lambda *_: b"") == b""
    assert environment(b"", read) == b""
    # AND one that is longer than any kernel's is not looked for
    assert environment(auxv * 40, lambda *_: pytest.fail("it was")) == b""


def test_a_core_without_threads_is_refused(case: Case) -> None:
    with CoreFile(case.path) as core:
        none = msgspec.structs.replace(core.notes, threads=())
        core._head = msgspec.structs.replace(core._head, notes=none)
        with pytest.raises(CoreFormatError, match="it has no threads"):
            Minidump(core, RECORD)


def test_records_without_facts(case: Case) -> None:
    # GIVEN a record that knows the least
    least = Record(**{name: getattr(RECORD, name) for name in Record.__struct_fields__[:7]})
    with CoreFile(case.path) as core:
        minidump = Minidump(core, least)
        content = b"".join(minidump.parts())
    assert len(content) == minidump.size
    read = MinidumpFile.parse_bytes(content)
    assert read.sysinfo.MajorVersion == 0
    assert streams(content)[0x47670006] == b"prog\0"


def test_ids_that_no_kernel_gives(tmp_path: Path, built: Path) -> None:
    process = Unrun(Loaded(built / "prog", BASE))
    process.thread(-5, BASE, STACK + 0x1000, name="x")
    with CoreFile(process.core(tmp_path)) as core:
        read = MinidumpFile.parse_bytes(b"".join(Minidump(core, RECORD).parts()))
    assert [one.ThreadId for one in read.threads.threads] == [(1 << 32) - 5]
    assert read.misc_info.ProcessId == (1 << 32) - 5
