"""Health triggers over samples."""

from __future__ import annotations

from typing import Any

import pytest

from collector.policy.types import Condition, Trigger
from collector.sample.types import Sample
from collector.watch.cgroups import CgroupVitals, MemoryUse, Rate
from collector.watch.triggers import Health, Vitals
from tests.unit.sample_builders import sample, thread

SECOND = 1_000_000_000


def trigger(condition: Condition, above: float, **more: Any) -> Trigger:
    return Trigger(name=condition.value, condition=condition, above=above, **more)


def fired(health: Health, samples: list[Sample], vitals: Vitals | None = None) -> list[int]:
    """The seconds in which it fired."""
    return [one.time_ns // SECOND for one in samples for _ in health.look(one, vitals or Vitals())]


def test_a_thread_that_does_not_run_fires_once() -> None:
    # GIVEN a thread that sleeps for ten seconds, runs, and sleeps for ten again
    health = Health([trigger(Condition.BLOCKED, 4)])
    asleep = [sample(second, thread(switches=1)) for second in range(10)]
    again = [sample(second, thread(switches=2)) for second in range(10, 20)]
    # THEN each sleep is one episode, beyond its bound
    assert fired(health, asleep + again) == [5, 15]


def test_a_thread_that_wakes_up_is_not_blocked() -> None:
    health = Health([trigger(Condition.BLOCKED, 2), trigger(Condition.NO_PROGRESS, 2)])
    polls = [sample(second, thread(switches=second)) for second in range(20)]
    assert fired(health, polls) == []


def test_without_counts_of_switches_time_tells() -> None:
    health = Health([trigger(Condition.BLOCKED, 2)])
    ran = [sample(s, thread(switches=None, runtime_ns=s)) for s in range(5)]
    slept = [sample(s, thread(switches=None, runtime_ns=4)) for s in range(5, 9)]
    assert fired(health, ran + slept) == [7]


def test_a_running_thread_is_not_blocked_even_if_it_is_never_switched() -> None:
    health = Health([trigger(Condition.BLOCKED, 2), trigger(Condition.NO_PROGRESS, 2)])
    runs = [sample(s, thread(state="R", switches=1, runtime_ns=s * SECOND)) for s in range(9)]
    assert fired(health, runs) == []


@pytest.mark.parametrize(("state", "fires"), [("D", [3]), ("S", []), ("T", [])])
def test_only_d_state_is_uninterruptible(state: str, fires: list[int]) -> None:
    health = Health([trigger(Condition.UNINTERRUPTIBLE, 2)])
    assert fired(health, [sample(s, thread(state=state)) for s in range(9)]) == fires


def test_only_named_threads_are_looked_at() -> None:
    health = Health([trigger(Condition.BLOCKED, 2, threads=("worker-2", "io*"))])
    idle = [sample(s, thread(1), thread(3)) for s in range(9)]
    assert fired(health, idle) == []
    hung = [sample(s, thread(1), thread(2)) for s in range(9, 18)]
    assert fired(health, hung) == [12]


def test_a_later_thread_of_the_same_id_is_another() -> None:
    health = Health([trigger(Condition.BLOCKED, 2)])
    assert fired(health, [sample(s, thread(start_ns=s)) for s in range(9)]) == []


def test_one_thread_that_runs_is_progress() -> None:
    health = Health([trigger(Condition.NO_PROGRESS, 2)])
    alive = [sample(s, thread(1), thread(2, switches=s)) for s in range(9)]
    assert fired(health, alive) == []
    still = [sample(s, thread(1), thread(2, switches=8)) for s in range(9, 18)]
    assert fired(health, still) == [11]


def test_cpu_is_of_all_threads_and_has_to_last() -> None:
    # GIVEN two threads that use 0.4 of a CPU each
    health = Health([trigger(Condition.CPU, 0.7, lasting=3)])
    busy = [
        sample(s, *(thread(n, switches=s, runtime_ns=int(s * 0.4 * SECOND)) for n in (1, 2)))
        for s in range(9)
    ]
    # THEN that is above the bound since the first sample
    assert fired(health, busy) == [3]


def test_a_pause_begins_a_new_episode() -> None:
    health = Health([trigger(Condition.RESIDENT, 100, lasting=2)])
    big, small = Vitals(resident=101), Vitals(resident=100)
    assert fired(health, [sample(s, thread()) for s in range(4)], big) == [2]
    assert fired(health, [sample(4, thread())], small) == []
    assert fired(health, [sample(s, thread()) for s in range(5, 9)], big) == [7]


def test_what_is_not_known_does_not_fire() -> None:
    health = Health([trigger(Condition.RESIDENT, 0), trigger(Condition.DESCRIPTORS, 0)])
    assert health.wants_vitals
    assert fired(health, [sample(s, thread()) for s in range(3)], Vitals()) == []
    assert not Health([trigger(Condition.CPU, 1)]).wants_vitals


def test_names_in_the_reason_are_shown_safely() -> None:
    health = Health([trigger(Condition.BLOCKED, 1)])
    samples = [sample(s, thread(name="\x1b[2J`x")) for s in range(3)]
    whys = [firing.why for one in samples for firing in health.look(one, Vitals())]
    assert whys == ["thread `?[2J?x` (1) has not run for 2 s, in state S, in futex"]


def whys(one: Trigger, *looks: CgroupVitals) -> list[str]:
    health = Health([one])
    assert health.wants_cgroups and not health.wants_vitals
    return [
        firing.why
        for second, vitals in enumerate(looks)
        for firing in health.look(sample(second, thread()), Vitals(cgroups=vitals))
    ]


def in_use(of: str | None, used: int, limit: int) -> MemoryUse:
    return MemoryUse(of=of, used=used << 20, limit=limit << 20)


def test_the_level_with_the_least_left_is_named_of_those_above_the_bound() -> None:
    levels = (in_use("/a/b", 8, 10), in_use("/a\x1b[1m", 950, 1000), in_use("/", 9200, 10000))
    assert whys(trigger(Condition.MEMORY, 0.9), CgroupVitals(memory=levels)) == [
        "95% of the memory of cgroup `/a?[1m` is in use, 950 of 1000 MiB, more than 90%"
    ]


def test_memory_of_the_host_is_called_so() -> None:
    looks = [CgroupVitals(memory=(in_use(None, used, 100),)) for used in (90, 91)]
    assert whys(trigger(Condition.MEMORY, 0.9), *looks) == [
        "91% of the memory of the host, as no cgroup of it has a limit, is in use, "
        "91 of 100 MiB, more than 90%"
    ]


def test_pressure_holds_since_the_look_before() -> None:
    looks = [CgroupVitals(), *([CgroupVitals(stalled=Rate(of="/a", value=0.25))] * 3)]
    assert whys(trigger(Condition.PRESSURE, 0.2, lasting=1), *looks) == [
        "tasks of cgroup `/a` waited for memory 25% of the time, more than 20% for 1 s"
    ]
    host = CgroupVitals(stalled=Rate(of=None, value=0.3))
    assert whys(trigger(Condition.PRESSURE, 0.2), host) == [
        "tasks of the host, as its cgroup has no figure of its own, waited for memory "
        "30% of the time, more than 20%"
    ]


def test_events_of_memory_high() -> None:
    high = (Rate(of="/a/b", value=2), Rate(of="/a", value=12))
    looks = [CgroupVitals(), CgroupVitals(high=(Rate(of="/a", value=10),)), CgroupVitals(high=high)]
    assert whys(trigger(Condition.MEMORY_HIGH, 10), *looks) == [
        "cgroup `/a` went beyond its memory.high 12 times a second, more than 10"
    ]


def test_a_trigger_that_cannot_fire_is_named() -> None:
    health = Health([trigger(Condition.MEMORY, 0.9), trigger(Condition.CPU, 1)])
    lost = {"memory": "it is away", "pressure": "no"}
    assert health.unknown(CgroupVitals(lost=lost)) == [("memory", "it is away")]
