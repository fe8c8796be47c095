"""What goes into one core, decided before its first byte is written.

The head of a core names every segment's size, and a compressed core cannot be changed later. So
limits in bytes are kept here: the page tables say how much memory there is, and what does not fit
is left out of the segments and named.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import msgspec

from collector.capture.goroutines import select_goroutines
from collector.capture.interpreted import select_interpreted
from collector.capture.memory import Memory
from collector.capture.select import (
    carve,
    kernel_dump_size,
    select_full,
    select_none,
    select_stacks,
)
from collector.elfcore.types import LeftOut, ProcessImage, Segment
from collector.model import Capture
from collector.policy.types import MemoryChoice
from collector.ranges import Range, outside, union

FILE_ONLY = "only in a mapped file, not in memory"
NOT_IN_TIME = "not copied while others waited"
MAX_PARTS = 1 << 12  # that are left out of segments


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The segments of a core, and what a limit or the policy keeps out of it."""

    segments: list[Segment]
    left_out: list[LeftOut]
    truncated: bool = False


def plan_core(
    image: ProcessImage,
    capture: Capture,
    memory: Memory,
    choice: MemoryChoice,
    coredump_filter: int,
    limit: int | None,
    missing: Sequence[Range] = (),
) -> Plan:
    """The plan for one capture within `limit` bytes of memory (None: no limit).

    missing: rising ranges that were there, and that nobody has any more.
    """
    if capture is Capture.FULL:
        return _full(image, memory, choice, coredump_filter, limit, missing)
    everything = select_none(image.mappings)
    if capture is Capture.THREADS:
        return Plan(segments=everything, left_out=[])
    keep = select_stacks(image.mappings, image.threads, image.auxv, memory.read)
    keep += [*select_interpreted(image, memory.read), *select_goroutines(image, memory.read)]
    keep = union(keep)
    plan = Plan(segments=carve(everything, keep), left_out=[])
    return plan if limit is None else _bounded(plan, keep, memory, limit)


def _full(
    image: ProcessImage,
    memory: Memory,
    choice: MemoryChoice,
    coredump_filter: int,
    limit: int | None,
    missing: Sequence[Range],
) -> Plan:
    segments = select_full(image.mappings, choice, coredump_filter, memory.read)
    left_out = []
    if choice.exclude:
        for m, s in zip(image.mappings, segments, strict=True):
            usual = kernel_dump_size(m, coredump_filter, memory.read)
            if s.filesz < usual:
                left_out.append(LeftOut(m.start, m.start + usual, "excluded by policy"))
    plan = _without_unknown(Plan(segments=segments, left_out=left_out), memory)
    if missing:
        plan = msgspec.structs.replace(_without(plan, missing, NOT_IN_TIME), truncated=True)
    segments = plan.segments
    if limit is None or sum(s.filesz for s in segments) <= limit:
        return plan
    if _populated(segments, memory, limit) <= limit:
        return plan
    keep = select_stacks(image.mappings, image.threads, image.auxv, memory.read)
    return _bounded(plan, keep, memory, limit)


def _without_unknown(plan: Plan, memory: Memory) -> Plan:
    """Without what is only in files that are not to be read, or not to be found.

    Debuggers look for it in the file itself, for NT_FILE names it. Parts that are beyond
    MAX_PARTS, the smallest, read as zero; they are named all the same.
    """
    held = [(s.vaddr, s.vaddr + s.filesz) for s in plan.segments if s.filesz]
    unknown = [part for start, end in held for part in memory.unknown(start, end)]
    if not unknown:
        return plan
    return _without(plan, unknown, FILE_ONLY)


def _without(plan: Plan, missing: Sequence[Range], why: str) -> Plan:
    held = [(s.vaddr, s.vaddr + s.filesz) for s in plan.segments if s.filesz]
    parts = heapq.nlargest(MAX_PARTS, missing, key=lambda part: part[1] - part[0])
    lost = [LeftOut(start, end, why) for start, end in missing]
    return Plan(
        segments=carve(plan.segments, outside(held, sorted(parts))),
        left_out=[*plan.left_out, *lost],
    )


def _populated(segments: Sequence[Segment], memory: Memory, enough: int) -> int:
    """Bytes of memory that these segments really hold; counting stops behind `enough`."""
    total = 0
    for s in segments:
        if s.filesz:
            total += sum(b - a for a, b in memory.ranges(s.vaddr, s.vaddr + s.filesz))
        if total > enough:
            break
    return total


def _bounded(plan: Plan, first: Sequence[Range], memory: Memory, limit: int) -> Plan:
    """As much of a plan as fits: `first`, then the segments from the smallest to the largest."""
    budget = _Budget(memory, limit)
    for start, end in first:
        budget.take(start, end)
    taken = budget.merged()
    for s in sorted((s for s in plan.segments if s.filesz), key=lambda s: s.filesz):
        for start, end in outside([(s.vaddr, s.vaddr + s.filesz)], taken):
            budget.take(start, end)
    kept = budget.merged()
    segments = carve(plan.segments, kept)
    lost = [
        LeftOut(start, end, f"beyond the limit of {limit} bytes")
        for s in plan.segments
        if s.filesz
        for start, end in outside([(s.vaddr, s.vaddr + s.filesz)], kept)
    ]
    return Plan(segments=segments, left_out=[*plan.left_out, *lost], truncated=bool(lost))


class _Budget:
    def __init__(self, memory: Memory, limit: int) -> None:
        self._memory = memory
        self._left = limit
        self._kept: list[Range] = []

    def take(self, start: int, end: int) -> None:
        """Keep [start, end), or as much of its beginning as there is room for."""
        at = start
        for a, b in self._memory.ranges(start, end):
            if b - a > self._left:
                at = a + (self._left & -4096)
                self._left = 0
                break
            self._left -= b - a
        else:
            at = end
        if at > start:
            self._kept.append((start, at))

    def merged(self) -> list[Range]:
        return union(self._kept)
