"""The bytes [a, b) of a core that nobody has written: its head, and memory that is read when asked.

A `CoreImage` is laid out once, from notes, segments and a memory. Whoever writes a core walks its
pieces in order; whoever pulls one (a file system, a socket) reads it at random, and no page of
memory is read that is not in the range that was asked for. All else is zero: gaps between segments,
absent memory, and what cannot be read.

Where the memory comes from is not known here, nor whether it is still that of the same moment.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import msgspec

from collector.arch.x86_64 import PAGE
from collector.elfcore.holes import cut_holes
from collector.elfcore.layout import Layout
from collector.elfcore.notes import build_notes, build_own
from collector.elfcore.source import MemorySource, Overrides, Piece, Source
from collector.elfcore.types import CorewardNote, ProcessImage, Segment
from collector.ranges import Range

_MOST_DATA = 1 << 30  # bytes that are told of at a time


class InFile(Protocol):
    """Memory that is in the file of the core before that is laid out, at places of its own."""

    start: int  # the first byte of the file that it takes: the head must end there
    end: int  # and the last, exclusive; a multiple of a page

    def parts(self, start: int, end: int) -> Iterable[tuple[int, int, int | None]]:
        """[start, end) of the process in pieces: start, end, and offset in the file; None: there
        is no room for it yet."""


class CoreImage:
    """A core as it would be written: `size` bytes, of which `header` are the first.

    `notes` is an image, or the body of a PT_NOTE to which the project's own `note` is added.
    `overrides` are (address, bytes) that replace what is read; the later one wins. `there` is
    memory that stands in the file already: segments are cut where it is, and it is no piece of
    this image any more. ValueError for impossible segments or notes; OSError as the memory raises
    it.
    """

    def __init__(
        self,
        notes: ProcessImage | bytes,
        segments: Sequence[Segment],
        memory: MemorySource,
        *,
        note: CorewardNote | None = None,
        overrides: Iterable[tuple[int, bytes]] = (),
        there: InFile | None = None,
    ) -> None:
        if isinstance(notes, ProcessImage):
            self.note = note or notes.note
            self._body = build_notes(msgspec.structs.replace(notes, note=None))
        else:
            self.note = note
            self._body = notes
        self.source = Source(memory, Overrides(overrides))
        cut = cut_holes(segments, self.source.ranges)
        offsets, known = None, 0
        if there is not None:
            cut, offsets = _place(cut, there)
            known = there.end
        self.layout = Layout(cut, self._notes(self.note), offsets)
        self.header, self.size = self.layout.header, self.layout.size
        if there is not None and len(self.header) > there.start:
            raise ValueError(f"a head of {len(self.header)} bytes does not fit before the memory")
        placed = (p for p in self.layout.placed if p.segment.filesz and not p.segment.zeros)
        held = [p for p in placed if p.offset >= known]
        self._held = held  # in the order of the file: only what is zero shares a place
        self._offsets = [placed.offset for placed in held]

    def pieces(self, start: int, end: int) -> Iterator[Piece]:
        """The present memory of the bytes [start, end) of the file, in their order.

        Both are multiples of a page, or `end` is the file's.
        """
        number = max(0, bisect.bisect_right(self._offsets, start) - 1)
        for placed in self._held[number:]:
            if placed.offset >= end:
                return
            segment, to_file = placed.segment, placed.offset - placed.segment.vaddr
            low = max(segment.vaddr, start - to_file)
            high = min(segment.vaddr + segment.filesz, end - to_file)
            if low < high:
                yield from self.source.pieces(low, high, to_file)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes [offset, offset + length), fewer at the end of the file.

        One call at a time. OSError as the memory raises it.
        """
        end = min(offset + length, self.size)
        if offset >= end:
            return b""
        low, high = offset & -PAGE, min(end + PAGE - 1 & -PAGE, self.size)
        buffer = bytearray(high - low)
        head = self.header[low:high]
        buffer[: len(head)] = head
        with memoryview(buffer) as view:
            for piece in self.pieces(low, high):
                at = piece.start + piece.to_file - low
                self.source.read(piece.start, view[at : at + piece.end - piece.start])
            return bytes(view[offset - low : end - low])

    def data_at(self, offset: int) -> Range | None:
        """The next bytes of the file from `offset` on that are not known to be zero, some at a
        time; None: there are none."""
        if offset < len(self.header):
            return offset, len(self.header)
        found: Range | None = None
        for piece in self.pieces(offset & -PAGE, self.size):
            start, end = piece.start + piece.to_file, piece.end + piece.to_file
            if end <= offset:
                continue
            if found is None:
                found = max(start, offset), end
            elif start != found[1] or end - found[0] > _MOST_DATA:
                break
            else:
                found = found[0], end
        return found

    def head_with(self, segments: Sequence[Segment], note: CorewardNote | None) -> bytes:
        """The head with other sizes of the same segments and another note, at the same places."""
        offsets = [placed.offset for placed in self.layout.placed]
        return Layout(segments, self._notes(note), offsets=offsets).header

    def _notes(self, note: CorewardNote | None) -> bytes:
        return self._body if note is None else self._body + build_own(note)


def _place(segments: Sequence[Segment], there: InFile) -> tuple[list[Segment], list[int]]:
    """Segments cut where their memory stands in the file already, and their offsets; all others
    come behind that."""
    parts: list[Segment] = []
    offsets: list[int] = []
    zeros = max((s.filesz for s in segments if s.zeros), default=0)  # they share a place
    free = there.end + (zeros + PAGE - 1 & -PAGE)
    for segment in segments:
        if segment.zeros or not segment.filesz:
            parts.append(segment)
            offsets.append(there.end)
            continue
        end = segment.vaddr + segment.filesz
        beyond = segment.memsz - segment.filesz  # not in the core; stays with the last part
        for low, high, offset in there.parts(segment.vaddr, end):
            size = high - low
            memsz = size + (beyond if high == end else 0)
            parts.append(msgspec.structs.replace(segment, vaddr=low, filesz=size, memsz=memsz))
            offsets.append(free if offset is None else offset)
            if offset is None:
                free += size + PAGE - 1 & -PAGE
    return parts, offsets
