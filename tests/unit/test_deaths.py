"""Events and hand-offs of one death are joined, and each death is given out once."""

from __future__ import annotations

import pytest

from collector.agent import correlate
from collector.agent.correlate import Deaths
from collector.model import ProcessKey
from tests.unit.event_samples import KEY, TICK, ended, fatal, oom

LATER = ProcessKey(KEY.pid, KEY.start_ns + 500 * TICK)  # another process with the same pid


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds; a test moves it."""
    now = [1000.0]
    monkeypatch.setattr(correlate.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("difference_ns", "same"),
    [(0, True), (TICK, True), (-TICK, True), (2 * TICK, False), (500 * TICK, False)],
)
def test_start_times_are_compared_to_a_tick(difference_ns: int, same: bool) -> None:
    assert KEY.is_same(ProcessKey(KEY.pid, KEY.start_ns + difference_ns)) is same


def test_another_pid_is_another_process() -> None:
    assert not KEY.is_same(ProcessKey(KEY.pid + 1, KEY.start_ns))


def test_a_death_that_nobody_holds_is_complete_with_its_end() -> None:
    # GIVEN a fatal signal of two threads, and the out-of-memory killer's choice
    seen, first, second = Deaths(), fatal(), fatal(signal=6)
    assert [seen.note(event) for event in (oom(), first, second)] == [None] * 3
    # WHEN the process ends
    end = ended()
    death = seen.note(end)
    # THEN all of it is given out, the first signal counts, and nothing is left
    assert death is not None
    assert (death.fatal, death.exit, death.oom) == (first, end, oom())
    assert not death.held
    assert not seen.waits


def test_a_held_death_is_not_given_out_before_it_is_settled() -> None:
    # GIVEN a process that was handed over: its key is exact to a tick only
    seen = Deaths()
    seen.note(fatal())
    death = seen.hold(ProcessKey(KEY.pid, 5_000 * TICK))
    assert death.fatal == fatal()
    # WHEN its end is seen while it is worked on
    assert seen.note(ended()) is None
    # THEN it is complete when that work is done
    assert seen.settle(death) is True
    assert death.exit == ended()
    assert not seen.waits


def test_a_settled_death_waits_for_its_end() -> None:
    # GIVEN a capture that was done before the end of the process was seen
    seen = Deaths()
    seen.note(fatal())
    death = seen.hold(KEY)
    assert seen.settle(death) is False
    # WHEN it is seen THEN the same death is given out, once
    assert seen.note(ended()) is death
    assert death.held
    assert not seen.waits
    assert seen.abandoned(all_settled=True) == []


def test_a_hand_off_that_came_to_nothing() -> None:
    # GIVEN two deaths that were let go of, one before and one after its end
    seen = Deaths()
    early = seen.hold(KEY)
    assert seen.let_go(early, "it was gone") is False
    late = seen.hold(ProcessKey(900, 7 * TICK))
    seen.note(ended(late.key))
    # THEN each is given out as one that nobody held, with the reason
    assert seen.note(ended()) is early
    assert seen.let_go(late, "no room") is True
    assert [(d.held, d.why) for d in (early, late)] == [(False, "it was gone"), (False, "no room")]
    assert not seen.waits


def test_an_end_that_never_comes(clock: list[float]) -> None:
    # GIVEN a settled death, one that is being worked on, and one that only BPF saw
    seen = Deaths()
    settled = seen.hold(KEY)
    seen.settle(settled)
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
    seen = Deaths()
    settled = seen.hold(KEY)
    seen.settle(settled)
    assert seen.abandoned(all_settled=True) == [settled]


def test_a_pid_that_is_used_again() -> None:
    # GIVEN a death whose end was lost, and a later process with its pid
    seen = Deaths()
    seen.note(fatal())
    later = seen.note(ended(LATER))
    # THEN they are two deaths
    assert later is not None
    assert later.key == LATER
    assert later.fatal is None
    assert [death.key for death in seen.abandoned()] == [KEY]


def test_the_same_pid_while_the_first_is_worked_on() -> None:
    # GIVEN a held process whose pid is used again already
    seen = Deaths()
    held = seen.hold(KEY)
    seen.note(ended())
    assert seen.note(ended(LATER)) is not None
    # THEN settling the first neither fails nor takes the other's place
    assert seen.settle(held) is True
    assert held.exit == ended()
    assert not seen.waits
