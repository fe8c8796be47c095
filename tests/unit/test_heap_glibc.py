"""glibc's heap by its memory: what is counted, and that nothing hostile is."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.heap.glibc import read_glibc
from collector.heap.glibc_arenas import find_arenas, find_parameters
from collector.heap.glibc_chunks import Tally, walk
from collector.heap.glibc_freed import Freed, fast_chunks, thread_caches
from collector.heap.memory import Budget, Memory, NotInCore, OutOfBudget
from collector.model import Allocator, HeapArena, HeapProfile, HeapSize
from tests.unit.heap_samples import (
    ARENA,
    BEGIN,
    BINS,
    FREE,
    IN_USE,
    LIBC,
    PARAMETERS,
    FakeCore,
    FakeObjects,
    chunks,
    glibc_heap,
)

PIECES = [(0x30, IN_USE), (0x400, FREE), (0x30, IN_USE), (0x1010, IN_USE), (0x20, FREE)]


def tally_of(core: FakeCore, begin: int = BEGIN) -> Tally:
    """What is counted of the main arena."""
    ring = find_arenas(core.memory(), core.data())
    assert ring is not None
    tally = Tally()
    walk(core.memory(), begin, ring.arenas[0].top, tally)
    return tally


def test_the_main_arena_is_found_by_its_bins() -> None:
    core = glibc_heap(PIECES)
    ring = find_arenas(core.memory(), core.data())
    assert ring is not None and ring.whole
    (arena,) = ring.arenas
    assert (arena.address, arena.bins) == (ARENA, BINS)
    assert arena.system == sum(size for size, _ in PIECES) + 0x1000


def test_bins_of_which_one_is_not_empty() -> None:
    core = glibc_heap(PIECES)
    # GIVEN a free chunk in the first bin, which points back
    head, chunk = BINS - 16, BEGIN + 0x30
    core.put(BINS, chunk, chunk)
    core.put(chunk + 16, head, head)
    assert find_arenas(core.memory(), core.data()) is not None
    # WHEN it does not
    core.put(chunk + 16, head, head + 16)
    # THEN that is no arena
    assert find_arenas(core.memory(), core.data()) is None


@pytest.mark.parametrize("following", [0, LIBC, ARENA + 16, 1 << 63])
def test_a_ring_that_leads_elsewhere(following: int) -> None:
    core = glibc_heap(PIECES)
    core.put(BINS + 16 * 127 + 16, following)
    assert find_arenas(core.memory(), core.data()) is None


def test_a_ring_without_end() -> None:
    # GIVEN an arena in a heap of its own, which leads to itself and not to the main one
    core = glibc_heap(PIECES)
    other = 0x7E0000000030
    core.area(other & -(64 << 20), 0x1000)
    core.put(BINS + 16 * 127 + 16, other)
    core.put(other + 112 + 16 * 127 + 16, other)
    assert find_arenas(core.memory(), core.data()) is None


def test_other_arenas_that_the_core_lacks() -> None:
    core = glibc_heap(PIECES)
    core.put(BINS + 16 * 127 + 16, 0x7E0000000030)
    ring = find_arenas(core.memory(), core.data())
    assert ring is not None
    assert (len(ring.arenas), ring.whole) == (1, False)


def test_data_that_is_no_arena() -> None:
    core = FakeCore()
    core.area(LIBC, 1 << 16)
    assert find_arenas(core.memory(), core.data()) is None


def test_chunks_in_use_and_free() -> None:
    tally = tally_of(glibc_heap(PIECES))
    assert tally.sizes == {0x30: 2, 0x1010: 1}
    assert tally.free == 0x420


def test_parameters() -> None:
    core = glibc_heap(PIECES)
    ring = find_arenas(core.memory(), core.data())
    assert ring is not None
    main = ring.arenas[0]
    found = find_parameters(core.memory(), core.data(), main, core.is_writable)
    assert found is not None
    assert (found.begin, found.mapped, found.mapped_count) == (BEGIN, 3 << 22, 3)
    # WHEN the numbers contradict each other
    struct.pack_into("<4i", core.areas[LIBC], PARAMETERS - LIBC + 60, 4, 65536, 3, 0)
    assert find_parameters(core.memory(), core.data(), main, core.is_writable) is None


@pytest.mark.parametrize("size", [0, 8, 0x10, 0x38, 1 << 40, (1 << 64) - 16])
def test_a_chunk_whose_size_is_a_lie(size: int) -> None:
    core = glibc_heap(PIECES)
    core.put(BEGIN + 0x30 + 8, size | IN_USE)
    with pytest.raises(ValueError, match="its chunks cannot be followed beyond"):
        tally_of(core)


@pytest.mark.parametrize("fenced", [True, False])
def test_an_end_that_is_no_chunk(fenced: bool) -> None:
    core = glibc_heap(PIECES)
    with pytest.raises(ValueError, match="its chunks cannot end at 0x550000001003"):
        walk(core.memory(), BEGIN, BEGIN + 0x1003, Tally(), fenced=fenced)


def test_chunks_of_too_many_sizes() -> None:
    # GIVEN an arena of which chunks of 65,537 sizes were seen
    tally = Tally(counts=dict.fromkeys(range(33, 33 + 16 * 65_537, 16), 1))
    # THEN its next block is not looked at
    with pytest.raises(ValueError, match="have more than 65536 sizes"):
        walk(glibc_heap(PIECES).memory(), BEGIN, BEGIN + 0x1000, tally)


def test_a_walk_without_time() -> None:
    core = glibc_heap(PIECES)
    with pytest.raises(OutOfBudget):
        walk(core.memory(seconds=-1.0), BEGIN, BEGIN + 0x1000, Tally())


def test_a_heap_that_ends_in_two_headers() -> None:
    core = FakeCore()
    core.area(BEGIN, 0x1000)
    chunks(core, BEGIN, [(0x400, IN_USE), (0xBE0, FREE)], 0x10)
    core.put(BEGIN + 0xFE0 + 8, 0x10)
    core.put(BEGIN + 0xFF0 + 8, IN_USE)
    tally = Tally()
    walk(core.memory(), BEGIN, BEGIN + 0x1000, tally, fenced=True)
    assert (tally.sizes, tally.free) == ({0x400: 1}, 0xBE0)


def mixed(at: int, link: int) -> int:
    """A link as PROTECT_PTR of glibc makes it."""
    return at >> 12 ^ link


@pytest.mark.parametrize("protected", [True, False])
def test_fast_bins(protected: bool) -> None:
    # GIVEN three chunks, of which two are in the second fast bin
    core = glibc_heap([(0x30, IN_USE)] * 3)
    first, second = BEGIN, BEGIN + 0x60
    for at, link in ((first + 16, second), (second + 16, 0)):
        core.put(at, mixed(at, link) if protected else link)
    freed = Freed([(BEGIN, BEGIN + 0x90, 0)])
    fast_chunks(core.memory(), [0, first], freed)
    assert (freed.count, freed.bytes, freed.sizes) == ({0: 2}, {0: 0x60}, {0x30: 2})


@pytest.mark.parametrize("link", [BEGIN, BEGIN + 0x60, BEGIN + 0x38, LIBC, 8])
def test_a_fast_bin_that_is_circular_or_leads_elsewhere(link: int) -> None:
    core = glibc_heap([(0x30, IN_USE), (0x30, IN_USE), (0x40, IN_USE)])
    core.put(BEGIN + 16, mixed(BEGIN + 16, link))
    freed = Freed([(BEGIN, BEGIN + 0xA0, 0)])
    with pytest.raises(ValueError, match="a fast bin is damaged"):
        fast_chunks(core.memory(), [0, BEGIN], freed)
    assert freed.count == {}


def cache_of(entries: int, said: int) -> FakeCore:
    """A thread's cache, the first chunk, and chunks of 0x30 of which `entries` are in it."""
    core = glibc_heap([(0x290, IN_USE)] + [(0x30, IN_USE)] * 8)
    places = [BEGIN + 0x290 + 0x30 * number + 16 for number in range(entries)]
    struct.pack_into("<H", core.areas[BEGIN], 16 + 2, said)
    core.put(BEGIN + 16 + 128 + 8, *places[:1])
    for at, following in zip(places, [*places[1:], 0], strict=True):
        core.put(at, mixed(at, following))
    return core


