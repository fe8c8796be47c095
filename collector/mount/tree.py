"""The names of a mount, and what is behind them: folders of cores that are read when asked.

    /                 a directory for each folder
    /FOLDER/NAME      a core; or a link to one, which depends on who follows it

A name that is open has one core, whoever opens it: the kernel keeps the pages of a file (mmap(2),
readahead) by its name, so two contents under one name would be mixed. When the last one closes it,
the core is given up, unless it wants to stay for somebody who may come back. Raises OSError with
the number that the reader gets. FUSE is not known here.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import stat
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple, Protocol, TypeVar

from collector.errors import CorewardError
from collector.ranges import Range

T = TypeVar("T")
# A user who sees only what is his own; None: one who sees everything.
Viewer = int | None
log = logging.getLogger(__name__)


class About(NamedTuple):
    """What `stat` says of a core that is not open, or of a link."""

    size: int  # bytes; for a core that does not exist yet, an estimate
    disk: int = 0  # bytes that it takes
    time_ns: int = 0  # of its last change, since the epoch
    uid: int = 0
    is_link: bool = False  # to another name of the folder


class OpenCore(Protocol):
    """A core that somebody has open. Several threads may read it."""

    lasting: bool  # its bytes are the same for ever: the kernel may keep them

    def size(self) -> int:
        """Of the whole, in bytes; waits until it is known."""

    def is_ready(self) -> bool:
        """Whether `size` and `read` answer without waiting for the core to be there."""

    def when_ready(self, call: Callable[[], None]) -> None:
        """Call this once, in any thread, when `is_ready` has become true."""

    def read(self, offset: int, length: int) -> bytes:
        """These bytes, fewer at the end. OSError (EIO) rather than wrong ones."""

    def data_at(self, offset: int) -> Range | None:
        """The next bytes from `offset` on that are not known to be zero; None: there are none."""

    def idle(self, give_up: Callable[[], None]) -> bool:
        """Nobody has it open now. Whether it stays; then it calls `give_up`, in another thread,
        when nobody will open it again."""

    def close(self) -> None:
        """Give it up; nobody reads it any more."""


class Folder(Protocol):
    """Cores of one kind. FileNotFoundError for what a viewer does not see."""

    def names(self, viewer: Viewer) -> Iterable[str]:
        """The names to list; there may be others."""

    def about(self, name: str, viewer: Viewer) -> About:
        """What is known of it without opening it."""

    def link(self, name: str, viewer: Viewer, pid: int) -> str:
        """The name that a link leads this process (or one of its threads) to; 0: an unknown one."""

    def open(self, name: str, viewer: Viewer) -> OpenCore:
        """Open it; quick: what takes time is waited for by the first read."""


class Attributes(NamedTuple):
    """What stat(2) says."""

    mode: int
    size: int = 0
    disk: int = 0
    time_ns: int = 0
    uid: int = 0


class _Opened:
    def __init__(self, core: OpenCore, viewer: Viewer) -> None:
        self.core, self.viewer = core, viewer
        self.users = 0


class Tree:
    """The folders, for `owner` (a uid) and root, who see all, and `allowed` uids, who see what is
    theirs; None: whoever comes so far sees all."""

    def __init__(
        self, folders: Mapping[str, Folder], owner: int, allowed: Collection[int] | None
    ) -> None:
        self._folders, self._owner, self._allowed = folders, owner, allowed
        self._lock = threading.Lock()
        self._opened: dict[str, _Opened] = {}  # by path
        self._handles: dict[int, str] = {}  # path by handle
        self._numbers = itertools.count(1)

    def attributes(self, path: str, uid: int) -> Attributes:
        """Of a directory, a link or a core; waits for the size of one that is open."""
        viewer, folder, name = self._find(path, uid)
        if folder is None or not name:
            return Attributes(mode=stat.S_IFDIR | 0o555, uid=self._owner)
        about = _answer(path, lambda: folder.about(name, viewer))
        if about.is_link:
            return Attributes(mode=stat.S_IFLNK | 0o777, time_ns=about.time_ns, uid=about.uid)
        with self._lock:
            opened = self._opened.get(path)
            core = opened.core if opened else None
        size = about.size if core is None else _answer(path, core.size)
        return Attributes(
            mode=stat.S_IFREG | 0o400,
            size=size,
            disk=about.disk,
            time_ns=about.time_ns,
            uid=about.uid,
        )

    def list(self, path: str, uid: int) -> list[str]:
        """The names in a directory."""
        viewer, folder, name = self._find(path, uid)
        if name:
            raise _error(errno.ENOTDIR, path)
        if folder is None:
            return [*self._folders]
        return [*_answer(path, lambda: folder.names(viewer))]

    def link(self, path: str, uid: int, pid: int) -> str:
        """Where a link leads a process to."""
        viewer, folder, name = self._find(path, uid)
        if folder is None or not name or not folder.about(name, viewer).is_link:
            raise _error(errno.EINVAL, path)
        return folder.link(name, viewer, pid)

    def open(self, path: str, uid: int) -> tuple[int, OpenCore]:
        """A handle of a core, for `close`; and the core."""
        viewer, folder, name = self._find(path, uid)
        if folder is None or not name:
            raise _error(errno.EISDIR, path)
        _answer(path, lambda: folder.about(name, viewer))  # may he, also if others have it open?
        with self._lock:
            opened = self._opened.get(path)
            if opened is None:
                core = _answer(path, lambda: folder.open(name, viewer))
                opened = self._opened[path] = _Opened(core, viewer)
            elif opened.viewer != viewer and not opened.core.lasting:
                # of a moment when the process may have had rights that it has not any more
                raise _error(errno.EBUSY, path)
            opened.users += 1
            handle = next(self._numbers)
            self._handles[handle] = path
            return handle, opened.core

    def core(self, handle: int) -> OpenCore:
        """The core of an open handle."""
        with self._lock:
            return self._opened[self._handles[handle]].core

    def read(self, handle: int, offset: int, length: int) -> bytes:
        """Bytes of a core, fewer at its end."""
        with self._lock:
            path = self._handles[handle]
            core = self._opened[path].core
        return _answer(path, lambda: core.read(offset, length))

    def seek(self, handle: int, offset: int, *, data: bool) -> int:
        """The next data, or hole, from `offset` on, as lseek(2) has it (SEEK_DATA, SEEK_HOLE)."""
        with self._lock:
            path = self._handles[handle]
            core = self._opened[path].core
        size = _answer(path, core.size)
        found = _answer(path, lambda: core.data_at(offset)) if 0 <= offset < size else None
        if not 0 <= offset < size or (data and found is None):
            raise _error(errno.ENXIO, path)
        if found is None or (found[0] > offset and not data):
            return offset
        return found[0] if data else found[1]

    def close(self, handle: int) -> None:
        """Give up a handle."""
        with self._lock:
            path = self._handles.pop(handle)
            opened = self._opened[path]
            opened.users -= 1
            if opened.users or opened.core.idle(lambda: self._give_up(path, opened)):
                return
            del self._opened[path]
        opened.core.close()

    def _give_up(self, path: str, opened: _Opened) -> None:
        with self._lock:
            if opened.users or self._opened.get(path) is not opened:
                return
            del self._opened[path]
        opened.core.close()

    def close_all(self) -> None:
        """Give up all that is open: nobody can reach it any more."""
        with self._lock:
            left = [opened.core for opened in self._opened.values()]
            self._opened.clear()
            self._handles.clear()
        for core in left:
            core.close()

    def _find(self, path: str, uid: int) -> tuple[Viewer, Folder | None, str]:
        viewer = None if self._allowed is None or uid in (0, self._owner) else uid
        if viewer is not None and viewer not in (self._allowed or ()):
            raise _error(errno.EACCES, path)
        first, _, name = path.strip("/").partition("/")
        if not first:
            return viewer, None, ""
        folder = self._folders.get(first)
        if folder is None or "/" in name:
            raise _error(errno.ENOENT, path)
        return viewer, folder, name


def _answer(path: str, work: Callable[[], T]) -> T:
    """What it returns. What the project itself refuses is EIO for the reader, and a log line."""
    try:
        return work()
    except OSError as error:
        if error.errno is None:
            log.warning("%s: %s", path, error)
            raise _error(errno.EIO, path) from error
        raise
    except CorewardError as error:
        log.warning("%s: %s", path, error)
        raise _error(errno.EIO, path) from error


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)
