"""Cores written by a dumper: from the process of an event to any writer.

A writer is three calls, as in FreeBSD: `init` with what is known before, `write` at an offset,
`extend` by a hole; `close` or `abort` end it. collector.elfcore.sink has writers for files, streams
and zstd; docs/dumpers.md shows how to make one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from collector.capture.image import with_gate
from collector.capture.memory import ProcessMemory
from collector.capture.plan import plan_core
from collector.capture.select import DEFAULT_FILTER
from collector.dumpers.held import HeldProcess
from collector.elfcore import writer as elfcore
from collector.elfcore.image import CoreImage
from collector.elfcore.notes import image_of
from collector.elfcore.sink import Writer
from collector.elfcore.types import ProcessImage, Segment
from collector.elfcore.writer import Bounds, WriteResult
from collector.model import Capture
from collector.policy.types import MemoryChoice

EVERYTHING = MemoryChoice()


def write_core(
    process: HeldProcess,
    writer: Writer,
    *,
    limit: int | None = None,
    capture: Capture = Capture.FULL,
    choice: MemoryChoice = EVERYTHING,
    seconds: float | None = None,
) -> WriteResult:
    """Write a core of the process of a DUMP, from `init` to `close`; `abort`, if anything raises.

    limit: bytes of memory in it at most, stacks first; None: no limit but the process's own, which
    holds in any case. capture: FULL, STACKS or THREADS. choice: which memory a FULL one has; by
    default what the kernel would dump. seconds: what there is after so many is the core.

    Raises ProcessError and CoreFormatError if the event lacks something or is damaged, OSError as
    the writer does.
    """
    job = _planned(process, limit, capture, choice)
    return elfcore.write_core(
        job.notes,
        job.segments,
        job.memory,
        writer,
        overrides=process.words(),
        bounds=Bounds(deadline=None if seconds is None else time.monotonic() + seconds),
    )


def core_of(process: HeldProcess) -> CoreImage:
    """The same core, for whoever reads parts of it. Raises ProcessError and CoreFormatError."""
    job = _planned(process, None, Capture.FULL, EVERYTHING)
    return CoreImage(job.notes, job.segments, job.memory, overrides=process.words())


class _Planned(NamedTuple):
    notes: ProcessImage
    segments: Sequence[Segment]
    memory: ProcessMemory


def _planned(
    process: HeldProcess, limit: int | None, capture: Capture, choice: MemoryChoice
) -> _Planned:
    """What a core of it is made of."""
    mappings = with_gate(process.mappings())
    image = image_of(process.parsed_notes, mappings)
    memory = ProcessMemory(
        process.fileno("mem"), process.fileno("pagemap"), mappings, {}, process.fileno("root")
    )
    chosen = process.coredump_filter
    most = min((bytes_ for bytes_ in (limit, process.limit) if bytes_ is not None), default=None)
    plan = plan_core(
        image, capture, memory, choice, DEFAULT_FILTER if chosen is None else chosen, most
    )
    return _Planned(image, plan.segments, memory)
