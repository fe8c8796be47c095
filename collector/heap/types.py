"""What reading the heap of a core yields; shared by those who ask and the child that reads."""

from __future__ import annotations

import msgspec

from collector.model import HeapProfile

MAX_DOCUMENT = 1 << 20  # bytes of an encoded HeapReport


class HeapReport(msgspec.Struct, frozen=True, kw_only=True):
    """One profile for each allocator that was found. Without any, `lost["heap"]` says why."""

    profiles: list[HeapProfile] = []
    lost: dict[str, str] = {}
