"""A file beside a record: zstd over msgpack. Its contents came from a process: read strictly, and
bounded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import msgspec
import zstandard

from collector.errors import StoreError
from collector.linux.atomic import atomic_file

T = TypeVar("T")

_MAX_FILE = 256 << 20  # bytes when unpacked


def write(document: msgspec.Struct, path: Path) -> None:
    """Put it into its file; whole, or not at all. OSError if it cannot be."""
    packed = zstandard.compress(msgspec.msgpack.encode(document), 3)
    with atomic_file(path) as fd, open(fd, "wb", closefd=False) as file:
        file.write(packed)


def read(path: Path, kind: type[T]) -> T:
    """The document of a file. StoreError if it is damaged or gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with open(fd, "rb") as file:
            with zstandard.ZstdDecompressor().stream_reader(file) as stream:
                data = stream.read(_MAX_FILE + 1)
            if len(data) > _MAX_FILE:
                raise StoreError(f"{path}: damaged: larger than {_MAX_FILE} bytes")
        return msgspec.msgpack.decode(data, type=kind)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    except (zstandard.ZstdError, msgspec.MsgspecError) as error:
        raise StoreError(f"{path}: damaged: {error}") from error
