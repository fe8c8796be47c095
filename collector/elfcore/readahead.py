"""Memory is read by a thread of its own: ahead of who writes it, who can leave it behind.

Memory of a process may keep whoever reads it waiting for as long as somebody likes (a page behind
FUSE, a lock that a sibling holds), and nothing ends such a read but the end of it or of this
process. Whoever takes the batches waits as long as it wants to, and then goes on without the rest;
the thread sees that when its read returns, and touches nothing more.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from collector.arch.x86_64 import PAGE
from collector.elfcore.source import Piece, Source
from collector.elfcore.zeros import CHUNK
from collector.ranges import Range

_PIECES = 64  # of a batch at most: whether there is progress is seen by batches


class Read(NamedTuple):
    """A piece that was read; its memory is at `at` in the batch's buffer."""

    piece: Piece
    at: int
    unreadable: list[Range]


class Batch(NamedTuple):
    """Some pieces in order, and the buffer with their memory."""

    buffer: bytearray
    reads: list[Read]


class ReadAhead:
    """Reads pieces in order, in a thread, at most one batch ahead of who takes them."""

    def __init__(self, source: Source, pieces: Iterable[Piece]) -> None:
        self._source, self._pieces = source, pieces
        self._ready: queue.SimpleQueue[Batch | BaseException | None] = queue.SimpleQueue()
        self._free: queue.SimpleQueue[bytearray | None] = queue.SimpleQueue()
        for _ in range(2):
            self._free.put(bytearray(CHUNK))
        self._thread = threading.Thread(target=self._run, name="core-read", daemon=True)
        self._thread.start()

    def take(self, timeout: float | None) -> Batch | None:
        """The next batch; None: that was the last one. Its buffer goes back by `give_back`.

        Raises TimeoutError if it does not come in time (seconds; None: wait for ever), and what
        reading raised.
        """
        try:
            found = self._ready.get(timeout=None if timeout is None else max(0.0, timeout))
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(found, BaseException):
            raise found
        return found

    def give_back(self, batch: Batch) -> None:
        """The buffer of a batch may be filled again."""
        self._free.put(batch.buffer)

    def stop(self) -> None:
        """Read no more; does not wait for a read that has begun."""
        self._free.put(None)

    def join(self) -> None:
        """Wait until nothing is being read, which may be for ever."""
        self._thread.join()

    def _run(self) -> None:
        try:
            for batch in self._batches():
                self._ready.put(batch)
            self._ready.put(None)
        except _Stopped:
            return
        except BaseException as error:
            self._ready.put(error)

    def _batches(self) -> Iterator[Batch]:
        batch: Batch | None = None
        at = 0
        for piece in self._pieces:
            size = piece.end - piece.start
            if batch is not None and (at + size > CHUNK or len(batch.reads) >= _PIECES):
                yield batch
                batch = None
            if batch is None:
                batch, at = Batch(self._buffer(), []), 0
            with memoryview(batch.buffer)[at : at + size] as view:
                batch.reads.append(Read(piece, at, self._source.read(piece.start, view)))
            at += size + PAGE - 1 & -PAGE
        if batch is not None:
            yield batch

    def _buffer(self) -> bytearray:
        buffer = self._free.get()
        if buffer is None:
            raise _Stopped
        return buffer


class _Stopped(Exception):
    """Nobody wants more."""
