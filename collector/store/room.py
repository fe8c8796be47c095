"""Whose cores are removed where the disk has no room for a new one. Decides only; see `Store`.

The owner who holds most bytes gives first, the oldest of his cores first. The new core counts as
its owner's, so nobody loses a core to an owner who holds as much as he does: of two owners one has
more than half only while the other leaves it unused.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from collector.model import Record


class HeldCore(NamedTuple):
    """A core that is whole and whose record is closed."""

    owner: str
    id: str  # of its record
    size: int  # bytes on disk


def owner_of(record: Record) -> str:
    """Whose bytes a record's core takes; its user's, where nobody said."""
    return record.owner or f"uid {'unknown' if record.uid is None else record.uid}"


def cores_to_remove(
    cores: Iterable[HeldCore], writing: Mapping[str, int], owner: str, size: int, wanted: int
) -> list[str]:
    """Ids of records whose cores make room for a core of `owner`, in the order of removal.

    cores: the oldest first. writing: bytes that unfinished cores take, by owner, with the new one.
    size: bytes of the new one. wanted: bytes that are to be free besides. An owner's own cores go
    only while they are larger together than the new one, so that one huge core does not replace all
    of his. Empty if this does not give `wanted` bytes: then nothing is gained by removing any.
    """
    queues: defaultdict[str, deque[HeldCore]] = defaultdict(deque)
    old: Counter[str] = Counter()  # bytes, without what is being written
    for core in cores:
        queues[core.owner].append(core)
        old[core.owner] += core.size
    chosen: list[str] = []
    while wanted > 0:
        held = {other: old[other] + writing.get(other, 0) for other in {owner, *queues}}
        more = [other for other in queues if held[other] > held[owner] and queues[other]]
        giver = max(more, key=lambda other: held[other], default=owner)
        if giver == owner and old[owner] <= size:
            return []
        core = queues[giver].popleft()
        old[giver] -= core.size
        wanted -= core.size
        chosen.append(core.id)
    return chosen