def test_a_cache_of_a_thread() -> None:
    core = cache_of(entries=3, said=3)
    freed = Freed([(BEGIN, BEGIN + 0x290 + 8 * 0x30, 0)])
    thread_caches(core.memory(), [BEGIN], freed)
    assert (freed.count, freed.bytes, freed.doubtful) == ({0: 3}, {0: 0x90}, 0)


@pytest.mark.parametrize(("entries", "said"), [(3, 2), (3, 4), (3, 0), (3, 65535)])
def test_a_cache_that_does_not_fit_its_counts(entries: int, said: int) -> None:
    core = cache_of(entries, said)
    freed = Freed([(BEGIN, BEGIN + 0x290 + 8 * 0x30, 0)])
    thread_caches(core.memory(), [BEGIN], freed)
    assert (freed.count, freed.doubtful) == ({}, 1)


def test_memory_that_the_core_says_it_lacks() -> None:
    missing = [(BEGIN + 0x1000, BEGIN + 0x2000)]
    lacking = Memory(glibc_heap(PIECES), Budget(seconds=60.0), missing)
    with pytest.raises(NotInCore, match="memory at 0x550000001000 is not in the core"):
        lacking.block(BEGIN + 0xFF8, 16)
    assert len(lacking.block(BEGIN + 0xFF0, 16)) == 16


