"""The bytes of a plain ELF core that is kept as it is, or compressed by ZstdWriter.

What they mean is not known here: a damaged core has bytes too. See reader.py for what they say.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from collector.elfcore.frames import FrameCache
from collector.elfcore.seekable import SKIPPABLE_MAGIC, ZSTD_MAGIC, FrameReader, plain_size
from collector.errors import CoreFormatError
from collector.ranges import Range

_COMPRESSED = (ZSTD_MAGIC, SKIPPABLE_MAGIC.to_bytes(4, "little"))


class StoredBytes:
    """Random access to a core file, also by several threads. A context manager.

    `size` is that of the plain ELF file in bytes. `frames` are those of a compressed one, else
    None. cache: where several files keep their frames. CoreFormatError (which names the file) if it
    is no regular file, or its seek table is damaged; OSError if it cannot be opened.
    """

    def __init__(self, path: Path | str, cache: FrameCache | None = None) -> None:
        self.fd = open_core(path)
        try:
            self.compressed = is_compressed(self.fd)
            self.frames = FrameReader(self.fd, cache) if self.compressed else None
            self.size = os.fstat(self.fd).st_size if self.frames is None else self.frames.size
        except CoreFormatError as error:
            os.close(self.fd)
            raise CoreFormatError(f"{path}: {error}") from None
        except BaseException:
            os.close(self.fd)
            raise

    def __enter__(self) -> StoredBytes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Once is enough."""
        if self.fd >= 0:
            if self.frames is not None:
                self.frames.close()
            os.close(self.fd)
            self.fd = -1

    def data_at(self, offset: int) -> Range | None:
        """The next bytes from `offset` on that are not known to be zero; None: there are none."""
        if self.frames is not None:
            return self.frames.data_at(offset)
        return next_data(self.fd, offset, self.size)

    def read(self, offset: int, size: int) -> bytes:
        """Give these bytes, fewer at the end of the file. CoreFormatError if a frame is damaged."""
        if self.frames is not None:
            return self.frames.read(offset, size)
        size = min(size, self.size - offset)
        parts = []
        while size > 0 and (part := os.pread(self.fd, size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def next_data(fd: int, offset: int, size: int) -> Range | None:
    """The next part of a file from `offset` on that is no hole; None: there is none."""
    try:
        start = os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise
    return start, min(size, os.lseek(fd, start, os.SEEK_HOLE))


def open_core(path: Path | str) -> int:
    """A descriptor of a regular file. CoreFormatError if it is none; OSError as open(2)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CoreFormatError(f"{path}: not a regular file")
    return fd


def is_compressed(fd: int) -> bool:
    """Whether the file begins as a compressed core does."""
    return os.pread(fd, 4, 0) in _COMPRESSED


def size_of(path: Path | str) -> int:
    """The size of the plain ELF file in bytes, without looking at its contents.

    CoreFormatError if the seek table is damaged; OSError as open(2).
    """
    fd = open_core(path)
    try:
        return plain_size(fd) if is_compressed(fd) else os.fstat(fd).st_size
    finally:
        os.close(fd)
