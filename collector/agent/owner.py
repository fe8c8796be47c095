"""owner: whose share of the store and of the limits a process takes, by a name that stays.

The native part says who it is (native/owner.c). A user is his uid, whatever ids his namespaces
give him. What root has made goes by its cgroup there, whose number is another one after each
restart of a service: here it is the unit, or the cgroup's path.
"""

from __future__ import annotations

from collector.linux.memory import LevelKey
from collector.policy.types import Facts

_CGROUP_SHIFT = 32  # of native/owner.c: a cgroup's id above the uid in it


def user_of(owner: LevelKey | None) -> int | None:
    """The user who owns it; None: root does, or it is not known."""
    if owner is None or owner.inode >> _CGROUP_SHIFT or not owner.inode:
        return None
    return owner.inode


def name_of(owner: LevelKey | None, facts: Facts) -> str | None:
    """`uid 1000`, `db.service`, or `/docker/0123…`; None: not known."""
    user = user_of(owner)
    if user is not None:
        return f"uid {user}"
    uid = None if facts.uid is None else f"uid {facts.uid}"
    return uid if owner is None else facts.unit or facts.cgroup or uid
