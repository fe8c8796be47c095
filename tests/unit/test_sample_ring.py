"""The ring of samples: bounded, and what does not change is kept once."""

from __future__ import annotations

import random

import pytest

from collector.sample.ring import SampleRing
from collector.sample.types import KeptStack
from tests.unit.sample_builders import kept, sample, thread


def test_a_thread_that_sleeps_is_kept_once() -> None:
    # GIVEN a thousand threads that do nothing for a hundred samples
    ring = SampleRing(100, 100 << 20)
    stacks = {b"%d" % tid: kept(8192) for tid in range(1000)}
    sleepers = [thread(tid, stack=b"%d" % tid) for tid in range(1000)]
    ring.add(sample(0, *sleepers), stacks)
    once = ring.bytes
    # WHEN they are sampled again and again
    for second in range(1, 100):
        again = [thread(tid, stack=b"%d" % tid) for tid in range(1000)]
        ring.add(sample(second, *again), stacks)
    # THEN all samples together are not much more than one
    assert len(ring) == 100
    assert ring.bytes < 1.1 * once
    assert ring.samples[99].threads == tuple(sleepers)
    assert ring.samples[99].threads[0] is ring.samples[0].threads[0]


def test_the_oldest_samples_go_with_their_stacks() -> None:
    ring = SampleRing(2, 1 << 20)
    for second in range(4):
        key = b"%d" % second
        ring.add(sample(second, thread(stack=key, runtime_ns=second)), {key: kept()})
    assert [s.time_ns for s in ring.samples] == [2_000_000_000, 3_000_000_000]
    assert set(ring.stacks) == {b"2", b"3"}
    assert ring.dropped == 0  # as many were kept as were asked for


def test_a_stack_goes_with_its_last_user() -> None:
    # GIVEN a thread that came back to an old place
    ring = SampleRing(2, 1 << 20)
    for second, key in enumerate((b"a", b"b", b"a")):
        ring.add(sample(second, thread(stack=key, runtime_ns=second)), {key: kept()})
    # THEN that place is still known, and goes when its last sample does
    assert set(ring.stacks) == {b"a", b"b"}
    for second in (3, 4):
        ring.add(sample(second, thread(runtime_ns=second)), {})
    assert ring.stacks == {}


def test_bytes_are_bounded_and_all_given_back() -> None:
    # GIVEN threads that come, go and move at random
    chance = random.Random(1)
    ring = SampleRing(50, 200_000)
    for second in range(500):
        stacks: dict[bytes, KeptStack] = {}
        threads = []
        for tid in chance.sample(range(40), 20):
            key = b"%d" % chance.randrange(60)
            stacks[key] = kept(int(key) * 20)
            threads.append(thread(tid, stack=key, runtime_ns=chance.randrange(3)))
        ring.add(sample(second, *threads), stacks)
        assert 0 < ring.bytes <= 200_000
        assert {t.stack for s in ring.samples for t in s.threads} == set(ring.stacks)
    # THEN nothing is left over when all have gone
    empty = sample(999)
    for _ in range(50):
        ring.add(empty, {})
    assert (ring.bytes, dict(ring.stacks)) == (50 * 512, {})


def test_a_sample_that_does_not_fit_loses_its_stacks_and_says_so() -> None:
    ring = SampleRing(2, 4000)
    ring.add(sample(0, thread(stack=b"big")), {b"big": kept(5000)})
    (found,) = ring.samples
    assert found.threads == (thread(stack=None),)
    assert "stacks" in found.lost
    # AND one that does not fit without them is counted
    ring.add(sample(1, *(thread(tid) for tid in range(100))), {})
    assert (len(ring), ring.dropped) == (1, 1)


@pytest.mark.parametrize(("samples", "size"), [(0, 1), (1, 0)])
def test_a_ring_holds_something(samples: int, size: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        SampleRing(samples, size)
