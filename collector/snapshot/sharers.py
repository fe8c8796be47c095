"""Who else has the memory of a process, and writes to it although the process stands.

The parent of a child of vfork(2) has it, as long as it waits for that child; a child of clone(2)
with CLONE_VM has it for good. Only next of kin are looked at: for all others every process of the
host would have to be compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from collector.linux import procfs
from collector.linux.kcmp import has_same_memory


def sharers(pid: int, parent: int) -> list[int]:
    """Of its parent and its children those that have its memory (ids of this pid namespace)."""
    return [one for one in (parent, *_children(pid)) if one > 0 and has_same_memory(pid, one)]


def _children(pid: int) -> Iterator[int]:
    for tid in procfs.thread_ids(pid):
        with contextlib.suppress(OSError):  # it has ended, or the kernel does not list children
            yield from map(int, Path(f"/proc/{pid}/task/{tid}/children").read_text().split())
