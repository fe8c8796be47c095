"""How to take a full-stop snapshot: the facts, and the choice. The methods are in take.py.

A fork is simplest, and costs a pause that grows with the page tables that the kernel has to copy:
few, where pages are huge. A pre-copy has a short pause whatever the size, but takes longer, and
breaks huge pages up. So: fork where that is quick and there is room for it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec

from collector.capture.image import decode_maps
from collector.elfcore.types import Mapping
from collector.linux.pagemap import Pagemap
from collector.linux.procfs import thread_with_memory
from collector.snapshot.headroom import NoRoom, check_room

_FORK_MS = 28.0  # per GiB of small pages, measured: 7 ms for 256 MiB, 51 for 2 GiB, 172 for 6 GiB
_FORK_HUGE_MS = 1.0  # per GiB of huge pages
_QUICK_MS = 5.0
_GIB = 1 << 30
_WINDOW = 2 << 20  # bytes; one huge page on x86-64
_WINDOWS = 128  # that are looked at: to look at all pages would hold the process's mappings


class Method(enum.StrEnum):
    FORK = "fork"
    PRECOPY = "pre-copy"


class CopyFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of a process that decide between the methods."""

    resident: int  # bytes
    huge: float | None  # share of the memory that huge pages map; None: not known
    no_room: str | None = None  # why a fork does not fit beside it

    @property
    def fork_ms(self) -> float:
        """About how long the process would stand for a fork."""
        huge = self.huge or 0.0
        return self.resident / _GIB * (huge * _FORK_HUGE_MS + (1 - huge) * _FORK_MS)


class CopyChoice(msgspec.Struct, frozen=True, kw_only=True):
    method: Method
    why: str


def choose(facts: CopyFacts) -> CopyChoice:
    """The better of the two methods, and why in words."""
    size = f"{facts.resident >> 20} MiB resident"
    if facts.huge is not None and facts.huge >= 0.01:
        size += f", {facts.huge * 100:.0f} % of it in huge pages"
    if facts.no_room is not None:
        return CopyChoice(method=Method.PRECOPY, why=f"{size}; {facts.no_room}")
    method = Method.FORK if facts.fork_ms <= _QUICK_MS else Method.PRECOPY
    return CopyChoice(method=method, why=f"{size}: a fork takes about {facts.fork_ms:.1f} ms")


def copy_facts(pid: int, resident: int, pagemap_fd: int) -> CopyFacts:
    """The facts of a live process, which is not stopped for them."""
    no_room = None
    try:
        check_room(pid)
    except NoRoom as error:
        no_room = str(error)
    small = CopyFacts(resident=resident, huge=None, no_room=no_room)
    if small.fork_ms <= _QUICK_MS:
        return small  # whatever its pages are
    try:
        with open(f"/proc/{thread_with_memory(pid)}/maps", "rb", buffering=0) as file:
            mappings = decode_maps(file.readall())
        return msgspec.structs.replace(small, huge=_huge_share(Pagemap(pagemap_fd), mappings))
    except OSError:
        return small


def _huge_share(pagemap: Pagemap, mappings: Sequence[Mapping]) -> float | None:
    """Of the private memory that is there, by looking at windows all over it."""
    places = [(m.start, m.end) for m in mappings if not m.shared and m.size >= _WINDOW]
    windows = [
        at
        for start, end in places
        for at in range(start + _WINDOW - 1 & -_WINDOW, end - _WINDOW + 1, _WINDOW)
    ]
    step = max(1, len(windows) // _WINDOWS)
    there = huge = 0
    for at in windows[::step]:
        there += sum(end - start for start, end in pagemap.populated(at, at + _WINDOW))
        huge += pagemap.huge(at, at + _WINDOW)
    return min(1.0, huge / there) if there else None
