"""What is over-represented among the deaths of a signature, and which others are like it."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.circumstances import HostFacts, Package
from collector.signature.compare import Tally, at_least, over_represented
from collector.signature.facets import facets_of
from collector.signature.similar import similar
from tests.unit.signature_samples import BUILD, death, own

HOUR = 3600 * 1_000_000


class Death(NamedTuple):
    signature: str
    facets: str  # JSON
    time: int  # microseconds


def tallies(signature: str, seen: list[Death]) -> list[Tally]:
    """What the index has of these deaths, counted one by one."""
    count: Counter[tuple[str, str, bool]] = Counter()
    episodes: set[tuple[str, str, bool, Death]] = set()
    for one in seen:
        mine = one.signature == signature
        for name, value in msgspec.json.decode(one.facets, type=dict[str, str]).items():
            count[name, value, mine] += 1
            episodes.add((name, value, mine, one._replace(time=one.time // HOUR)))
    of_episodes = Counter(one[:3] for one in episodes)
    return [
        Tally(
            *value,
            count[*value, True],
            of_episodes[*value, True],
            count[*value, False],
            of_episodes[*value, False],
        )
        for value in sorted({(name, value) for name, value, _ in count})
    ]


def deaths(signature: str, count: int, *, each: int = HOUR, **facets: str) -> list[Death]:
    """So many deaths, each an hour after the other unless said otherwise."""
    text = msgspec.json.encode(facets).decode()
    return [Death(signature, text, number * each) for number in range(count)]


@settings(max_examples=60)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_the_probability_is_that_of_counting_all_cases(
    hits: int, drawn: int, marked: int, rest: int
) -> None:
    all_ = marked + rest
    drawn = min(drawn, all_)
    # GIVEN every way to draw so many, counted with whole numbers
    cases = sum(
        math.comb(marked, k) * math.comb(rest, drawn - k)
        for k in range(hits, min(drawn, marked) + 1)
        if drawn - k <= rest
    )
    exact = Fraction(cases, math.comb(all_, drawn))
    # THEN the sum of logarithms is the same
    assert at_least(hits, drawn, marked, all_) == pytest.approx(float(exact), abs=1e-9)


def test_a_value_that_only_these_deaths_have_is_found() -> None:
    # GIVEN a bug that is seen on one unit alone, which has a tenth of all deaths
    seen = [
        *deaths("bug", 10, unit="web@3", build="aa"),
        *deaths("other", 90, unit="web@1", build="aa"),
        *deaths("third", 10, unit="web@3", build="aa"),
    ]
    found = over_represented(tallies("bug", seen))
    # THEN it is named with its numbers, and the build that all have is not
    assert [(one.facet, one.value) for one in found] == [("unit", "web@3")]
    one = found[0]
    assert (one.here, one.of_here, one.others, one.of_others) == (10, 10, 10, 100)
    assert one.chance < 1e-6


def test_a_service_that_loops_is_one_observation() -> None:
    # GIVEN 500 deaths of one bug on one unit, all within an hour
    seen = [
        *deaths("bug", 500, each=1_000_000, unit="web@3"),
        *deaths("bug", 2, unit="web@1"),
        *deaths("other", 40, unit="web@1"),
    ]
    # THEN so many deaths prove nothing about this unit
    assert over_represented(tallies("bug", seen)) == []


def test_who_looks_at_much_finds_nothing_by_chance() -> None:
    # GIVEN a value that by itself would be unlikely (one in 40), among 60 values of other facets
    many = {f"facet{number}": "same" for number in range(60)}
    seen = [
        *deaths("bug", 4, unit="a", **many),
        *deaths("bug", 2, unit="b", **many),
        *deaths("other", 8, unit="a", **many),
        *deaths("other", 32, unit="b", **many),
    ]
    single = at_least(4, 6, 12, 46)
    assert single < 0.05
    # THEN alone it is told, and among the many values that are no more frequent it still is
    assert [one.value for one in over_represented(tallies("bug", seen))] == ["a"]
    # BUT not where each of these facets is as striking as chance makes some of them
    noisy = []
    for index, one in enumerate(seen):
        facets = msgspec.json.decode(one.facets, type=dict[str, str])
        mine = one.signature == "bug"
        rank = index if mine else index - 6
        for number in range(60):
            few = rank in (number % 6, (number + 1) % 6, (number + 2) % 6)
            facets[f"facet{number}"] = "x" if (mine and few) or (not mine and rank < 12) else "y"
        noisy.append(Death(one.signature, msgspec.json.encode(facets).decode(), one.time))
    assert over_represented(tallies("bug", noisy)) == []


def test_nothing_is_said_without_others_or_of_a_few() -> None:
    assert over_represented(tallies("bug", deaths("bug", 50, unit="a"))) == []
    few = [*deaths("bug", 2, unit="a"), *deaths("other", 1000, unit="b")]
    assert over_represented(tallies("bug", few)) == []
    assert over_represented(tallies("bug", [])) == []


def test_rare_functions_weigh_more_than_common_ones() -> None:
    # GIVEN a stack, one with the same rare functions, one that only begins in the same way
    frame = ["dispatch", "run", "main"]
    stacks = {
        "mine": ["drop_twice", "free_list", "reset", *frame],
        "near": ["drop_once", "free_list", "reset", *frame],
        "far": ["render", "draw", "paint", *frame],
        **{f"{n}": [f"leaf{n}", f"middle{n}", f"outer{n}", *frame] for n in range(20)},
    }
    found = similar("mine", stacks)
    # THEN the one that shares what is rare is alike, and main() makes nobody alike
    assert [one.signature for one in found] == ["near"]
    assert found[0].shared[:2] == ["free_list", "reset"]
    assert 0.4 < found[0].likeness < 1
    # AND equal stacks are alike wholly; order counts
    twins = {"a": ["f", "g", "h"], "b": ["f", "g", "h"], "c": ["h", "g", "f"], "d": ["x"]}
    likeness = {one.signature: one.likeness for one in similar("a", twins)}
    assert likeness["b"] == 1
    assert likeness["c"] < likeness["b"]
    assert "d" not in likeness


def test_a_signature_without_a_stack_is_like_none() -> None:
    assert similar("gone", {"a": ["f"]}) == []
    assert similar("a", {"a": []}) == []


def test_what_deaths_are_compared_by() -> None:
    # GIVEN a record with all that is told of the circumstances
    record = death(
        1,
        own("count_request"),
        uid=1000,
        unit="web.service",
        threads=9,
        host=HostFacts(name="node7", kernel="6.12.1", cpu="Zen 9"),
        package=Package(name="shop", version="2.3-1", source="dpkg"),
        attributes={"ROLE": "a" * 500},
    )
    facets = facets_of(record)
    # THEN each is a facet, bounded; what is not known is none
    assert facets.pop("attribute ROLE") == "a" * 120
    assert facets == {
        "build": BUILD,
        "version": "2.3-1",
        "unit": "web.service",
        "uid": "1000",
        "kernel": "6.12.1",
        "cpu": "Zen 9",
        "host": "node7",
        "hour": "03 UTC",
        "threads": "up to 16",
    }


def test_a_facet_has_no_end_of_a_text_in_it() -> None:
    # (SQLite would take what is behind it for nothing, and two values for one)
    record = msgspec.structs.replace(death(1, own("f")), attributes={"RELEASE": "1\x00a"})
    assert facets_of(record)["attribute RELEASE"] == "1\ufffda"
