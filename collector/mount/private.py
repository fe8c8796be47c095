"""One compressed core as a plain file, mounted for as long as somebody looks at it.

The file system is served by a fork of this process, which ends with it. Nobody else reaches the
file: it is in a folder of ours with mode 0700. (A process that gets a descriptor of it does, also
as another user: the one that explains cores is.)
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from collector.elfcore.frames import FrameCache
from collector.elfcore.stored import size_of
from collector.errors import CorewardError
from collector.linux import children, prctl
from collector.mount.crashes import CACHE, StoredCore
from collector.mount.tree import About, OpenCore, Tree, Viewer

_NAME = "core"
_FOLDER = "stored"
_START_S = 10.0  # seconds until the file is there
_END_S = 5.0  # seconds to unmount


class NotMounted(CorewardError):
    """No file system can be mounted here, by this user."""


class _One:
    """A folder with one stored core."""

    def __init__(self, path: Path) -> None:
        self._path, self._cache = path, FrameCache(CACHE, ahead=2)
        self._size = size_of(path)
        self._time_ns = path.stat().st_mtime_ns  # gdb warns of an executable that is newer

    def names(self, viewer: Viewer) -> Iterator[str]:
        yield _NAME

    def about(self, name: str, viewer: Viewer) -> About:
        if name != _NAME:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return About(self._size, time_ns=self._time_ns, uid=os.geteuid())

    def link(self, name: str, viewer: Viewer, pid: int) -> str:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def open(self, name: str, viewer: Viewer) -> OpenCore:
        return StoredCore(self._path, self._cache)


@contextlib.contextmanager
def mounted(core: Path) -> Iterator[Path]:
    """A path of the plain ELF file of a stored core, until the block ends.

    NotMounted where FUSE is not to be had; CoreFormatError if its seek table is damaged. Only from
    a process without other threads, for it forks.
    """
    folder = _One(core)
    with _place() as place:
        ready, said = os.pipe()
        with os.fdopen(ready, "rb", buffering=0) as ready_file:
            pid = os.fork()
            if not pid:
                _serve(place, folder, said)
            os.close(said)
            try:
                _wait(ready_file.fileno())
                yield place / _FOLDER / _NAME
            finally:
                _end(pid)


@contextlib.contextmanager
def _place() -> Iterator[Path]:
    try:
        name = tempfile.mkdtemp(prefix="coreward-")
    except OSError as error:
        raise NotMounted(f"no place for a mount: {error}") from error
    try:
        yield Path(name)
    finally:
        with contextlib.suppress(OSError):  # still mounted, by a process that does not end
            Path(name).rmdir()


def _wait(ready: int) -> None:
    if not select.select([ready], [], [], _START_S)[0] or not os.read(ready, 1):
        raise NotMounted("the core cannot be mounted")


def _serve(place: Path, folder: _One, said: int) -> NoReturn:
    """The fork's whole life. said: where it says that the file is there."""
    status = 1
    try:
        os.setsid()  # Ctrl-C is the debugger's
        prctl.die_with_parent()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)  # libfuse takes those that nobody has
        quiet = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(quiet, fd)
        from collector.mount.fuse import serve  # noqa: PLC0415 (libfuse may be missing)

        others = os.geteuid() == 0
        tree = Tree({_FOLDER: folder}, os.geteuid(), None)
        serve(place, tree, others=others, mounted=lambda: _say(said))
        status = 0
    finally:
        os._exit(status)


def _say(said: int) -> None:
    os.write(said, b".")


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    if not children.has_ended(pid, _END_S):
        os.kill(pid, signal.SIGKILL)  # fusermount3 unmounts it
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
