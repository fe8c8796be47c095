"""Whose cores are removed where the disk has no room for a new one. Decides only; see `Store`.

The owner who holds most bytes gives first, the oldest of his cores first; the first and the newest
core of each kind last, and none that somebody keeps. The new core counts as its owner's, so nobody
loses a core to an owner who holds as much as he does: of two owners one has more than half only
while the other leaves it unused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from collector.store.victims import Victim


def cores_to_remove(
    old: Mapping[str, int],
    cores_of: Callable[[str], Iterator[Victim]],
    writing: Mapping[str, int],
    owner: str,
    size: int,
    wanted: int,
) -> list[str]:
    """Ids of records whose cores make room for a core of `owner`, in the order of removal.

    old: bytes of cores that may go, by owner. cores_of: these cores, in the order in which they go.
    writing: bytes that unfinished cores take, by owner, with the new one. size: bytes of the new
    one. wanted: bytes that are to be free besides. An owner's own cores go only while they are
    larger together than the new one, so that one huge core does not replace all of his. Empty if
    this does not give `wanted` bytes: then nothing is gained by removing any.
    """
    left = dict(old)
    queues = {other: cores_of(other) for other in left}
    chosen: list[str] = []
    while wanted > 0:
        held = {other: left.get(other, 0) + writing.get(other, 0) for other in {owner, *left}}
        more = [other for other in queues if held[other] > held[owner]]
        giver = max(more, key=lambda other: held[other], default=owner)
        if giver == owner and left.get(owner, 0) <= size:
            return []
        core = next(queues[giver], None)
        if core is None:  # they went meanwhile
            del queues[giver]
            left[giver] = 0
            if giver == owner:
                return []
            continue
        left[giver] -= core.size
        wanted -= core.size
        chosen.append(core.id)
    return chosen
