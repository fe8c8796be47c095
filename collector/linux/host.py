"""The machine as it names itself: uname(2), /proc/cpuinfo, /proc/sys/kernel/random/boot_id."""

from __future__ import annotations

import contextlib
import datetime
import os
from pathlib import Path

from collector.circumstances import HostFacts
from collector.linux.clock import boot_to_utc

NAME = "COREWARD_HOST"  # a variable for where uname(2) has the name of a container
_ENOUGH = 4096  # bytes of /proc/cpuinfo that have the first CPU's model
_MODEL = "model name"


def read_host() -> HostFacts:
    """What does not change until the next boot; but for the name, which hardly does."""
    names = os.uname()
    name = os.environ.get(NAME) or names.nodename
    boot_id = None
    with contextlib.suppress(OSError):
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return HostFacts(name=name, kernel=names.release, boot_id=boot_id, cpu=_cpu())


def _cpu() -> str | None:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file.read(_ENOUGH).splitlines():
            name, _, value = line.partition(":")
            if name.strip() == _MODEL:
                return value.strip() or None
    return None


def age_s(time: datetime.datetime, start_ns: int) -> float | None:
    """Seconds from the start of a process (CLOCK_BOOTTIME) to a time; None: no start is known."""
    if start_ns <= 0:
        return None
    return max(round((time - boot_to_utc(start_ns)).total_seconds(), 3), 0.0)
