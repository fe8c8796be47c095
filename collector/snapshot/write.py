"""Write what a snapshot found as a core: the same selection, notes and writers as for a crash."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from collector import __version__
from collector.capture.image import coredump_filter
from collector.capture.plan import plan_core
from collector.elfcore.image import CoreImage
from collector.elfcore.notes import with_left_out
from collector.elfcore.sink import InPlaceWriter, Writer, plain_writer
from collector.elfcore.source import MemorySource
from collector.elfcore.types import CorewardNote, LeftOut, ProcessImage, Segment
from collector.elfcore.writer import Bounds, WriteResult, write_core, write_image
from collector.errors import CaptureError
from collector.model import Capture, SnapshotFacts
from collector.policy.types import MemoryChoice
from collector.ranges import inside, union
from collector.redact.types import Redact
from collector.snapshot.staging import StagedMemory
from collector.snapshot.take import Found

if TYPE_CHECKING:
    from collector.capture.redacted import RedactedMemory

Progress = Callable[[int, int], None]
WHOLE_FILTER = 0x7F  # all bits of coredump_filter (core(5)): all that `gcore -a` takes


class CoreContents(msgspec.Struct, frozen=True, kw_only=True):
    """What of a process goes into its core."""

    record: str = ""  # id; empty: it is not in a store
    capture: Capture = Capture.FULL
    memory: MemoryChoice = MemoryChoice()
    redact: Redact = Redact()  # with it, no memory may be in the file before it is written
    only_held: bool = False  # no segments of which it holds nothing; NT_FILE names them still


class Core(msgspec.Struct, frozen=True, kw_only=True):
    """What was written."""

    result: WriteResult
    truncated: bool
    lost: str | None = None  # of a truncated core: what it lacks
    redacted: dict[str, int] = {}  # rule -> how often the core has zeros for it
    secrets: dict[str, list[str]] = {}  # by rule, what is to be hidden in texts as well
    unseen: str = ""  # what there was no time to look through, or too much to look for


class Redacted(NamedTuple):
    """What is written in place of a process's image, memory and pieces."""

    image: ProcessImage
    memory: MemorySource
    pieces: Sequence[tuple[int, bytes]]
    view: RedactedMemory | None = None  # None: nothing is redacted
    secrets: dict[str, list[str]] = {}  # noqa: RUF012 (nobody changes it)


def redacted(found: Found, contents: CoreContents, fill: bytes = b"\0") -> Redacted:
    """What of it may be written. fill: as `Redactor.view` has it. Raises as the memory does."""
    if not contents.redact.anything:
        return Redacted(found.image, found.memory, found.pieces)
    from collector.capture.redacted import Redactor  # noqa: PLC0415 - it loads RE2

    if found.in_file is not None:
        _refuse_to_redact(contents)
    whose = Redactor(contents.redact, found.image.mappings, found.opened.text, found.memory.read)
    view = whose.view(found.memory, fill)
    return Redacted(whose.image(found.image), view, view.pieces(found.pieces), view, whose.told())


def _refuse_to_redact(contents: CoreContents) -> None:
    """Where memory is in the core's file as it was. Raises CaptureError."""
    if contents.redact.anything:
        raise CaptureError("its memory was staged in the core's file before it was redacted")


def in_words(facts: SnapshotFacts) -> str:
    """How a snapshot was taken, for the core's own note."""
    parts = [f"snapshot, {facts.mode} by {facts.method}: {facts.why}"]
    if facts.pause_ms is not None:
        parts.append(f"the process stood for {facts.pause_ms} ms")
    return "; ".join((*parts, *facts.unstopped, *facts.not_of_instant))


