"""The kernel's own core of a process that really crashed: read, and made again."""

from __future__ import annotations

import fcntl
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from collector.arch import elf as arch
from collector.elfcore.layout import HEAD_PREFIX, CoreHead, head_size, parse_head
from collector.elfcore.notes import build_notes, image_of, iter_notes
from collector.elfcore.reader import CoreFile
from collector.elfcore.sink import SparseWriter, ZstdWriter
from collector.elfcore.types import Mapping, Prot
from collector.elfcore.writer import write_core

CRASH = """
import ctypes, os, threading
for _ in range(3):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
ctypes.string_at(0xdead000)
"""


@contextmanager
def core_settings_held() -> Iterator[None]:
    """Keep others from changing core_pattern while a process dies."""
    lock = Path("/run/lock/coreward-settings.lock")
    if not os.access(lock, os.R_OK):
        yield
        return
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


@pytest.fixture(scope="module")
def kernel_core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A core that the kernel wrote of a Python process with four threads."""
    folder = tmp_path_factory.mktemp("crash")
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    with core_settings_held():
        pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
        if not pattern or "/" in pattern or pattern[0] in "|@":
            pytest.skip(f"core_pattern is {pattern!r}, not a plain file name")
        if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
            pytest.skip("the hard limit of RLIMIT_CORE is 0")
        subprocess.run(
            [sys.executable, "-c", CRASH],
            cwd=folder,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, unlimited),
            check=False,
        )
    found = list(folder.iterdir())
    if not found:
        pytest.skip("the kernel wrote no core")
    return found[0]


@pytest.fixture(scope="module")
def kernel_head(kernel_core: Path) -> CoreHead:
    return parse_head(kernel_core.read_bytes())


def test_notes_of_the_kernel_are_rebuilt_byte_for_byte(kernel_head: CoreHead) -> None:
    # GIVEN what was parsed out of the kernel's notes
    rebuilt_image = image_of(kernel_head.notes, kernel_head.mappings)
    # WHEN they are built again THEN they are the same, note by note and as a whole
    rebuilt = build_notes(rebuilt_image)
    assert list(iter_notes(rebuilt)) == list(iter_notes(kernel_head.raw_notes))
    assert rebuilt == kernel_head.raw_notes


def test_notes_of_the_kernel_mean_what_happened(kernel_head: CoreHead) -> None:
    notes = kernel_head.notes
    assert notes.psinfo is not None and notes.siginfo is not None
    assert len(notes.threads) == 4
    assert {t.signal for t in notes.threads} == {11}
    assert notes.threads[0].tid == notes.psinfo.pid
    assert notes.psinfo.ppid == os.getpid()
    assert struct.unpack_from("<iii4xQ", notes.siginfo) == (11, 0, 1, 0xDEAD000)
    assert all(t.xstate is not None and t.fpregs is None for t in notes.threads)
    text = next(m for m in kernel_head.mappings if m.start <= notes.threads[0].regs[16] < m.end)
    assert isinstance(text, Mapping) and text.path is not None and Prot.X in text.prot


class CoreMemory:
    """The memory that a core holds, as a source for another core."""

    def __init__(self, core: CoreFile) -> None:
        self.core = core

    def ranges(self, start: int, end: int) -> list[tuple[int, int]]:
        return [(start, end)]

    def read_into(self, address: int, buffer: memoryview) -> int:
        buffer[:] = self.core.read(address, len(buffer))
        return len(buffer)


def test_a_stream_is_read_no_further_than_its_notes(
    kernel_core: Path, kernel_head: CoreHead
) -> None:
    with kernel_core.open("rb") as stream:
        prefix = stream.read(HEAD_PREFIX)
        head = parse_head(prefix + stream.read(head_size(prefix) - HEAD_PREFIX))
    assert head == kernel_head


def test_the_core_of_the_kernel_is_made_again_byte_for_byte(
    kernel_core: Path, tmp_path: Path
) -> None:
    # GIVEN the kernel's core
    with CoreFile(kernel_core) as core:
        segments = [placed.segment for placed in core.segments]
        process = image_of(core.notes, core.mappings)
        # WHEN another is written from what was read, plain and compressed
        for make, name in ((SparseWriter, "core"), (ZstdWriter, "core.zst")):
            with (tmp_path / name).open("wb") as file:
                write_core(process, segments, CoreMemory(core), make(file.fileno()))
    with CoreFile(tmp_path / "core.zst") as core, (tmp_path / "plain").open("wb") as file:
        core.decompress_to(file.fileno())
    # THEN all are the same file (older kernels say 0 for the alignment of the notes)
    expected = bytearray(kernel_core.read_bytes())
    struct.pack_into("<Q", expected, HEAD_PREFIX - 8, arch.NOTE_ALIGN)
    assert (tmp_path / "core").read_bytes() == expected
    assert (tmp_path / "plain").read_bytes() == expected
