"""Which processes are copies that a snapshot has made of its target: their end is no death.

A copy dies by SIGKILL like anybody else, and the kernel tells it like any other death. So whoever
makes one marks it, by pid and start, in a folder of this host that only root can write: nobody else
can hide a death there. A mark stays after its copy, for agents that read of its end later; several
may. Where it cannot be made (a snapshot without root) the copy's end is a record like any other.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from pathlib import Path

from collector.model import TICK_NS, ProcessKey

PLACE = Path("/run/coreward.copies")
_KEPT_S = 86400.0  # longer than any agent is down
_MOST = 4096  # marks; beyond it the oldest go


def mark(key: ProcessKey, place: Path = PLACE) -> None:
    """This process is a copy. Does nothing where only root could."""
    with contextlib.suppress(OSError):
        place.mkdir(mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(place / _name(key), flags, 0o600))
        _forget_old(place)


def is_copy(key: ProcessKey, place: Path = PLACE) -> bool:
    """Whether somebody who may has marked this process."""
    try:
        found = [path.lstat() for path in (place, place / _name(key))]
    except OSError:
        return False
    return all(
        about.st_uid == os.geteuid()
        and not stat.S_ISLNK(about.st_mode)
        and not about.st_mode & 0o022
        for about in found
    )


def _name(key: ProcessKey) -> str:
    return f"{key.pid}-{key.start_ns // TICK_NS}"


def _forget_old(place: Path) -> None:
    with os.scandir(place) as entries:
        marks = sorted(
            (entry.stat(follow_symlinks=False).st_mtime, entry.path) for entry in entries
        )
    oldest = time.time() - _KEPT_S
    for index, (made, path) in enumerate(marks):
        if made >= oldest and index >= len(marks) - _MOST:
            break
        Path(path).unlink(missing_ok=True)
