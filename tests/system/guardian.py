"""Puts the machine in order after a test run that was killed: no crash may vanish because of it.

    start()     # once in a run; it watches this process, and works when that has ended

Kills what the run has left running, puts the kernel's settings back, unmounts, and removes pins and
cgroups. After a run that ended by itself there is nothing to do.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.system.scratch import PREFIX
from tests.system.settings import kernel_settings
from tests.system.victims import ROOT

MARK = "COREWARD_TEST_RUN"  # in the environment of all that a run starts
BPFFS = Path("/sys/fs/bpf")
CGROUPS = Path("/sys/fs/cgroup")
_OWNED = re.compile(rf"(?:{PREFIX}|coreward-doctor-)(\d+)(?:-.*)?")
_END_S = 10.0


def start() -> None:
    """Watch this process from now on."""
    os.environ[MARK] = f"{os.getpid()}-{secrets.token_hex(8)}"
    subprocess.Popen(
        [sys.executable, "-m", "tests.system.guardian", str(os.getpid()), os.environ[MARK]],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def watch(pid: int, mark: str) -> None:
    """Wait until `pid` has ended, and clean up behind it."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        select.select([pidfd], [], [])
    end = time.monotonic() + _END_S
    while (left := list(_marked(mark))) and time.monotonic() < end:
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)
    with kernel_settings():  # whoever takes them puts back what another has left
        pass
    for source, folder in _mounts():
        if _is_left(source):
            subprocess.run(["umount", "-l", folder], check=False)
    for pins in BPFFS.glob("coreward-*"):
        if _is_left(pins.name):
            shutil.rmtree(pins, ignore_errors=True)
    for group in (*CGROUPS.glob(f"{PREFIX}*"), *CGROUPS.glob(f"memory/{PREFIX}*")):
        if _is_left(group.name):
            with contextlib.suppress(OSError):
                group.rmdir()


def _marked(mark: str) -> Iterator[int]:
    """Processes that were started with this mark in their environment."""
    wanted = f"{MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (folder / "environ").read_bytes().split(b"\0")
            if wanted in environment and int(folder.name) != os.getpid():
                yield int(folder.name)


def _mounts() -> list[tuple[str, str]]:
    """What is mounted where, the last first."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [(line.split()[0], line.split()[1]) for line in reversed(lines)]


def _is_left(name: str) -> bool:
    """Whether this belongs to a process that has ended."""
    owned = _OWNED.fullmatch(name)
    return owned is not None and not Path("/proc", owned[1]).exists()


if __name__ == "__main__":
    watch(int(sys.argv[1]), sys.argv[2])
