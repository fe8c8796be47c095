"""Cores: the names and writers of those in a record's folder, and the small one for the explainer.

The small one is in memory alone, whatever policy keeps: for `capture: record` it promises that no
memory is written to a disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from collector.capture.goroutines import select_goroutines
from collector.capture.interpreted import select_interpreted
from collector.capture.memory import Memory
from collector.capture.select import MAX_STACK, carve, select_none, select_stacks
from collector.capture.thrown import select_thrown
from collector.elfcore.sink import InPlaceWriter, SparseWriter, Writer, ZstdWriter
from collector.elfcore.source import MemorySource
from collector.elfcore.types import ProcessImage
from collector.elfcore.writer import write_core
from collector.policy.types import Codec, Compress
from collector.ranges import Range, union

_MAX_EXPLAINED = 256  # threads that are explained
_OTHER_STACK = 64 << 10  # bytes of the stack of one that did not die
FILL = b"*"  # for what is redacted: a message does not end there
_MOST_MEMORY = 64 << 20  # bytes; 256 threads, with a page for each register, have 40 MiB


def _nothing(address: int, size: int) -> bytes:
    """What is looked up for all threads alike is looked up for the first."""
    return b""


def core_name(compress: Compress) -> str:
    return "core.zst" if compress.codec is Codec.ZSTD else "core"


def core_writer(fd: int, compress: Compress) -> Writer:
    """The writer for an empty file."""
    if compress.codec is Codec.ZSTD:
        return ZstdWriter(fd, compress.level, compress.workers)
    return SparseWriter(fd)


def write_explain_core(
    fd: int,
    image: ProcessImage,
    memory: Memory,
    pieces: Iterable[tuple[int, bytes]],
    max_stack: int = MAX_STACK,
    source: MemorySource | None = None,
) -> None:
    """What unwinding needs: the first thread's stack, and a little of the others'.

    fd: of an empty file of MAX_EXPLAIN_CORE bytes at most. pieces: memory that goes before that of
    `memory`. max_stack: bytes of the first stack at most. source: what is written, where that is
    not what is looked at. OSError as reading and writing give it: what is in the file is of no use
    then.
    """
    image = msgspec.structs.replace(image, threads=image.threads[:_MAX_EXPLAINED])
    first, others = image.threads[:1], image.threads[1:]
    keep = select_stacks(image.mappings, first, image.auxv, memory.read, max_stack=max_stack)
    more = select_stacks(image.mappings, others, b"", _nothing, max_stack=_OTHER_STACK)
    said = [*select_thrown(image, memory.read), *select_interpreted(image, memory.read)]
    said += select_goroutines(image, memory.read)
    keep = _bounded(keep, union([*keep, *more, *said]))
    segments = carve(select_none(image.mappings), keep)
    write_core(image, segments, source or memory, InPlaceWriter(fd), overrides=pieces)


def _bounded(first: Sequence[Range], wanted: list[Range], most: int = _MOST_MEMORY) -> list[Range]:
    """All that is wanted, or of a process that makes it too much the smallest parts of `first`."""
    if sum(end - start for start, end in wanted) <= most:
        return wanted
    kept: list[Range] = []
    for start, end in sorted(first, key=lambda part: part[1] - part[0]):
        most -= end - start
        if most < 0:
            break
        kept.append((start, end))
    return sorted(kept)
