"""Where everything stands in a core file: its head (ELF header, program headers, notes), both ways.

`Layout` places segments in a new file; `parse_head` reads the head of any core, also from a
stream that is read no further. Memory is not read or written here.

More than 65,534 program headers: e_phnum is PN_XNUM, and section header 0 holds the count in
sh_info. The kernel (fs/binfmt_elf.c) writes that section header *behind all segments*, where who
reads a stream never comes to. But it puts the notes directly behind the program headers and the
PT_NOTE header first, so the count is (p_offset of PT_NOTE - e_phoff) / e_phentsize. `Layout`
keeps to that, and has its section header behind the notes, inside the head.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

import msgspec

from collector.arch import elf as arch
from collector.arch.x86_64 import PAGE
from collector.elfcore.notes import parse_notes
from collector.elfcore.types import FileEntry, Mapping, ParsedNotes, Prot, Segment
from collector.errors import CoreFormatError

HEAD_PREFIX = arch.EHDR.size + arch.PHDR.size  # bytes that head_size() wants
MAX_HEAD = 512 << 20  # bytes: headers and notes of 32,000 threads with AMX state fit
MAX_SEGMENTS = 1 << 21
_PROT = tuple(Prot(bits) for bits in range(8))
_U64 = 1 << 64


class Placed(msgspec.Struct, frozen=True):
    """A segment and the file offset of its first byte."""

    segment: Segment
    offset: int


class CoreHead(msgspec.Struct, frozen=True, kw_only=True):
    """The head of a core: its segments in the order of the file, and its notes."""

    segments: tuple[Placed, ...]
    notes: ParsedNotes
    raw_notes: bytes

    @property
    def mappings(self) -> list[Mapping]:
        """Mappings as far as a core tells of them; see `mappings_of`."""
        return mappings_of((p.segment for p in self.segments), self.notes.files or ())


class ElfHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of an ELF header that find the rest."""

    phoff: int
    phnum: int  # as it stands there: may be PN_XNUM
    shoff: int


class Layout:
    """The plan of a core file: `header` is its first bytes, `placed` its segments, `size` its end.

    Each segment begins at a page of the file; those that are `zeros` begin all at the first one.
    Bytes between are zero. Linear in the number of segments. ValueError if a segment does not begin
    at a page, or filesz > memsz.

    `offsets` are the places of the segments where these are given: by a former layout, or because
    they stand in the file already.
    """

    def __init__(
        self, segments: Sequence[Segment], notes: bytes, offsets: Sequence[int] | None = None
    ) -> None:
        count = len(segments) + 1
        table_end = arch.EHDR.size + count * arch.PHDR.size
        notes_end = table_end + len(notes)
        extended = count >= arch.PN_XNUM
        shoff = notes_end + 7 & ~7 if extended else 0
        head_end = shoff + arch.SHDR.size if extended else notes_end
        self.data_offset = _page_up(head_end)
        self.placed, self.size = self._place(segments, head_end, offsets)
        header = bytearray(head_end)
        _put_ehdr(header, count, shoff)
        pack_into, at = arch.PHDR.pack_into, arch.EHDR.size
        size, align = len(notes), arch.NOTE_ALIGN
        pack_into(header, at, arch.PT_NOTE, 0, table_end, 0, 0, size, 0, align)
        for p in self.placed:
            at += 56
            s = p.segment
            pack_into(
                header,
                at,
                arch.PT_LOAD,
                s.flags,
                p.offset,
                s.vaddr,
                0,
                s.filesz,
                s.memsz,
                PAGE,
            )
        header[table_end:notes_end] = notes
        self.header = bytes(header)

    def _place(
        self, segments: Sequence[Segment], head_end: int, offsets: Sequence[int] | None
    ) -> tuple[list[Placed], int]:
        placed = []
        offset, size = self.data_offset, head_end
        shared = max((s.filesz for s in segments if s.zeros), default=0)
        if shared:
            size = offset + shared
            offset = _page_up(size)
        for number, s in enumerate(segments):
            if s.vaddr % PAGE or not 0 <= s.filesz <= s.memsz:
                raise ValueError(f"impossible segment: {s}")
            if offsets is not None:
                placed.append(Placed(s, offsets[number]))
                size = max(size, offsets[number] + s.filesz)
                continue
            if s.zeros:
                placed.append(Placed(s, self.data_offset))
                continue
            placed.append(Placed(s, offset))
            if s.filesz:
                size = offset + s.filesz
                offset = _page_up(size)
        return placed, size


