"""Every writer puts out the same file, holes or not."""

from __future__ import annotations

import errno
import os
import random
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.elfcore.seekable import FRAME, FrameReader
from collector.elfcore.sink import (
    HeadRewriter,
    SparseWriter,
    StreamWriter,
    Writer,
    WriterParams,
    ZstdWriter,
    write_all,
)
from collector.elfcore.zeros import nonzero_runs
from collector.errors import CoreFormatError

MAKERS: dict[str, Callable[[int], Writer]] = {
    "sparse": SparseWriter,
    "stream": StreamWriter,
    "zstd, one worker": ZstdWriter,
    "zstd, two workers": lambda fd: ZstdWriter(fd, level=3, workers=2, nice=5),
}
RANDOM = random.Random(1).randbytes(FRAME + 5000)


def plain(path: Path) -> bytes:
    """The file's contents, decompressed by zstd(1) if it is compressed."""
    data = path.read_bytes()
    if data[:4] not in (b"\x28\xb5\x2f\xfd", b"\x5e\x2a\x4d\x18"):
        return data
    with path.open("rb") as file:
        reader = FrameReader(file.fileno())
        ours = reader.read(0, reader.size)
        assert ours == b"".join(bytes(n) if d is None else d for n, d in reader.frames())
    if zstd := shutil.which("zstd"):
        run = subprocess.run([zstd, "-dcq", path], check=True, capture_output=True)
        assert run.stdout == ours
    return ours


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_data_and_holes_come_out_as_they_went_in(
    make: Callable[[int], Writer], tmp_path: Path
) -> None:
    # GIVEN a head, data at all kinds of places, and holes of all sizes, the last one at the end
    calls: list[tuple[int, bytes] | int] = [
        (0, b"head" * 100),
        (4096, RANDOM),
        3 * FRAME + 1,
        (4096 + len(RANDOM) + 3 * FRAME + 1, b"x" * 10),
        (9 * FRAME - 1, b"yz"),
        FRAME + 77,
    ]
    expected = bytearray()
    path = tmp_path / "out"
    with path.open("wb") as file:
        writer = make(file.fileno())
        writer.init(WriterParams(size=10 * FRAME + 78))
        # WHEN they are written
        for call in calls:
            if isinstance(call, int):
                writer.extend(call)
                expected += bytes(call)
            else:
                writer.write(memoryview(call[1]), call[0])
                expected = expected.ljust(call[0], b"\0") + call[1]
        writer.close()
    # THEN the file is what was asked for
    assert plain(path) == expected


@pytest.mark.parametrize("make", [StreamWriter, ZstdWriter])
def test_writers_that_can_not_seek_refuse_to_go_back(
    make: Callable[[int], Writer], tmp_path: Path
) -> None:
    with (tmp_path / "out").open("wb") as file:
        writer = make(file.fileno())
        writer.init(WriterParams(size=100))
        writer.write(b"abc", 10)
        with pytest.raises(ValueError):
            writer.write(b"abc", 12)
        writer.abort()


@pytest.mark.parametrize("size", [100, FRAME, 2 * FRAME + 13])
def test_a_head_can_be_rewritten_at_the_end(size: int, tmp_path: Path) -> None:
    # GIVEN a head of that size, and data behind it, in each writer that can rewrite it
    old, new = RANDOM[:50].ljust(size, b"a"), RANDOM[100:150].ljust(size, b"b")
    for make in (SparseWriter, ZstdWriter):
        path = tmp_path / make.__name__
        with path.open("wb") as file:
            writer = make(file.fileno())
            writer.init(WriterParams(size=size + 5, head=size))
            writer.write(old, 0)
            writer.write(b"after", size)
            # WHEN it is rewritten
            assert isinstance(writer, HeadRewriter) and writer.rewrite_head(new)
            writer.close()
        # THEN all else is as before
        assert plain(path) == new + b"after"


def test_a_head_that_does_not_fit_leaves_the_old_one(tmp_path: Path) -> None:
    # GIVEN a compressible head WHEN it is to be replaced by noise THEN it stays
    path = tmp_path / "out"
    with path.open("wb") as file:
        writer = ZstdWriter(file.fileno())
        writer.init(WriterParams(size=FRAME, head=FRAME))
        writer.write(bytes(FRAME), 0)
        assert not writer.rewrite_head(RANDOM[:FRAME])
        writer.close()
    assert plain(path) == bytes(FRAME)


