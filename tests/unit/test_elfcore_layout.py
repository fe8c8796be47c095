"""Where things stand in a core file, and reading its head back from a stream."""

from __future__ import annotations

import io
import struct

import pytest
from elfcore_samples import image, segment
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from collector.arch import elf as arch
from collector.elfcore.layout import HEAD_PREFIX, Layout, Placed, head_size, mappings_of, parse_head
from collector.elfcore.notes import build_notes
from collector.elfcore.types import FileEntry, Mapping, Prot
from collector.errors import CoreFormatError
from tests.unit.costs import grows_evenly

NOTES = build_notes(image())
SEGMENTS = [
    segment(0x400000, 0x3000, 0x1000),
    segment(0x500000, 0x2000, 0),
    segment(0x600000, 0x2000, 0x1800),
    segment(0xFFFFFFFFFF600000, 0x1000),
]


def test_segments_are_placed_at_pages_and_undumped_ones_take_no_room() -> None:
    # GIVEN segments of which some are dumped in part or not at all WHEN they are placed
    layout = Layout(SEGMENTS, NOTES)
    # THEN each begins at a page, and the file ends with the last byte that is dumped
    data = layout.data_offset
    assert data % 4096 == 0 and data - 4096 < len(layout.header) <= data
    assert [p.offset - data for p in layout.placed] == [0, 0x1000, 0x1000, 0x3000]
    assert layout.size == data + 0x4000
    assert layout.header[-len(NOTES) :] == NOTES


def test_pyelftools_reads_the_same() -> None:
    # GIVEN the head of a core WHEN another ELF library reads it THEN it sees what was planned
    layout = Layout(SEGMENTS, NOTES)
    elf = ELFFile(io.BytesIO(layout.header.ljust(layout.size, b"\0")))
    seen = [
        (s["p_vaddr"], s["p_memsz"], s["p_filesz"], s["p_offset"], s["p_flags"], s["p_align"])
        for s in elf.iter_segments("PT_LOAD")
    ]
    assert seen == [
        (p.segment.vaddr, p.segment.memsz, p.segment.filesz, p.offset, p.segment.flags, 4096)
        for p in layout.placed
    ]
    names = [n["n_name"] for s in elf.iter_segments("PT_NOTE") for n in s.iter_notes()]
    assert names[0] == "CORE" and names[-1] == "Coreward" and len(names) == 13


@pytest.mark.parametrize("count", [1, 65_533, 65_534, 70_000])
def test_any_number_of_segments_is_read_back(count: int) -> None:
    # GIVEN more segments than e_phnum can tell
    segments = [segment(i << 20, 4096, 0) for i in range(1, count + 1)]
    layout = Layout(segments, NOTES)
    # WHEN the head is parsed, also without the section header as from the kernel's stream
    stream = bytearray(layout.header)
    extended = count + 1 >= arch.PN_XNUM
    if extended:
        struct.pack_into("<Q", stream, 40, len(stream) + (1 << 30))
    size = head_size(stream[:HEAD_PREFIX])
    # THEN all segments are there
    assert parse_head(layout.header).segments == tuple(layout.placed)
    assert parse_head(bytes(stream[:size])).segments == tuple(layout.placed)
    assert struct.unpack_from("<H", stream, 56)[0] == min(count + 1, arch.PN_XNUM)
    assert ELFFile(io.BytesIO(layout.header)).num_segments() == count + 1


def test_many_segments_are_quick() -> None:
    segments = [segment(i << 20, 8192, 4096) for i in range(60_000)]
    assert grows_evenly(lambda count: Layout(segments[:count], NOTES), 60_000)


def test_impossible_segments_are_refused() -> None:
    for bad in (segment(1, 4096), segment(4096, 4096, 8192), segment(4096, 4096, -1)):
        with pytest.raises(ValueError):
            Layout([bad], NOTES)


def test_mappings_join_segments_with_files() -> None:
    # GIVEN a file of which a middle part is one segment, and a segment of no file
    files = [
        FileEntry(start=0x700000, end=0x701000, offset=0, path="/b"),
        FileEntry(start=0x400000, end=0x408000, offset=0x10000, path="/a"),
    ]
    # WHEN they are joined THEN the segment knows its place in the file
    assert mappings_of([segment(0x402000, 0x1000), segment(0x408000, 0x1000, 0)], files) == [
        Mapping(
            start=0x402000,
            end=0x403000,
            prot=Prot.R | Prot.W,
            path="/a",
            offset=0x12000,
            dump_size=0x1000,
        ),
        Mapping(start=0x408000, end=0x409000, prot=Prot.R | Prot.W, dump_size=0),
    ]


# --- hostile heads ------------------------------------------------------------------------------


def changed(offset: int, form: str, value: int) -> bytes:
    head = bytearray(Layout(SEGMENTS, NOTES).header)
    struct.pack_into(form, head, offset, value)
    return bytes(head)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\x7fELF",
        changed(4, "<B", 1),  # 32 bit
        changed(16, "<H", 2),  # an executable
        changed(18, "<H", 183),  # aarch64
        changed(32, "<Q", (1 << 64) - 1),  # phoff
        changed(54, "<H", 1),  # phentsize
        changed(56, "<H", 0),  # phnum
        changed(56, "<H", 0xFFFE),
        changed(56, "<H", 0xFFFF),
        changed(64 + 8, "<Q", 1 << 63),  # offset of the notes
        changed(64 + 32, "<Q", 1 << 63),  # size of the notes
        changed(120 + 32, "<Q", 0x4000),  # filesz > memsz
        changed(120 + 40, "<Q", (1 << 64) - 1),  # end of the address space
        Layout(SEGMENTS, NOTES).header[:-1],
    ],
)
def test_damaged_heads_are_refused(head: bytes) -> None:
    with pytest.raises(CoreFormatError):
        parse_head(head)


def test_streams_that_are_no_core_of_the_kernel_are_refused() -> None:
    for prefix in (
        b"",
        changed(64, "<I", 1)[:HEAD_PREFIX],
        changed(64 + 32, "<Q", 1 << 40)[:HEAD_PREFIX],
        changed(32, "<Q", 128)[:HEAD_PREFIX],
    ):
        with pytest.raises(CoreFormatError):
            head_size(prefix)


@given(st.lists(st.tuples(st.integers(0, 64 + 5 * 56 - 1), st.integers(0, 255)), max_size=6))
def test_changed_heads_are_parsed_or_refused(changes: list[tuple[int, int]]) -> None:
    head = bytearray(Layout(SEGMENTS, NOTES).header)
    for at, value in changes:
        head[at] = value
    try:
        parsed = parse_head(bytes(head))
    except CoreFormatError:
        return
    assert all(isinstance(p, Placed) for p in parsed.segments)
