"""Files that appear whole or never, also when the machine stops (rename(2), fsync(2))."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_file(path: Path | str) -> Iterator[int]:
    """Give a descriptor, open for reading and writing, of a file that appears whole or never.

    The file is made with mode 0600 beside `path`, under a name that begins with `.tmp-`. When
    the block ends it is synced, renamed to `path` (replacing what was there) and the folder is
    synced; when the block raises, it is removed. OSError as the calls give it.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{os.urandom(8).hex()}")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(temporary, flags, 0o600)
    try:
        try:
            yield fd
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.rename(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
