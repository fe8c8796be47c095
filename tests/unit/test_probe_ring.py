"""The ring reader against a ring made of a memory file, byte for byte as the kernel lays it out."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from collector.errors import ProbeError
from collector.linux import ringbuf
from collector.linux.libbpf import MapInfo
from collector.linux.ringbuf import BUSY, DISCARDED, HEADER, PAGE, Ring

SIZE = 1 << 20  # larger than the reader's window


class Writer:
    """The kernel's side: positions in the first two pages, then the data, twice."""

    def __init__(self) -> None:
        self.file = os.memfd_create("ring")
        os.truncate(self.file, 2 * PAGE + 2 * SIZE)
        self.position = 0

    def start_at(self, position: int) -> None:
        """Pretend that so many bytes were written and read before."""
        self.position = position
        os.pwrite(self.file, struct.pack("<Q", position), 0)
        self._publish()

    def _publish(self) -> None:
        os.pwrite(self.file, struct.pack("<Q", self.position), PAGE)

    def _store(self, position: int, data: bytes) -> None:
        for index, byte in enumerate(data):
            offset = (position + index) % SIZE
            for copy in (0, SIZE):
                os.pwrite(self.file, bytes([byte]), 2 * PAGE + copy + offset)

    def add(self, data: bytes, flags: int = 0) -> int:
        """Append a record; returns its position."""
        at = self.position
        self._store(at, struct.pack("<II", len(data) | flags, 0) + data)
        self.position += (HEADER + len(data) + 7) & ~7
        self._publish()
        return at

    def set_header(self, position: int, header: int) -> None:
        self._store(position, struct.pack("<I", header))

    def consumed(self) -> int:
        return int(struct.unpack("<Q", os.pread(self.file, 8, 0))[0])


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Writer:
    monkeypatch.setattr(ringbuf.libbpf, "map_info", lambda _: MapInfo(27, 1, 0, 0, SIZE))
    return Writer()


@pytest.fixture
def reader(writer: Writer) -> Iterator[Ring]:
    found = Ring(writer.file)
    yield found
    found.close()


def test_records_come_once_and_in_order(writer: Writer, reader: Ring) -> None:
    sent = [b"a", b"bc" * 10, b"", b"d" * 8]
    for data in sent:
        writer.add(data)
    assert list(reader.records()) == sent
    assert list(reader.records()) == []
    assert writer.consumed() == writer.position


def test_discarded_records_are_skipped(writer: Writer, reader: Ring) -> None:
    writer.add(b"first")
    writer.add(b"never", DISCARDED)
    writer.add(b"last")
    assert list(reader.records()) == [b"first", b"last"]


def test_reading_stops_before_a_record_that_is_being_written(writer: Writer, reader: Ring) -> None:
    writer.add(b"ready")
    busy = writer.add(b"later", BUSY)
    writer.add(b"after")
    assert list(reader.records()) == [b"ready"]
    assert writer.consumed() == busy
    writer.set_header(busy, len(b"later"))
    assert list(reader.records()) == [b"later", b"after"]


@pytest.mark.parametrize("before", [SIZE - 8, SIZE - 16, 5 * SIZE - 32, SIZE // 2 - 8])
def test_records_go_over_the_end_of_the_ring(writer: Writer, reader: Ring, before: int) -> None:
    writer.start_at(before)
    sent = [bytes(range(100)), b"x" * 5000, b"y"]
    for data in sent:
        writer.add(data)
    assert list(reader.records()) == sent


def test_a_record_counts_as_read_when_the_next_is_asked_for(writer: Writer, reader: Ring) -> None:
    writer.add(b"one")
    second = writer.add(b"two")
    records = reader.records()
    assert next(records) == b"one"
    assert writer.consumed() == 0
    assert next(records) == b"two"
    assert writer.consumed() == second


def test_what_was_read_can_be_read_again(writer: Writer, reader: Ring) -> None:
    writer.start_at(5 * SIZE - 32)  # it goes over the end of the ring
    sent = [b"first", b"second" * 10, b"third"]
    positions = [writer.add(data) for data in sent]
    writer.add(b"never", DISCARDED)
    assert list(reader.positioned()) == list(zip(positions, sent, strict=True))
    writer.add(b"not read yet")
    assert reader.earlier(positions[1]) == [(positions[1], sent[1]), (positions[2], sent[2])]
    assert reader.earlier(reader.position) == []


def test_what_was_overwritten_can_not_be_read_again(writer: Writer, reader: Ring) -> None:
    first, second = writer.add(b"x" * 8), writer.add(b"y" * 8)
    assert len(list(reader.records())) == 2
    # WHEN the writers come round to the first record, or may be writing its header now
    writer.add(bytes(SIZE - 2 * (HEADER + 8) - HEADER))
    assert reader.earlier(first) is None
    # THEN that is all that is lost
    assert reader.oldest == HEADER
    assert reader.earlier(second) == [(second, b"y" * 8)]


def test_reading_goes_on_after_memory_was_given_back(writer: Writer, reader: Ring) -> None:
    writer.add(b"one")
    assert list(reader.records()) == [b"one"]
    reader.trim()
    writer.add(b"two")
    assert list(reader.records()) == [b"two"]


def test_a_record_larger_than_the_ring_is_damage(writer: Writer, reader: Ring) -> None:
    position = writer.add(b"")
    writer.set_header(position, SIZE + 1)
    with pytest.raises(ProbeError, match="the ring is damaged"):
        list(reader.records())
