"""The files of cores in a record's folder: names, writers, and the small core for the explainer."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from collector.capture.memory import Memory
from collector.capture.select import MAX_STACK, carve, select_none, select_stacks
from collector.capture.thrown import select_thrown
from collector.elfcore.sink import SparseWriter, Writer, ZstdWriter
from collector.elfcore.types import ProcessImage
from collector.elfcore.writer import write_core
from collector.policy.types import Codec, Compress
from collector.ranges import union

_MAX_EXPLAINED = 256  # threads that are explained
_OTHER_STACK = 64 << 10  # bytes of the stack of one that did not die


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
    path: Path,
    image: ProcessImage,
    memory: Memory,
    pieces: Iterable[tuple[int, bytes]],
    max_stack: int = MAX_STACK,
) -> None:
    """What unwinding needs: the first thread's stack, and a little of the others'.

    pieces: memory that goes before that of `memory`. max_stack: bytes of the first stack at most.
    OSError as reading and writing give it; there is no file then.
    """
    image = msgspec.structs.replace(image, threads=image.threads[:_MAX_EXPLAINED])
    first, others = image.threads[:1], image.threads[1:]
    keep = select_stacks(image.mappings, first, image.auxv, memory.read, max_stack=max_stack)
    more = select_stacks(image.mappings, others, b"", _nothing, max_stack=_OTHER_STACK)
    keep = union([*keep, *more, *select_thrown(image, memory.read)])
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        segments = carve(select_none(image.mappings), keep)
        write_core(image, segments, memory, SparseWriter(fd), overrides=pieces)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(fd)
