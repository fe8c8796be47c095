"""Writing a core: from a process's image, segments and memory to a writer.

What stands where is the business of a `CoreImage` (image.py), whose memory is read in pieces of
4 MiB, in the order of the file. What it does not have and what is zero become holes, large ones
segments of their own (see holes.py). What cannot be read becomes a hole too and is named in the
result and, where the writer can rewrite the head, in the core's own note. Small pieces given
beforehand (which the kernel's exit path has altered since) replace what is read. Where the bytes go
is not known here (see sink.py), nor where the memory comes from.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterable, Sequence

import msgspec

from collector.elfcore.image import CoreImage
from collector.elfcore.notes import with_left_out
from collector.elfcore.readahead import Read, ReadAhead
from collector.elfcore.sink import HeadRewriter, Writer, WriterParams
from collector.elfcore.source import MemorySource
from collector.elfcore.types import CorewardNote, LeftOut, ProcessImage, Segment
from collector.elfcore.zeros import nonzero_runs
from collector.ranges import Range

MAX_UNREADABLE = 1 << 16  # ranges that are named; more are only counted in bytes


class Stop(enum.Enum):
    """Why a core ends before its end."""

    TOLD = "told to stop"
    LATE = "out of time"
    STALLED = "a read of memory does not return"


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """When to stop: the core ends there."""

    should_stop: Callable[[], bool] = lambda: False
    deadline: float | None = None  # of time.monotonic()
    patience: float | None = None  # seconds that one read may take


UNBOUNDED = Bounds()
Amend = Callable[[CorewardNote], CorewardNote]


class WriteResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a core. Sizes are bytes."""

    size: int  # of the file, holes included, before compression
    written: int  # of memory, as data
    elided: int  # of memory, as holes: absent, zero or unreadable
    unreadable: tuple[Range, ...]  # addresses; at most MAX_UNREADABLE ranges
    unreadable_bytes: int
    stopped: Stop | None  # why before the end; None: it is whole
    marked: bool  # the note inside the core says what is missing (True if nothing is)

    @property
    def truncated(self) -> bool:
        """It ends before its end."""
        return self.stopped is not None


def write_core(
    notes: ProcessImage | bytes,
    segments: Sequence[Segment],
    memory: MemorySource,
    writer: Writer,
    *,
    note: CorewardNote | None = None,
    overrides: Iterable[tuple[int, bytes]] = (),
    progress: Callable[[int, int], None] | None = None,
    bounds: Bounds = UNBOUNDED,
    amend: Amend | None = None,
) -> WriteResult:
    """Write a whole core to `writer`, from `init` to `close` (or `abort`, if anything raises).

    `notes` is an image, or the body of a PT_NOTE to which the project's own `note` is added.
    `overrides` are (address, bytes); the later one wins. `progress` is given (bytes of the file
    done, size) after each piece. Where `bounds` end it, segments that follow have filesz 0 and
    the note says truncated, if the head can be rewritten; otherwise the file is shorter than its
    header says. A read that does not return may go on then, in a thread of its own. `amend` makes
    the note of the one that stands in the head, when all is written.

    Raises OSError as writer and source do, ValueError for impossible segments or notes.
    """
    image = CoreImage(notes, segments, memory, note=note, overrides=overrides)
    return write_image(image, writer, progress=progress, bounds=bounds, amend=amend)


def write_image(
    image: CoreImage,
    writer: Writer,
    *,
    progress: Callable[[int, int], None] | None = None,
    bounds: Bounds = UNBOUNDED,
    amend: Amend | None = None,
) -> WriteResult:
    """Write what an image has pieces of; see write_core."""
    job = _Job(image, writer)
    try:
        writer.init(WriterParams(size=image.size, head=len(image.header)))
        stop = job.run(bounds, progress)
        marked = True
        if stop or job.unreadable_bytes or amend is not None:
            marked = _mark(image, job, stop is not None, writer, amend)
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
        stopped=stop,
        marked=marked,
    )


class _Job:
    """One core on its way: one batch of memory is written while the next one is read."""

    def __init__(self, image: CoreImage, writer: Writer) -> None:
        self._image = image
        self._writer = writer
        self.position = 0  # in the file: all before it is written or a hole
        self.written = 0  # bytes of memory
        self.unreadable: list[Range] = []
        self.unreadable_bytes = 0

    def run(self, bounds: Bounds, progress: Callable[[int, int], None] | None) -> Stop | None:
        """Write head and segments. Why it ended before their end; None: it did not."""
        image = self._image
        self._write(image.header, 0)
        ahead = ReadAhead(image.source, image.pieces(0, image.size))
        try:
            stop = self._write_all(ahead, bounds, progress)
        except BaseException:
            ahead.stop()
            raise
        ahead.stop()
        if stop is None:
            self._hole_to(image.size)
        if stop in (None, Stop.TOLD):
            ahead.join()
        return stop

    def _write_all(
        self, ahead: ReadAhead, bounds: Bounds, progress: Callable[[int, int], None] | None
    ) -> Stop | None:
        while True:
            left = None if bounds.deadline is None else bounds.deadline - time.monotonic()
            try:
                batch = ahead.take(_least(left, bounds.patience))
            except TimeoutError:
                return Stop.LATE if left == _least(left, bounds.patience) else Stop.STALLED
            if batch is None:
                return None
            if left is not None and left <= 0:
                return Stop.LATE
            for read in batch.reads:
                piece = read.piece
                if bounds.should_stop():
                    self._hole_to(piece.start + piece.to_file)
                    return Stop.TOLD
                self._put(batch.buffer, read)
                if progress is not None:
                    progress(piece.end + piece.to_file, self._image.size)
            ahead.give_back(batch)

    @property
    def covered(self) -> int:
        """Bytes of memory up to `position`, present or not."""
        return sum(
            min(p.segment.filesz, max(0, self.position - p.offset))
            for p in self._image.layout.placed
        )

    def _put(self, buffer: bytearray, read: Read) -> None:
        for low, high in read.unreadable:
            self._note_unreadable(low, high)
        start, end, to_file = read.piece
        to_file += start - read.at
        with memoryview(buffer) as view:
            for low, high in nonzero_runs(buffer, end - start, read.at):
                self._write(view[low:high], to_file + low)
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


def _least(*limits: float | None) -> float | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _mark(
    image: CoreImage, job: _Job, truncated: bool, writer: Writer, amend: Amend | None
) -> bool:
    """Say in the head what is missing; segments end where the file does. False: not possible."""
    if not isinstance(writer, HeadRewriter):
        return False
    segments, missing = [], [LeftOut(low, high, "unreadable") for low, high in job.unreadable]
    for placed in image.layout.placed:
        segment = placed.segment
        filesz = min(segment.filesz, max(0, job.position - placed.offset))
        if truncated and filesz < segment.filesz:
            start = segment.vaddr
            missing.append(LeftOut(start + filesz, start + segment.filesz, "truncated"))
            segment = msgspec.structs.replace(segment, filesz=filesz)
        segments.append(segment)
    note = image.note
    if note is not None:
        note = msgspec.structs.replace(
            with_left_out(note, missing), truncated=note.truncated or truncated
        )
        note = note if amend is None else amend(note)
    return writer.rewrite_head(image.head_with(segments, note)) and note is not None
