"""The backtraces of all threads as they were made at a death, in a file beside its record.

Then the files of the process were at hand; later they may be deleted, replaced, or in the mounts of
a container that has ended, and there may be no core. Equal frames are kept once, so the file has a
few kilobytes. It was written by a child that looked at a hostile core: it is read strictly, and no
more of it than a bound.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from collector.errors import StoreError
from collector.explain.types import ThreadFrames
from collector.model import Frame

FILE = "threads.zst"  # in the record's folder
_MAX_FILE = 64 << 20  # bytes when unpacked
_MAX_FRAMES = 4 << 20  # of all threads


class _Thread(msgspec.Struct, frozen=True, array_like=True):
    tid: int
    name: str | None
    frames: list[int]  # numbers of frames
    lost: str | None


class _Document(msgspec.Struct, frozen=True):
    frames: list[Frame]
    threads: list[_Thread]


def packed(threads: Sequence[ThreadFrames]) -> bytes:
    """The contents of the file."""
    import zstandard  # noqa: PLC0415  (the agent knows the file's name, and must not load it)

    numbers: dict[Frame, int] = {}
    listed = [
        _Thread(
            thread.tid,
            thread.name,
            [numbers.setdefault(frame, len(numbers)) for frame in thread.frames],
            thread.lost,
        )
        for thread in threads
    ]
    return zstandard.compress(msgspec.msgpack.encode(_Document(list(numbers), listed)), 3)


def read(folder: Path) -> list[ThreadFrames]:
    """All threads of a record; none if it has no such file. StoreError if it is damaged."""
    path = folder / FILE
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    from collector import packed as files  # noqa: PLC0415  (it loads zstandard)

    with open(fd, "rb") as file:
        try:
            document = files.decoded(files.unpacked(file, _MAX_FILE), _Document)
            return _threads(document)
        except files.DAMAGED as error:
            raise StoreError(f"{path}: damaged: {error}") from error
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror}") from error


def _threads(document: _Document) -> list[ThreadFrames]:
    """IndexError: frames have numbers that there are none of. ValueError: too many in all."""
    if sum(len(thread.frames) for thread in document.threads) > _MAX_FRAMES:
        raise ValueError(f"more than {_MAX_FRAMES} frames")
    return [_unpacked(document, thread) for thread in document.threads]


def _unpacked(document: _Document, thread: _Thread) -> ThreadFrames:
    if any(number < 0 for number in thread.frames):
        raise IndexError("a frame has a negative number")
    frames = [document.frames[number] for number in thread.frames]
    return ThreadFrames(tid=thread.tid, name=thread.name, frames=frames, lost=thread.lost)
