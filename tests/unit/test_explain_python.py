"""The functions of Python in the memory of a process: of this one, and of a hostile one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import struct
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

from collector.arch.x86_64 import FS_BASE, PAGE
from collector.capture.interpreted import select_interpreted
from collector.elfcore.types import Mapping, ProcessImage, Prot, Thread
from collector.explain.exported import Absent, exported
from collector.explain.python_frames import Python, Run, find_python, line_at
from collector.explain.python_layout import layout_of

RUNTIME = 0x5000_0000


class Own:
    """The memory of this process, and which pages of it were read."""

    def __init__(self) -> None:
        self._mem = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
        self.pages: set[int] = set()

    def close(self) -> None:
        os.close(self._mem)

    def read(self, address: int, size: int) -> bytes:
        self.pages.update(range(address & -PAGE, address + size, PAGE))
        with contextlib.suppress(OSError, OverflowError):
            return os.pread(self._mem, size, address)
        return b""

    @staticmethod
    def mappings() -> list[Mapping]:
        found = []
        for line in Path("/proc/self/maps").read_text().splitlines():
            area, _, offset, _, _, *path = line.split(maxsplit=5)
            start, end = (int(word, 16) for word in area.split("-"))
            found.append(
                Mapping(
                    start=start,
                    end=end,
                    prot=Prot.R | Prot.W,
                    offset=int(offset, 16),
                    path=path[0] if path else None,
                )
            )
        return found

    def objects(self) -> list[tuple[str, int, int]]:
        return [(m.path, m.start, m.end) for m in self.mappings() if m.path and not m.offset]


@pytest.fixture
def own() -> Iterator[Own]:
    memory = Own()
    yield memory
    memory.close()


def auxv() -> bytes:
    return Path("/proc/self/auxv").read_bytes()


class Waiting:
    """A thread that waits in a function called by C code, in a function of its own."""

    def __init__(self) -> None:
        self._inside, self._go = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._outer)

    def __enter__(self) -> Waiting:
        self._thread.start()
        assert self._inside.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._go.set()
        self._thread.join()

    def _outer(self) -> None:
        list(map(self.innére, [1]))

    def innére(self, _: int) -> None:  # noqa: PLC2401
        self._inside.set()
        self._go.wait()

    @property
    def id(self) -> int:
        assert self._thread.ident is not None
        return self._thread.ident

    def calls(self) -> list[tuple[str, str, int | None]]:
        """As Python itself tells them, innermost first; it is in the lock, or on its way there."""
        stack = traceback.walk_stack(sys._current_frames()[self.id])
        found = [(f.f_code.co_qualname, f.f_code.co_filename, line) for f, line in stack]
        return found[next(n for n, one in enumerate(found) if one[0].endswith("innére")) :]


def told(runs: list[Run]) -> list[tuple[str, str, int | None]]:
    calls = [tuple(call) for run in runs for call in run.calls]
    return calls[next(n for n, one in enumerate(calls) if str(one[0]).endswith("innére")) :]


def test_the_functions_of_a_thread_of_this_process(own: Own) -> None:
    # GIVEN a thread that waits somewhere
    with Waiting() as waiting:
        # WHEN its functions are read from memory
        python, why = find_python(own.read, own.objects(), auxv())
        assert python is not None, why
        runs, lost = python.runs(waiting.id)
        # THEN they are what Python says, in two runs of the interpreter: C code is between them
        assert told(runs) == waiting.calls()
        assert lost is None
        ends = [run.calls[-1].function.endswith("innére") for run in runs]
        assert ends.index(True) < len(runs) - 1
        # AND there are none of a thread that does not exist
        assert python.runs(1) == ([], None)


def test_the_pages_that_tell_them_are_enough(own: Own) -> None:
    # GIVEN the pages that are selected for a small core
    with Waiting() as waiting:
        regs = tuple(waiting.id if number == FS_BASE else 0 for number in range(27))
        image = ProcessImage(
            threads=[Thread(tid=1, regs=regs)], mappings=own.mappings(), auxv=auxv(), siginfo=b""
        )
        kept = select_interpreted(image, own.read)
        # THEN they are few
        assert sum(end - start for start, end in kept) < 2 << 20
        pages = {start for start, _ in kept}

        def small(address: int, size: int) -> bytes:
            wanted = range(address & -PAGE, address + size, PAGE)
            return own.read(address, size) if pages.issuperset(wanted) else b""

        # AND with nothing but them the functions are the same
        python, why = find_python(small, own.objects(), auxv())
        assert python is not None, why
        runs, lost = python.runs(waiting.id)
        assert (told(runs), lost) == (waiting.calls(), None)


def test_other_processes_have_none(own: Own) -> None:
    libc = [one for one in own.objects() if "libc.so" in one[0]]
    assert find_python(own.read, libc, b"") == (None, None)


def test_exported_symbols_are_those_of_the_loader(own: Own) -> None:
    start = next(start for path, start, _ in own.objects() if "libc.so" in path)
    libc = ctypes.CDLL("libc.so.6")
    for name in ("printf", "environ", "malloc", "__libc_start_main"):
        symbol = ctypes.c_byte.in_dll(libc, name)
        assert exported(own.read, start, name) == ctypes.addressof(symbol)
    assert exported(own.read, start, "no_such_name") is None
    assert exported(lambda *_: b"", start, "printf") is None


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def test_lines_are_those_of_python() -> None:
    # GIVEN all functions of a large module of the standard library
    source = Path(traceback.__file__)
    seen = 0
    for code in codes(compile(source.read_text("utf-8"), str(source), "exec")):
        # THEN each instruction has the line that Python says
        for start, end, line in code.co_lines():
            units = range(start // 2, end // 2)
            found = {line_at(code.co_linetable, code.co_firstlineno, unit) for unit in units[:2]}
            assert found <= {line}
            seen += 1
    assert seen > 500


@pytest.mark.parametrize("table", [b"", b"\xff", b"\xe8\xff\xff", bytes([0x80]) * 5])
def test_a_damaged_table_of_lines_has_none(table: bytes) -> None:
    assert line_at(table, 1, 1000) is None


# ---- versions


def offsets(version: int, *parts: tuple[int, ...]) -> bytes:
    words = [version, 0, *(word for part in parts for word in part)]
    return b"xdebugpy" + struct.pack(f"<{len(words)}Q", *words)


def test_an_interpreter_tells_its_own_offsets() -> None:
    # GIVEN the table of a 3.14, in which each word is a number of its own
    counts = (3, 16, 9, 8, 11, 2, 4, 3, 3, 4, 3, 2, 3, 3, 4)
    parts = [tuple(range(100 * n, 100 * n + count)) for n, count in enumerate(counts)]
    table = offsets(0x030E00F0, *parts)
    # WHEN it is read
    found = layout_of(lambda at, size: table[at - RUNTIME :][:size], RUNTIME, None)
    # THEN they are the right ones
    assert (found.interpreters, found.next_interpreter, found.threads) == (2, 102, 103)
    assert (found.next_thread, found.frame, found.thread_id) == (202, 204, 205)
    assert (found.previous, found.code, found.instruction, found.owner) == (301, 302, 303, 305)
    assert (found.filename, found.name, found.lines, found.first_line) == (401, 403, 404, 405)
    assert (found.bytecode, found.bytes_size, found.bytes_data) == (409, 1301, 1302)
    assert (found.state, found.length, found.ascii, found.compact) == (1401, 1402, 1403, 1419)


@pytest.mark.parametrize(
    ("memory", "version", "why"),
    [
        (bytes(4096), None, "a Python before 3.11"),
        (bytes(4096), 0x030A0DF0, r"Python 3\.10\.13 are not read"),
        (offsets(0x03630100, tuple(range(100))), None, r"Python 3\.99\.1 are not read"),
        (offsets(0x030D0000, (1 << 40,) * 100), None, "damaged"),
        (offsets(0x030D0000), None, "is missing"),
        (b"", None, "is missing"),
    ],
)
def test_what_is_not_read_is_said(memory: bytes, version: int | None, why: str) -> None:
    with pytest.raises(Absent, match=why):
        layout_of(lambda at, size: memory[at - RUNTIME :][:size], RUNTIME, version)


# ---- hostile memory


@pytest.mark.parametrize("version", [0x030B0000, 0x030C0000])
@pytest.mark.parametrize("seed", range(20))
def test_memory_that_leads_anywhere_ends(version: int, seed: int) -> None:
    # GIVEN a process in which each word leads to another one, or to itself, without end
    some = random.Random(seed)
    words = struct.pack("<512Q", *(RUNTIME + 8 * some.randrange(512) for _ in range(512)))
    count = 0

    def read(address: int, size: int) -> bytes:
        nonlocal count
        count += 1
        data = words[address % 8 :] * (size // len(words) + 2)
        return data[(address - RUNTIME) % len(words) & -8 :][:size]

    # WHEN its threads are looked for THEN it ends, with a bounded number of reads
    with contextlib.suppress(Absent):
        python = Python(read, RUNTIME, layout_of(lambda *_: bytes(24), RUNTIME, version))
        for thread in (1, *struct.unpack_from("<8Q", words)):
            python.runs(thread)
    assert count < 20_000


def test_of_thousands_of_threads_no_more_are_looked_at_than_needed() -> None:
    # GIVEN an interpreter with threads that follow each other without end
    layout = layout_of(lambda *_: bytes(24), RUNTIME, 0x030C0000)
    seen = set()

    def read(address: int, size: int) -> bytes:
        seen.add(address)
        if size != 8:
            return b""
        if (address - layout.thread_id) % 0x1000 == 0:  # the number of a thread
            return struct.pack("<Q", address - layout.thread_id)
        return struct.pack("<Q", (address + 0x1000) & -0x1000)

    python = Python(read, RUNTIME, layout)
    # WHEN the first one is asked for
    python.runs((RUNTIME + 0x3000) & -0x1000)
    assert len(seen) < 20
    # THEN one that is not there ends as well
    assert python.runs(1) == ([], None)
    assert len(seen) < 10_000
