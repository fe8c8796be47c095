"""owner: whose share of the store and of the limits a process takes, by a name that stays.

The native part says who it is (native/owner.c). A user is his uid, whatever ids his namespaces
give him. What root has made goes by its cgroup there, whose number is another one after each
restart of a service: here it is the unit, or the cgroup's path. A pod of Kubernetes goes by its
uid: each container that is started again in it has a unit, and a cgroup, of its own.
"""

from __future__ import annotations

import os

from collector.capture.process import OpenProcess
from collector.linux import procfs
from collector.linux.memory import LevelKey
from collector.policy.types import Facts

_IDS = 4  # real, effective, saved, and that of files
_CGROUP_SHIFT = 32  # of native/owner.c: a cgroup's id above the uid in it


def user_of(owner: LevelKey | None) -> int | None:
    """The user who owns it; None: root does, or it is not known."""
    if owner is None or owner.inode >> _CGROUP_SHIFT or not owner.inode:
        return None
    return owner.inode


def reader_of(dying: OpenProcess) -> int | None:
    """The user who may have what is kept of a process: who could have traced it (ptrace(2)).

    All of its user ids were his, and all of its groups one; and it was dumpable, for the kernel
    gives the files of /proc of any other to root (proc(5)).
    """
    uids = (procfs.field(dying.text.status, b"Uid") or b"").split()
    gids = (procfs.field(dying.text.status, b"Gid") or b"").split()
    if len(uids) < _IDS or len({*uids}) != 1 or len(gids) < _IDS or len({*gids}) != 1:
        return None
    uid = int(uids[0])
    if uid == 0 or dying.mem_fd is None:
        return None
    try:
        return uid if os.fstat(dying.mem_fd).st_uid == uid else None
    except OSError:
        return None


def name_of(owner: LevelKey | None, facts: Facts) -> str | None:
    """`uid 1000`, `db.service`, `pod 0b9a…`, or `/docker/0123…`; None: not known."""
    user = user_of(owner)
    if user is not None:
        return f"uid {user}"
    if owner is not None and facts.of_pod is not None:
        return f"pod {facts.of_pod.uid}"
    uid = None if facts.uid is None else f"uid {facts.uid}"
    return uid if owner is None else facts.unit or facts.cgroup or uid
