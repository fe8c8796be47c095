"""What can be told of the service of a process that may be gone: by its cgroup, which BPF names."""

from __future__ import annotations

from collector.linux import cgroupfs, procfs
from collector.model import Cause, Identity, ProcessKey
from collector.policy.facts import is_container, unit_of_cgroup
from collector.policy.types import Facts


def facts_of(who: Identity, cause: Cause, signo: int | None) -> Facts:
    """What policy may look at of a process that nobody held."""
    group = _live_cgroup(who)
    if group in (None, "/"):  # the hierarchies of v1 say so of whoever has exited
        group = cgroupfs.path_of(who.cgroup_id) or group
    return Facts(
        cause=cause,
        exe=who.exe,
        comm=who.comm,
        cgroup=group,
        unit=unit_of_cgroup(group) if group else None,
        uid=who.uid,
        signal=signo,
        container=is_container(group, who.ns_pid != who.key.pid),
    )


def _live_cgroup(who: Identity) -> str | None:
    """The cgroup of a process that died but may not be reaped yet; None if it is gone."""
    pid = who.key.pid
    stat, groups = procfs.read(f"/proc/{pid}/stat"), procfs.read(f"/proc/{pid}/cgroup")
    if not stat or not groups:
        return None
    same = who.key.is_same(ProcessKey(pid, procfs.parse_stat(stat).start_ns))
    return cgroupfs.path_in(groups) if same else None
