"""Processes that go on although their main thread has ended (pthread_exit(3) in main()).

Its task, which /proc/PID shows, has neither memory nor files any more; other threads' have.
"""

from __future__ import annotations

import os


def with_memory(pid: int) -> int:
    """The id of a thread that has the process's memory: `pid`, unless that thread has ended.

    /proc/ID and process_vm_readv(2) of this id tell of the memory, of the root and the namespaces.
    """
    if _has_memory(pid):
        return pid
    try:
        tids = map(int, os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208 (hot)
    except OSError:
        return pid  # it has ended, and whoever wants its memory is told so
    return next((tid for tid in tids if tid != pid and _has_memory(tid)), pid)


def _has_memory(tid: int) -> bool:
    """Whether its /proc/ID/exe leads somewhere: proc_pid_exe(5). Also if we may not ask."""
    try:
        os.readlink(f"/proc/{tid}/exe")
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        pass
    return True
