"""How much a store may hold, and what retention has removed: what the agent knows of it."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much a store may hold. Sizes are bytes, ages seconds; None: no limit."""

    max_size: int | None = None
    max_records: int | None = None
    max_age: float | None = None
    max_core_age: float | None = None
    keep_free: int | None = None  # of its file system, whoever filled that
    service_max_size: int | None = None
    service_max_records: int | None = None


class Trimmed(msgspec.Struct, kw_only=True):
    """What a run has removed, by the limit that wanted it."""

    cores: dict[str, int] = {}
    records: dict[str, int] = {}
    bytes: int = 0
    unmet: list[str] = []  # limits for which not enough may go

    @property
    def is_empty(self) -> bool:
        return not (self.cores or self.records or self.unmet)
