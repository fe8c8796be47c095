"""The file of a process's last samples: made when it has died, read by `info` and `core --sample`.

    samples.zst   zstd over msgpack: samples, stacks with their registers, their frames, and the
                  mappings that addresses are to be read by (small cores, see sample.unwind_context)

Everything in it came from the process, so it is read as strictly as a core, and bounded.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from collector import __version__, packed
from collector.arch.x86_64 import PAGE
from collector.capture.select import carve, select_none
from collector.elfcore.reader import CoreFile
from collector.elfcore.sink import Writer
from collector.elfcore.types import CorewardNote, ProcessImage, PsInfo, Thread
from collector.elfcore.writer import WriteResult, write_core
from collector.elfcore.zeros import data_runs
from collector.errors import NotFound, StoreError
from collector.introspect.types import ProcessIdentity
from collector.model import Capture, Frame, SamplesFacts
from collector.ranges import union
from collector.sample.report import ProcessReport, report_of
from collector.sample.ring import SampleRing
from collector.sample.types import KeptStack, Sample

FILE = "samples.zst"
VERSION = 1
_MAX_CONTEXT = 64 << 20  # bytes of one small core, holes not counted


class SparseCore(msgspec.Struct, frozen=True, array_like=True):
    """A small core, as the pieces of its file that are no holes: (offset, bytes)."""

    size: int
    pieces: tuple[tuple[int, bytes], ...]


class Flight(msgspec.Struct, frozen=True, kw_only=True):
    """All that is in the file."""

    version: int
    rule: str
    identity: ProcessIdentity
    samples: tuple[Sample, ...]  # oldest first
    stacks: dict[bytes, KeptStack]
    contexts: dict[int, SparseCore]  # by the numbers that stacks name
    frames: dict[bytes, tuple[Frame, ...]]  # by the keys of stacks
    lost: dict[str, str]

    @property
    def facts(self) -> SamplesFacts:
        """What the record says of it."""
        seconds = (self.samples[-1].time_ns - self.samples[0].time_ns) / 1e9
        return SamplesFacts(
            count=len(self.samples), seconds=round(seconds, 3), rule=self.rule, file=FILE
        )

    def report(self) -> ProcessReport:
        """As `coreward sample` has it."""
        return report_of(self.identity, self.samples, self.frames, ended=True, lost=self.lost)

    def number(self, wanted: int) -> int:
        """The index of sample 1, 2, … or -1, -2, … (the last is -1). NotFound if there is none."""
        count = len(self.samples)
        if wanted == 0 or not -count <= wanted <= count:
            raise NotFound(f"there is no sample {wanted}: they are 1 to {count}, or -{count} to -1")
        return wanted - 1 if wanted > 0 else count + wanted


def flight_of(
    rule: str,
    identity: ProcessIdentity,
    ring: SampleRing,
    contexts: dict[int, int],
    frames: dict[bytes, tuple[Frame, ...]],
    lost: dict[str, str],
) -> Flight:
    """What a ring holds, which is not empty; `contexts` are descriptors of small cores."""
    used = {kept.context for kept in ring.stacks.values()}
    return Flight(
        version=VERSION,
        rule=rule,
        identity=identity,
        samples=tuple(ring.samples),
        stacks=dict(ring.stacks),
        contexts={number: _sparse_core(fd) for number, fd in contexts.items() if number in used},
        frames=frames,
        lost=lost,
    )


def _sparse_core(fd: int) -> SparseCore:
    size = os.fstat(fd).st_size
    return SparseCore(size, tuple(_data(fd, size)))


def _data(fd: int, size: int) -> Iterator[tuple[int, bytes]]:
    left = _MAX_CONTEXT
    for start, end in data_runs(fd, size):
        if left <= 0:
            return
        data = os.pread(fd, min(end - start, left), start)
        left -= len(data)
        yield start, data


def write(flight: Flight, folder: Path) -> None:
    """Put the file into a record's folder; whole, or not at all. OSError if it cannot be."""
    packed.write(flight, folder / FILE)


def read(folder: Path) -> Flight:
    """The file of a record's folder. StoreError if it is damaged or gone."""
    path = folder / FILE
    flight = packed.read(path, Flight)
    if flight.version != VERSION or not flight.samples:
        raise StoreError(f"{path}: of another version ({flight.version}), or empty")
    return flight


