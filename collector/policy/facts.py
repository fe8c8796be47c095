"""The facts that policy matches on, read from /proc, and what a cgroup path says.

Sources: proc(5) (`exe`, `status`, `cgroup`), cgroups(7), systemd.unit(5) for unit names and their
escapes. Nothing is followed or opened twice: this runs while the dying process waits. Whatever
cannot be had is None. Names are decoded with os.fsdecode.

Trust: a process can choose its exe and comm, and the cgroups below a delegated one. Therefore
`unit` is the unit that the host's systemd started, and units of a user's own manager carry the
manager's name before theirs.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from collector.linux import cgroupfs as cgroups
from collector.linux import procfs
from collector.linux.procfs import thread_with_memory
from collector.linux.statx import link_count
from collector.model import Cause
from collector.pods.cgroup import in_pod
from collector.policy.types import Facts

# systemd.unit(5): "Unit names"; the types that can hold processes
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,247}\.(?:service|scope|socket|mount|swap)")
_SLICE = re.compile(r"[A-Za-z0-9:_.\\@-]{1,249}\.slice")
_USER_MANAGER = re.compile(r"user@[0-9]{1,10}\.service")

_ESCAPED = re.compile(rb"\\[n\\]")

# How container managers name cgroups: <manager>-<64 hex digits>.scope below systemd, plain
# folders below their own parent without it. The monitors beside the containers (conmon,
# lxc.monitor) and virtual machines (machine-qemu) are processes of the host.
_CONTAINER = re.compile(
    r"""
    (?:^|/)(?:
        (?:docker|ecs|buildkit|garden|lxc)/[^/]
      | (?:docker|libpod|crio|cri-containerd|containerd|nerdctl)-[0-9a-f]{12,64}(?:\.scope|/|$)
      | libpod_parent/libpod-[0-9a-f]{12,64}
      | lxc\.payload[./]
      | kubepods(?:[.-][^/]*)?/
      | machine\.slice/(?:systemd-nspawn@|machine-(?!qemu))
    )
    | :(?:cri-containerd|crio|docker):
    """,
    re.VERBOSE,
)


def facts_of_living(pid: int, root: str = "/") -> Facts:
    """Those by which rules for processes that live match (`watch`, `arm`, `trace`).

    root: where the files of this node are, by which the pod is named that it is in.
    """
    facts = facts_of(pid, Cause.SNAPSHOT, None)
    one = None if facts.cgroup is None else in_pod(facts.cgroup)
    if one is None:
        return facts
    from collector.pods.files import PodFiles  # noqa: PLC0415 - most hosts have no pods

    return msgspec.structs.replace(facts, of_pod=PodFiles(Path(root)).read(one))


def facts_of(pid: int, cause: Cause, signal: int | None, proc_root: Path | str = "/proc") -> Facts:
    """The facts of a process that still exists (also while it dumps core); never raises OSError.

    `pid` is in the pid namespace of that /proc. A process which is gone has no facts but the
    given ones.
    """
    folder = f"{proc_root}/{pid}"
    exe = exe_of(f"{folder}/exe")
    # where the main thread has ended another one says it; v1 names the root for that one's cgroup
    other = folder if exe is not None else f"{proc_root}/{thread_with_memory(pid)}"
    return facts_from(
        cause,
        signal,
        status=procfs.read(f"{folder}/status"),
        groups=procfs.read(f"{other}/cgroup"),
        exe=exe or exe_of(f"{other}/exe"),
    )


def facts_from(
    cause: Cause, signal: int | None, *, status: bytes | None, groups: bytes | None, exe: str | None
) -> Facts:
    """The facts that /proc/PID/status, /proc/PID/cgroup and the path of the executable tell."""
    comm, uid, nested = _status(status)
    cgroup = cgroups.path_in(groups) if groups else None
    return Facts(
        cause=cause,
        signal=signal,
        exe=exe,
        comm=comm,
        uid=uid,
        cgroup=cgroup,
        unit=unit_of_cgroup(cgroup) if cgroup is not None else None,
        container=is_container(cgroup, nested),
    )


def unit_of_cgroup(path: str) -> str | None:
    """The systemd unit whose cgroup this is or is in: the first component that is not a slice.

    `/system.slice/db.service/worker` -> `db.service`. For a user's own manager also the unit
    below it: `.../user@1000.service/app.slice/editor.service` ->
    `user@1000.service/editor.service`. Names are as systemctl prints them (`\\x2d` stays).
    """
    parts = [part.removeprefix("_") for part in path.split("/") if part]
    unit, below = _first_unit(parts)
    if unit is None or not _USER_MANAGER.fullmatch(unit):
        return unit
    own, _ = _first_unit(below)
    return f"{unit}/{own}" if own else unit


def is_container(cgroup: str | None, nested: bool | None) -> bool | None:
    """Whether a process runs in a container: by its cgroup's name, or by its pid namespace.

    `nested`: its pid namespace is not that of the agent. None: not known.
    """
    if nested or (cgroup is not None and _CONTAINER.search(cgroup)):
        return True
    return None if nested is None or cgroup is None else False


def _first_unit(parts: list[str]) -> tuple[str | None, list[str]]:
    """The first component which is not a slice, if it is a unit; and what is below it."""
    for index, part in enumerate(parts):
        if not _SLICE.fullmatch(part):
            return (part if _UNIT.fullmatch(part) else None), parts[index + 1 :]
    return None, []


def _status(text: bytes | None) -> tuple[str | None, int | None, bool | None]:
    """comm, real uid, and whether the pid namespace is nested, of /proc/PID/status."""
    if not text:
        return None, None, None
    name, uids, pids = (procfs.field(text, field) for field in (b"Name", b"Uid", b"NSpid"))
    # the kernel escapes just these two in Name, so that a line stays a line
    comm = None if name is None else _ESCAPED.sub(_unescape, name.removeprefix(b"\t"))
    return (
        None if comm is None else os.fsdecode(comm),
        int(uids.split()[0]) if uids else None,
        len(pids.split()) > 1 if pids else None,
    )


def _unescape(found: re.Match[bytes]) -> bytes:
    return b"\n" if found[0] == b"\\n" else b"\\"


def exe_of(link: str) -> str | None:
    """Where a link `exe` of /proc points; None if that cannot be told."""
    try:
        target = os.readlink(os.fsencode(link))
        # " (deleted)" is the kernel's only if the file really has no name any more
        if target.endswith(b" (deleted)") and not link_count(link):
            target = target.removesuffix(b" (deleted)")
    except OSError:
        return None
    return os.fsdecode(target)
