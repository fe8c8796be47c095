"""What reading the heap of a core yields; shared by those who ask and the child that reads."""

from __future__ import annotations

import msgspec

from collector.model import HeapProfile

MAX_DOCUMENT = 1 << 20  # bytes of an encoded HeapReport


class HeapReport(msgspec.Struct, frozen=True, kw_only=True):
    """One profile for each known allocator that was found. `lost["heap"]`: why it is not known
    whether there are more."""

    profiles: list[HeapProfile] = []
    lost: dict[str, str] = {}

    @property
    def known(self) -> list[HeapProfile] | None:
        """As a record has it."""
        return None if not self.profiles and "heap" in self.lost else self.profiles
