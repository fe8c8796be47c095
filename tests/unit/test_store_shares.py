"""Fair shares: who gives how much of what is too much."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.store.shares import Holding, quotas


def given_by(wanted: int, *holdings: tuple[str, str, int, int]) -> dict[str, int]:
    found = quotas([Holding(*one) for one in holdings], wanted)
    return {f"{owner}/{service}": part for (owner, service), part in found.items()}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (0, {}),
        (5, {"a/x": 5}),
        (10, {"a/x": 10}),  # a has what b has
        (14, {"a/x": 12, "b/z": 2}),
        (26, {"a/x": 18, "b/z": 8}),  # all have 2
        (99, {"a/x": 20, "b/z": 10, "c/z": 2}),
    ],
)
def test_who_holds_most_gives_first(wanted: int, expected: dict[str, int]) -> None:
    holdings = (("a", "x", 20, 20), ("b", "z", 10, 10), ("c", "z", 2, 2))
    assert given_by(wanted, *holdings) == expected


def test_within_an_owner_his_services_share() -> None:
    # GIVEN a user whose units are many, and a service that has more than each, but less than him
    user = [("uid 1", f"{n}.service", 4, 4) for n in range(5)]
    service = ("db.service", "db.service", 15, 15)
    # THEN it is the user who gives, each of his the same
    assert given_by(5, *user, service) == {f"uid 1/{n}.service": 1 for n in range(5)}


def test_what_may_not_go_stays_and_others_do_not_give_below_the_level_for_it() -> None:
    # GIVEN one who holds most and of whose may go little
    assert given_by(7, ("a", "x", 100, 4), ("b", "x", 10, 10), ("c", "x", 9, 9)) == {
        "a/x": 4,
        "b/x": 2,
        "c/x": 1,
    }


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(0, 99), st.integers(0, 99)
        ),
        unique_by=lambda one: one[:2],
    ),
    st.integers(0, 300),
)
def test_just_as_much_goes_as_is_wanted_and_may(
    rows: list[tuple[str, str, int, int]], wanted: int
) -> None:
    holdings = [Holding(owner, s, held, min(held, may)) for owner, s, held, may in rows]
    found = quotas(holdings, wanted)
    assert sum(found.values()) == min(wanted, sum(one.may_go for one in holdings))
    assert all(found[key] > 0 for key in found)
    by_share = {(one.owner, one.service): one for one in holdings}
    assert all(part <= by_share[key].may_go for key, part in found.items())
