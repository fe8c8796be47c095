"""What a helper process of the agent does first: it dies with the agent and yields to services."""

from __future__ import annotations

import ctypes
import os
import resource

from collector.linux import oom_score, prctl

_NICE = 19
_IOPRIO_SET, _IOPRIO_IDLE = 251, 3 << 13  # ioprio_set(2), x86-64; class idle
_WHO_PROCESS = 1  # IOPRIO_WHO_PROCESS


def become_helper(*, urgent: bool) -> None:
    """Limit this process. urgent: a process is held until this one is done, so it is not slowed."""
    prctl.die_with_parent()
    prctl.set_dumpable(False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    oom_score.volunteer(oom_score.WORKER)
    if not urgent:
        yield_to_services()


def yield_to_services() -> None:
    """A low priority for this thread, and for those that it starts from now on (sched(7))."""
    os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    ctypes.CDLL(None).syscall(_IOPRIO_SET, _WHO_PROCESS, 0, _IOPRIO_IDLE)
