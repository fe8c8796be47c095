"""Lists of ranges against sets of addresses."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from collector.ranges import Range, holds, inside, outside, union

ADDRESSES = st.integers(0, 60)
RANGES = st.lists(st.tuples(ADDRESSES, st.integers(1, 12)), max_size=12).map(
    lambda pairs: [(start, start + size) for start, size in pairs]
)
RISING = RANGES.map(sorted)


@st.composite
def areas(draw: st.DrawFn) -> list[Range]:
    """Disjoint ranges; some adjoin."""
    bounds = draw(st.lists(ADDRESSES, unique=True, max_size=20).map(sorted))
    pairs = list(itertools.pairwise(bounds))
    return [pair for pair in pairs if draw(st.booleans())]


def addresses(ranges: list[Range]) -> set[int]:
    return {address for start, end in ranges for address in range(start, end)}


@given(RANGES)
def test_a_union_has_the_same_addresses_once_and_as_few_ranges_as_can_be(
    ranges: list[Range],
) -> None:
    found = union(ranges)
    assert addresses(found) == addresses(ranges)
    assert all(start < end for start, end in found)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(found))


@given(RISING, areas())
def test_what_is_inside_and_what_is_outside(ranges: list[Range], within: list[Range]) -> None:
    assert addresses(inside(ranges, within)) == addresses(ranges) & addresses(within)
    assert addresses(outside(ranges, within)) == addresses(ranges) - addresses(within)


@given(areas(), areas())
def test_parts_of_disjoint_ranges_are_disjoint_and_not_empty(
    ranges: list[Range], within: list[Range]
) -> None:
    for found in (inside(ranges, within), outside(ranges, within)):
        assert all(start < end for start, end in found)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(found))


@given(areas(), ADDRESSES)
def test_whether_an_address_is_in_one(within: list[Range], address: int) -> None:
    assert holds(within, address) == (address in addresses(within))


def test_an_area_may_say_more_than_its_bounds() -> None:
    assert inside([(0, 10)], [(2, 4, True), (6, 12, False)]) == [(2, 4), (6, 10)]
    assert outside([(0, 10)], [(2, 4, True), (6, 12, False)]) == [(0, 2), (4, 6)]
