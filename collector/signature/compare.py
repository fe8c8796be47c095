"""What is over-represented among the deaths of one signature, against all others. Pure.

A one-sided exact test (Fisher's): how likely would so many of these deaths have a value by chance,
if they were drawn from all deaths? The smaller that is the less it is chance; it says nothing about
causes. Two things would make it lie:

- A service that loops dies a hundred times for one reason. Deaths of one signature, with the same
  circumstances, within one hour count as one *episode*, and the test counts episodes.
- Who looks at two hundred values finds something. The probabilities are multiplied by the number of
  values that were looked at (Holm's method), so that the whole list is wrong once in twenty times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

LEVEL = 0.05  # how often, at most, a list as a whole may hold something that is chance
_FEWEST = 3  # episodes that a value must have
_MOST_VALUES = 200  # of one facet that are looked at: the most frequent ones
_NEGLIGIBLE = 1e-18  # of a sum


class Tally(NamedTuple):
    """How many deaths and episodes have a value, of the signature and of all others."""

    facet: str
    value: str
    here: int
    here_episodes: int
    others: int
    others_episodes: int


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A value that the deaths of a signature have more often than others.

    Of the deaths in which this facet is known: how many there are, and how many have the value.
    """

    facet: str
    value: str
    here: int
    of_here: int
    others: int
    of_others: int
    episodes: int  # of `here`
    chance: float  # that it is one: after correction, 0 to 1


def over_represented(tallies: Iterable[Tally]) -> list[Finding]:
    """The least likely first. Empty: nothing is told from chance."""
    by_facet: dict[str, list[Tally]] = {}
    for one in tallies:
        by_facet.setdefault(one.facet, []).append(one)
    tried = sorted(
        (finding for values in by_facet.values() for finding in _tests(values)),
        key=lambda finding: (finding.chance, finding.facet, finding.value),
    )
    kept, worst = [], 0.0
    for number, finding in enumerate(tried):
        worst = max(worst, min(1.0, finding.chance * (len(tried) - number)))
        if worst > LEVEL:
            break
        kept.append(msgspec.structs.replace(finding, chance=worst))
    return kept


def _tests(values: Sequence[Tally]) -> list[Finding]:
    """The values of a facet that are more frequent here, each with its probability."""
    of_here, of_others = sum(one.here for one in values), sum(one.others for one in values)
    total = sum(one.here_episodes for one in values)
    elsewhere = sum(one.others_episodes for one in values)
    if not elsewhere:
        return []  # it is known of one side alone
    enough = (one for one in values if one.here_episodes >= _FEWEST)
    looked_at = sorted(enough, key=lambda one: (-one.here_episodes, one.value))[:_MOST_VALUES]
    return [
        Finding(
            facet=one.facet,
            value=one.value,
            here=one.here,
            of_here=of_here,
            others=one.others,
            of_others=of_others,
            episodes=one.here_episodes,
            chance=at_least(
                one.here_episodes,
                total,
                one.here_episodes + one.others_episodes,
                total + elsewhere,
            ),
        )
        for one in looked_at
        if one.here_episodes * elsewhere > one.others_episodes * total  # more frequent than there
    ]


def at_least(hits: int, drawn: int, marked: int, all_: int) -> float:
    """The probability of `hits` or more marked ones among `drawn` out of `all_`, of which `marked`
    are: the upper tail of the hypergeometric distribution."""
    whole = _log_choose(all_, drawn)
    likeliest = (drawn + 1) * (marked + 1) / (all_ + 2)  # from there on each part is smaller
    total = 0.0
    for k in range(hits, min(drawn, marked) + 1):
        part = math.exp(_log_choose(marked, k) + _log_choose(all_ - marked, drawn - k) - whole)
        total += part
        if k > likeliest and part <= total * _NEGLIGIBLE:
            break
    return min(1.0, total)


def _log_choose(n: int, k: int) -> float:
    if k < 0 or k > n:
        return -math.inf
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
