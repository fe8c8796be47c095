"""Routine ends of processes: one line each, in a file that never grows beyond a bound.

    DIR/routine.jsonl      the newest, as they come
    DIR/routine.old.jsonl  those before

When the first one is full it becomes the second. A line is written with one write(2), so a reader
sees whole lines, and at most the last of a writer that was killed is not one. Nothing here is worth
a flush of the disk.
"""

from __future__ import annotations

import contextlib
import datetime
import enum
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from collector.errors import StoreError
from collector.store.encoding import json_line
from collector.store.folders import FILE_MODE

NAME, OLD = "routine.jsonl", "routine.old.jsonl"
MOST_BYTES = 1 << 20  # of each file: some thousand ends
_NAME = 256  # characters of a name
_WRITE = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Way(enum.StrEnum):
    """In which usual way a process came to its end."""

    PARENT = "parent"  # which sent the signal
    MANAGER = "manager"  # systemd, told to stop the unit
    TERMINAL = "terminal"  # a key, or a hang-up
    PIPE = "pipe"  # nobody reads any more what it writes


BY = {  # who ended it, for people
    Way.PARENT: "its parent",
    Way.MANAGER: "systemd, which was told to stop it",
    Way.TERMINAL: "its terminal",
    Way.PIPE: "a pipe that nobody reads",
}


class RoutineEnd(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who was ended, by whom and when."""

    time: datetime.datetime  # UTC
    way: Way
    pid: int
    comm: str
    exe: str | None = None
    uid: int | None = None
    unit: str | None = None
    signal: int | None = None
    signal_name: str | None = None
    by_pid: int | None = None
    by_comm: str | None = None
    by_unit: str | None = None
    count: int = 1  # ends that it stands for; the first one is described


_DECODER = msgspec.json.Decoder(RoutineEnd)


class RoutineEnds:
    """Those of the store at `path`. For one writer, and any number of readers."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, end: RoutineEnd) -> None:
        """Keep one more; the oldest may go for it. OSError if it cannot be written."""
        short = {
            name: value[:_NAME]
            for name, value in msgspec.structs.asdict(end).items()
            if isinstance(value, str) and not isinstance(value, Way)
        }
        line = json_line(msgspec.structs.replace(end, **short)).encode()
        fd = os.open(self._path / NAME, _WRITE, FILE_MODE)
        try:
            size = os.fstat(fd).st_size
            os.write(fd, line)
        finally:
            os.close(fd)
        if size + len(line) >= MOST_BYTES:
            (self._path / NAME).rename(self._path / OLD)

    def each(self) -> Iterator[RoutineEnd]:
        """The newest first. StoreError if they cannot be read."""
        for name in (NAME, OLD):
            for line in reversed(self._contents(name).splitlines()):
                with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                    yield _DECODER.decode(line)  # the last one may have been cut

    def count(self) -> int:
        """How many ends the lines stand for."""
        return sum(end.count for end in self.each())

    def _contents(self, name: str) -> bytes:
        file = self._path / name
        try:
            fd = os.open(file, _READ)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise StoreError(f"{file}: cannot be read: {error.strerror}") from error
        with open(fd, "rb") as stream:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise StoreError(f"{file}: not a plain file; refused")
            return stream.read(2 * MOST_BYTES)


def remove(path: Path) -> None:
    """Remove those of a store that nobody has open."""
    for name in (NAME, OLD):
        (path / name).unlink(missing_ok=True)
