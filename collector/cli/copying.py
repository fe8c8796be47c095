"""Writing a core to a file or a pipe: sparse where that is possible, whole or not at all.

Does not know what a core is, except that a compressed one is decompressed by `elfcore`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from collector.cli.planted import is_trusted, open_path, was_given
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
def new_file(
    path: Path, *, replace: bool, others: bool = False, flush: bool = True
) -> Iterator[int]:
    """A descriptor whose contents appear at `path` when the block ends well, and not at all
    otherwise. An existing pipe or device is written straight through.

    replace: a file that is there already. others: also through a pipe, device or link that
    belongs neither to us nor to root; whoever has planted it there would read the core. flush: to
    the disk, so that it is whole even if the host fails; else no more than close(2) does.
    UsageError if one of them would have to be; StoreError if the file cannot be written.
    """
    try:
        folder = open_path(path.parent, others=others)
        try:
            with _opened(path, folder, replace, others, flush) as fd:
                yield fd
        finally:
            os.close(folder)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def _opened(path: Path, folder: int, replace: bool, others: bool, flush: bool) -> Iterator[int]:
    stream = _stream(path, others)
    if stream is None:
        with _file(path, folder, replace, flush) as fd:
            yield fd
        return
    try:
        refuse_terminal(stream)
        yield stream
    finally:
        os.close(stream)


def _stream(path: Path, others: bool) -> int | None:
    """A pipe or device at `path`, open for writing; None: there is none, a file goes there."""
    try:
        found = open_path(path, others=others)
    except FileNotFoundError:
        return None
    try:
        about = os.fstat(found)
        if stat.S_ISDIR(about.st_mode) or stat.S_ISBLK(about.st_mode):
            raise UsageError(f"{path}: is a folder or a disk; name a file")
        if not any(kind(about.st_mode) for kind in _STREAMS):
            return None
        if not (others or is_trusted(about.st_uid) or was_given(found)):
            raise UsageError(
                f"{path}: a pipe or device of uid {about.st_uid}, who would read the core; refused"
            )
        return os.open(Path(f"/proc/self/fd/{found}"), os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
    finally:
        os.close(found)


@contextlib.contextmanager
def _file(path: Path, folder: int, replace: bool, flush: bool) -> Iterator[int]:
    """A file of the folder with this descriptor, which is what `path` says it is in."""
    if not replace:
        _refuse_existing(path, folder)
    temporary = f".tmp-{path.name[:200]}-{os.urandom(4).hex()}"
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, _MODE, dir_fd=folder)
    try:
        yield fd
        if flush:
            os.fsync(fd)
        else:
            os.close(os.dup(fd))  # a file system of the network says now what did not come there
        if replace:
            os.rename(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        else:
            _appear(temporary, path, folder)
    finally:
        os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)


def _refuse_existing(path: Path, folder: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.stat(path.name, dir_fd=folder, follow_symlinks=False)
        raise UsageError(f"{path}: exists; --force replaces it")


def _appear(temporary: str, path: Path, folder: int) -> None:
    """Give the file its name, unless somebody else took the name meanwhile."""
    try:
        os.link(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        raise UsageError(f"{path}: exists; --force replaces it") from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        # a file system without hard links
        os.rename(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)


def can_be_read(fd: int) -> bool:
    """Whether this is an empty file that a core can be put together in."""
    mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    return mode == os.O_RDWR and takes_holes(fd)


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
