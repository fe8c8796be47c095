"""The machine's crash settings, borrowed by one test at a time and always given back.

    with kernel_settings(core_pattern="core.%p", core_pipe_limit="4") as settings:
        settings.write("suid_dumpable", "2")

Takes an exclusive lock that all tests on this machine share, so hold it for seconds only. The
originals are on disk while it is held: should this process be killed, the next one that takes the
lock puts them back first. It is not the product's own save and restore, which tests must be able
to break.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

LOCK = Path("/run/lock/coreward-settings.lock")
SAVED = Path("/run/lock/coreward-settings.saved")
PATHS = {
    "core_pattern": Path("/proc/sys/kernel/core_pattern"),
    "core_pipe_limit": Path("/proc/sys/kernel/core_pipe_limit"),
    "core_uses_pid": Path("/proc/sys/kernel/core_uses_pid"),
    "suid_dumpable": Path("/proc/sys/fs/suid_dumpable"),
    "pid_max": Path("/proc/sys/kernel/pid_max"),
}
_PID_MAX = "4194304"  # as many as there are on x86-64: no pid comes twice while a test looks


class KernelSettings:
    """Read and write the borrowed settings by their names in `PATHS`."""

    def read(self, name: str) -> str:
        return PATHS[name].read_text().rstrip("\n")

    def write(self, name: str, value: str) -> None:
        """Raises OSError where the kernel refuses the value."""
        PATHS[name].write_text(value + "\n")


def _restore() -> None:
    if SAVED.exists():
        for name, value in json.loads(SAVED.read_text()).items():
            if PATHS[name].read_text() != value:
                PATHS[name].write_text(value)
        SAVED.unlink()


@contextlib.contextmanager
def kernel_settings(**values: str) -> Iterator[KernelSettings]:
    """Lock the settings, set `values`, restore everything at the end. Not to be nested."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    owner = os.getpid()

    def restore_at_exit() -> None:
        if os.getpid() == owner:  # a forked child must not undo its parent's test
            _restore()

    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _restore()
        partial = SAVED.with_suffix(".new")
        partial.write_text(json.dumps({name: path.read_text() for name, path in PATHS.items()}))
        partial.rename(SAVED)
        atexit.register(restore_at_exit)
        try:
            settings = KernelSettings()
            settings.write("pid_max", _PID_MAX)
            for name, value in values.items():
                settings.write(name, value)
            yield settings
        finally:
            _restore()
            atexit.unregister(restore_at_exit)
    finally:
        os.close(lock)
