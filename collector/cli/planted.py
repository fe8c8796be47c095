"""Names that somebody else may have planted: in a folder that others write, such as /tmp.

A path is followed step by step, and each step is looked at through the descriptor that the next
one is taken from: what was looked at is what is used, however fast its owner swaps it. Links of
others are not followed. Knows nothing of cores.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from pathlib import Path

from collector.errors import UsageError

_MAX_LINKS = 40  # as the kernel's own, path_resolution(7)
_LOOK = os.O_PATH | os.O_CLOEXEC


def is_trusted(uid: int) -> bool:
    """Whether what belongs to `uid` cannot be a trap for us: it is root's, or our own."""
    return uid in (0, os.geteuid())


def open_path(path: Path, *, others: bool) -> int:
    """An O_PATH descriptor of what `path` leads to. others: also over links of other users.

    Raises UsageError for such a link, else OSError as open(2) does.
    """
    steps = deque(path.parts)
    here = os.open(".", _LOOK)
    links = 0
    try:
        while steps:
            found = _take(steps.popleft(), here, path, others)
            if isinstance(found, int):
                os.close(here)
                here = found
                continue
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            steps.extendleft(reversed(found))
    except BaseException:
        os.close(here)
        raise
    return here


def _take(step: str, here: int, path: Path, others: bool) -> int | tuple[str, ...]:
    """A descriptor of the next step; of a link, the steps that it stands for."""
    found = os.open(step, _LOOK | os.O_NOFOLLOW, dir_fd=here)
    is_link = False
    try:
        about = os.fstat(found)
        is_link = stat.S_ISLNK(about.st_mode)
        if not is_link:
            return found
        if not others and not is_trusted(about.st_uid):
            raise UsageError(f"{path}: leads over a link of uid {about.st_uid}; refused")
        if about.st_dev == _proc():  # one of the kernel's, perhaps to what has no name
            return os.open(step, _LOOK, dir_fd=here)
        return Path(os.readlink("", dir_fd=found)).parts
    finally:
        if is_link:
            os.close(found)


def _proc() -> int:
    """The device number of /proc; -1: there is none."""
    try:
        return os.stat("/proc/self/fd").st_dev  # noqa: PTH116
    except OSError:
        return -1


def was_given(found: int) -> bool:
    """Whether another of our descriptors is of the same: who started us has given it to us."""
    about = os.fstat(found)
    with os.scandir("/proc/self/fd") as entries:
        fds = {int(entry.name) for entry in entries} - {found}
    for fd in fds:
        try:
            if os.path.samestat(os.fstat(fd), about):
                return True
        except OSError:  # that of the listing itself, closed by now
            continue
    return False
