"""Events and hand-offs of one death are joined, and each death is given out once."""

from __future__ import annotations

import pytest

from collector.agent import registry
from collector.agent.crash import State
from collector.agent.registry import Registry
from collector.model import ProcessKey
from tests.unit.event_samples import KEY, TICK, ended, fatal, oom

LATER = ProcessKey(KEY.pid, KEY.start_ns + 500 * TICK)  # another process with the same pid


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds; a test moves it."""
    now = [1000.0]
    monkeypatch.setattr(registry.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("difference_ns", "same"),
    [(0, True), (-1234, True), (-1235, False), (TICK - 1235, True), (TICK - 1234, False)],
)
def test_start_times_are_compared_by_their_tick(difference_ns: int, same: bool) -> None:
    assert KEY.is_same(ProcessKey(KEY.pid, KEY.start_ns + difference_ns)) is same


def test_another_pid_is_another_process() -> None:
    assert not KEY.is_same(ProcessKey(KEY.pid + 1, KEY.start_ns))


def test_a_death_that_nobody_holds_is_complete_with_its_end() -> None:
    # GIVEN a fatal signal of two threads, and the out-of-memory killer's choice
    seen, first, second = Registry(), fatal(), fatal(signal=6)
    assert [seen.note(event) for event in (oom(), first, second)] == [None] * 3
    # WHEN the process ends
    end = ended()
    death = seen.note(end)
    # THEN all of it is given out, the first signal counts, and nothing is left
    assert death is not None
    assert (death.seen.fatal, death.seen.exit, death.seen.oom) == (first, end, oom())
    assert death.state is State.SEEN
    assert not seen.waits


def test_a_held_death_is_not_given_out_before_it_is_settled() -> None:
    # GIVEN a process that was handed over: its key is exact to a tick only
    seen = Registry()
    seen.note(fatal())
    death = seen.hold(ProcessKey(KEY.pid, 5_000 * TICK))
    assert death.seen.fatal == fatal()
    # WHEN its end is seen while it is worked on
    assert seen.note(ended()) is None
    # THEN it is complete when that work is done
    assert seen.settle(death, blind=False) is True
    assert death.seen.exit == ended()
    assert not seen.waits


def test_a_settled_death_waits_for_its_end() -> None:
    # GIVEN a capture that was done before the end of the process was seen
    seen = Registry()
    seen.note(fatal())
    death = seen.hold(KEY)
    assert seen.settle(death, blind=False) is False
    # WHEN it is seen THEN the same death is given out, once
    assert seen.note(ended()) is death
    assert death.state is State.DONE
    assert not seen.waits
    assert seen.abandoned(all_done=True) == []


def test_a_hand_off_that_came_to_nothing() -> None:
    # GIVEN two deaths that were let go of, one before and one after its end
    seen = Registry()
    early = seen.hold(KEY)
    assert seen.give_back(early, "it was gone", blind=False) is False
    late = seen.hold(ProcessKey(900, 7 * TICK))
    seen.note(ended(late.key))
    # THEN each is given out as one that nobody held, with the reason
    assert seen.note(ended()) is early
    assert seen.give_back(late, "no room", blind=False) is True
    assert [(death.state, death.not_held) for death in (early, late)] == [
        (State.SEEN, "it was gone"),
        (State.SEEN, "no room"),
    ]
    assert not seen.waits


def test_an_end_that_never_comes(clock: list[float]) -> None:
    # GIVEN a settled death, one that is being worked on, and one that only BPF saw
    seen = Registry()
    settled = seen.hold(KEY)
    seen.settle(settled, blind=False)
    seen.hold(ProcessKey(900, 0))
    seen.note(fatal(ProcessKey(901, 0)))
    # THEN none is given up at once
    assert seen.abandoned() == []
    # AND a settled one soon, one that was only seen later, one that is worked on never
    clock[0] += 6
    assert seen.abandoned() == [settled]
    clock[0] += 1000
    assert [death.key.pid for death in seen.abandoned()] == [901]
    assert seen.waits


def test_a_stopping_agent_waits_for_no_end() -> None:
    seen = Registry()
    settled = seen.hold(KEY)
    seen.settle(settled, blind=False)
    assert seen.abandoned(all_done=True) == [settled]


def test_a_pid_that_is_used_again(clock: list[float]) -> None:
    # GIVEN a death whose end was lost, and a later process with its pid
    seen = Registry()
    seen.note(fatal())
    later = seen.note(ended(LATER))
    # THEN they are two deaths
    assert later is not None
    assert later.key == LATER
    assert later.seen.fatal is None
    clock[0] += 1000
    assert [death.key for death in seen.abandoned()] == [KEY]


def test_the_same_pid_while_the_first_is_worked_on() -> None:
    # GIVEN a held process whose pid is used again already
    seen = Registry()
    held = seen.hold(KEY)
    seen.note(ended())
    assert seen.note(ended(LATER)) is not None
    # THEN settling the first neither fails nor takes the other's place
    assert seen.settle(held, blind=False) is True
    assert held.seen.exit == ended()
    assert not seen.waits
