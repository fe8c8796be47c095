"""Reading core files: plain ones, and those that ZstdWriter wrote, with random access to both.

Headers and notes are read strictly, by the same code that reads the kernel's stream: pyelftools
takes seconds for 65,000 program headers, and raises many kinds of errors for damaged files.

A core that is cut off behind its head can be opened (there is much to be learnt from it); only
reading what is missing fails. Nothing here looks at a running process.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from pathlib import Path

from collector.arch import elf as arch
from collector.elfcore.layout import (
    HEAD_PREFIX,
    MAX_SEGMENTS,
    CoreHead,
    Placed,
    check_notes,
    derived_count,
    extended_count,
    mappings_of,
    parse_ehdr,
    parse_phdrs,
)
from collector.elfcore.notes import parse_notes
from collector.elfcore.sink import WriterParams, plain_writer
from collector.elfcore.stored import StoredBytes
from collector.elfcore.types import CorewardNote, Mapping, ParsedNotes, Thread
from collector.elfcore.zeros import CHUNK, data_runs, nonzero_runs
from collector.errors import CoreFormatError


class CoreFile:
    """An opened core file; a context manager.

    `size` is that of the plain ELF file in bytes, `compressed` says whether it is stored so.
    CoreFormatError if the file is no x86-64 core or its head is damaged; OSError if it cannot
    be opened.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._stored = StoredBytes(self.path)
        self.compressed, self.size = self._stored.compressed, self._stored.size
        try:
            self._head = self._read_head()
        except CoreFormatError as error:
            self.close()
            raise CoreFormatError(f"{self.path}: {error}") from None
        except BaseException:
            self.close()
            raise
        self._by_address = sorted(self._head.segments, key=lambda placed: placed.segment.vaddr)
        self._starts = [placed.segment.vaddr for placed in self._by_address]

    def __enter__(self) -> CoreFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Once is enough."""
        self._stored.close()

    @property
    def segments(self) -> tuple[Placed, ...]:
        """The PT_LOADs with their file offsets, in the order of the file."""
        return self._head.segments

    @property
    def notes(self) -> ParsedNotes:
        return self._head.notes

    @property
    def threads(self) -> tuple[Thread, ...]:
        """All threads, the dying one first."""
        return self.notes.threads

    @property
    def mappings(self) -> list[Mapping]:
        """One per segment, with its file where NT_FILE names one."""
        return mappings_of((p.segment for p in self.segments), self.notes.files or ())

    @property
    def siginfo(self) -> bytes | None:
        return self.notes.siginfo

    @property
    def auxv(self) -> bytes | None:
        return self.notes.auxv

    @property
    def coreward_note(self) -> CorewardNote | None:
        return self.notes.note

    @property
    def truncated(self) -> bool:
        """The file ends before its segments do, or says that it was written so."""
        end = max(
            (p.offset + p.segment.filesz for p in self.segments if p.segment.filesz), default=0
        )
        note = self.coreward_note
        return end > self.size or (note is not None and note.truncated)

    def read(self, address: int, size: int) -> bytes:
        """Give `size` bytes of memory from `address` on; they may span segments.

        CoreFormatError if one of them is not in the core.
        """
        parts = []
        end = address + size
        while address < end:
            number = bisect.bisect_right(self._starts, address) - 1
            placed = self._by_address[number] if number >= 0 else None
            inside = address - placed.segment.vaddr if placed else 0
            if placed is None or inside >= placed.segment.filesz:
                raise CoreFormatError(f"{self.path}: memory at {address:#x} is not in the core")
            take = min(end - address, placed.segment.filesz - inside)
            try:
                parts.append(self._exactly(placed.offset + inside, take))
            except CoreFormatError as error:
                raise CoreFormatError(f"{self.path}: memory at {address:#x}: {error}") from None
            address += take
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def decompress_to(self, fd: int) -> None:
        """Write the plain ELF file to `fd`, from its position on.

        An empty regular file gets holes where the core has them; anything else gets zeros.
        OSError as writing gives it, CoreFormatError if a frame is damaged.
        """
        writer = plain_writer(fd)
        writer.init(WriterParams(size=self.size))
        position = 0
        for offset, data in self._data():
            for start, end in nonzero_runs(data, len(data)):
                if offset + start > position:
                    writer.extend(offset + start - position)
                writer.write(memoryview(data)[start:end], offset + start)
                position = offset + end
        if self.size > position:
            writer.extend(self.size - position)
        writer.close()

    def _read_head(self) -> CoreHead:
        prefix = self._stored.read(0, HEAD_PREFIX)
        header = parse_ehdr(prefix)
        count = header.phnum
        if count == arch.PN_XNUM:
            section = self._stored.read(header.shoff, arch.SHDR.size) if header.shoff else b""
            whole = len(section) == arch.SHDR.size
            count = extended_count(section) if whole else derived_count(prefix)
        if not count or count > MAX_SEGMENTS:
            raise CoreFormatError(f"damaged core: {count} program headers")
        placed, places = parse_phdrs(self._exactly(header.phoff, count * arch.PHDR.size))
        check_notes(places, self.size)
        raw = b"".join(self._exactly(offset, length) for offset, length in places)
        return CoreHead(segments=tuple(placed), notes=parse_notes(raw), raw_notes=raw)

    def _exactly(self, offset: int, size: int) -> bytes:
        if offset + size <= self.size:
            data = self._stored.read(offset, size)
            if len(data) == size:
                return data
        raise CoreFormatError(f"cut off: it has {self.size} bytes, and {offset + size} are needed")

    def _data(self) -> Iterator[tuple[int, bytearray]]:
        """(offset, bytes) of all that is not known to be a hole, at most CHUNK bytes each."""
        frames = self._stored.frames
        if frames is None:
            yield from self._plain_data()
            return
        offset = 0
        for length, frame in frames.frames():
            if frame is not None:
                for at in range(0, length, CHUNK):
                    yield offset + at, bytearray(frame[at : at + CHUNK])
            offset += length

    def _plain_data(self) -> Iterator[tuple[int, bytearray]]:
        for start, end in data_runs(self._stored.fd, self.size):
            for at in range(start, end, CHUNK):
                yield at, bytearray(self._stored.read(at, min(CHUNK, end - at)))