def write_found(
    found: Found,
    contents: CoreContents,
    writer: Writer,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Core:
    """Write one core, from `writer.init` to `writer.close`.

    Raises OSError as the writer does, and CaptureError if the process ends meanwhile.
    """
    with reading(found):
        return _write(found, contents, writer, progress, should_stop)


def write_plain(
    found: Found, contents: CoreContents, fd: int, progress: Progress | None = None
) -> Core:
    """Write a plain core to any descriptor; around what stands in the file already, if it does.

    Raises as `write_found`.
    """
    if found.in_file is None:
        if found.core == fd:
            os.ftruncate(fd, 0)
        return write_found(found, contents, plain_writer(fd), progress)
    with reading(found):
        return _write_around(found, found.in_file, contents, fd, progress)


def _write_around(
    found: Found, staged: StagedMemory, contents: CoreContents, fd: int, progress: Progress | None
) -> Core:
    _refuse_to_redact(contents)
    plan = _planned(found, contents)
    wanted = [(s.vaddr, s.vaddr + s.filesz) for s in plan.segments if s.filesz]
    staged.keep_only(wanted)
    lost = inside(union(staged.unreadable), union(wanted))
    note = with_left_out(plan.note, [LeftOut(low, high, "unreadable") for low, high in lost])
    there = staged.staging.space()
    try:
        image = CoreImage(found.image, plan.segments, found.memory, note=note, there=staged.staging)
    except ValueError as error:  # its head, for which there was twice the room that it had needed
        raise CaptureError(f"it changed too much while it was copied: {error}") from error
    result = write_image(image, InPlaceWriter(fd), progress=progress)
    result = msgspec.structs.replace(
        result,
        written=result.written + there,
        elided=result.elided - there,
        unreadable=(*lost, *result.unreadable),
        unreadable_bytes=result.unreadable_bytes + sum(high - low for low, high in lost),
    )
    return Core(result=result, truncated=plan.lost is not None, lost=plan.lost)


@contextlib.contextmanager
def reading(found: Found) -> Iterator[None]:
    """Raise CaptureError for what went wrong with the process's memory, and not with the writer."""
    try:
        yield
    except CaptureError as error:  # a lost copy is an OSError too, but not the writer's
        raise CaptureError(str(error)) from error
    except ProcessLookupError as error:
        pid = found.opened.pid
        raise CaptureError(f"process {pid} ended before all of its memory was read") from error


class _Contents(NamedTuple):
    """What a core of a process is to have, beside its notes."""

    segments: Sequence[Segment]
    note: CorewardNote
    lost: str | None  # what is beyond the limit on its size


def image_of(found: Found, contents: CoreContents) -> CoreImage:
    """The core as it would be written, for whoever reads parts of it. Raises as `write_found`."""
    with reading(found):
        plan = _planned(found, contents)
        image, memory, pieces, *_ = redacted(found, contents)
        return CoreImage(image, plan.segments, memory, note=plan.note, overrides=pieces)


def _planned(found: Found, contents: CoreContents) -> _Contents:
    plan = plan_core(
        found.image,
        contents.capture,
        found.memory,
        contents.memory,
        coredump_filter(found.opened.text),
        contents.memory.max,
    )
    note = CorewardNote(
        record=contents.record,
        version=__version__,
        capture=contents.capture.value,
        consistent=found.facts.consistent,
        truncated=plan.truncated,
        text=in_words(found.facts),
        redacted=contents.redact.uncounted,
    )
    segments = plan.segments
    if contents.only_held:
        segments = [segment for segment in segments if segment.filesz]
    lost = None
    if plan.truncated:
        missing = sum(area.end - area.start for area in plan.left_out)
        lost = f"{missing} bytes are beyond the limit on the core's size"
    return _Contents(segments, with_left_out(note, plan.left_out), lost)


def _write(
    found: Found,
    contents: CoreContents,
    writer: Writer,
    progress: Progress | None,
    should_stop: Callable[[], bool],
) -> Core:
    plan = _planned(found, contents)
    image, memory, pieces, view, secrets = redacted(found, contents)
    held = [(s.vaddr, s.vaddr + s.filesz) for s in plan.segments if s.filesz]
    result = write_core(
        image,
        plan.segments,
        memory,
        writer,
        note=plan.note,
        overrides=pieces,
        progress=progress,
        bounds=Bounds(should_stop=should_stop),
        amend=None if view is None else lambda note: view.note(note, held),
    )
    truncated = plan.lost is not None or result.truncated
    core = Core(result=result, truncated=truncated, lost=plan.lost)
    if view is None:
        return core
    return msgspec.structs.replace(
        core,
        redacted=view.counts(held),
        secrets=secrets,
        unseen=view.why_unseen,
    )