def _page_up(value: int) -> int:
    return value + PAGE - 1 & -PAGE


def _put_ehdr(header: bytearray, count: int, shoff: int) -> None:
    arch.EHDR.pack_into(
        header,
        0,
        arch.E_IDENT,
        arch.ET_CORE,
        arch.EM_X86_64,
        1,
        0,
        arch.EHDR.size,
        shoff,
        0,
        arch.EHDR.size,
        arch.PHDR.size,
        min(count, arch.PN_XNUM),
        arch.SHDR.size if shoff else 0,
        1 if shoff else 0,
        0,
    )
    if shoff:
        # The kernel's fill_extnum_info: sh_size = e_shnum, sh_link = e_shstrndx, sh_info = count.
        arch.SHDR.pack_into(header, shoff, 0, 0, 0, 0, 0, 1, 0, count, 0, 0)


# --- reading ------------------------------------------------------------------------------------


def parse_ehdr(data: bytes | memoryview) -> ElfHeader:
    """Check an ELF header. CoreFormatError if it is not one of an x86-64 core."""
    if len(data) < arch.EHDR.size:
        raise CoreFormatError(f"not a core: {len(data)} bytes are less than an ELF header")
    h = arch.EHDR.unpack_from(data)
    if h[0][:7] != arch.E_IDENT[:7]:
        raise CoreFormatError("not a core: no 64-bit little-endian ELF file")
    if h[1] != arch.ET_CORE or h[2] != arch.EM_X86_64:
        raise CoreFormatError(f"not an x86-64 core: ELF type {h[1]}, machine {h[2]}")
    if h[9] != arch.PHDR.size or not h[10]:
        raise CoreFormatError(f"damaged core: {h[10]} program headers of {h[9]} bytes")
    return ElfHeader(phoff=h[5], phnum=h[10], shoff=h[6])


def head_size(prefix: bytes | memoryview) -> int:
    """Bytes from the start of a stream to the end of its notes, from its first HEAD_PREFIX bytes.

    For streams written by the kernel or by `Layout`, which have the PT_NOTE header first.
    CoreFormatError if it is no such core, or the notes are larger than MAX_HEAD allows.
    """
    header = parse_ehdr(prefix)
    if len(prefix) < HEAD_PREFIX or header.phoff != arch.EHDR.size:
        raise CoreFormatError(
            "not a core as the kernel writes it: no program header behind its head"
        )
    kind, _, offset, _, _, size, _, _ = arch.PHDR.unpack_from(prefix, arch.EHDR.size)
    if kind != arch.PT_NOTE or offset < HEAD_PREFIX:
        raise CoreFormatError("not a core as the kernel writes it: the notes do not come first")
    if offset + size > MAX_HEAD:
        raise CoreFormatError(f"damaged core: notes of {size} bytes at {offset}")
    return int(offset + size)


def parse_head(data: bytes | memoryview) -> CoreHead:
    """Read the head of a core: `data` is its first bytes, at least to the end of its notes.

    CoreFormatError if it is damaged or too short.
    """
    view = memoryview(data)
    header = parse_ehdr(view)
    count = _phdr_count(view, header)
    table_end = header.phoff + count * arch.PHDR.size
    if count > MAX_SEGMENTS or table_end > len(view):
        raise CoreFormatError(
            f"damaged core: {count} program headers at {header.phoff} in {len(view)} bytes"
        )
    placed, notes_at = parse_phdrs(view[header.phoff : table_end])
    check_notes(notes_at, len(view))
    raw = b"".join(view[offset : offset + size] for offset, size in notes_at)
    return CoreHead(segments=tuple(placed), notes=parse_notes(raw), raw_notes=raw)


