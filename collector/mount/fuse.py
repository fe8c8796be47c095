"""A `Tree` as a file system, by libfuse 3 through mfusepy; both are loaded here and nowhere else.

The kernel keeps pages of stored cores, which never change; those of live ones go straight through,
for each read is to fetch what it asks for and no more. Sizes are never kept: that of a live core is
known only when its snapshot is there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from collector.errors import CorewardError
from collector.mount.tree import Tree

_LIBRARIES = ("libfuse3.so.4", "libfuse3.so.3")  # of 3.17 and later; of those before


def _library() -> str:
    """The name of libfuse 3. Left to itself mfusepy prefers libfuse 2, and asks a C compiler."""
    for name in _LIBRARIES:
        with contextlib.suppress(OSError):
            ctypes.CDLL(name)
            return name
    raise CorewardError(
        "no file system can be mounted without libfuse 3: it is in the package `fuse3` (apt-get "
        "install fuse3, dnf install fuse3)"
    )


os.environ["FUSE_LIBRARY_PATH"] = _library()
import mfusepy  # noqa: E402

_AUTO_INVAL_DATA = 1 << 12  # FUSE_CAP_AUTO_INVAL_DATA, <fuse_common.h>: ask for the size at reads
_POLLIN = 0x1 | 0x40  # POLLIN, POLLRDNORM
_READ_AHEAD = 512 << 10  # bytes
_THREADS = 64  # readers that may wait for a snapshot at a time
_IDLE = 4  # of these, that stay when there is nothing to do
_HAS_THREADS = (3, 12)  # of libfuse: option max_threads


class Operations(mfusepy.Operations):  # type: ignore[misc]
    """What the kernel asks. OSError becomes the number that the reader gets."""

    use_ns = True

    def __init__(self, tree: Tree, mounted: Callable[[], None]) -> None:
        self._tree, self._mounted = tree, mounted

    def init_with_config(self, conn: Any, config: Any) -> None:
        conn.want &= ~_AUTO_INVAL_DATA
        config.attr_timeout = config.entry_timeout = config.negative_timeout = 0.0
        threading.Thread(target=self._mounted, daemon=True).start()  # it may use what is mounted

    def getattr(self, path: str, fi: Any = None) -> dict[str, int]:
        found = self._tree.attributes(path, _uid())
        return {
            "st_mode": found.mode,
            "st_nlink": 2 if stat.S_ISDIR(found.mode) else 1,
            "st_size": found.size,
            "st_blocks": found.disk // 512,
            "st_uid": found.uid,
            "st_mtime": found.time_ns,
            "st_ctime": found.time_ns,
        }

    def readdir(self, path: str, fh: int) -> Iterator[str]:
        yield from (".", "..", *self._tree.list(path, _uid()))

    def readlink(self, path: str) -> str:
        uid, _, pid = mfusepy.fuse_get_context()
        return self._tree.link(path, int(uid), int(pid))

    def open(self, path: str, fi: Any) -> int:
        if fi.flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        fi.fh, core = self._tree.open(path, _uid())
        fi.keep_cache, fi.direct_io = core.lasting, not core.lasting
        return 0

    def read(self, path: str, size: int, offset: int, fi: Any) -> bytes:
        if fi.flags & os.O_NONBLOCK and not self._tree.core(fi.fh).is_ready():
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return self._tree.read(fi.fh, offset, size)

    def poll(self, path: str, fi: Any, handle: int | None, events: Any) -> int:
        core = self._tree.core(fi.fh)
        ready = core.is_ready()
        events[0] = _POLLIN if ready else 0
        if handle and ready:
            mfusepy._libfuse.fuse_pollhandle_destroy(ctypes.c_void_p(handle))
        elif handle:
            core.when_ready(lambda: _notify(handle))
        return 0

    def lseek(self, path: str, offset: int, whence: int, fi: Any) -> int:
        """SEEK_DATA and SEEK_HOLE; the others are the kernel's."""
        return self._tree.seek(fi.fh, offset, data=whence == os.SEEK_DATA)

    def release(self, path: str, fi: Any) -> int:
        self._tree.close(fi.fh)
        return 0


class _Fuse(mfusepy.FUSE):  # type: ignore[misc]
    """With lseek (libfuse 3.8), which mfusepy knows in the structure, and calls nobody for."""

    def lseek(self, path: bytes | None, offset: int, whence: int, fi: Any) -> int:
        name = "" if path is None else os.fsdecode(path)
        return int(self.operations.lseek(name, offset, whence, fi.contents))


def _notify(handle: int) -> None:
    mfusepy._libfuse.fuse_notify_poll(ctypes.c_void_p(handle))
    mfusepy._libfuse.fuse_pollhandle_destroy(ctypes.c_void_p(handle))


def _read_ahead(folder: Path) -> None:
    """Have the kernel ask for more at a time of who reads in order: each request has its price."""
    device = folder.stat().st_dev
    name = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
    Path(name).write_text(str(_READ_AHEAD >> 10))


def _uid() -> int:
    return int(mfusepy.fuse_get_context()[0])


def serve(folder: Path, tree: Tree, *, others: bool, mounted: Callable[[], None]) -> None:
    """Mount `tree` on a folder until it is unmounted, or SIGINT, SIGTERM or SIGHUP comes.

    others: other users get through to the tree, which decides what they see. mounted: called once
    it is there, in a thread. If we are killed, fusermount3 unmounts it. Only from a main thread,
    and once. CorewardError if it cannot be mounted; libfuse has said why on standard error.
    """

    def begin() -> None:
        with contextlib.suppress(OSError):  # only root may
            _read_ahead(folder)
        mounted()

    options: dict[str, object] = {"fsname": "coreward", "subtype": "coreward", "ro": True}
    if (mfusepy.fuse_version_major, mfusepy.fuse_version_minor) >= _HAS_THREADS:
        options |= {"max_threads": _THREADS, "max_idle_threads": _IDLE}
    try:
        _Fuse(
            Operations(tree, begin),
            os.fspath(folder),
            raw_fi=True,
            foreground=True,
            auto_unmount=True,
            allow_other=others,
            **options,
        )
    except RuntimeError as error:
        raise CorewardError(f"{folder}: cannot be mounted (status {error})") from error
    finally:
        tree.close_all()
