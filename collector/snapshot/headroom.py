"""Is there room for a copy of a process beside it? And: is there still, while the copy lives?

A forked copy costs page tables at once, and a page for each page that the process writes to until
the copy is gone. The kernel charges both to the process's own memory cgroup. No copy may call the
OOM killer: room is checked before, at each level of the cgroup tree and on the host, and watched
while the copy lives. The facts come from linux.memory; the caller decides what a refusal means.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from collector.errors import CaptureError
from collector.linux.memory import MemoryFacts, read_facts
from collector.linux.procfs import thread_with_memory

RESERVE = 16 << 20  # bytes that must be left for the process itself at each level
_PAGE_TABLES = 512 - 1  # a page of entries, 8 bytes each, maps 512 pages; and those above it
_WATCH_EVERY = 0.01  # seconds; a process fills some 10 MiB meanwhile
_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


class NoRoom(CaptureError):
    """A copy of the process does not fit beside it; nothing was done."""


def price_of(facts: MemoryFacts) -> int | None:
    """What a copy costs at most, in bytes: page tables at once, and a page for each page written.

    All private memory may be written while the copy lives. None: the process's size is not known.
    """
    if facts.private is None:
        return None
    return facts.private // _PAGE_TABLES + facts.private


def shortage(facts: MemoryFacts, need: int, reserve: int = RESERVE) -> str | None:
    """Why `need` bytes more do not fit, in words; None: they do."""
    if facts.levels is None:
        return "the memory cgroup of the process is unknown"
    if facts.host_available is None:
        return "the memory of the host is unknown"
    for level in facts.levels:
        if need + reserve > level.headroom:
            return (
                f"a copy may need {_mib(need)}; memory cgroup {level.path} has "
                f"{_mib(level.headroom)} left of {_mib(level.limit)}"
            )
    if need + reserve > facts.host_available:
        return f"a copy may need {_mib(need)}; the host has {_mib(facts.host_available)}"
    return None


def check_room(pid: int, *, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> None:
    """Raise NoRoom if a copy of process `pid` does not fit beside it."""
    facts = read_facts(thread_with_memory(pid), proc, cgroups)
    price = price_of(facts)
    if price is None:
        raise NoRoom(f"no copy of process {pid}: its size is unknown")
    lack = shortage(facts, price)
    if lack is not None:
        raise NoRoom(f"no copy of process {pid}: {lack}")


class RoomWatch:
    """Calls `give_up` with the reason, once, as soon as the reserve is touched. A context manager.

    Looks every 10 ms, in a thread of its own.
    """

    def __init__(
        self,
        pid: int,
        give_up: Callable[[str], None],
        *,
        reserve: int = RESERVE,
        proc: Path = _PROC,
        cgroups: Path = _CGROUPS,
    ) -> None:
        self._pid, self._give_up, self._reserve = pid, give_up, reserve
        self._proc, self._cgroups = proc, cgroups
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="headroom", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(_WATCH_EVERY):
            if not os.path.isdir(self._proc / str(self._pid)):  # noqa: PTH112  it ended by itself
                return
            lack = shortage(read_facts(self._pid, self._proc, self._cgroups), 0, self._reserve)
            if lack is not None:
                self._give_up(lack)
                return


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"
