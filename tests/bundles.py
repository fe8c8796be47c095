"""What another reader finds in a bundle: Python's `tarfile`, which is not what opens them here."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import zstandard


def unpacked(bundle: Path) -> bytes:
    """The archive."""
    return zstandard.ZstdDecompressor().decompressobj().decompress(bundle.read_bytes())


def members(bundle: Path) -> dict[str, bytes]:
    """Its members, in their order."""
    with tarfile.open(fileobj=io.BytesIO(unpacked(bundle))) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]
