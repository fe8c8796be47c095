"""The folder `live`: cores of processes that go on, taken when they are opened.

PID.core             a link to PID.by-OPENER.core: each process that opens it has a snapshot of
                     its own, as long as it lives; for gdb closes a core and opens it again
PID.LABEL.core       a snapshot for as long as the name is open
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator

import msgspec

from collector.errors import CaptureError
from collector.linux import procfs
from collector.model import ProcessKey, SnapshotMode
from collector.mount.live_core import MAX_AGE, Holder, LiveCore, start_holder
from collector.mount.processes import key_of, may_see, space_of
from collector.mount.tree import About, OpenCore, Viewer
from collector.mount.wire import HoldJob, send_message
from collector.redact.types import Redact
from collector.snapshot import refusal

SNAPSHOTS = 8  # at a time, if nobody says
_NAME = re.compile(r"([1-9][0-9]{0,9})(?:\.([0-9A-Za-z_-]{1,64}))?\.core", re.ASCII)
_BY = "by-"  # a label of this and a pid is that of a process that followed a link
log = logging.getLogger(__name__)


class LiveRules(msgspec.Struct, frozen=True, kw_only=True):
    """How snapshots are taken, and how many there may be."""

    mode: SnapshotMode = SnapshotMode.AUTO
    share: bool = False  # whether all openers of PID.core have the same one
    most: int = SNAPSHOTS
    max_age: float = MAX_AGE  # seconds


class Live:
    """`PID.core` for each process. A `Folder`."""

    def __init__(self, rules: LiveRules, redaction_of: Callable[[int], Redact]) -> None:
        """redaction_of: what is redacted of the process with a pid."""
        self._rules, self._redaction_of = rules, redaction_of
        self._room = threading.BoundedSemaphore(rules.most)
        self._lock = threading.Lock()
        self._spare: Holder | None = None  # without a job yet

    def names(self, viewer: Viewer) -> Iterator[str]:
        for pid in procfs.process_ids():
            if space_of(pid) and may_see(pid, viewer):
                yield f"{pid}.core"

    def about(self, name: str, viewer: Viewer) -> About:
        pid, label = _parsed(name)
        size = space_of(pid)
        if not size or not may_see(pid, viewer):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        uid, now = viewer or 0, time.time_ns()
        if label is None and not self._rules.share:
            return About(0, uid=uid, time_ns=now, is_link=True)
        return About(size, uid=uid, time_ns=now)

    def link(self, name: str, viewer: Viewer, pid: int) -> str:
        """Each process has a snapshot of its own, however often it opens it: gdb does it twice."""
        target, _ = _parsed(name)
        opener = procfs.number(procfs.read(f"/proc/{pid}/status") or b"", b"Tgid")
        return f"{target}.{_BY}{opener or secrets.token_hex(8)}.core"

    def open(self, name: str, viewer: Viewer) -> OpenCore:
        pid, label = _parsed(name)
        key = key_of(pid)
        refusal.check(pid)
        if not self._room.acquire(blocking=False):
            log.warning("live/%s: there are %d snapshots already", name, self._rules.most)
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        try:
            holder = self._holder_with(self._job(key, viewer))
        except BaseException:
            self._room.release()
            raise
        core = LiveCore(f"live/{name}", holder, _opener(label), self._room.release)
        core.when_ready(self.prepare)
        return core

    def _job(self, key: ProcessKey, viewer: Viewer) -> HoldJob:
        return HoldJob(
            pid=key.pid,
            start_ns=key.start_ns,
            mode=self._rules.mode,
            max_age=self._rules.max_age,
            viewer=viewer,
            redact=self._redaction_of(key.pid),
        )

    def _holder_with(self, job: HoldJob) -> Holder:
        """A holder that has this job: one that is ready for it, or a new one."""
        with self._lock:
            spare, self._spare = self._spare, None
        if spare is not None:
            try:
                send_message(spare.end, job)
                return spare
            except OSError:  # it has ended
                spare.leave()
        holder = start_holder()
        send_message(holder.end, job)
        return holder

    def prepare(self) -> None:
        """Have one holder ready: to start one takes longer than a snapshot."""
        with self._lock:
            if self._spare is None:
                with contextlib.suppress(OSError, CaptureError):
                    self._spare = start_holder()


def _parsed(name: str) -> tuple[int, str | None]:
    """Pid and label of a name. FileNotFoundError if it is none of ours."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return int(found[1]), found[2]


def _opener(label: str | None) -> int | None:
    """A pidfd of the process that the label names, if it does and there is one."""
    word = (label or "").removeprefix(_BY)
    if label == _BY + word and re.fullmatch("[0-9]{1,10}", word):
        with contextlib.suppress(OSError, OverflowError):
            return os.pidfd_open(int(word))
    return None
