"""The files of cores in a record's folder: names, writers, and the small core for the explainer."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from collector.capture.memory import Memory
from collector.capture.select import MAX_STACK, carve, select_none, select_stacks
from collector.elfcore.sink import SparseWriter, Writer, ZstdWriter
from collector.elfcore.types import ProcessImage
from collector.elfcore.writer import write_core
from collector.policy.types import Codec, Compress


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
    """The first thread alone, with what unwinding needs: enough to say where it was.

    pieces: memory that goes before that of `memory`. max_stack: bytes of its stack at most.
    OSError as reading and writing give it; there is no file then.
    """
    first = image.threads[:1]
    image = msgspec.structs.replace(image, threads=first)
    keep = select_stacks(image.mappings, first, image.auxv, memory.read, max_stack=max_stack)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        segments = carve(select_none(image.mappings), keep)
        write_core(image, segments, memory, SparseWriter(fd), overrides=pieces)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(fd)
