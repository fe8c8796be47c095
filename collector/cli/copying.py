"""Writing a core to a file or a pipe: sparse where that is possible, whole or not at all.

Does not know what a core is, except that a compressed one is decompressed by `elfcore`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from collector.elfcore.sink import takes_holes
from collector.elfcore.zeros import data_runs
from collector.errors import StoreError, UsageError

COMPRESSED = ".zst"
_MODE = 0o600
_BLOCK = 1 << 20
_ZEROS = bytes(_BLOCK)
_STREAMS = (stat.S_ISFIFO, stat.S_ISCHR, stat.S_ISSOCK)
# what copy_file_range(2) says where two files cannot share a copy in the kernel
_NO_KERNEL_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)


def copy_core(core: Path, out: int) -> None:
    """Write the plain ELF of `core` to an open descriptor, from its position on.

    A regular file that is empty gets the holes of the core; anything else gets zeros.
    Raises OSError, and CoreFormatError if a compressed core is damaged.
    """
    if core.suffix == COMPRESSED:
        from collector.elfcore.reader import CoreFile  # noqa: PLC0415 (loads zstandard)

        with CoreFile(core) as source:
            source.decompress_to(out)
        return
    fd = os.open(core, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if takes_holes(out):
            _copy_sparse(fd, out)
        else:
            _copy_stream(fd, out)
    finally:
        os.close(fd)


@contextlib.contextmanager
def new_file(path: Path, *, force: bool) -> Iterator[int]:
    """A descriptor whose contents appear at `path` when the block ends well, and not at all
    otherwise. An existing pipe or device is written straight through.

    UsageError if the file exists and not `force`, or cannot be replaced; StoreError if it
    cannot be written.
    """
    try:
        with _stream(path) if _is_stream(path, force) else _file(path, force) as fd:
            yield fd
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror}") from error


def _is_stream(path: Path, force: bool) -> bool:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode) or stat.S_ISBLK(mode):
        raise UsageError(f"{path}: is a folder or a disk; name a file")
    if any(kind(mode) for kind in _STREAMS):
        return True
    if not force:
        raise UsageError(f"{path}: exists; --force replaces it")
    return False


@contextlib.contextmanager
def _stream(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        refuse_terminal(fd)
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _file(path: Path, force: bool) -> Iterator[int]:
    temporary = path.with_name(f".tmp-{path.name[:200]}-{os.urandom(4).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, _MODE)
    try:
        yield fd
        os.fsync(fd)
        if force:
            temporary.replace(path)
        else:
            _appear(temporary, path)
    finally:
        os.close(fd)
        temporary.unlink(missing_ok=True)


def _appear(temporary: Path, path: Path) -> None:
    """Give the file its name, unless somebody else took the name meanwhile."""
    try:
        os.link(temporary, path, follow_symlinks=False)
    except FileExistsError:
        raise UsageError(f"{path}: exists; --force replaces it") from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        temporary.replace(path)  # a file system without hard links


def refuse_terminal(fd: int) -> None:
    """UsageError if this is a terminal: a core would only disturb it."""
    if os.isatty(fd):
        raise UsageError("a core is not for a terminal: name a file with -o FILE, or use a pipe")


def _copy_sparse(fd: int, out: int) -> None:
    size = os.fstat(fd).st_size
    os.ftruncate(out, size)
    for start, end in data_runs(fd, size):
        _copy_extent(fd, out, start, end)
    os.lseek(out, size, os.SEEK_SET)


def _copy_extent(fd: int, out: int, start: int, end: int) -> None:
    in_kernel = True
    while start < end:
        count = 0
        if in_kernel:
            try:
                count = os.copy_file_range(fd, out, end - start, start, start)
            except OSError as error:
                if error.errno not in _NO_KERNEL_COPY:
                    raise
            in_kernel = count > 0
        if not in_kernel:
            data = os.pread(fd, min(_BLOCK, end - start), start)
            if not data:
                raise OSError(errno.EIO, "the core became shorter while it was copied")
            count = os.pwrite(out, data, start)
        start += count


def _copy_stream(fd: int, out: int) -> None:
    size = os.fstat(fd).st_size
    position = 0
    for start, end in data_runs(fd, size):
        _write_zeros(out, start - position)
        position = start
        while position < end:
            data = os.pread(fd, min(_BLOCK, end - position), position)
            if not data:
                raise OSError(errno.EIO, "the core became shorter while it was copied")
            position += len(data)
            _write_all(out, data)
    _write_zeros(out, size - position)


def _write_zeros(out: int, count: int) -> None:
    while count > 0:
        _write_all(out, _ZEROS[:count])
        count -= min(count, _BLOCK)


def _write_all(out: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(out, view) :]
