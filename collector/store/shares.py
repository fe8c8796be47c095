"""Who gives how much where the store is too full: fair shares. Pure.

Whoever holds most gives first, down to what the next one holds, and so on: in the end all who gave
hold the same. So nobody gives to make room for somebody who holds more than he does. First it is
decided between owners, then for each owner between his services (`whose`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Holding(NamedTuple):
    """What one service has in the store, in bytes or in records."""

    owner: str
    service: str
    held: int
    may_go: int  # of these


class Share(NamedTuple):
    owner: str
    service: str


def quotas(holdings: Iterable[Holding], wanted: int) -> dict[Share, int]:
    """How much each service gives, so that `wanted` goes in all; who gives nothing is left out.

    It is less only where no more may go.
    """
    by_owner: defaultdict[str, list[Holding]] = defaultdict(list)
    for holding in holdings:
        by_owner[holding.owner].append(holding)
    owners = {
        owner: (sum(one.held for one in ones), sum(one.may_go for one in ones))
        for owner, ones in by_owner.items()
    }
    found = {}
    for owner, quota in _levelled(owners, wanted).items():
        services = {one.service: (one.held, one.may_go) for one in by_owner[owner]}
        for service, part in _levelled(services, quota).items():
            found[Share(owner, service)] = part
    return found


def _levelled(held: Mapping[str, tuple[int, int]], wanted: int) -> dict[str, int]:
    """What each gives down to a common level: the highest one at which `wanted` goes in all.

    held: what each has, and how much of it may go.
    """

    def given(level: int) -> dict[str, int]:
        parts = {who: min(may_go, has - level) for who, (has, may_go) in held.items()}
        return {who: part for who, part in parts.items() if part > 0}

    low, high = 0, max((has for has, _ in held.values()), default=0)
    while low < high:  # the answer is in [low, high]
        level = (low + high + 1) // 2
        if sum(given(level).values()) >= wanted:
            low = level
        else:
            high = level - 1
    parts, above = given(low), given(low + 1)
    over = sum(parts.values()) - wanted  # the level is whole: some would give one too many
    for who in sorted(parts):
        if over > 0 and parts[who] > above.get(who, 0):
            parts[who] -= 1
            over -= 1
    return {who: part for who, part in parts.items() if part > 0}
