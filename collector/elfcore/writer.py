"""Writing a core: from a process's image, segments and memory to a writer.

Memory is read through a `MemorySource` in pieces of 4 MiB. What it does not have and what is
zero become holes; what cannot be read becomes a hole too and is named in the result and, where
the writer can rewrite the head, in the core's own note. Small pieces given beforehand (which the
kernel's exit path has altered since) replace what is read. Where the bytes go is not known here
(see sink.py), nor where the memory comes from.
"""

from __future__ import annotations

import bisect
import heapq
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from collector.arch.x86_64 import PAGE
from collector.elfcore.layout import Layout
from collector.elfcore.notes import build_notes, build_own, with_left_out
from collector.elfcore.sink import HeadRewriter, Writer, WriterParams
from collector.elfcore.types import CorewardNote, LeftOut, ProcessImage, Segment
from collector.elfcore.zeros import CHUNK, ZEROS, nonzero_runs
from collector.ranges import Range, outside, union

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_READ_AHEAD = 256 << 10  # bytes from which on a piece is read by a thread of its own
MAX_UNREADABLE = 1 << 16  # ranges that are named; more are only counted in bytes


class MemorySource(Protocol):
    """Memory of one process, by address.

    `read_into` may be called from another thread than `ranges`, and while that one is at work;
    never twice at a time.
    """

    def ranges(self, start: int, end: int) -> Iterable[Range]:
        """Give the parts of [start, end) that may be non-zero, rising and disjoint."""

    def read_into(self, address: int, buffer: memoryview) -> int:
        """Read as much as there is at `address`; fewer bytes: the next one cannot be read.

        OSError is for the whole source having failed; it ends the writing.
        """


class WriteResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a core. Sizes are bytes."""

    size: int  # of the file, holes included, before compression
    written: int  # of memory, as data
    elided: int  # of memory, as holes: absent, zero or unreadable
    unreadable: tuple[Range, ...]  # addresses; at most MAX_UNREADABLE ranges
    unreadable_bytes: int
    truncated: bool  # stopped before the end
    marked: bool  # the note inside the core says what is missing (True if nothing is)


def write_core(
    notes: ProcessImage | bytes,
    segments: Sequence[Segment],
    memory: MemorySource,
    writer: Writer,
    *,
    note: CorewardNote | None = None,
    overrides: Iterable[tuple[int, bytes]] = (),
    progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> WriteResult:
    """Write a whole core to `writer`, from `init` to `close` (or `abort`, if anything raises).

    `notes` is an image, or the body of a PT_NOTE to which the project's own `note` is added.
    `overrides` are (address, bytes); the later one wins. `progress` is given (bytes of the file
    done, size) after each piece. When `should_stop` says True, the core ends there: segments
    that follow have filesz 0 and the note says truncated, if the head can be rewritten;
    otherwise the file is shorter than its header says.

    Raises OSError as writer and source do, ValueError for impossible segments or notes.
    """
    plan = _Plan(notes, note)
    layout = Layout(segments, plan.notes(plan.note))
    job = _Job(layout, memory, writer, Overrides(overrides))
    try:
        writer.init(WriterParams(size=layout.size, head=len(layout.header)))
        truncated = not job.run(progress, should_stop)
        marked = True
        if truncated or job.unreadable_bytes:
            marked = _mark(plan, layout, job, truncated, writer)
        writer.close()
    except BaseException:
        writer.abort()
        raise
    return WriteResult(
        size=job.position,
        written=job.written,
        elided=job.covered - job.written,
        unreadable=tuple(job.unreadable),
        unreadable_bytes=job.unreadable_bytes,
        truncated=truncated,
        marked=marked,
    )


class _Plan:
    """The notes of the core, which can be made again with another note of our own."""

    def __init__(self, notes: ProcessImage | bytes, note: CorewardNote | None) -> None:
        if isinstance(notes, ProcessImage):
            self.note = note or notes.note
            self._body = build_notes(msgspec.structs.replace(notes, note=None))
        else:
            self.note = note
            self._body = notes

    def notes(self, note: CorewardNote | None) -> bytes:
        return self._body if note is None else self._body + build_own(note)


class Overrides:
    """Pieces of memory, by address. Where two overlap, the one given later wins."""

    def __init__(self, pieces: Iterable[tuple[int, bytes]]) -> None:
        numbered = enumerate(pieces)
        self._pieces = sorted((at, number, data) for number, (at, data) in numbered if data)
        self._starts = [piece[0] for piece in self._pieces]
        self._longest = max((len(piece[2]) for piece in self._pieces), default=0)

    def within(self, start: int, end: int) -> list[tuple[int, bytes]]:
        """Pieces that touch [start, end), in the order in which they were given."""
        first = bisect.bisect_right(self._starts, start - self._longest)
        last = bisect.bisect_left(self._starts, end)
        found = [piece for piece in self._pieces[first:last] if piece[0] + len(piece[2]) > start]
        return [(at, data) for at, _, data in sorted(found, key=lambda piece: piece[1])]

    def pages(self, start: int, end: int) -> list[Range]:
        """Pages of [start, end) that a piece touches, rising, possibly overlapping."""
        found = (
            (max(start, at & -PAGE), min(end, at + len(data) + PAGE - 1 & -PAGE))
            for at, data in self.within(start, end)
        )
        return sorted(found)

    def apply(self, start: int, view: memoryview) -> None:
        """Put the pieces into `view`, which holds the memory from `start` on."""
        end = start + len(view)
        for at, data in self.within(start, end):
            low, high = max(at, start), min(at + len(data), end)
            view[low - start : high - start] = data[low - at : high - at]

    def uncovered(self, start: int, end: int) -> list[Range]:
        """The parts of [start, end) that no piece covers."""
        covered = union((at, at + len(data)) for at, data in self.within(start, end))
        return outside([(start, end)], covered)


class _Piece(NamedTuple):
    """A present range that fits the buffer. File offset = address + to_file."""

    start: int
    end: int
    to_file: int


class _Read(NamedTuple):
    """A piece, the buffer with its memory, and what of it could not be read."""

    piece: _Piece
    buffer: bytearray
    unreadable: list[Range]


class _Job:
    """One core on its way through two buffers: one is written while the other is filled."""

    def __init__(
        self, layout: Layout, memory: MemorySource, writer: Writer, overrides: Overrides
    ) -> None:
        self._layout = layout
        self._memory = memory
        self._writer = writer
        self._overrides = overrides
        self._buffers = (bytearray(CHUNK), bytearray(CHUNK))
        self._reader: ThreadPoolExecutor | None = None
        self.position = 0  # in the file: all before it is written or a hole
        self.written = 0  # bytes of memory
        self.unreadable: list[Range] = []
        self.unreadable_bytes = 0

    def run(
        self, progress: Callable[[int, int], None] | None, should_stop: Callable[[], bool]
    ) -> bool:
        """Write head and segments. False if it was told to stop."""
        size = self._layout.size
        self._write(self._layout.header, 0)
        try:
            for read in self._reads():
                piece = read.piece
                if should_stop():
                    self._hole_to(piece.start + piece.to_file)
                    return False
                self._put(read)
                if progress is not None:
                    progress(piece.end + piece.to_file, size)
        finally:
            if self._reader is not None:
                self._reader.shutdown()
        self._hole_to(size)
        return True

    @property
    def covered(self) -> int:
        """Bytes of memory up to `position`, present or not."""
        return sum(
            min(p.segment.filesz, max(0, self.position - p.offset)) for p in self._layout.placed
        )

    def _pieces(self) -> Iterator[_Piece]:
        """The present parts of all segments, cut for the buffer."""
        for placed in self._layout.placed:
            segment = placed.segment
            start, end = segment.vaddr, segment.vaddr + segment.filesz
            if start == end:
                continue
            to_file = placed.offset - start
            given = self._overrides.pages(start, end)
            for low, high in heapq.merge(self._memory.ranges(start, end), given):
                start = max(start, low)
                while start < min(high, end):
                    # Pieces end at multiples of CHUNK, so that pages are whole.
                    stop = min(high, end, start + CHUNK & -CHUNK)
                    yield _Piece(start, stop, to_file)
                    start = stop

    def _reads(self) -> Iterator[_Read]:
        """All pieces with their memory, in order; the next one is being read meanwhile."""
        earlier: _Read | Future[_Read] | None = None
        for number, piece in enumerate(self._pieces()):
            now = self._start_reading(piece, self._buffers[number & 1])
            if earlier is not None:
                yield earlier if isinstance(earlier, _Read) else earlier.result()
            earlier = now
        if earlier is not None:
            yield earlier if isinstance(earlier, _Read) else earlier.result()

    def _start_reading(self, piece: _Piece, buffer: bytearray) -> _Read | Future[_Read]:
        if piece.end - piece.start < _READ_AHEAD:
            return self._read(piece, buffer)
        if self._reader is None:
            from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - only here

            self._reader = ThreadPoolExecutor(1, "core-read")
        return self._reader.submit(self._read, piece, buffer)

    def _read(self, piece: _Piece, buffer: bytearray) -> _Read:
        """Fill the buffer; pages that cannot be read are zeroed and noted."""
        unreadable: list[Range] = []
        start, size = piece.start, piece.end - piece.start
        with memoryview(buffer)[:size] as view:
            done = 0
            while done < size:
                done += self._memory.read_into(start + done, view[done:])
                if done < size:
                    skip = min(size, (start + done + PAGE & -PAGE) - start)
                    view[done:skip] = ZEROS[: skip - done]
                    unreadable += self._overrides.uncovered(start + done, start + skip)
                    done = skip
            self._overrides.apply(start, view)
        return _Read(piece, buffer, unreadable)

    def _put(self, read: _Read) -> None:
        for low, high in read.unreadable:
            self._note_unreadable(low, high)
        start, end, to_file = read.piece
        with memoryview(read.buffer) as view:
            for low, high in nonzero_runs(read.buffer, end - start):
                self._write(view[low:high], to_file + start + low)
                self.written += high - low

    def _note_unreadable(self, low: int, high: int) -> None:
        self.unreadable_bytes += high - low
        if self.unreadable and self.unreadable[-1][1] == low:
            self.unreadable[-1] = (self.unreadable[-1][0], high)
        elif len(self.unreadable) < MAX_UNREADABLE:
            self.unreadable.append((low, high))

    def _hole_to(self, offset: int) -> None:
        if offset > self.position:
            self._writer.extend(offset - self.position)
            self.position = offset

    def _write(self, data: bytes | memoryview, offset: int) -> None:
        self._hole_to(offset)
        self._writer.write(data, offset)
        self.position = offset + len(data)


def _mark(plan: _Plan, layout: Layout, job: _Job, truncated: bool, writer: Writer) -> bool:
    """Say in the head what is missing; segments end where the file does. False: not possible."""
    if not isinstance(writer, HeadRewriter):
        return False
    segments, missing = [], [LeftOut(low, high, "unreadable") for low, high in job.unreadable]
    for placed in layout.placed:
        segment = placed.segment
        filesz = min(segment.filesz, max(0, job.position - placed.offset))
        if truncated and filesz < segment.filesz:
            start = segment.vaddr
            missing.append(LeftOut(start + filesz, start + segment.filesz, "truncated"))
            segment = msgspec.structs.replace(segment, filesz=filesz)
        segments.append(segment)
    note = plan.note
    if note is not None:
        note = msgspec.structs.replace(
            with_left_out(note, missing), truncated=note.truncated or truncated
        )
    # Offsets must stay, also those of segments that became shorter.
    head = Layout(segments, plan.notes(note), offsets=[p.offset for p in layout.placed]).header
    return writer.rewrite_head(head) and note is not None


@contextmanager
def atomic_file(path: Path | str) -> Iterator[int]:
    """Give a descriptor, open for reading and writing, of a file that appears whole or never.

    The file is made with mode 0600 beside `path`, under a name that begins with `.tmp-`. When
    the block ends it is synced, renamed to `path` (replacing what was there) and the folder is
    synced; when the block raises, it is removed. OSError as the calls give it.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{os.urandom(8).hex()}")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(temporary, flags, 0o600)
    try:
        try:
            yield fd
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.rename(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
