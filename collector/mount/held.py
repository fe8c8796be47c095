"""The folder `held`: cores of processes that wait in their death for the dumper that has them.

Nothing is taken of such a process: it stands still, and is read as it is asked for, through the
descriptors that its dumper was given as well (collector.dumpers.look). When it is released, reads
fail. Each open core has a holder, as a live one has: a read may not return.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from collector.dumpers.look import held_now
from collector.model import SnapshotMode
from collector.mount.live_core import LiveCore, start_holder
from collector.mount.processes import key_of, may_see, space_of, waits
from collector.mount.tree import About, OpenCore, Viewer
from collector.mount.wire import HoldJob, send_message
from collector.redact.types import Redact

MOST = 8  # cores that are open at a time
_NAME = re.compile(r"([1-9][0-9]{0,9})\.core", re.ASCII)
log = logging.getLogger(__name__)


class Held:
    """`PID.core` for each process that a dumper has. A `Folder`."""

    def __init__(self, door: Path, max_age: float, redaction_of: Callable[[int], Redact]) -> None:
        """door: the socket of the agent's dumpers. max_age: seconds that a core may be open.
        redaction_of: what is redacted of the process with a pid; if anything is, it has no core."""
        self._door, self._max_age = door, max_age
        self._redaction_of = redaction_of
        self._room = threading.BoundedSemaphore(MOST)

    def names(self, viewer: Viewer) -> Iterator[str]:
        try:
            pids = held_now(self._door)
        except (FileNotFoundError, ConnectionRefusedError):  # there is no agent
            return
        for pid in pids:
            if may_see(pid, viewer):
                yield f"{pid}.core"

    def about(self, name: str, viewer: Viewer) -> About:
        pid = _parsed(name)
        if not waits(pid) or not may_see(pid, viewer):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return About(space_of(pid), uid=viewer or 0, time_ns=time.time_ns())

    def link(self, name: str, viewer: Viewer, pid: int) -> str:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def open(self, name: str, viewer: Viewer) -> OpenCore:
        key = key_of(_parsed(name))
        job = HoldJob(
            pid=key.pid,
            start_ns=key.start_ns,
            mode=SnapshotMode.THREADS,  # nobody is stopped
            max_age=self._max_age,
            viewer=viewer,
            door=str(self._door),
            redact=self._redaction_of(key.pid),
        )
        if not self._room.acquire(blocking=False):
            log.warning("held/%s: %d cores are open already", name, MOST)
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        with contextlib.ExitStack() as until:
            until.callback(self._room.release)
            holder = start_holder()
            until.callback(holder.leave)
            send_message(holder.end, job)
            until.pop_all()
        return LiveCore(f"held/{name}", holder, None, self._room.release)


def _parsed(name: str) -> int:
    found = _NAME.fullmatch(name)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return int(found[1])
