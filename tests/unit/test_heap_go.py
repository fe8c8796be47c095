"""Go's memory profile by its memory: what is counted, and that nothing hostile is."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.explain.pclntab import LineTable
from collector.heap.golang import sampled_sites
from collector.heap.memory import OutOfBudget
from tests.unit.heap_samples import FakeCore

HEAD = 0x500000  # mbuckets
BUCKETS = 0xC000000000
RATE = 512 << 10
HERE, THERE = (0x401000, 0x402000), (0x401234,)


def profile(*buckets: tuple[int, tuple[int, ...], list[tuple[int, int]]], wide: bool) -> FakeCore:
    """A list of buckets: size of the objects, stack, and for each cycle how many were taken and
    given back."""
    core = FakeCore()
    core.area(HEAD, 8)
    core.area(BUCKETS, 0x10000)
    at = BUCKETS
    core.put(HEAD, at if buckets else 0)
    for number, (size, stack, cycles) in enumerate(buckets):
        following = BUCKETS + 0x1000 * (number + 1) if number + 1 < len(buckets) else 0
        core.put(at, 0, following, 1, 0xABC, size, len(stack), *stack)
        record = [
            word
            for taken, given_back in cycles
            for word in (
                (taken, given_back, taken * size, given_back * size)
                if wide
                else (taken, given_back)
            )
        ]
        core.put(at + 48 + 8 * len(stack), *record)
        at = following
    return core


def scaled(size: int, count: int) -> tuple[float, float]:
    """What so many samples stand for, as pprof says: scaleHeapSample."""
    scale = 1 / (1 - math.exp(-size / RATE))
    return count * scale, count * size * scale


@pytest.mark.parametrize("wide", [True, False], ids=["1.19", "1.27"])
def test_what_is_in_use_by_its_stack(wide: bool) -> None:
    # GIVEN two sizes that one place allocated, in different cycles of collection, and one that
    # another place has given back
    core = profile(
        (1 << 20, HERE, [(10, 4), (0, 0), (3, 0), (0, 1)]),
        (64, HERE, [(0, 0), (5, 0), (0, 0), (0, 0)]),
        (4096, THERE, [(7, 7), (0, 0), (0, 0), (0, 0)]),
        wide=wide,
    )
    lost: dict[str, str] = {}
    sites = sampled_sites(core.memory(), HEAD, RATE, lost)
    # THEN the first has what of both is in use, scaled each by its own size
    large, small = scaled(1 << 20, 8), scaled(64, 5)
    assert sites == {HERE: pytest.approx((large[0] + small[0], large[1] + small[1]))}
    assert lost == {}


def test_all_is_sampled() -> None:
    core = profile((100, HERE, [(3, 1), (0, 0), (0, 0), (0, 0)]), wide=True)
    assert sampled_sites(core.memory(), HEAD, 1, {}) == {HERE: (2.0, 200.0)}


def test_no_bucket() -> None:
    assert sampled_sites(profile(wide=True).memory(), HEAD, RATE, {}) == {}


def test_a_list_without_end() -> None:
    one = (64, HERE, [(2, 0), (0, 0), (0, 0), (0, 0)])
    core = profile(one, one, wide=True)
    core.put(BUCKETS + 0x1000 + 8, BUCKETS)
    lost: dict[str, str] = {}
    # THEN what came before it comes again is there, and it is said
    assert sampled_sites(core.memory(), HEAD, RATE, lost) == {HERE: pytest.approx(scaled(64, 4))}
    assert lost == {"sites": "only 2 stacks were read: their list has no end"}


@pytest.mark.parametrize(
    ("word", "value"),
    [(2, 2), (2, 0), (5, 0), (5, 1 << 40)],
    ids=["another profile's", "of no kind", "no stack", "an endless stack"],
)
def test_a_bucket_that_is_none(word: int, value: int) -> None:
    core = profile((64, HERE, [(2, 0)] * 4), wide=True)
    core.put(BUCKETS + 8 * word, value)
    with pytest.raises(ValueError, match="their list is damaged"):
        sampled_sites(core.memory(), HEAD, RATE, {})


@pytest.mark.parametrize(("taken", "given_back"), [(1, 5), (1 << 60, 0), (1 << 37, 0)])
def test_numbers_that_make_no_sense(taken: int, given_back: int) -> None:
    core = profile((64, HERE, [(taken, given_back), (0, 0), (0, 0), (0, 0)]), wide=False)
    lost: dict[str, str] = {}
    assert sampled_sites(core.memory(), HEAD, RATE, lost) == {}
    assert lost == {"sites": "the numbers of some stacks make no sense"}


def test_no_time() -> None:
    core = profile((64, HERE, [(2, 0)] * 4), wide=True)
    with pytest.raises(OutOfBudget):
        sampled_sites(core.memory(seconds=-1.0), HEAD, RATE, {})


HEADER = struct.Struct("<IxxBB8Q")


@given(
    magic=st.sampled_from([0xFFFFFFF0, 0xFFFFFFF1]),
    functions=st.integers(0, 40),
    offsets=st.lists(st.integers(0, 600), min_size=5, max_size=5),
    body=st.binary(max_size=512),
    pc=st.integers(0, 1 << 12),
)
def test_a_table_of_lines_that_is_nonsense(
    magic: int, functions: int, offsets: list[int], body: bytes, pc: int
) -> None:
    # GIVEN any bytes behind a header that is right, WHEN something is looked up
    data = HEADER.pack(magic, 1, 8, functions, 1, 0, *offsets) + body
    try:
        table = LineTable(data)
        table.place(0, 0, lambda at, size: body[at : at + size])
        places = table.places(pc, 0)
    except (ValueError, struct.error, IndexError):
        return
    # THEN it ends, with errors that are known, or with places of bounded number
    assert len(places) <= 64
