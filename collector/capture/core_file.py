"""The file of a core in a record's folder: its name, and its writer as policy has it compressed."""

from __future__ import annotations

from collector.elfcore.sink import SparseWriter, Writer, ZstdWriter
from collector.policy.types import Codec, Compress


def core_name(compress: Compress) -> str:
    return "core.zst" if compress.codec is Codec.ZSTD else "core"


def core_writer(fd: int, compress: Compress) -> Writer:
    """The writer for an empty file."""
    if compress.codec is Codec.ZSTD:
        return ZstdWriter(fd, compress.level, compress.workers)
    return SparseWriter(fd)
