"""A file beside a record: zstd over msgpack. Its contents came from a process, or with a bundle
from a stranger: read strictly, and bounded, also in what objects are made of it. Verbs read it.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import IO, TypeVar

import msgspec
import zstandard

from collector.errors import StoreError
from collector.linux import memory_bound
from collector.linux.atomic import atomic_file

T = TypeVar("T")

_MAX_FILE = 256 << 20  # bytes when unpacked
_MAX_OBJECTS = 256 << 20  # bytes of what is made of it, beside the bytes that it has
_BLOCK = 1 << 20
DAMAGED = (zstandard.ZstdError, msgspec.MsgspecError, ValueError, RecursionError, IndexError)


def write(document: msgspec.Struct, path: Path) -> None:
    """Put it into its file; whole, or not at all. OSError if it cannot be."""
    packed = zstandard.compress(msgspec.msgpack.encode(document), 3)
    with atomic_file(path) as fd, open(fd, "wb", closefd=False) as file:
        file.write(packed)


def read(path: Path, kind: type[T]) -> T:
    """The document of a file. StoreError if it is damaged or gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            data = unpacked(file, _MAX_FILE)
        return decoded(data, kind)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    except DAMAGED as error:
        raise StoreError(f"{path}: damaged: {error}") from error


def unpacked(file: IO[bytes], most: int) -> bytearray:
    """What a compressed file holds. ValueError: that is more than `most` bytes."""
    data = bytearray()
    with zstandard.ZstdDecompressor().stream_reader(file) as stream:
        while block := stream.read(_BLOCK):
            data += block
            if len(data) > most:
                raise ValueError(f"larger than {most} bytes")
    return data


def decoded(data: bytes | bytearray, kind: type[T]) -> T:
    """The document. ValueError: it is made to fill memory."""
    collects = gc.isenabled()
    gc.disable()  # nothing of it is garbage, and looking for some takes most of the time
    try:
        with memory_bound.at_most(len(data) + _MAX_OBJECTS):
            return msgspec.msgpack.decode(data, type=kind)
    except MemoryError:
        most = _MAX_OBJECTS >> 20
        raise ValueError(f"made to fill memory: its parts take more than {most} MiB") from None
    finally:
        if collects:
            gc.enable()
