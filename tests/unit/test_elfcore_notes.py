"""What the notes of a core promise: the kernel's order and bytes, and strict reading."""

from __future__ import annotations

import struct

import msgspec
import pytest
from elfcore_samples import MAIN, NOTE, image, thread
from hypothesis import given
from hypothesis import strategies as st

from collector.elfcore.notes import (
    OWN_CAPACITY,
    build_notes,
    build_own,
    iter_notes,
    parse_notes,
    with_left_out,
)
from collector.elfcore.types import (
    FileEntry,
    LeftOut,
    ParsedNotes,
    ProcessImage,
    PsInfo,
    RawNote,
    Thread,
)
from collector.errors import CoreFormatError
from tests.unit.costs import grows_evenly


def test_notes_stand_in_the_order_of_the_kernel() -> None:
    # GIVEN a process with two threads WHEN its notes are built
    found = [(note.owner, note.type) for note in iter_notes(build_notes(image()))]
    # THEN they come as write_note_info of the kernel has them, our own last
    assert found == [
        (b"CORE", 1),
        (b"CORE", 3),
        (b"CORE", 0x53494749),
        (b"CORE", 6),
        (b"CORE", 0x46494C45),
        (b"CORE", 2),
        (b"LINUX", 0x202),
        (b"CORE", 1),
        (b"CORE", 2),
        (b"LINUX", 0x202),
        (b"LINUX", 0x205),
        (b"Vendor", 9),
        (b"Coreward", 0x434F5245),
    ]


def test_what_is_built_is_what_is_parsed() -> None:
    # GIVEN notes with every kind of part
    given_image = image()
    # WHEN they are built and parsed
    parsed = parse_notes(build_notes(given_image))
    # THEN nothing changed, and only files are in the file table
    assert parsed == ParsedNotes(
        threads=tuple(given_image.threads),
        psinfo=given_image.psinfo,
        siginfo=given_image.siginfo,
        auxv=given_image.auxv,
        files=(
            FileEntry(start=0x400000, end=0x401000, offset=0, path=MAIN),
            FileEntry(start=0x401000, end=0x403000, offset=4096, path=MAIN),
        ),
        xsave_layout=bytes(32),
        note=NOTE,
        other=(RawNote(owner=b"Vendor", type=9, data=b"abc"),),
    )


def test_threads_without_xsave_and_with_odd_notes_survive() -> None:
    # GIVEN no FPU state, FXSAVE only, an FPREGSET that differs, a note that nobody knows
    threads = (
        thread(1, xstate=None),
        thread(2, xstate=bytes(512)),
        msgspec.structs.replace(thread(3), fpregs=b"\1" * 512),
        msgspec.structs.replace(
            thread(4), extra=(RawNote(owner=b"LINUX", type=0x201, data=b"io"),)
        ),
    )
    # WHEN they go through notes THEN they are the same
    assert parse_notes(build_notes(ProcessImage(threads=threads))).threads == threads


def test_values_that_do_not_fit_are_refused() -> None:
    for bad in (
        ProcessImage(threads=()),
        ProcessImage(threads=[msgspec.structs.replace(thread(1), regs=(0,) * 26)]),
        ProcessImage(threads=[msgspec.structs.replace(thread(1), regs=(1 << 64,) * 27)]),
        ProcessImage(threads=[thread(1)], siginfo=b"short"),
        ProcessImage(threads=[thread(1)], psinfo=PsInfo(pid=1, nice=1000)),
    ):
        with pytest.raises(ValueError):
            build_notes(bad)


def test_own_note_keeps_its_size_and_counts_what_it_can_not_name() -> None:
    # GIVEN ten thousand ranges that are left out
    ranges = [LeftOut(i << 40, (i << 40) + 4096, "unreadable") for i in range(10_000)]
    # WHEN the note is built
    built = build_own(with_left_out(NOTE, ranges))
    # THEN it is as long as an empty one, names the first ranges and counts all
    assert len(built) == len(build_own(NOTE)) == 12 + 12 + OWN_CAPACITY
    parsed = parse_notes(built).note
    assert parsed is not None
    assert list(parsed.left_out) == ranges[: len(parsed.left_out)]
    assert 100 < len(parsed.left_out) < 10_000
    assert (parsed.left_out_count, parsed.left_out_bytes) == (10_000, 40_960_000)


def test_many_threads_are_quick() -> None:
    many = image(threads=4_000)
    few = image(threads=400)
    assert grows_evenly(lambda count: build_notes(many if count == 4_000 else few), 4_000)


# --- hostile notes ------------------------------------------------------------------------------


def note(owner: bytes, kind: int, data: bytes) -> bytes:
    return struct.pack("<III", len(owner), len(data), kind) + owner.ljust(8, b"\0") + data


@pytest.mark.parametrize(
    "data",
    [
        b"\1",
        struct.pack("<III", 5, 0xFFFFFFFF, 1) + b"CORE\0\0\0\0",
        struct.pack("<III", 0xFFFFFFFF, 0, 1),
        note(b"CORE\0", 1, bytes(335)),
        note(b"CORE\0", 3, bytes(4)),
        note(b"CORE\0", 0x53494749, b""),
        note(b"CORE\0", 0x46494C45, bytes(8)),
        note(b"CORE\0", 0x46494C45, struct.pack("<QQ", 1 << 60, 4096)),
        note(b"CORE\0", 0x46494C45, struct.pack("<QQQQQ", 1, 1 << 63, 0, 1, 2) + b"a\0"),
        note(b"CORE\0", 0x46494C45, struct.pack("<QQQQQ", 1, 1, 2, 1, 2) + b"a\0"),
        note(b"CORE\0", 0x46494C45, struct.pack("<QQQQQ", 1, 1, 0, 1, 2) + b"aaaa"),
        struct.pack("<III", 9, 2, 0x434F5245) + b"Coreward\0\0\0\0" + b"{}\0\0",
        struct.pack("<III", 9, 4000, 0x434F5245) + b"Coreward\0\0\0\0" + b"[" * 4000,
    ],
)
def test_damaged_notes_are_refused(data: bytes) -> None:
    with pytest.raises(CoreFormatError):
        parse_notes(data)


@given(st.data())
def test_changed_notes_are_parsed_or_refused(data: st.DataObject) -> None:
    # GIVEN good notes with some bytes overwritten and the end cut off
    notes = bytearray(build_notes(msgspec.structs.replace(image(1), note=None)))
    for at in data.draw(st.lists(st.integers(0, len(notes) - 1), max_size=8)):
        notes[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(notes)))
    # WHEN they are parsed THEN the only error is the one for damaged cores
    try:
        parse_notes(bytes(notes[:cut]))
    except CoreFormatError:
        return


@given(
    st.builds(
        Thread,
        tid=st.integers(1, 1 << 22),
        regs=st.tuples(*[st.integers(0, (1 << 64) - 1)] * 27),
        signal=st.integers(0, 64),
        utime=st.integers(0, 1 << 50),
        xstate=st.none() | st.binary(min_size=513, max_size=900) | st.just(bytes(512)),
    )
)
def test_any_thread_round_trips(one: Thread) -> None:
    assert parse_notes(build_notes(ProcessImage(threads=[one]))).threads == (one,)
