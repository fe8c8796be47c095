"""Where a core goes: writers by three calls, after FreeBSD's core writers.

`init` says how large the file will be, `write` puts bytes, `extend` makes a hole at the end.
Whoever has another place for cores (a socket, an object store) writes those three, `close` and
`abort`. `write_core` makes the calls in the order of the file: every `write` begins where the
last call ended.

    SparseWriter   a file; holes are never written
    ZstdWriter     independent zstd frames and a seek table; a hole costs 128 bytes per 4 MiB
    StreamWriter   a pipe or socket; holes are zeros

A writer does not own its descriptor. OSError (ENOSPC, EPIPE, ...) comes out of any call; a
writer that raised can only be aborted. What the bytes mean is not known here.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import threading
from array import array
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import msgspec

from collector.elfcore.seekable import FRAME, SKIPPABLE, build_table, skippable
from collector.elfcore.zeros import ZEROS

if TYPE_CHECKING:
    from concurrent.futures import Future

    import zstandard

Data = bytes | bytearray | memoryview

_ZERO_FRAMES_PER_WRITE = 1024
_HEAD_SPARE = 4096  # bytes that a rewritten head may be longer when compressed, plus 1/32


class WriterParams(msgspec.Struct, frozen=True, kw_only=True):
    """What is known before the first byte."""

    size: int  # of the whole file, holes included, bytes
    head: int = 0  # bytes at the start that may be rewritten at the end


class Writer(Protocol):
    """Takes the bytes of one file, once."""

    def init(self, params: WriterParams) -> None:
        """Called first, once."""

    def write(self, data: Data, offset: int) -> None:
        """Put `data` at byte `offset` of the file. `data` is only valid during the call."""

    def extend(self, size: int) -> None:
        """Make a hole of `size` bytes at the current end of the file."""

    def close(self) -> None:
        """The file is complete: put everything out."""

    def abort(self) -> None:
        """Give up: free all resources. What was put out so far is undefined."""


@runtime_checkable
class HeadRewriter(Protocol):
    """A writer that can, before `close`, replace the first `WriterParams.head` bytes."""

    def rewrite_head(self, head: bytes) -> bool:
        """Replace the head by one of the same length. False if that cannot be done."""


class SparseWriter:
    """Writes a file with holes, at any offsets. `fd` is open for writing and seekable."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._end = 0

    def init(self, params: WriterParams) -> None:
        os.ftruncate(self._fd, 0)

    def write(self, data: Data, offset: int) -> None:
        pwrite_all(self._fd, data, offset)
        self._end = max(self._end, offset + len(data))

    def extend(self, size: int) -> None:
        self._end += size

    def rewrite_head(self, head: bytes) -> bool:
        self.write(head, 0)
        return True

    def close(self) -> None:
        os.ftruncate(self._fd, self._end)

    def abort(self) -> None:
        return


class InPlaceWriter(SparseWriter):
    """Writes around what stands in the file already; `fd` is open for reading as well."""

    def init(self, params: WriterParams) -> None:
        """Nothing: what is there stays."""