def test_a_huge_hole_costs_little(tmp_path: Path) -> None:
    # GIVEN a hole of 64 GiB WHEN it is compressed THEN it takes 2 MiB and no time
    path = tmp_path / "out"
    with path.open("wb") as file:
        writer = ZstdWriter(file.fileno())
        writer.init(WriterParams(size=(64 << 30) + 3))
        writer.extend(64 << 30)
        writer.write(b"end", 64 << 30)
        writer.close()
    assert path.stat().st_size < 3 << 20
    with path.open("rb") as file:
        assert FrameReader(file.fileno()).read((64 << 30) - 1, 10) == b"\0end"


def test_no_room_is_an_oserror_of_every_writer() -> None:
    for make in MAKERS.values():
        fd = os.open("/dev/full", os.O_WRONLY)
        try:
            writer = make(fd)
            if isinstance(writer, SparseWriter):
                # ftruncate of a device says EINVAL; what matters is the write
                with pytest.raises(OSError) as caught:
                    writer.write(b"x", 0)
            else:
                writer.init(WriterParams(size=1))
                with pytest.raises(OSError) as caught:
                    writer.write(RANDOM, 0)
                    writer.close()
            writer.abort()
            assert caught.value.errno == errno.ENOSPC
        finally:
            os.close(fd)


def test_a_pipe_that_does_not_block_gets_everything() -> None:
    # GIVEN a pipe that takes little at a time and returns EAGAIN
    read, write = os.pipe()
    os.set_blocking(write, False)
    got: list[bytes] = []

    def drain() -> None:
        with os.fdopen(read, "rb") as file:
            got.append(file.read())

    reader = threading.Thread(target=drain)
    reader.start()
    # WHEN more is written than it holds THEN all arrives
    write_all(write, RANDOM)
    os.close(write)
    reader.join()
    assert got == [RANDOM]


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 40), max_size=12),
    st.integers(1, 20 * 4096),
)
def test_nonzero_runs_are_the_pages_that_are_not_zero(pages: list[int], size: int) -> None:
    # GIVEN a buffer with single bytes set in some pages, and dirt behind the part in use
    buffer = bytearray(41 * 4096)
    for page in pages:
        buffer[page * 4096 + page] = 1
    # WHEN its runs are searched THEN they are those pages, joined and cut at the end
    touched = {p for p in pages if p * 4096 + p < size}
    starts = sorted(p for p in touched if p - 1 not in touched)
    ends = sorted(p + 1 for p in touched if p + 1 not in touched)
    expected = [(a * 4096, min(b * 4096, size)) for a, b in zip(starts, ends, strict=True)]
    assert nonzero_runs(buffer, size) == expected


# --- hostile compressed files -------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("zst") / "out"
    with path.open("wb") as file:
        writer = ZstdWriter(file.fileno())
        writer.init(WriterParams(size=FRAME + 400))
        writer.write(b"data" * 100, FRAME)
        writer.close()
    return path.read_bytes()


def test_a_table_that_calls_a_frame_empty_is_refused(packed: bytes, tmp_path: Path) -> None:
    # GIVEN a file whose table says of the first frame that it holds nothing
    damaged = bytearray(packed)
    at = packed.rindex(struct.pack("<I", FRAME))
    damaged[at : at + 4] = bytes(4)
    path = tmp_path / "damaged"
    path.write_bytes(damaged)
    # WHEN it is opened THEN its data is not passed over in silence
    with path.open("rb") as file, pytest.raises(CoreFormatError, match="frame 0"):
        FrameReader(file.fileno())


def test_a_frame_that_hides_its_checksum_is_refused(packed: bytes, tmp_path: Path) -> None:
    # GIVEN a frame whose header says that it has none (RFC 8878, 3.1.1.1.1), and other data
    damaged = bytearray(packed)
    damaged[4] &= ~4
    damaged[34] ^= 1
    path = tmp_path / "damaged"
    path.write_bytes(damaged)
    # THEN it is not read as if it were good
    with path.open("rb") as file, pytest.raises(CoreFormatError, match="frame 0 is damaged"):
        FrameReader(file.fileno()).read(0, 1)


@settings(max_examples=200)
@given(data=st.data())
def test_changed_files_are_read_or_refused(packed: bytes, data: st.DataObject) -> None:
    # GIVEN a file with some bytes changed, or cut off WHEN it is read
    damaged = bytearray(packed)
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 30))
    fd = os.memfd_create("damaged")
    try:
        write_all(fd, damaged[: len(damaged) - cut])
        # THEN it is what it was, or the error of damaged cores
        reader = FrameReader(fd)
        assert reader.read(0, reader.size) == bytes(FRAME) + b"data" * 100
    except CoreFormatError:
        return
    finally:
        os.close(fd)
