"""A BPF ring buffer read in pure Python: records as bytes, in order, each once.

The layout is that of kernel/bpf/ringbuf.c: a page with the reader's position, a page with the
writers' position, then the data, mapped twice in a row so that no record is ever split. Only a
window of the data is mapped at a time: the kernel maps every page at once, and a whole ring
would count twice its size to the reader's memory. It does not know what the records mean, and
has no lock of its own: one thread at a time.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Generator

from collector.errors import ProbeError
from collector.linux import libbpf

PAGE = mmap.PAGESIZE
HEADER = 8  # struct bpf_ringbuf_hdr
BUSY = 1 << 31  # BPF_RINGBUF_BUSY_BIT
DISCARDED = 1 << 30  # BPF_RINGBUF_DISCARD_BIT
LENGTH = DISCARDED - 1
WINDOW = 256 << 10  # bytes; grows for a record that is larger

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FAILED = ctypes.c_void_p(-1).value  # MAP_FAILED


class _Window:
    """Some pages of a ring, to be read. An mmap of Python would need a descriptor of its own, and
    a reader that has no more of them is to read on."""

    def __init__(self, descriptor: int, size: int, offset: int) -> None:
        self.size = size
        where = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, offset)
        if where == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, f"a ring cannot be mapped: {os.strerror(number)}")
        self._address: int = where

    def close(self) -> None:
        _libc.munmap(self._address, self.size)

    def read(self, at: int, length: int) -> bytes:
        assert 0 <= at <= at + length <= self.size
        return ctypes.string_at(self._address + at, length)


class Ring:
    """The reader of one ring; owns `descriptor`, which becomes readable when records wait."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.size = libbpf.map_info(descriptor).max_entries
        self._reader = mmap.mmap(
            descriptor, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE
        )
        self._writers = mmap.mmap(descriptor, PAGE, mmap.MAP_SHARED, mmap.PROT_READ, offset=PAGE)
        self._consumed = memoryview(self._reader).cast("Q")
        self._produced = memoryview(self._writers).cast("Q")
        self._window: _Window | None = None
        self._window_start = 0

    def close(self) -> None:
        self._drop_window()
        self._consumed.release()
        self._produced.release()
        self._reader.close()
        self._writers.close()
        os.close(self.descriptor)

    def _drop_window(self) -> None:
        if self._window is not None:
            self._window.close()
        self._window = None

    def _at(self, offset: int, length: int) -> bytes:
        """Bytes of the doubled data area."""
        window = self._window
        relative = offset - self._window_start
        if window is None or relative < 0 or relative + length > window.size:
            self._drop_window()
            start = offset & ~(PAGE - 1)
            size = max(WINDOW, (offset + length - start + PAGE - 1) & ~(PAGE - 1))
            size = min(size, 2 * self.size - start)
            window = self._window = _Window(self.descriptor, size, 2 * PAGE + start)
            self._window_start = start
            relative = offset - start
        return window.read(relative, length)

    def _header(self, position: int) -> int:
        header = int.from_bytes(self._at(position & (self.size - 1), 4), "little")
        length = header & LENGTH
        if length > self.size:
            raise ProbeError(f"the ring is damaged: a record of {length} bytes at {position}")
        return header

    def _data(self, position: int, header: int) -> bytes:
        return self._at((position & (self.size - 1)) + HEADER, header & LENGTH)

    def records(self) -> Generator[bytes]:
        """The records that wait. Stops at one that is still being written: its writer wakes us.

        A record counts as read when the next one is asked for, or the generator is closed.
        """
        position = self.position
        while position < self._produced[0]:
            header = self._header(position)
            if header & BUSY:
                return
            data = None if header & DISCARDED else self._data(position, header)
            try:
                if data is not None:
                    yield data
            finally:
                position = _following(position, header)
                self._consumed[0] = position  # one aligned store; x86 keeps the order

    def positioned(self) -> Generator[tuple[int, bytes]]:
        """As `records`, each with its position."""
        with contextlib.closing(self.records()) as records:
            for record in records:
                yield self.position, record

    @property
    def position(self) -> int:
        """Of the record that `records` gave last; at its end, of the next that will come."""
        return int(self._consumed[0])

    @property
    def waiting(self) -> int:
        """Bytes of the records that have not been read."""
        return int(self._produced[0]) - self.position

    @property
    def oldest(self) -> int:
        """What was read before stays where it is from here on; before it, it is overwritten.

        The kernel writes the header of a record before it moves the writers' position.
        """
        return int(self._produced[0]) - self.size + HEADER

    def earlier(self, position: int) -> list[tuple[int, bytes]] | None:
        """(position, record) of what was read before, from `position` on; None: overwritten."""
        found = []
        at, end = position, self.position
        try:
            while at < end:
                header = self._header(at)
                if not header & DISCARDED:
                    found.append((at, self._data(at, header)))
                at = _following(at, header)
        except ProbeError:  # no header any more
            return None
        return found if position >= self.oldest else None

    def trim(self) -> None:
        """Give back the memory that a large record took; a small window stays for the next one."""
        if self._window is not None and self._window.size > WINDOW:
            self._drop_window()


def _following(position: int, header: int) -> int:
    return position + (((header & LENGTH) + HEADER + 7) & ~7)
