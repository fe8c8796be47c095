"""Which other signatures have much the same stack: an alignment in which rare functions weigh more.

Two stacks are laid beside each other so that the common functions, in their order, weigh as much
as possible. A function that nearly every stack has (`main`) weighs next to nothing; one that only
these two have weighs most. Pure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import msgspec

_DEEPEST = 40  # innermost functions that are compared
_LEAST = 0.2  # of the weight that two stacks must share
_MOST_SHARED = 5  # functions that are named


class Similar(msgspec.Struct, frozen=True, kw_only=True):
    """likeness: 1 for equal stacks. shared: the rarest functions of both."""

    signature: str
    likeness: float
    shared: list[str]


def similar(signature: str, stacks: Mapping[str, Sequence[str]], most: int = 5) -> list[Similar]:
    """The signatures whose stacks are most like that of `signature`, best first.

    stacks: functions of an example of each signature, innermost first.
    """
    short = {id: tuple(stack[:_DEEPEST]) for id, stack in stacks.items()}
    mine = short.get(signature, ())
    weights = _rarity(short.values())
    found = []
    for id, other in short.items():
        if id == signature or not set(mine) & set(other):
            continue
        shared, weight = _aligned(mine, other, weights)
        whole = sum(map(weights.__getitem__, (*mine, *other)))
        likeness = round(2 * weight / whole, 3) if whole else 0.0
        if likeness >= _LEAST:
            named = sorted(dict.fromkeys(shared), key=weights.__getitem__, reverse=True)
            found.append(Similar(signature=id, likeness=likeness, shared=named[:_MOST_SHARED]))
    return sorted(found, key=lambda one: (-one.likeness, one.signature))[:most]


def _rarity(stacks: Collection[Sequence[str]]) -> dict[str, float]:
    """How much each function weighs: the less, the more stacks have it."""
    having = Counter(name for stack in stacks for name in set(stack))
    return {name: math.log((len(stacks) + 1) / (count + 0.5)) for name, count in having.items()}


def _aligned(
    one: Sequence[str], other: Sequence[str], weights: Mapping[str, float]
) -> tuple[list[str], float]:
    """The heaviest common subsequence, and its weight (dynamic programming, 40 x 40 cells)."""
    table = [[0.0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for row, name in enumerate(one, 1):
        for column, its in enumerate(other, 1):
            best = max(table[row - 1][column], table[row][column - 1])
            if name == its:
                best = max(best, table[row - 1][column - 1] + weights[name])
            table[row][column] = best
    shared: list[str] = []
    row, column = len(one), len(other)
    while row and column:
        if table[row][column] == table[row - 1][column]:
            row -= 1
        elif table[row][column] == table[row][column - 1]:
            column -= 1
        else:
            row, column = row - 1, column - 1
            shared.append(one[row])
    return shared[::-1], table[-1][-1]
