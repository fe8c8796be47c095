"""Cores that are written are read back as they were meant, by us and by other tools."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from elfcore_samples import NOTE, Memory, image, segment
from elftools.elf.elffile import ELFFile
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.elfcore import holes
from collector.elfcore.layout import Layout
from collector.elfcore.notes import build_notes, parse_notes
from collector.elfcore.reader import CoreFile
from collector.elfcore.sink import SparseWriter, StreamWriter, Writer, WriterParams, ZstdWriter
from collector.elfcore.source import Overrides
from collector.elfcore.types import LeftOut, Prot
from collector.elfcore.writer import Bounds, Stop, WriteResult, write_core
from collector.elfcore.zeros import CHUNK
from collector.errors import CoreFormatError
from collector.linux.atomic import atomic_file
from collector.ranges import union

MAKERS: dict[str, Callable[[int], Writer]] = {
    "sparse": SparseWriter,
    "stream": StreamWriter,
    "zstd": lambda fd: ZstdWriter(fd, workers=2),
}
BASE = 0x100000000000
PATIENCE = 60.0  # seconds
DATA = random.Random(2).randbytes(CHUNK + 3 * 4096)


def write(path: Path, make: Callable[[int], Writer], *args: object, **named: object) -> WriteResult:
    with path.open("wb") as file:
        return write_core(*args, make(file.fileno()), **named)  # type: ignore[arg-type]


def segments_for_pyelftools(path: Path) -> int:
    """How many program headers another reader sees in the plain ELF file."""
    with CoreFile(path) as core, tempfile.TemporaryFile() as plain:
        core.decompress_to(plain.fileno())
        return int(ELFFile(plain).num_segments())


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_core_round_trips_through_every_writer(
    make: Callable[[int], Writer], tmp_path: Path
) -> None:
    # GIVEN memory with data, zero pages, an absent part, and a mapping that is not dumped
    zeros = bytes(5 * 4096)
    memory = Memory({BASE: DATA + zeros + b"end".ljust(4096), BASE + (64 << 20): b"far" + zeros})
    segments = [
        segment(0x400000, 0x1000, 0),
        segment(BASE, 128 << 20, (64 << 20) + 4096),
        segment(BASE + (256 << 20), 8192),
    ]
    # WHEN its core is written
    path = tmp_path / "core"
    result = write(path, make, image(3), segments, memory)
    # THEN what is read back is what went in; absent memory reads as zeros
    data_bytes = len(DATA) + 4096 + 4096
    assert result == WriteResult(
        size=result.size,
        written=data_bytes,
        elided=(64 << 20) + 4096 + 8192 - data_bytes,
        unreadable=(),
        unreadable_bytes=0,
        stopped=None,
        marked=True,
    )
    with CoreFile(path) as core:
        assert core.size == result.size
        assert core.compressed == isinstance(make(0), ZstdWriter)
        assert [p.segment for p in core.segments] == segments
        assert core.notes == parse_notes(build_notes(image(3)))
        assert (core.threads, core.coreward_note) == (tuple(image(3).threads), NOTE)
        assert (core.siginfo, core.auxv) == (image().siginfo, image().auxv)
        assert core.read(BASE, len(DATA) + 6 * 4096) == DATA + zeros + b"end".ljust(4096)
        assert core.read(BASE + (64 << 20) - 2, 6) == b"\0\0far\0"
        assert core.read(BASE + (256 << 20), 8192) == bytes(8192)
        assert not core.truncated
        for address, size in ((0x400000, 1), (BASE - 1, 2), (BASE + (64 << 20) + 4095, 2), (0, 1)):
            with pytest.raises(CoreFormatError, match="not in the core"):
                core.read(address, size)
    assert segments_for_pyelftools(path) == 4


def test_holes_are_neither_read_nor_on_disk(tmp_path: Path) -> None:
    # GIVEN 8 GiB of which two pages are present
    memory = Memory({BASE + 4096: b"a" * 4096, BASE + (7 << 30): b"b" * 4096})
    path = tmp_path / "core"
    # WHEN the core is written THEN only those are read and take room
    result = write(path, SparseWriter, image(), [segment(BASE, 8 << 30)], memory)
    assert memory.reads == [(BASE + 4096, 4096), (BASE + (7 << 30), 4096)]
    assert (result.written, result.elided) == (8192, (8 << 30) - 8192)
    assert path.stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("make", [SparseWriter, ZstdWriter])
def test_large_holes_share_one_place_in_the_file(
    make: Callable[[int], Writer], tmp_path: Path
) -> None:
    # GIVEN 64 TiB of which three pages are present, one of them given beforehand, beside a small
    # mapping; not all of the large one is to be in the core
    size, far, given = 64 << 40, 40 << 40, 50 << 40
    memory = Memory({BASE - 8192: b"small" * 1024, BASE: b"a" * 4096, BASE + far: b"b" * 4096})
    segments = [segment(BASE - 8192, 8192), segment(BASE, size + 8192, size)]
    path = tmp_path / "core"
    # WHEN the core is written
    result = write(path, make, image(), segments, memory, overrides=[(BASE + given + 10, b"given")])
    # THEN neither the file nor its number of segments grows with the address space
    assert path.stat().st_blocks * 512 < 2 << 20
    assert result.elided + result.written == size + 8192
    with CoreFile(path) as core:
        # AND the segments are the same memory, in order
        parts = [p.segment for p in core.segments]
        assert len(parts) < 5000
        assert parts[0] == segments[0]
        assert parts[1].vaddr == BASE
        assert all(a.vaddr + a.memsz == b.vaddr for a, b in itertools.pairwise(parts[1:]))
        assert all(a.filesz == a.memsz for a in parts[:-1])
        assert parts[-1].memsz - parts[-1].filesz == 8192
        assert parts[-1].vaddr + parts[-1].memsz == BASE + size + 8192
        # AND each byte of it is there
        assert core.read(BASE - 8192, 5120) == b"small" * 1024
        assert core.read(BASE + 4000, 4096) == b"a" * 96 + bytes(4000)
        assert core.read(BASE + far - 8, 4112) == bytes(8) + b"b" * 4096 + bytes(8)
        assert core.read(BASE + given, 20) == bytes(10) + b"given" + bytes(5)
        assert core.read(BASE + size - 16, 16) == bytes(16)
        with pytest.raises(CoreFormatError, match="not in the core"):
            core.read(BASE + size - 8, 16)
        assert not core.truncated


def test_the_most_and_largest_holes_are_cut_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN room for two holes, and more of them in two segments
    monkeypatch.setattr(holes, "MAX_HOLES", 2)
    size, least = 1 << 40, holes.MIN_HOLE
    pages = [BASE + at for at in (least, 9 * least, 9 * least + least, 400 * least)]
    segments = [segment(BASE, size), segment(BASE + 2 * size, 3 * least), segment(0, size, 0)]
    # WHEN they are cut
    parts = holes.cut_holes(
        segments, lambda start, end: [(p, p + 4096) for p in pages if start <= p < end]
    )
    # THEN the largest two are segments of their own, all else stays
    zeros = [(p.vaddr, p.vaddr + p.filesz) for p in parts if p.zeros]
    assert union(zeros) == [
        (pages[2] + 4096, pages[3]),
        (pages[3] + 4096, BASE + size),
    ]
    rest = [(p.vaddr, p.filesz) for p in parts if not p.zeros]
    assert rest == [
        (BASE, pages[2] + 4096 - BASE),
        (pages[3], 4096),
        (BASE + 2 * size, 3 * least),
        (0, 0),
    ]


@pytest.mark.parametrize("make", [SparseWriter, ZstdWriter])
def test_a_core_that_ends_early_keeps_its_large_holes(
    make: Callable[[int], Writer], tmp_path: Path
) -> None:
    # GIVEN a large hole between two pieces WHEN it is told to stop before the second one
    memory = Memory({BASE: b"a" * 4096, BASE + (1 << 40): b"b" * 4096})
    asked = iter((False, True))
    path = tmp_path / "core"
    bounds = Bounds(should_stop=lambda: next(asked))
    write(path, make, image(), [segment(BASE, 2 << 40)], memory, bounds=bounds)
    # THEN holes before and behind it are known to be zero, and it is left out
    with CoreFile(path) as core:
        assert core.truncated
        assert core.read(BASE, 8192) == b"a" * 4096 + bytes(4096)
        assert core.read(BASE + (2 << 40) - 16, 16) == bytes(16)
        with pytest.raises(CoreFormatError, match="not in the core"):
            core.read(BASE + (1 << 40), 1)


class Stuck(Memory):
    """Memory of which one page is not read as long as nobody lets go."""

    def __init__(self, pieces: dict[int, bytes], where: int) -> None:
        super().__init__(pieces)
        self._where = where
        self.let_go = threading.Event()

    def read_into(self, address: int, buffer: memoryview) -> int:
        if address <= self._where < address + len(buffer):
            self.let_go.wait(PATIENCE)
        return super().read_into(address, buffer)


@pytest.mark.parametrize(
    ("bounds", "why"),
    [
        (lambda: Bounds(deadline=time.monotonic() + 0.05, patience=PATIENCE), Stop.LATE),
        (lambda: Bounds(deadline=time.monotonic() + PATIENCE, patience=0.05), Stop.STALLED),
    ],
)
@pytest.mark.parametrize("make", [SparseWriter, ZstdWriter])
def test_a_read_that_does_not_return_ends_the_core(
    make: Callable[[int], Writer], bounds: Callable[[], Bounds], why: Stop, tmp_path: Path
) -> None:
    # GIVEN memory of which a page keeps whoever reads it waiting
    far = BASE + (16 << 20)
    memory = Stuck({BASE: DATA, far: b"stuck".ljust(4096)}, far)
    path = tmp_path / "core"
    # WHEN its core is written within bounds
    segments = [segment(BASE, len(DATA)), segment(far, 4096)]
    result = write(path, make, image(), segments, memory, bounds=bounds())
    # THEN it ends, says why, and holds what came before (if that was in time)
    assert result.stopped is why
    with CoreFile(path) as core:
        assert core.truncated
        with pytest.raises(CoreFormatError, match="not in the core"):
            core.read(far, 1)
        if why is Stop.STALLED:
            assert core.read(BASE, CHUNK) == DATA[:CHUNK]
    memory.let_go.set()


def test_no_time_at_all_leaves_a_core_without_memory(tmp_path: Path) -> None:
    path = tmp_path / "core"
    bounds = Bounds(deadline=time.monotonic() - 1)
    memory = Memory({BASE: DATA})
    result = write(path, ZstdWriter, image(2), [segment(BASE, len(DATA))], memory, bounds=bounds)
    assert (result.stopped, result.written) == (Stop.LATE, 0)
    with CoreFile(path) as core:
        assert (len(core.threads), core.segments[0].segment.filesz) == (2, 0)


def test_what_reading_raises_comes_out(tmp_path: Path) -> None:
    class Gone(Memory):
        def read_into(self, address: int, buffer: memoryview) -> int:
            raise ProcessLookupError(3, "gone")

    with pytest.raises(ProcessLookupError, match="gone"):
        write(tmp_path / "core", ZstdWriter, image(), [segment(BASE, 4096)], Gone({BASE: DATA}))


def test_unreadable_memory_becomes_a_hole_and_is_named(tmp_path: Path) -> None:
    # GIVEN memory that is said to be present, with two gaps that cannot be read
    class Broken(Memory):
        def ranges(self, start: int, end: int) -> list[tuple[int, int]]:
            return [(start, end)]

    memory = Broken({BASE: b"x" * 4096, BASE + 3 * 4096: b"y" * 4096})
    for name, make in MAKERS.items():
        # WHEN its core is written, a part of the gap being given beforehand
        path = tmp_path / "core"
        result = write(
            path,
            make,
            image(),
            [segment(BASE, 5 * 4096)],
            memory,
            overrides=[(BASE + 2 * 4096 + 4000, b"o" * 200)],
        )
        # THEN the result names the gaps without that part, and so does the core if it can
        gaps = ((BASE + 4096, BASE + 2 * 4096 + 4000), (BASE + 4 * 4096, BASE + 5 * 4096))
        assert (result.unreadable, result.unreadable_bytes) == (gaps, 4096 + 4000 + 4096)
        assert result.marked == (name != "stream")
        with CoreFile(path) as core:
            assert core.read(BASE, 5 * 4096) == (
                b"x" * 4096 + bytes(4096 + 4000) + b"o" * 200 + b"y" * 3992 + bytes(4200)
            )[: 3 * 4096] + b"o" * 104 + b"y" * 3992 + bytes(4096)
            marked = msgspec.structs.replace(
                NOTE,
                left_out=tuple(LeftOut(*gap, "unreadable") for gap in gaps),
                left_out_count=2,
                left_out_bytes=4096 + 4000 + 4096,
            )
            assert core.coreward_note == (NOTE if name == "stream" else marked)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_core_that_is_stopped_says_so(make: Callable[[int], Writer], tmp_path: Path) -> None:
    # GIVEN two segments of data, and an order to stop after the first piece of the second
    memory = Memory({BASE: DATA, BASE + (16 << 20): DATA})
    segments = [segment(BASE, len(DATA)), segment(BASE + (16 << 20), len(DATA))]
    asked = iter([False, False, False, True])
    done: list[tuple[int, int]] = []
    path = tmp_path / "core"
    # WHEN it is written
    result = write(
        path,
        make,
        image(),
        segments,
        memory,
        bounds=Bounds(should_stop=lambda: next(asked)),
        progress=lambda at, size: done.append((at, size)),
    )
    # THEN the file ends there, and so do its segments where the head could be rewritten
    plan = Layout(segments, build_notes(image()))
    first, second = (p.offset for p in plan.placed)
    assert done == [
        (first + CHUNK, plan.size),
        (first + len(DATA), plan.size),
        (second + CHUNK, plan.size),
    ]
    assert (result.truncated, result.size) == (True, second + CHUNK)
    assert result.written == len(DATA) + CHUNK
    stream = make is StreamWriter
    assert result.marked == (not stream)
    with CoreFile(path) as core:
        assert core.truncated
        assert core.read(BASE, len(DATA)) == DATA
        assert core.read(BASE + (16 << 20), CHUNK) == DATA[:CHUNK]
        with pytest.raises(CoreFormatError, match="cut off" if stream else "not in the core"):
            core.read(BASE + (16 << 20), CHUNK + 1)
        note = core.coreward_note
        assert note is not None and note.truncated == (not stream)
        if not stream:
            end = BASE + (16 << 20)
            assert note.left_out == (LeftOut(end + CHUNK, end + len(DATA), "truncated"),)


def test_overrides_replace_memory_also_where_there_is_none(tmp_path: Path) -> None:
    # GIVEN pieces across pages and pieces of the buffer, in absent memory, overlapping, outside
    memory = Memory({BASE: DATA})
    pieces = [
        (BASE + 4090, b"1" * 12),
        (BASE + CHUNK - 1, b"22"),
        (BASE + (8 << 20) + 100, b"3" * 8),
        (BASE + 4094, b"4"),
        (BASE - 4, b"5" * 8),
        (BASE + (9 << 20) - 1, b"6666"),
        (BASE + (32 << 20), b"7"),
    ]
    expected = bytearray(DATA.ljust(9 << 20, b"\0"))
    for at, data in pieces[:4]:
        expected[at - BASE : at - BASE + len(data)] = data
    expected[:4] = b"5555"
    expected[-1:] = b"6"
    # WHEN the core is written THEN it holds them
    path = tmp_path / "core"
    write(path, SparseWriter, image(), [segment(BASE, 9 << 20)], memory, overrides=pieces)
    with CoreFile(path) as core:
        assert core.read(BASE, 9 << 20) == expected


@given(
    st.lists(st.tuples(st.integers(0, 60), st.binary(max_size=20)), max_size=6),
    st.integers(0, 60),
    st.integers(1, 40),
)
def test_overrides_are_as_if_written_one_after_the_other(
    pieces: list[tuple[int, bytes]], start: int, size: int
) -> None:
    whole = bytearray(100)
    touched = bytearray(100)
    for at, data in pieces:
        whole[at : at + len(data)] = data
        touched[at : at + len(data)] = b"\1" * len(data)
    view = bytearray(size)
    Overrides(pieces).apply(start, memoryview(view))
    assert view == whole[start : start + size]
    free = {
        a
        for low, high in Overrides(pieces).uncovered(start, start + size)
        for a in range(low, high)
    }
    assert free == {a for a in range(start, start + size) if not touched[a]}


def test_more_segments_than_the_header_can_count(tmp_path: Path) -> None:
    segments = [segment(BASE + i * 8192, 4096, 4096 if i % 7000 == 0 else 0) for i in range(70_000)]
    memory = Memory({s.vaddr: s.vaddr.to_bytes(8, "little") * 512 for s in segments if s.filesz})
    for make in (SparseWriter, ZstdWriter):
        path = tmp_path / "core"
        write(path, make, image(), segments, memory)
        with CoreFile(path) as core:
            assert [p.segment for p in core.segments] == segments
            at = segments[63_000].vaddr
            assert core.read(at, 8) == at.to_bytes(8, "little")
        assert segments_for_pyelftools(path) == 70_001


def test_notes_of_another_source_get_our_own_note(tmp_path: Path) -> None:
    # GIVEN notes as bytes WHEN they are written with our note THEN it is behind them
    foreign = build_notes(msgspec.structs.replace(image(), note=None))
    path = tmp_path / "core"
    write(path, SparseWriter, foreign, [], Memory({}), note=NOTE)
    with CoreFile(path) as core:
        assert core.notes == parse_notes(build_notes(image()))


def test_a_writer_that_fails_is_aborted() -> None:
    # GIVEN a writer whose third call fails
    class Full:
        def __init__(self) -> None:
            self.calls: list[str] = []

        def init(self, params: WriterParams) -> None:
            self.calls.append("init")

        def write(self, data: object, offset: int) -> None:
            self.calls.append("write")
            if len(self.calls) == 3:
                raise OSError(28, "No space left on device")

        def extend(self, size: int) -> None:
            raise AssertionError("the data are without a hole")

        def close(self) -> None:
            raise AssertionError("a writer that failed cannot be closed")

        def abort(self) -> None:
            self.calls.append("abort")

    # WHEN a core is written THEN the error comes out and the writer is told
    notes = bytes(4096 - 64 - 2 * 56)  # the first segment follows without a hole
    full = Full()
    with pytest.raises(OSError, match="No space"):
        write_core(notes, [segment(BASE, len(DATA))], Memory({BASE: DATA}), full)
    assert full.calls == ["init", "write", "write", "abort"]


# --- visibility -----------------------------------------------------------------------------------


def test_a_file_is_visible_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "core"
    with atomic_file(target) as fd:
        os.write(fd, b"whole")
        assert [p.name.startswith(".tmp-") for p in tmp_path.iterdir()] == [True]
    assert [(p, p.read_bytes(), p.stat().st_mode & 0o7777) for p in tmp_path.iterdir()] == [
        (target, b"whole", 0o600)
    ]


def test_a_file_that_fails_leaves_nothing_and_spares_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "core"
    target.write_bytes(b"old")
    with pytest.raises(OSError, match="full"), atomic_file(target) as fd:
        os.write(fd, b"half")
        raise OSError(28, "full")
    assert [(p, p.read_bytes()) for p in tmp_path.iterdir()] == [(target, b"old")]


# --- other tools ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample_core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tools") / "core"
    # Other tools know no notes of vendor "Vendor".
    process = msgspec.structs.replace(image(3), extra=())
    segments = [
        msgspec.structs.replace(segment(0x400000, 0x1000), flags=Prot.R | Prot.X),
        segment(0x401000, 0x2000, 0),
        segment(BASE, len(DATA)),
    ]
    memory = Memory({0x400000: b"\x7fELF".ljust(4096, b"\x90"), BASE: DATA})
    write(path, SparseWriter, process, segments, memory)
    return path


def run(*command: str | Path) -> str:
    tool = shutil.which(str(command[0]))
    if tool is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stderr
    for line in done.stderr.splitlines():
        assert "arning" not in line and "rror" not in line, done.stderr
    return done.stdout


def test_readelf_accepts_the_core(sample_core: Path) -> None:
    headers = run("readelf", "-W", "-l", sample_core)
    assert [line.split()[4:6] for line in headers.splitlines() if " LOAD " in line] == [
        ["0x001000", "0x001000"],
        ["0x000000", "0x002000"],
        [f"0x{len(DATA):06x}", f"0x{len(DATA):06x}"],
    ]
    notes = run("readelf", "-n", sample_core)
    assert notes.count("NT_PRSTATUS") == 3 and notes.count("NT_X86_XSTATE") == 3


def test_eu_readelf_accepts_the_core(sample_core: Path) -> None:
    notes = run("eu-readelf", "-n", sample_core)
    assert notes.count("PRSTATUS") == 3
    assert "info.si_signo: 11" in notes and "fname: prog" in notes and "Coreward" in notes


def test_gdb_accepts_the_core(sample_core: Path) -> None:
    if shutil.which("gdb") is None:
        pytest.skip("gdb is not installed")
    commands = ["info threads", f"x/2gx {BASE:#x}", "thread 2", "p $r15", "info auxv"]
    arguments = [part for command in commands for part in ("-ex", command)]
    done = subprocess.run(
        ["gdb", "-nx", "-batch", *arguments, "-c", sample_core],
        capture_output=True,
        text=True,
        errors="replace",
        check=True,
    )
    out = done.stdout
    assert "Core was generated by `prog -x'" in out
    assert "Program terminated with signal SIGSEGV" in out
    assert all(f"LWP {tid}" in out for tid in (100, 101, 102))
    words = struct.unpack_from("<2Q", DATA)
    assert f"0x{words[0]:016x}\t0x{words[1]:016x}" in out
    assert "= 10100" in out  # r15 of the second thread: word 0 of its registers
    assert "AT_PAGESZ" in out


# --- hostile files --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_cores(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("small")
    segments = [segment(BASE, 8192), segment(BASE + 8192, 4096, 0)]
    found = []
    for make in (SparseWriter, ZstdWriter):
        write(folder / "core", make, image(1), segments, Memory({BASE: b"m" * 8192}))
        found.append((folder / "core").read_bytes())
    return found


@settings(max_examples=300)
@given(data=st.data())
def test_changed_cores_are_read_or_refused(small_cores: list[bytes], data: st.DataObject) -> None:
    # GIVEN a core, plain or compressed, with words of its head changed, or cut off
    damaged = bytearray(data.draw(st.sampled_from(small_cores)))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, min(len(damaged) - 8, 1200)))
        word = data.draw(st.sampled_from([0, 1, 0xFFFF, 1 << 31, 1 << 62, (1 << 64) - 1]))
        size = data.draw(st.sampled_from([1, 2, 4, 8]))
        damaged[at : at + size] = word.to_bytes(8, "little")[:size]
    cut = data.draw(st.just(0) | st.integers(0, len(damaged)))
    fd = os.memfd_create("damaged")
    out = os.memfd_create("plain")
    try:
        os.write(fd, damaged[: len(damaged) - cut])
        # WHEN everything in it is read THEN the only error is that of damaged cores
        with CoreFile(f"/proc/self/fd/{fd}") as core:
            assert core.mappings is not None and core.truncated in (True, False)
            core.decompress_to(out)
            for placed in core.segments:
                if placed.segment.filesz:
                    core.read(placed.segment.vaddr, min(placed.segment.filesz, 1 << 20))
    except CoreFormatError:
        return
    finally:
        os.close(fd)
        os.close(out)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes are less than an ELF header"),
        (b"#!/bin/sh\n" * 20, "no 64-bit little-endian ELF"),
        (bytes.fromhex("28b52ffd") + bytes(100), "zstd -d"),
    ],
)
def test_files_that_are_no_cores_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "core"
    path.write_bytes(content)
    with pytest.raises(CoreFormatError, match=message) as caught:
        CoreFile(path)
    assert str(path) in str(caught.value)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(CoreFormatError, match="not a regular file"):
            CoreFile(path)


@pytest.mark.parametrize("make", [SparseWriter, ZstdWriter])
def test_decompressing_restores_file_and_holes(
    make: Callable[[int], Writer], tmp_path: Path
) -> None:
    # GIVEN a core with a hole of 64 MiB, and its plain bytes
    memory = Memory({BASE: DATA, BASE + (64 << 20): b"end".ljust(4096)})
    segments = [segment(BASE, (64 << 20) + 8192)]
    plain, path, out = tmp_path / "plain", tmp_path / "core", tmp_path / "out"
    write(plain, StreamWriter, image(), segments, memory)
    write(path, make, image(), segments, memory)
    with CoreFile(path) as core:
        # WHEN it is decompressed to a file THEN that file has the same bytes, and holes
        with out.open("wb") as file:
            core.decompress_to(file.fileno())
        assert out.read_bytes() == plain.read_bytes()
        assert out.stat().st_blocks * 512 < 6 << 20
        # WHEN it is appended to what is there THEN that stays
        with out.open("ab") as file:
            file.truncate(3)
            core.decompress_to(file.fileno())
        assert out.read_bytes() == plain.read_bytes()[:3] + plain.read_bytes()
