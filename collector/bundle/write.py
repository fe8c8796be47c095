"""Write a bundle: one stream, in one pass, of which nothing is kept in memory.

All its files are opened before the first byte is written, for the manifest that comes first tells
their sizes. One that becomes shorter meanwhile ends the bundle in an error; what is added to one
is left out.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple

import msgspec

from collector import __version__
from collector.bundle.format import (
    BESIDE,
    FORMAT,
    MANIFEST,
    MAX_MANIFEST,
    RECORD,
    BundledFile,
    Manifest,
)
from collector.bundle.modules import FoundFiles, find_files
from collector.bundle.sparse import end, few, padding, plain_head, sparse_head
from collector.elfcore.reader import CoreFile
from collector.elfcore.zeros import data_runs
from collector.errors import StoreError
from collector.model import Record
from collector.ranges import Range
from collector.store.encoding import json_text

LEVEL = 3  # of zstd: what is dense, as libraries are, becomes a third; some 200 MB/s for a thread
_BLOCK = 1 << 20
_SLACK = 1.0  # seconds: a process may have begun a moment before its program was run


class _Member(NamedTuple):
    """A file that is open, and its parts that are no holes."""

    name: str
    fd: int
    size: int
    runs: list[Range]


class Bundle:
    """What a bundle will have, all of it open. A context manager."""

    def __init__(self, record: Record, folder: Path, core: Path, root: Path, most: int) -> None:
        """folder: of the record. core: in it. root: where the process's files are looked for.
        most: descriptors that may be open at a time.

        StoreError if a file cannot be opened, CoreFormatError if the core is none.
        """
        self._record = json_text(record).encode()
        self._members: list[_Member] = []
        self._found = FoundFiles()
        try:
            for name in BESIDE:
                if (folder / name).exists():
                    self._open(name, folder / name)
            self._open(core.name, core)
            with CoreFile(core) as opened:
                self._found = find_files(opened, changed=_began(record, core), most=most, root=root)
            for file in self._found.files:
                fd = self._found.fds.pop(file.name)
                self._members.append(_Member(file.name, fd, file.size, [(0, file.size)]))
        except OSError as error:
            self.close()
            raise StoreError(f"{root}: cannot be looked into: {error.strerror}") from error
        except BaseException:
            self.close()
            raise
        files = [BundledFile(name=RECORD, size=len(self._record))]
        known = {file.name: file for file in self._found.files}
        for member in self._members:
            files.append(known.get(member.name, BundledFile(name=member.name, size=member.size)))
        self.manifest = Manifest(
            format=FORMAT,
            coreward=__version__,
            id=record.id,
            files=files,
            modules=self._found.modules,
        )

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._found.__exit__()
        while self._members:
            os.close(self._members.pop().fd)

    @property
    def size(self) -> int:
        """Bytes that are read for it."""
        return sum(stop - start for member in self._members for start, stop in member.runs)

    def write(self, out: IO[bytes], tell: Callable[[int], None]) -> None:
        """Put it out, compressed. tell: is told how many bytes were read, each time.

        OSError as `out` gives it; StoreError if a file cannot be read.
        """
        import zstandard  # noqa: PLC0415 (only who writes or reads one)

        compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, threads=_threads())
        with compressor.stream_writer(out, closefd=False) as stream:
            size = 0
            for block in self._blocks(tell):
                stream.write(block)
                size += len(block)
            stream.write(end(size))

    def _blocks(self, tell: Callable[[int], None]) -> Iterator[bytes]:
        """The archive but for its end."""
        now = int(time.time())
        manifest = msgspec.json.format(msgspec.json.encode(self.manifest), indent=1)
        if len(manifest) > MAX_MANIFEST:
            raise StoreError("a bundle of so many modules, with such names, could not be opened")
        for name, data in ((MANIFEST, manifest), (RECORD, self._record)):
            yield plain_head(name, len(data), now) + data + padding(len(data))
        for member in self._members:
            changed = max(0, int(os.fstat(member.fd).st_mtime))
            runs = member.runs
            if runs == [(0, member.size)] or not member.size:
                yield plain_head(member.name, member.size, changed)
            else:
                yield sparse_head(member.name, member.size, runs, changed)
            for start, stop in runs:
                yield from _read(member, start, stop, tell)
            yield padding(sum(stop - start for start, stop in runs))

    def _open(self, name: str, path: Path) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            size = os.fstat(fd).st_size
            runs = few([(start, min(stop, size)) for start, stop in data_runs(fd, size)])
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
        self._members.append(_Member(name, fd, size, runs))


def _read(member: _Member, start: int, stop: int, tell: Callable[[int], None]) -> Iterator[bytes]:
    while start < stop:
        try:
            data = os.pread(member.fd, min(_BLOCK, stop - start), start)
            if not data:
                raise OSError(errno.EIO, "it became shorter while it was copied")
        except OSError as error:
            raise StoreError(f"{member.name}: cannot be read: {error.strerror}") from error
        start += len(data)
        tell(len(data))
        yield data


def _began(record: Record, core: Path) -> float:
    """When its process did, or at the latest: seconds of the epoch."""
    if record.age_s is not None:
        return record.time.timestamp() - record.age_s + _SLACK
    return core.stat().st_mtime


def _threads() -> int:
    """Of the compression: half of the CPUs that we may use, four at most; 0: no further one."""
    return min(4, len(os.sched_getaffinity(0)) // 2)
