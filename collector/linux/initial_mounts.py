"""A write as from the initial mount namespace, from a service that has one of its own.

The kernel takes a core_pattern with a coredump socket (`@...`) from the initial mount namespace
alone, and says EINVAL to all others, since it looks for the socket there (check_coredump_socket()
of fs/coredump.c, 6.16). A service has its own as soon as its unit says ProtectSystem= or the like.
What this is not: a way out of a container, whose process 1 is in the same namespace.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

_INITIAL = "/proc/1/ns/mnt"  # of process 1; a container that shares the host's processes sees it
_LIMIT_S = 10.0
_WRITE = 'printf "%s\\n" "$1" >"$2"'


def are_ours() -> bool:
    """Whether we are in the mount namespace of process 1; True if nobody knows."""
    try:
        return Path("/proc/self/ns/mnt").samefile(_INITIAL)
    except OSError:
        return True


def write(path: Path, line: str) -> None:
    """Write a line to a file there, by nsenter(1). OSError, also if that is missing."""
    import subprocess  # noqa: PLC0415 - at a start alone

    command = ["nsenter", f"--mount={_INITIAL}", "sh", "-c", _WRITE, "sh", line, str(path)]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=_LIMIT_S
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[:200] or f"status {done.returncode}"
        raise OSError(errno.EINVAL, f"nsenter: {said}")
