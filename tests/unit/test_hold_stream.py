"""Where the notes of a core stream end, for well-formed and hostile heads."""

from __future__ import annotations

import os
import struct
import threading

import pytest

from collector.errors import HoldError
from collector.handoff.stream import notes_end, read_notes


def head64(
    segments: int = 3,
    size: int = 100,
    phnum: int | None = None,
    offset: int | None = None,
    p_type: int = 4,
    e_type: int = 4,
) -> bytes:
    """ELF64 header and first program header, as the kernel writes them."""
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    count = segments if phnum is None else phnum
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH", e_type, 62, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0
    )
    place = 64 + 56 * segments if offset is None else offset
    return header + struct.pack("<IIQQQQQQ", p_type, 0, place, 0, 0, size, 0, 4)


def head32(segments: int, size: int) -> bytes:
    ident = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    header = ident + struct.pack("<HHIIIIIHHHHHH", 4, 3, 1, 0, 52, 0, 0, 52, 32, segments, 0, 0, 0)
    note = struct.pack("<IIIIIIII", 4, 52 + 32 * segments, 0, 0, size, 0, 0, 4)
    return (header + note).ljust(120, b"\0")


def test_the_end_of_the_notes() -> None:
    assert notes_end(head64(segments=3, size=100)) == 64 + 3 * 56 + 100
    assert notes_end(head64(segments=70000, size=8, phnum=0xFFFF)) == 64 + 70000 * 56 + 8
    assert notes_end(head32(segments=5, size=40)) == 52 + 5 * 32 + 40


@pytest.mark.parametrize(
    "head",
    [
        b"MZ".ljust(120, b"\0"),
        b"\x7fELF\x03\x01".ljust(120, b"\0"),
        b"\x7fELF\x02\x02".ljust(120, b"\0"),
        head64(e_type=2),
        head64(p_type=1),
        head64(segments=3, phnum=4),
        head64(offset=64 + 57),
        head64(segments=0, phnum=0),
        head64(offset=0),
        head64(size=1 << 40),
        head64(size=(1 << 64) - 1),
    ],
)
def test_a_head_that_the_kernel_never_writes_is_refused(head: bytes) -> None:
    with pytest.raises(HoldError):
        notes_end(head)


def test_notes_are_read_whole_and_nothing_else() -> None:
    """
    GIVEN a core stream with 3 MB of notes, written in pieces, with memory behind
    WHEN its notes are read
    THEN they are exactly the stream's beginning
    """
    reading, writing = os.pipe()
    content = head64(segments=2, size=3_000_000).ljust(64 + 112, b"p") + os.urandom(3_000_000)
    stream = content + b"memory" * 100

    def write() -> None:
        with open(writing, "wb", buffering=0) as pipe:
            for start in range(0, len(stream), 100_001):
                pipe.write(stream[start : start + 100_001])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert read_notes(reading) == content
        assert os.get_blocking(reading)
    finally:
        os.close(reading)
        writer.join()


@pytest.mark.parametrize(
    ("sent", "close", "limit", "message"),
    [
        (b"", True, 4096, "ended after 0 bytes"),
        (head64()[:119], True, 4096, "ended after 119 bytes"),
        (head64(size=1000), True, 4096, "ended after 120 bytes"),
        (head64(size=1000), False, 4096, "stalled after 120 bytes"),
        (head64(size=5000), False, 4096, "more than the limit of 4096"),
    ],
)
def test_a_stream_that_ends_or_stalls_or_is_too_long(
    sent: bytes, close: bool, limit: int, message: str
) -> None:
    reading, writing = os.pipe()
    with open(reading, "rb"), open(writing, "wb", buffering=0) as pipe:
        pipe.write(sent)
        if close:
            pipe.close()
        with pytest.raises(HoldError, match=message):
            read_notes(reading, limit, timeout_s=0.01)