def whole(core: FakeCore) -> HeapProfile | None:
    return read_glibc(core.memory(), FakeObjects(core))  # type: ignore[arg-type]


def test_the_whole_heap() -> None:
    profile = whole(glibc_heap(PIECES))
    assert profile == HeapProfile(
        allocator=Allocator.GLIBC,
        in_use=0x1070,
        objects=3,
        sizes=[HeapSize(size=0x1010, count=1), HeapSize(size=0x30, count=2)],
        arenas=[
            HeapArena(address=ARENA, system=0x2490, in_use=0x1070, chunks=3, free=0x420, top=0x1000)
        ],
        arena_count=1,
        mapped=3 << 22,
        mapped_count=3,
    )


def test_a_heap_with_gaps() -> None:
    # GIVEN a main arena that has more from the kernel than lies between its begin and its end
    core = glibc_heap(PIECES)
    core.put(BINS + 16 * 127 + 16 + 24, 0x100000)
    profile = whole(core)
    # THEN there is no number for what is in use
    assert profile is not None
    assert (profile.in_use, profile.objects, profile.arenas[0].in_use) == (None, None, None)
    assert profile.arenas[0].lost == "it has parts that are not known"
    assert profile.lost["in_use"] == "1 of 1 arenas: it has parts that are not known"


# a word, and what it is overwritten with: near to what was there, or anything
DAMAGE = st.tuples(
    st.one_of(
        st.integers(0, 0x1FF).map(lambda number: LIBC + 8 * number),
        st.integers(0, 0x491).map(lambda number: BEGIN + 8 * number),
    ),
    st.one_of(
        st.sampled_from([0, 1, LIBC, ARENA, BINS - 16, BEGIN, BEGIN + 0x30, (1 << 64) - 16]),
        st.integers(-64, 64).map(lambda near: BEGIN + 0x1490 + near),
        st.integers(0, 1 << 12),
        st.integers(0, (1 << 64) - 1),
    ),
)


@given(st.lists(DAMAGE, max_size=6))
def test_any_damage_ends_in_numbers_that_fit_each_other(damage: list[tuple[int, int]]) -> None:
    core = glibc_heap([(0x290, IN_USE), *PIECES])
    for address, value in damage:
        core.put(address, value)
    try:
        profile = whole(core)
    except NotInCore:
        return
    if profile is None:
        return
    for arena in profile.arenas:
        if arena.in_use is None:
            assert arena.lost
            assert profile.in_use is None
        elif arena.system:
            assert arena.in_use + (arena.free or 0) + (arena.top or 0) <= arena.system
    assert msgspec.json.decode(msgspec.json.encode(profile), type=HeapProfile) == profile
