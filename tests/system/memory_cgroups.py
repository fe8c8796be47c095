"""A memory cgroup for a test, of whichever version of cgroups has the memory controller here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.system.scratch import NAME
from tests.system.victims import wait_until

ROOT = Path("/sys/fs/cgroup")


class MemoryCgroup(NamedTuple):
    """`version` is 1 or 2; `limits` are the files that bound memory, and swap where it is."""

    path: Path
    version: int
    limits: tuple[Path, ...]

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This process is in it for a moment, and all that it starts meanwhile stays there."""
        procs = self.path / "cgroup.procs"
        procs.write_text(str(os.getpid()))
        try:
            yield
        finally:
            (self.path.parent / "cgroup.procs").write_text(str(os.getpid()))

    def enter(self, pid: int) -> None:
        """Move a process into it."""
        (self.path / "cgroup.procs").write_text(str(pid))


@contextlib.contextmanager
def memory_cgroup(limit: int) -> Iterator[MemoryCgroup]:
    """A new one with this limit in bytes; its members must be ending when it is left.

    The test is skipped if no version of cgroups has the memory controller here.
    """
    group = _make(NAME)
    try:
        for file in group.limits:
            file.write_text("0" if "swap.max" in file.name else str(limit))
        yield group
    finally:
        wait_until(
            lambda: not (group.path / "cgroup.procs").read_text(), "members of a cgroup stay"
        )
        group.path.rmdir()


@contextlib.contextmanager
def unified_cgroup(group: MemoryCgroup) -> Iterator[MemoryCgroup]:
    """The cgroup of v2 for members of `group`: a new one, or that group itself; as above."""
    if group.version == 2:
        yield group
        return
    path = ROOT / "unified" / NAME
    path.mkdir()
    try:
        yield MemoryCgroup(path, 2, ())
    finally:
        wait_until(lambda: not (path / "cgroup.procs").read_text(), "members of a cgroup stay")
        path.rmdir()


def has_pressure() -> bool:
    """Whether cgroups of v2 tell their pressure (PSI) here."""
    roots = (ROOT, ROOT / "unified")
    return any((root / "memory.pressure").exists() for root in roots)


def has_memory_controller() -> bool:
    """Whether some version of cgroups has it here."""
    return (
        "memory" in _words(ROOT / "cgroup.controllers")
        or (ROOT / "memory" / "cgroup.procs").exists()
    )


def _make(name: str) -> MemoryCgroup:
    if "memory" in _words(ROOT / "cgroup.controllers"):
        if "memory" not in _words(ROOT / "cgroup.subtree_control"):
            (ROOT / "cgroup.subtree_control").write_text("+memory")
        path = ROOT / name
        path.mkdir()
        swap = path / "memory.swap.max"
        limits = (path / "memory.max", *([swap] if swap.exists() else []))
        return MemoryCgroup(path, 2, limits)
    if (ROOT / "memory" / "cgroup.procs").exists():
        path = ROOT / "memory" / name
        path.mkdir()
        return MemoryCgroup(path, 1, (path / "memory.limit_in_bytes",))
    pytest.skip("cgroups have no memory controller here")


def _words(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []
