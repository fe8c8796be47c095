"""What a test borrows of the machine and names for itself, so that a killed run's can be found.

    NAME                      of pins, cgroups and mounts of this process
    with tmpfs(folder): ...   a small file system there

guardian.py removes those of a run that was killed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

PREFIX = "coreward-test-"
NAME = f"{PREFIX}{os.getpid()}"


@contextlib.contextmanager
def tmpfs(folder: Path, size: str = "50%") -> Iterator[Path]:
    """A file system in memory, mounted at `folder`; size as of tmpfs(5)."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", NAME, str(folder)]
    subprocess.run(command, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)  # a victim may still be in it
