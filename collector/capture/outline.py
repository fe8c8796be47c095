"""What is copied of a process that waits, as its mappings alone say.

A writer would look into its memory to select: it is a process of its own, and takes a hundred
milliseconds to start. Here nothing is looked at, so nobody can keep us waiting, and a little more
is copied than a core will have. What cannot be told so is left to a writer.
"""

from __future__ import annotations

from collections.abc import Mapping

from collector.capture.copy import parts_of
from collector.capture.image import coredump_filter
from collector.capture.memory import ProcessMemory
from collector.capture.parts import Part
from collector.capture.process import OpenProcess
from collector.capture.select import select_full
from collector.policy.types import MemoryChoice
from collector.probe.iterators import MAPPING, decode_mappings
from collector.ranges import Range

_MAX_RECORDS = 4096 * MAPPING.size  # bytes; for more it takes longer than a writer to start
_ELF = b"\x7fELF"


def outline(
    dying: OpenProcess,
    mappings: memoryview | None,
    shared_fds: Mapping[int, int],
    sp: int,
    choice: MemoryChoice,
) -> list[Part] | None:
    """The parts of all that a full core can have, small ones first; None: it cannot be told.

    mappings: raw records of the task iterator. sp: of the dying thread, whose stack is explained
    whatever policy leaves out. Raises ProbeError if a record is none.
    """
    if mappings is None or len(mappings) > _MAX_RECORDS:
        return None
    decoded = decode_mappings(mappings, dying.text.maps)
    memory = ProcessMemory(dying.mem_fd, dying.pagemap_fd, decoded, shared_fds)
    # whether a file is ELF is in its first page; that is copied in any case
    segments = select_full(decoded, choice, coredump_filter(dying.text), lambda *_: _ELF)
    wanted = [(s.vaddr, s.vaddr + s.filesz) for s in segments if s.filesz]
    if not any(start <= sp < end for start, end in wanted):
        return None
    if not all(memory.is_known(start, end) for start, end in wanted):
        return None
    return parts_of(sorted(wanted, key=_size), memory, decoded)


def _size(part: Range) -> int:
    return part[1] - part[0]
