"""What is copied of a process that waits, as its mappings alone say.

A writer would look into its memory to select: it is a process of its own, and takes a hundred
milliseconds to start. Here nothing is looked at, so nobody can keep us waiting, and a little more
is copied than a core will have. What cannot be told so is left to a writer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from collector.arch.x86_64 import PAGE, RED_ZONE
from collector.capture.copy import parts_of
from collector.capture.image import coredump_filter
from collector.capture.memory import ProcessMemory
from collector.capture.parts import Kind, Part
from collector.capture.process import OpenProcess
from collector.capture.select import MAX_STACK, select_full
from collector.elfcore import types
from collector.model import Capture
from collector.policy.types import MemoryChoice
from collector.probe.iterators import MAPPING, decode_mappings
from collector.ranges import Range, outside, union

_MAX_RECORDS = 4096 * MAPPING.size  # bytes; for more it takes longer than a writer to start
_MOST_ARMED_RECORDS = 16384 * MAPPING.size
_ELF = b"\x7fELF"
STACK = 1 << 20  # bytes of the dying thread's stack that say where it died


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
    decoded = few_mappings(dying, mappings)
    if decoded is None:
        return None
    memory = ProcessMemory(dying.mem_fd, dying.pagemap_fd, decoded, shared_fds)
    wanted = _wanted(dying, decoded, choice)
    if not any(start <= sp < end for start, end in wanted):
        return None
    if not all(memory.is_known(start, end) for start, end in wanted):
        return None
    return parts_of(sorted(wanted, key=_size), memory, decoded)


def few_mappings(dying: OpenProcess, mappings: memoryview | None) -> list[types.Mapping] | None:
    """Decoded; None if they are not told, or are too many. Raises ProbeError as decode_mappings."""
    if mappings is None or len(mappings) > _MAX_RECORDS:
        return None
    return decode_mappings(mappings, dying.text.maps)


def hasty_outline(
    dying: OpenProcess,
    decoded: Sequence[types.Mapping],
    shared_fds: Mapping[int, int],
    sp: int,
    choice: MemoryChoice,
    capture: Capture,
) -> list[Part]:
    """The parts for which others are kept waiting: its stack, then the small ones, as `capture` is.

    Without what is only in files that cannot be asked.
    """
    memory = ProcessMemory(dying.mem_fd, dying.pagemap_fd, decoded, shared_fds)
    wanted = _wanted(dying, decoded, choice)
    if capture is not Capture.FULL:
        wanted = [part for part in wanted if _size(part) <= MAX_STACK]
    first = [_stack_at(sp)]
    rest = (piece for part in sorted(wanted, key=_size) for piece in outside([part], first))
    return parts_of([*first, *rest], memory, decoded)


def armed_outline(
    dying: OpenProcess,
    mappings: memoryview | None,
    sps: Sequence[int],
    choice: MemoryChoice,
    capture: Capture,
) -> list[Part]:
    """The parts of one that has ended, for which there is little time: all stacks come first.

    sps: stack pointers of its threads, the most important one first. If its mappings are too many
    there are only the stacks. Raises ProbeError as decode_mappings.
    """
    stacks = [_stack_at(sp) for sp in sps]
    if mappings is None or len(mappings) > _MOST_ARMED_RECORDS:
        return [Part(*stack, Kind.IN_MEMORY) for stack in _disjoint(stacks)]
    decoded = decode_mappings(mappings, None)
    memory = ProcessMemory(dying.mem_fd, dying.pagemap_fd, decoded, {})
    first = _disjoint(stacks)
    wanted = _wanted(dying, decoded, choice)
    if capture is not Capture.FULL:
        wanted = [part for part in wanted if _size(part) <= MAX_STACK]
    rest = sorted(outside(sorted(wanted), union(first)), key=_size)
    return parts_of([*first, *rest], memory, decoded)


def _disjoint(stacks: Sequence[Range]) -> list[Range]:
    """The same, in their order, without what one before them has already."""
    found: list[Range] = []
    done: list[Range] = []
    for stack in stacks:
        found += outside([stack], done)
        done = union([*done, stack])
    return found


def hasty_stack(sp: int) -> list[Part]:
    """Its stack alone, where there is no time for a look at the mappings."""
    return [Part(*_stack_at(sp), Kind.IN_MEMORY)]


def _stack_at(sp: int) -> Range:
    start = max(sp - RED_ZONE, 0) & -PAGE
    return start, start + STACK


def _wanted(
    dying: OpenProcess, decoded: Sequence[types.Mapping], choice: MemoryChoice
) -> list[Range]:
    """All that a full core can have."""
    # whether a file is ELF is in its first page; that is copied in any case
    segments = select_full(decoded, choice, coredump_filter(dying.text), lambda *_: _ELF)
    return [(s.vaddr, s.vaddr + s.filesz) for s in segments if s.filesz]


def _size(part: Range) -> int:
    return part[1] - part[0]
