"""Read what the allocators of a dead process say of its heap, from its core. In the child only."""

from __future__ import annotations

from pathlib import Path

import msgspec

from collector.elfcore.reader import CoreFile
from collector.explain.files import Root
from collector.heap.glibc import read_glibc
from collector.heap.golang import read_go
from collector.heap.memory import Budget, Memory, NotInCore, OutOfBudget
from collector.heap.objects import Objects
from collector.heap.others import find_others
from collector.heap.types import HeapReport
from collector.model import HeapProfile

_UNNAMED = "the core lacks parts of memory that it does not name: there may be more in use"
_NONE = "no allocator that is known was found: Go's, glibc's, jemalloc, tcmalloc, mimalloc"


def read_heap(path: Path, budget: Budget, *, root: Root, exe: Path | None) -> HeapReport:
    """What the core says. OSError or CoreFormatError if it cannot be read at all."""
    with CoreFile(path) as core:
        note = core.coreward_note
        missing = () if note is None else note.left_out
        memory = Memory(core, budget, [(one.start, one.end) for one in missing])
        objects = Objects(core, memory, root, exe)
        profiles: list[HeapProfile] = []
        try:
            found = read_go(memory, objects)
            profiles += [] if found is None else [found]
            profiles += find_others(memory, objects, core.auxv or b"")
            found = read_glibc(memory, objects)
            profiles += [] if found is None else [found]
        except OutOfBudget:
            return HeapReport(profiles=profiles, lost={"heap": "there was no time to read it all"})
        except NotInCore as error:
            return HeapReport(profiles=profiles, lost={} if profiles else {"heap": str(error)})
    if note is not None and note.left_out_count > len(missing):
        profiles = [_doubtful(profile) for profile in profiles]
    return HeapReport(profiles=profiles, lost={} if profiles else {"heap": _NONE})


def _doubtful(profile: HeapProfile) -> HeapProfile:
    """Of a core that lacks so many parts that it does not name all: they read as zeros."""
    return msgspec.structs.replace(profile, lost={**profile.lost, "memory": _UNNAMED})
