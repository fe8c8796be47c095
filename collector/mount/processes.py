"""Which process a pid is at the moment, and who may look into it. Nothing is opened for long."""

from __future__ import annotations

import contextlib
import errno
import os
import resource

from collector.linux import procfs
from collector.linux.procfs import parse_stat
from collector.model import ProcessKey

_PAGE = resource.getpagesize()


def may_see(pid: int, viewer: int | None) -> bool:
    """Whether this user may look into a process: it is his in all its ids, and dumpable.

    The kernel gives /proc/PID to root if it is not dumpable (proc(5)).
    """
    if viewer is None:
        return True
    text = procfs.read(f"/proc/{pid}/status") or b""
    ids = (procfs.field(text, b"Uid") or b"").split()
    with contextlib.suppress(OSError):
        return {*map(int, ids)} == {viewer} and os.stat(f"/proc/{pid}").st_uid == viewer  # noqa: PTH116
    return False


def key_of(pid: int) -> ProcessKey:
    """Which process this is. ProcessLookupError if there is none."""
    stat = procfs.read(f"/proc/{pid}/stat")
    if not stat:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    return ProcessKey(pid, parse_stat(stat).start_ns)


def space_of(pid: int) -> int:
    """Bytes of a process's address space; 0: there is none, or it is a thread of the kernel.

    /proc/PID/statm waits for nobody's locks, which whoever asks for a core's layout may have to.
    """
    words = (procfs.read(f"/proc/{pid}/statm") or b"0").split()
    return int(words[0]) * _PAGE


def waits(pid: int) -> bool:
    """Whether a process stands still in its death (CoreDumping, proc_pid_status(5))."""
    return procfs.number(procfs.read(f"/proc/{pid}/status") or b"", b"CoreDumping") == 1