class StreamWriter:
    """Writes to what cannot seek. Offsets must rise (ValueError)."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._position = 0

    def init(self, params: WriterParams) -> None:
        return

    def write(self, data: Data, offset: int) -> None:
        if offset != self._position:
            self.extend(_gap(offset, self._position))
        write_all(self._fd, data)
        self._position += len(data)

    def extend(self, size: int) -> None:
        self._position += size
        while size:
            take = min(size, len(ZEROS))
            write_all(self._fd, memoryview(ZEROS)[:take])
            size -= take

    def close(self) -> None:
        return

    def abort(self) -> None:
        return


class _Pending(NamedTuple):
    """Frames on their way out: one that is being compressed, or `repeat` that are zero."""

    work: Future[bytes] | None
    block: bytearray
    size: int
    repeat: int


class ZstdWriter:
    """Writes independent zstd frames of 4 MiB and their seek table. Offsets must rise (ValueError).

    `workers` threads compress, at `nice` (an absolute value, as setpriority(2) has it; None: that
    of the caller); frames keep their order; at most workers + 2 buffers of 4 MiB are in use.
    `fd` may be a pipe; if it is a seekable file, the head has frames of its own and spare room
    behind them (a skippable frame), and can be rewritten.
    """

    def __init__(self, fd: int, level: int = 1, workers: int = 1, nice: int | None = None) -> None:
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - only here

        self._fd = fd
        self._level = level
        self._nice = nice
        self._position = 0  # in the decompressed file
        self._fill = 0  # bytes of the frame at hand
        self._block: bytearray | None = None  # its bytes; None: a hole so far
        self._free: list[bytearray] = []
        self._blocks_left = workers + 2  # that may still be allocated
        self._pending: deque[_Pending] = deque()
        self._sizes = array("I")  # compressed, decompressed
        self._zero_frame = b""
        self._head = 0  # bytes of the head; 0: it cannot be rewritten
        self._head_start = 0  # file offset
        self._head_room = 0  # compressed bytes of the head and the spare room behind it
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(workers, "core-zstd", self._start_worker)

    def init(self, params: WriterParams) -> None:
        try:
            self._head_start = os.lseek(self._fd, 0, os.SEEK_CUR)
            self._head = params.head
        except OSError:  # ESPIPE
            self._head = 0

    def write(self, data: Data, offset: int) -> None:
        if offset != self._position:
            self.extend(_gap(offset, self._position))
        view = memoryview(data)
        if self._head and offset == 0 and len(view) == self._head:
            self._write_head(view)
            return
        while view:
            take = min(len(view), FRAME - self._fill)
            if self._block is None:
                self._block = self._take_block()
                _clear(self._block, 0, self._fill)
            self._block[self._fill : self._fill + take] = view[:take]
            self._advance(take)
            view = view[take:]

    def extend(self, size: int) -> None:
        while size:
            if self._fill == 0 and size >= FRAME:
                frames = size // FRAME
                self._add_zero_frames(frames)
                self._position += frames * FRAME
                size -= frames * FRAME
                continue
            take = min(size, FRAME - self._fill)
            if self._block is not None:
                _clear(self._block, self._fill, self._fill + take)
            self._advance(take)
            size -= take

    def rewrite_head(self, head: bytes) -> bool:
        if not self._head_room or len(head) != self._head:
            return False
        frames = self._head_frames(memoryview(head))
        spare = self._head_room - sum(map(len, frames))
        if spare < SKIPPABLE.size:
            return False
        pwrite_all(self._fd, b"".join(frames) + skippable(spare), self._head_start)
        for number, packed in enumerate(frames):
            self._sizes[2 * number] = len(packed)
        self._sizes[2 * len(frames)] = spare
        return True

    def close(self) -> None:
        self._end_frame()
        while self._pending:
            self._finish_oldest()
        self._pool.shutdown()
        write_all(self._fd, build_table(self._sizes))

    def abort(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._pending.clear()

    # The head is compressed here and now: what follows it depends on its length.
    def _write_head(self, head: memoryview) -> None:
        frames = self._head_frames(head)
        packed = sum(map(len, frames))
        spare = _HEAD_SPARE + packed // 32
        self._head_room = packed + spare
        for number, frame in enumerate(frames):
            self._put(frame, min(FRAME, len(head) - number * FRAME))
        self._put(skippable(spare), 0)
        self._position = len(head)

    def _head_frames(self, head: memoryview) -> list[bytes]:
        return [self._compress(head[at : at + FRAME]) for at in range(0, len(head), FRAME)]

    def _advance(self, size: int) -> None:
        self._position += size
        self._fill += size
        if self._fill == FRAME:
            self._end_frame()

    def _end_frame(self) -> None:
        block, size = self._block, self._fill
        self._block, self._fill = None, 0
        if block is not None:
            work = self._pool.submit(self._compress, memoryview(block)[:size])
            self._pending.append(_Pending(work, block, size, 1))
        elif size == FRAME:
            self._add_zero_frames(1)
        elif size:
            work = self._pool.submit(self._compress, memoryview(bytes(size)))
            self._pending.append(_Pending(work, bytearray(), size, 1))
        while self._pending and self._ready(self._pending[0]):
            self._finish_oldest()

    @staticmethod
    def _ready(frame: _Pending) -> bool:
        return frame.work is None or frame.work.done()

    def _take_block(self) -> bytearray:
        if not self._free and self._blocks_left:
            self._blocks_left -= 1
            return bytearray(FRAME)
        while not self._free:
            self._finish_oldest()
        return self._free.pop()

    def _add_zero_frames(self, count: int) -> None:
        if self._pending and self._pending[-1].work is None:
            count += self._pending.pop().repeat
        self._pending.append(_Pending(None, bytearray(), FRAME, count))

    def _finish_oldest(self) -> None:
        frame = self._pending.popleft()
        if frame.work is None:
            self._put_zero_frames(frame.repeat)
            return
        packed = frame.work.result()
        if frame.block:
            self._free.append(frame.block)
        self._put(packed, frame.size)

    def _put(self, packed: bytes, size: int) -> None:
        write_all(self._fd, packed)
        self._sizes.extend((len(packed), size))

    def _put_zero_frames(self, count: int) -> None:
        if not self._zero_frame:
            self._zero_frame = self._compress(memoryview(bytes(FRAME)))
        batch = self._zero_frame * min(count, _ZERO_FRAMES_PER_WRITE)
        self._sizes.extend(array("I", (len(self._zero_frame), FRAME)) * count)
        left = len(self._zero_frame) * count
        while left:
            take = min(left, len(batch))
            write_all(self._fd, memoryview(batch)[:take])
            left -= take

    def _start_worker(self) -> None:
        if self._nice is not None:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)

    def _compress(self, data: memoryview) -> bytes:
        compressor: zstandard.ZstdCompressor | None = getattr(self._local, "compressor", None)
        if compressor is None:
            import zstandard  # noqa: PLC0415 - heavy, and plain cores do without it

            compressor = zstandard.ZstdCompressor(level=self._level, write_checksum=True)
            self._local.compressor = compressor
        return compressor.compress(data)


def takes_holes(fd: int) -> bool:
    """Whether a descriptor is of an empty regular file, which gets the holes of a core.

    Not one that appends: pwrite(2) would append as well.
    """
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_size:
        return False
    return not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND


def plain_writer(fd: int) -> SparseWriter | StreamWriter:
    """The writer of a plain ELF core for any descriptor."""
    return SparseWriter(fd) if takes_holes(fd) else StreamWriter(fd)


def write_all(fd: int, data: Data) -> None:
    """Write all of `data`, also to a pipe that takes it in parts or does not block."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()


def pwrite_all(fd: int, data: Data, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def _gap(offset: int, position: int) -> int:
    if offset < position:
        raise ValueError(f"write at {offset}, behind it: {position} bytes were written already")
    return offset - position


def _clear(block: bytearray, start: int, end: int) -> None:
    block[start:end] = ZEROS[: end - start]
