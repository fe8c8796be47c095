"""Random access to compressed cores: the same bytes as the whole, in bounded memory."""

from __future__ import annotations

import random
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.elfcore.frames import FrameCache
from collector.elfcore.seekable import FRAME
from collector.elfcore.sink import WriterParams, ZstdWriter
from collector.elfcore.stored import StoredBytes, size_of
from collector.elfcore.zeros import ZEROS
from collector.errors import CoreFormatError

PATIENCE = 60.0  # seconds
PLAIN = (
    random.Random(5).randbytes(1 << 16) * 80  # frames 0 and 1
    + bytes(3 * FRAME)  # some of them zero
    + random.Random(6).randbytes(1 << 10) * 9000
    + b"end"
)


@pytest.fixture(scope="module")
def packed() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "core.zst")
        with path.open("wb") as file:
            writer = ZstdWriter(file.fileno())
            writer.init(WriterParams(size=len(PLAIN)))
            writer.write(PLAIN, 0)
            writer.close()
        yield path


def test_its_size_is_known_without_its_contents(packed: Path) -> None:
    assert size_of(packed) == len(PLAIN)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(PLAIN) + 9), st.integers(0, 2 * FRAME)), max_size=4))
def test_any_range_has_the_bytes_of_the_whole(packed: Path, ranges: list[tuple[int, int]]) -> None:
    cache = FrameCache(2 * FRAME, ahead=1)
    with StoredBytes(packed, cache) as stored:
        for offset, size in ranges:
            assert stored.read(offset, size) == PLAIN[offset : offset + size]
            assert cache.bytes <= 2 * FRAME
    assert cache.bytes == 0
    cache.close()


def test_several_threads_read_in_order_and_backwards(packed: Path) -> None:
    cache = FrameCache(3 * FRAME, ahead=2)
    step, wrong = 100_003, []

    def read(offsets: range) -> None:
        wrong.extend(at for at in offsets if stored.read(at, step) != PLAIN[at : at + step])

    with StoredBytes(packed, cache) as stored:
        forwards = range(0, len(PLAIN), step)
        threads = [threading.Thread(target=read, args=[o]) for o in (forwards, forwards[::-1]) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
    cache.close()
    assert wrong == []


def test_a_file_that_is_no_core_at_all_has_its_own_bytes(tmp_path: Path) -> None:
    path = tmp_path / "core"
    path.write_bytes(b"0123456789")
    with StoredBytes(path) as stored:
        assert (stored.size, stored.read(7, 100), stored.read(10, 1)) == (10, b"789", b"")
    with pytest.raises(CoreFormatError, match=f"{tmp_path}: not a regular file"):
        StoredBytes(tmp_path)


def test_a_frame_that_two_want_is_loaded_once() -> None:
    cache, begun, go_on = FrameCache(10), threading.Event(), threading.Event()
    loads, got = [], []

    def load() -> bytes:
        loads.append(1)
        begun.set()
        assert go_on.wait(PATIENCE)
        return b"frame"

    threads = [
        threading.Thread(target=lambda: got.append(cache.get("a", 0, load))) for _ in range(2)
    ]
    threads[0].start()
    assert begun.wait(PATIENCE)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert (got, len(loads)) == ([b"frame"] * 2, 1)


def test_the_least_recently_used_goes_first_and_zeros_cost_nothing() -> None:
    cache, loads = FrameCache(10), []

    def get(number: int, data: bytes) -> None:
        cache.get("a", number, lambda: loads.append(number) or data)  # type: ignore[func-returns-value]

    for number in (0, 1, 0, 2, 0, 1):
        get(number, b"12345")
    assert (loads, cache.bytes) == ([0, 1, 2, 1], 10)
    get(3, ZEROS)
    get(0, b"12345")
    assert (loads, cache.bytes) == ([0, 1, 2, 1, 3], 10)
    get(4, b"larger than all")
    assert cache.bytes == 15
    cache.forget("a")
    assert cache.bytes == 0


def test_a_failed_load_is_raised_and_tried_again() -> None:
    cache = FrameCache(10)

    def fail() -> bytes:
        raise CoreFormatError("damaged")

    for _ in range(2):
        with pytest.raises(CoreFormatError, match="damaged"):
            cache.get("a", 0, fail)
    assert cache.get("a", 0, lambda: b"now") == b"now"


def test_forgetting_waits_for_what_is_being_loaded_ahead() -> None:
    cache, go_on, done = FrameCache(10, ahead=1), threading.Event(), threading.Event()
    finished = []

    def load() -> bytes:
        assert go_on.wait(PATIENCE)
        finished.append(1)
        return b"1"

    def forget() -> None:
        cache.forget("a")
        assert finished
        done.set()

    cache.load_ahead("a", 0, load)
    cache.load_ahead("a", 1, load)  # one at a time
    threading.Thread(target=forget).start()
    go_on.set()
    assert done.wait(PATIENCE)
    cache.close()
    assert (cache.bytes, finished) == (0, [1])


def test_frames_of_zeros_are_holes(packed: Path) -> None:
    with StoredBytes(packed) as stored:
        first, end = stored.data_at(5) or (0, 0)
        assert (first, end) == (5, 2 * FRAME)  # (both frames at the beginning have data)
        start, last = stored.data_at(end) or (0, 0)
        # THEN only whole frames between them are left out, and they are zero
        assert start > end and start % FRAME == 0 and last == len(PLAIN)
        assert not any(PLAIN[end:start])
        assert stored.data_at(end + 7) == (start, last)
        assert stored.data_at(len(PLAIN)) is None


def test_holes_of_a_plain_core_are_those_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "core"
    with path.open("wb") as file:
        file.truncate(FRAME)
        file.seek(2 * FRAME)
        file.write(b"data" * 1024)
        file.truncate(4 * FRAME)
    with StoredBytes(path) as stored:
        assert stored.data_at(0) == (2 * FRAME, 2 * FRAME + 4096)
        assert stored.data_at(3 * FRAME) is None