def check_notes(places: Sequence[tuple[int, int]], available: int) -> None:
    """CoreFormatError unless all PT_NOTEs are inside `available` bytes and of a sane size."""
    total = 0
    for offset, size in places:
        total += size
        if offset + size > available or total > min(available, MAX_HEAD):
            raise CoreFormatError(f"damaged core: notes of {size} bytes at {offset}")


def parse_phdrs(table: bytes | memoryview) -> tuple[list[Placed], list[tuple[int, int]]]:
    """Read whole program headers: the PT_LOADs, and (offset, size) of the PT_NOTEs.

    CoreFormatError for sizes that no file can have.
    """
    placed: list[Placed] = []
    notes: list[tuple[int, int]] = []
    for kind, flags, offset, vaddr, _, filesz, memsz, _ in arch.PHDR.iter_unpack(table):
        if kind == arch.PT_LOAD:
            if filesz > memsz or vaddr + memsz > _U64 or offset + filesz >= _U64 >> 1:
                raise CoreFormatError(
                    f"damaged core: segment at {vaddr:#x} has {filesz:#x} of {memsz:#x} bytes "
                    f"at {offset:#x} in the file"
                )
            segment = Segment(vaddr=vaddr, memsz=memsz, filesz=filesz, flags=_PROT[flags & 7])
            placed.append(Placed(segment, offset))
        elif kind == arch.PT_NOTE and filesz:
            notes.append((offset, filesz))
    return placed, notes


def extended_count(shdr: bytes | memoryview) -> int:
    """The number of program headers, from section header 0 of a file with PN_XNUM."""
    return int(arch.SHDR.unpack_from(shdr)[7])


def derived_count(prefix: bytes | memoryview) -> int:
    """The number of program headers of a file with PN_XNUM, from its first HEAD_PREFIX bytes.

    For files without (or cut off before) their section header: see the top of this file.
    CoreFormatError if the notes do not come first, directly behind the program headers.
    """
    head_size(prefix)
    notes_offset = int(arch.PHDR.unpack_from(prefix, arch.EHDR.size)[2])
    count, rest = divmod(notes_offset - arch.EHDR.size, arch.PHDR.size)
    if rest or count < arch.PN_XNUM:
        raise CoreFormatError(f"damaged core: notes at {notes_offset} behind PN_XNUM headers")
    return count


def _phdr_count(view: memoryview, header: ElfHeader) -> int:
    if header.phnum != arch.PN_XNUM:
        return header.phnum
    if header.shoff and header.shoff + arch.SHDR.size <= len(view):
        return extended_count(view[header.shoff : header.shoff + arch.SHDR.size])
    return derived_count(view[:HEAD_PREFIX])


def mappings_of(segments: Iterable[Segment], files: Sequence[FileEntry]) -> list[Mapping]:
    """Join segments and NT_FILE lines (in any order) into mappings, one per segment.

    A core does not tell flags, inode or whether a mapping is shared. `dump_size` is filesz.
    """
    lines = sorted(files, key=lambda line: line.start)
    starts = [line.start for line in lines]
    found = []
    for s in segments:
        at = bisect.bisect_right(starts, s.vaddr) - 1
        line = lines[at] if at >= 0 and s.vaddr < lines[at].end else None
        found.append(
            Mapping(
                start=s.vaddr,
                end=s.vaddr + s.memsz,
                prot=s.flags,
                path=line.path if line else None,
                offset=line.offset + s.vaddr - line.start if line else 0,
                dump_size=s.filesz,
            )
        )
    return found
