"""Read what the allocators of a dead process say of its heap, from its core. In the child only."""

from __future__ import annotations

from collections.abc import Iterator
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

_NO_PROGRAM = (
    "an allocator of the program's own, as in Go, is not known: its file cannot be used: {}"
)
_UNNAMED = "the core lacks parts of memory that it does not name: there may be more in use"


def read_heap(path: Path, budget: Budget, *, root: Root, exe: Path | None) -> HeapReport:
    """What the core says. OSError or CoreFormatError if it cannot be read at all."""
    with CoreFile(path) as core:
        note = core.coreward_note
        missing = () if note is None else note.left_out
        memory = Memory(core, budget, [(one.start, one.end) for one in missing])
        objects = Objects(core, memory, root, exe)
        profiles: list[HeapProfile] = []
        lost: dict[str, str] = {}
        try:
            for found in _read_all(memory, objects, core.auxv or b"", lost):
                profiles.append(found)
        except OutOfBudget:
            lost["heap"] = "there was no time to read it all"
        except NotInCore as error:
            lost["heap"] = str(error)
    if note is not None and note.left_out_count > len(missing):
        profiles = [_doubtful(profile) for profile in profiles]
    return HeapReport(profiles=profiles, lost=lost)


def _read_all(
    memory: Memory, objects: Objects, auxv: bytes, lost: dict[str, str]
) -> Iterator[HeapProfile]:
    try:
        found = read_go(memory, objects)
        if found is not None:
            yield found
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        lost["heap"] = _NO_PROGRAM.format(why or error)
    yield from find_others(memory, objects, auxv)
    found = read_glibc(memory, objects)
    if found is not None:
        yield found


def _doubtful(profile: HeapProfile) -> HeapProfile:
    """Of a core that lacks so many parts that it does not name all: they read as zeros."""
    return msgspec.structs.replace(profile, lost={**profile.lost, "memory": _UNNAMED})
