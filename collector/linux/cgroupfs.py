"""Control groups by id: where a cgroup lies in the hierarchy, although its process is gone.

BPF names a cgroup by its 64-bit id, which is one of its hierarchy: of cgroup v2, or, with the bit
V1 (CW_CGROUP_V1 in bpf/coreward.h), of the v1 hierarchy of the memory controller. On cgroupfs that
id is a file handle (open_by_handle_at(2), FILEID_KERNFS in <linux/exportfs.h>).
"""

from __future__ import annotations

import ctypes
import os
import struct
from functools import cache
from pathlib import Path

V1 = 1 << 63
_FILEID_KERNFS = 0xFE
_libc = ctypes.CDLL(None, use_errno=True)


@cache
def has_v1(mounts: Path = Path("/proc/self/mounts")) -> bool:
    """Whether any cgroup v1 hierarchy is mounted."""
    return any(line.split()[2] == "cgroup" for line in mounts.read_text().splitlines())


@cache
def unified_mount(mounts: Path = Path("/proc/self/mounts")) -> str | None:
    """Where cgroup v2 is mounted; None if it is not."""
    for line in mounts.read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return where
    return None


@cache
def memory_mount(mounts: Path = Path("/proc/self/mounts")) -> str | None:
    """Where the memory controller of cgroup v1 is mounted; None if it is not."""
    for line in mounts.read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup" and "memory" in options.split(","):
            return where
    return None


def path_of(cgroup_id: int) -> str | None:
    """Path of a cgroup in its hierarchy, "/" for the root; None if it is gone or unknown.

    Where v1 hierarchies are mounted as well, services may be in those and in the root of v2: then
    the root says nothing and is None.
    """
    try:
        return _path_of(cgroup_id)
    except OSError:  # gone meanwhile, or no descriptor is left to look with
        return None


def _path_of(cgroup_id: int) -> str | None:
    mount = memory_mount() if cgroup_id & V1 else unified_mount()
    if mount is None or not cgroup_id:
        return None
    mount_fd = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
    try:
        handle = struct.pack("<IiQ", 8, _FILEID_KERNFS, cgroup_id & ~V1)
        fd = _libc.open_by_handle_at(mount_fd, handle, os.O_PATH)
        if fd < 0:
            return None
        try:
            path = os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
    finally:
        os.close(mount_fd)
    inside = path.removeprefix(mount)
    return inside or (None if has_v1() else "/")


def path_in(text: bytes) -> str | None:
    """The cgroup to show for the content of /proc/PID/cgroup (cgroups(7)).

    The v2 path where the process is below its root, else the systemd or memory hierarchy of v1.
    """
    found: dict[str, str] = {}
    # not splitlines(): a cgroup's name may hold any line separator but the newline
    for line in os.fsdecode(text).rstrip("\n").split("\n"):
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            found[name] = path
    order = ("", "name=systemd", "memory")
    paths = [found[name] for name in order if name in found]
    return next((path for path in paths if path != "/"), paths[0] if paths else None)


def of_exiting(now: bytes, before: bytes) -> bytes:
    """/proc/PID/cgroup of a process that is exiting: its v2 line as it is, those of v1 as before.

    The hierarchies of v1 name the root for whoever is exiting, wherever it was and its memory still
    is (proc_cgroup_show() in kernel/cgroup/cgroup.c). now: empty if it is gone.
    """
    if not now:
        return before
    unified = [line for line in now.split(b"\n") if line.startswith(b"0::")]
    return b"\n".join(
        [
            *(line for line in before.split(b"\n") if line and not line.startswith(b"0::")),
            *unified,
            b"",
        ]
    )
