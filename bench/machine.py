"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from bench.packages import version_of


def facts() -> dict[str, str]:
    """Facts of this machine that bear on the figures; no names of it."""
    return {
        "processor": f"{_line('/proc/cpuinfo', 'model name')}, {os.cpu_count()} cores",
        "memory": f"{int(_line('/proc/meminfo', 'MemTotal').split()[0]) / (1 << 20):.1f} GiB",
        "kernel": platform.release().split("-")[0],
        "huge pages": _chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
        "python": platform.python_version(),
        "gdb": version_of("gdb"),
        "systemd-coredump": version_of("systemd-coredump"),
        "minicoredumper": version_of("minicoredumper"),
    }


def _line(path: str, key: str) -> str:
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return "unknown"


def _chosen(path: str) -> str:
    """The value in brackets of a sysfs choice."""
    try:
        return Path(path).read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return "unknown"
