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
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

LEVEL = 0.05  # how often, at most, a list as a whole may hold something that is chance
_FEWEST = 3  # episodes that a value must have
_HOUR = 3600 * 1_000_000  # microseconds
_MOST_VALUES = 200  # of one facet that are looked at: the most frequent ones
_NEGLIGIBLE = 1e-18  # of a sum


class Death(NamedTuple):
    """What the index has of a death."""

    signature: str
    facets: str  # JSON: name -> value
    time: int  # microseconds since 1970


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


def over_represented(signature: str, deaths: Iterable[Death]) -> list[Finding]:
    """The least likely first. Empty: nothing is told from chance."""
    tally = _Tally(signature, deaths)
    tried = sorted(
        (finding for facet in tally.facets() for finding in _tests(tally, facet)),
        key=lambda finding: (finding.chance, finding.facet, finding.value),
    )
    kept, worst = [], 0.0
    for number, finding in enumerate(tried):
        worst = max(worst, min(1.0, finding.chance * (len(tried) - number)))
        if worst > LEVEL:
            break
        kept.append(msgspec.structs.replace(finding, chance=worst))
    return kept


class _Tally:
    """Deaths and episodes by facet and value, of one signature and of all others."""

    def __init__(self, signature: str, deaths: Iterable[Death]) -> None:
        # [of the signature, of others]
        self.deaths: tuple[Counter[tuple[str, str]], ...] = (Counter(), Counter())
        self.episodes: tuple[Counter[tuple[str, str]], ...] = (Counter(), Counter())
        self.known: tuple[Counter[str], ...] = (Counter(), Counter())
        self.known_episodes: tuple[Counter[str], ...] = (Counter(), Counter())
        count: Counter[tuple[bool, str]] = Counter()
        episodes: set[tuple[str, str, int]] = set()
        for one in deaths:
            count[one.signature != signature, one.facets] += 1
            episodes.add((one.signature, one.facets, one.time // _HOUR))
        of_episodes = Counter((its != signature, facets) for its, facets, _ in episodes)
        for (is_other, text), number in count.items():
            facets = msgspec.json.decode(text, type=dict[str, str])
            self._add(int(is_other), facets, number, of_episodes[is_other, text])

    def _add(self, which: int, facets: dict[str, str], deaths: int, episodes: int) -> None:
        for value in facets.items():
            self.deaths[which][value] += deaths
            self.episodes[which][value] += episodes
            self.known[which][value[0]] += deaths
            self.known_episodes[which][value[0]] += episodes

    def facets(self) -> list[str]:
        """Those that are known of both sides."""
        return sorted(set(self.known[0]) & set(self.known[1]))


def _tests(tally: _Tally, facet: str) -> list[Finding]:
    """The values of a facet that are more frequent here, each with its probability."""
    here, others = tally.episodes
    values = Counter({v: n for (name, v), n in here.items() if name == facet and n >= _FEWEST})
    total, of_others = tally.known_episodes[0][facet], tally.known_episodes[1][facet]
    found = []
    for value, count in values.most_common(_MOST_VALUES):
        elsewhere = others[facet, value]
        if count * of_others <= elsewhere * total:
            continue  # no more frequent than elsewhere
        key = (facet, value)
        found.append(
            Finding(
                facet=facet,
                value=value,
                here=tally.deaths[0][key],
                of_here=tally.known[0][facet],
                others=tally.deaths[1][key],
                of_others=tally.known[1][facet],
                episodes=count,
                chance=at_least(count, total, count + elsewhere, total + of_others),
            )
        )
    return found


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