class SampleCore(msgspec.Struct, frozen=True, kw_only=True):
    """What was written of one sample."""

    result: WriteResult
    left_out: tuple[str, ...]  # names of threads whose registers are not known


def write_sample(flight: Flight, number: int, record: str, writer: Writer) -> SampleCore:
    """Write the threads-only core of one sample: registers and stacks of that moment.

    `number` is an index, see `Flight.number`. NotFound if no thread of it has registers.
    """
    sample = flight.samples[number]
    known = [(t, flight.stacks[t.stack]) for t in sample.threads if t.stack in flight.stacks]
    known.sort(key=lambda one: one[0].tid != flight.identity.key.pid)  # debuggers show it first
    left_out = tuple(t.name for t in sample.threads if t.stack not in flight.stacks)
    if not known:
        raise NotFound(f"sample {number + 1} has no stacks: {_why(sample, flight)}")
    # all stacks of a sample are of one context
    with _open_context(flight, known[0][1].context) as core:
        threads = [
            Thread(tid=t.tid, regs=_words(kept.regs), name=t.name, state=t.state)
            for t, kept in known
        ]
        image = ProcessImage(
            threads=threads,
            mappings=core.mappings,
            auxv=core.auxv or b"",
            psinfo=_psinfo(flight.identity),
        )
        stacks = [(kept.address, kept.data) for _, kept in known if kept.data]
        memory = _CoreMemory(core)
        keep = union([*memory.kept(), *(_pages(at, data) for at, data in stacks)])
        before = (flight.samples[-1].time_ns - sample.time_ns) / 1e9
        note = CorewardNote(
            record=record,
            version=__version__,
            capture=Capture.THREADS.value,
            consistent=False,
            text=f"sample {number + 1} of {len(flight.samples)}, {before:.1f} s before the last; "
            "memory besides stacks may be of another moment"
            + (f"; without registers: {len(left_out)} threads" if left_out else ""),
        )
        segments = carve(select_none(image.mappings), keep)
        result = write_core(image, segments, memory, writer, note=note, overrides=stacks)
    return SampleCore(result=result, left_out=left_out)


def _psinfo(who: ProcessIdentity) -> PsInfo:
    """As elf_core_dump() cuts the name and the arguments."""
    return PsInfo(
        pid=who.ns_pid,
        ppid=who.ppid,
        uid=who.uid,
        gid=who.gid,
        fname=os.fsencode(who.comm)[:15],
        psargs=os.fsencode(" ".join(who.cmdline))[:79],
    )


def _why(sample: Sample, flight: Flight) -> str:
    for lost in (sample.lost, flight.lost):
        for part in ("stacks", "registers"):
            if part in lost:
                return lost[part]
    return "they did not fit into memory"


def _words(regs: Iterable[int]) -> tuple[int, ...]:
    """27 words, as NT_PRSTATUS has them."""
    found = tuple(regs)[:27]
    return found + (0,) * (27 - len(found))


@contextlib.contextmanager
def _open_context(flight: Flight, number: int) -> Iterator[CoreFile]:
    found = flight.contexts.get(number)
    if found is None:
        raise StoreError(f"the samples are damaged: no mappings {number}")
    fd = os.memfd_create("unwind-context", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, found.size)
        for offset, data in found.pieces:
            os.pwrite(fd, data, offset)
        with CoreFile(f"/proc/self/fd/{fd}") as core:
            yield core
    finally:
        os.close(fd)


class _CoreMemory:
    """The memory in a core, as a MemorySource."""

    def __init__(self, core: CoreFile) -> None:
        self._core = core

    def kept(self) -> list[tuple[int, int]]:
        segments = (placed.segment for placed in self._core.segments)
        return [(s.vaddr, s.vaddr + s.filesz) for s in segments if s.filesz]

    def ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        for low, high in self.kept():
            if max(low, start) < min(high, end):
                yield max(low, start), min(high, end)

    def read_into(self, address: int, buffer: memoryview) -> int:
        """Zeros where only a stack that is put over it reaches."""
        buffer[:] = bytes(len(buffer))
        for low, high in self.ranges(address, address + len(buffer)):
            buffer[low - address : high - address] = self._core.read(low, high - low)
        return len(buffer)


def _pages(address: int, data: bytes) -> tuple[int, int]:
    return address & -PAGE, address + len(data) + PAGE - 1 & -PAGE
