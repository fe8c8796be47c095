"""A lane works off what it is given, a bounded amount of it, and says when it cannot."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from collector.fair import FairQueue, Waiting
from collector.workers import Lane

PATIENCE = 10.0  # seconds; a test that waits as long has failed


class Gate:
    """A task that says when it runs and ends when told."""

    def __init__(self) -> None:
        self.running = threading.Event()
        self.go = threading.Event()

    def __call__(self) -> None:
        self.running.set()
        assert self.go.wait(PATIENCE)


def test_no_more_than_its_workers_run_and_no_more_than_its_limit_waits() -> None:
    # GIVEN a lane of two workers, both busy
    lane = Lane("test", 2, 3)
    gates = [Gate() for _ in range(6)]
    for gate in gates[:2]:
        assert lane.submit(gate)
        assert gate.running.wait(PATIENCE)
    # WHEN more is submitted THEN three may wait
    assert [lane.submit(gate) for gate in gates[2:]] == [True, True, True, False]
    assert lane.waiting == 3
    assert not gates[2].running.is_set()
    # AND they run when there is a worker
    for gate in gates:
        gate.go.set()
    assert lane.wait_idle(PATIENCE)
    assert [gate.running.is_set() for gate in gates] == [True] * 5 + [False]
    lane.close()


def test_no_owner_has_all_workers() -> None:
    # GIVEN a lane of three workers, two of which one owner may have
    lane = Lane("test", 3, 10, of_one=2)
    mine, other = [Gate() for _ in range(4)], Gate()
    for gate in mine:
        assert lane.submit(gate, owner="me")
    for gate in mine[:2]:
        assert gate.running.wait(PATIENCE)
    # WHEN another one's task comes THEN it does not wait behind mine
    assert lane.submit(other, owner="other")
    assert other.running.wait(PATIENCE)
    assert not mine[2].running.is_set()
    # AND mine go on, two at a time, when there is a turn for them
    mine[0].go.set()
    assert mine[2].running.wait(PATIENCE)
    assert not mine[3].running.is_set()
    for gate in (*mine, other):
        gate.go.set()
    assert lane.wait_idle(PATIENCE)
    assert mine[3].running.is_set()
    lane.close()


def test_order_and_who_goes_first() -> None:
    # GIVEN a busy lane in which two tasks wait
    lane, gate, order = Lane("test", 1, 10), Gate(), list[str]()
    lane.submit(gate)
    assert gate.running.wait(PATIENCE)
    lane.submit(partial(order.append, "one"))
    lane.submit(partial(order.append, "two"))
    # WHEN two are submitted that dying processes wait for
    lane.submit(partial(order.append, "urgent"), first=True)
    lane.submit(partial(order.append, "urgent too"), first=True)
    gate.go.set()
    # THEN they come first, the older one before the other
    assert lane.wait_idle(PATIENCE)
    assert order == ["urgent", "urgent too", "one", "two"]
    lane.close()


def test_several_of_one_owner_may_come_first() -> None:
    queue = FairQueue(limit=10)
    done: list[int] = []
    # GIVEN tasks that come first and keep nothing in memory
    for number in range(3):
        assert queue.add(Waiting(partial(done.append, number), None, True))
    # THEN each can be taken
    while queue:
        queue.pop().run()
    assert sorted(done) == [0, 1, 2]


def test_a_reserved_worker_is_there_for_whoever_comes_first() -> None:
    # GIVEN a lane of one worker, and one more that is reserved; the one is busy, others wait
    lane = Lane("test", 1, 10, reserved=1)
    busy, usual, urgent, late = Gate(), Gate(), Gate(), Gate()
    lane.submit(busy)
    assert busy.running.wait(PATIENCE)
    lane.submit(usual)
    # WHEN tasks come that a process waits for THEN one runs at once, though no usual one may
    lane.submit(urgent, first=True)
    assert urgent.running.wait(PATIENCE)
    # AND the next one behind it
    lane.submit(late, first=True)
    assert not late.running.is_set()
    for gate in (urgent, late):
        gate.go.set()
        assert gate.running.wait(PATIENCE)
    # AND with both done the usual one still waits for its own worker
    assert lane.waiting == 1
    assert not usual.running.is_set()
    busy.go.set()
    assert usual.running.wait(PATIENCE)
    usual.go.set()
    assert lane.wait_idle(PATIENCE)
    lane.close()


def test_with_a_reserved_worker_all_is_done_in_the_end() -> None:
    # GIVEN many tasks of both kinds in a lane THEN each is done, and usual ones never exceed theirs
    lane = Lane("test", 2, 1000, reserved=1)
    lock, now, most, done = threading.Lock(), [0], [0], list[int]()

    def usual(number: int) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        done.append(number)
        with lock:
            now[0] -= 1

    for number in range(300):
        if number % 3:
            assert lane.submit(partial(usual, number))
        else:
            assert lane.submit(partial(done.append, number), first=True)
    assert lane.wait_idle(PATIENCE)
    assert sorted(done) == list(range(300))
    assert most[0] <= 2
    lane.close()


def test_a_task_that_fails_is_told_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    lane, done = Lane("test", 1, 10), list[int]()
    with caplog.at_level(logging.ERROR):
        lane.submit(lambda: done.append(1 // 0))
        lane.submit(partial(done.append, 7))
        assert lane.wait_idle(PATIENCE)
    assert done == [7]
    assert [record.message for record in caplog.records] == ["test: a task failed"]
    assert "ZeroDivisionError" in caplog.text
    lane.close()


def test_waiting_has_an_end() -> None:
    lane, gate = Lane("test", 1, 10), Gate()
    lane.submit(gate)
    assert lane.wait_idle(0.01) is False
    gate.go.set()
    assert lane.wait_idle(PATIENCE) is True
    lane.close()


def test_a_closed_lane_drops_what_was_not_begun(caplog: pytest.LogCaptureFixture) -> None:
    # GIVEN a lane with one running task and three that wait, of which two say what to do instead
    lane, gate, instead = Lane("test", 1, 10), Gate(), list[str]()
    lane.submit(gate)
    assert gate.running.wait(PATIENCE)
    left = Gate()
    lane.submit(left)
    lane.submit(left, dropped=lambda: instead.append("failed"[9]))
    lane.submit(left, dropped=partial(instead.append, "dropped"))
    # WHEN it is closed THEN it says how many these were, and what they have to say is done
    assert lane.close() == 3
    assert instead == ["dropped"]
    assert [record.message for record in caplog.records] == ["test: a task failed"]
    # THEN it takes nothing more, and what runs comes to its end
    assert lane.submit(left) is False
    gate.go.set()
    assert lane.wait_idle(PATIENCE)
    assert not left.running.is_set()


def test_a_lane_has_its_own_nice_value_whoever_fills_it() -> None:
    # GIVEN a lane that was made to yield
    own = os.getpriority(os.PRIO_PROCESS, 0)
    lane, seen = Lane("test", 1, 1, nice=own + 5), list[int]()
    # WHEN it works THEN only its own threads yield
    lane.submit(lambda: seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
    assert lane.wait_idle(PATIENCE)
    assert seen == [own + 5]
    assert os.getpriority(os.PRIO_PROCESS, 0) == own
    lane.close()


def test_a_system_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN a system that has no thread for a while
    lane = Lane("x", 1, 10)
    start = threading.Thread.start

    def once(_: threading.Thread) -> None:
        monkeypatch.setattr(threading.Thread, "start", start)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", once)
    # THEN that is said, and the lane works as soon as there is one
    assert lane.submit(lambda: None) is False
    done = threading.Event()
    assert lane.submit(done.set)
    assert done.wait(60)
    lane.close()


def test_tasks_that_wait_are_done_together() -> None:
    # GIVEN a lane that enters something around what is done together
    entered = list[int]()

    @contextlib.contextmanager
    def together() -> Iterator[None]:
        begun = len(done)
        yield
        entered.append(len(done) - begun)

    lane, gate, done = Lane("test", 1, 10, together=together), Gate(), list[int]()
    lane.submit(gate)
    assert gate.running.wait(PATIENCE)

    # WHEN several wait while one is done
    for number in range(4):
        lane.submit(partial(done.append, number))
    gate.go.set()
    assert lane.wait_idle(PATIENCE)

    # THEN they are done in their order, together
    assert done == [0, 1, 2, 3]
    assert entered == [4]
    lane.close()


def test_owners_take_turns_and_have_shares() -> None:
    # GIVEN a busy lane
    lane, gate, order = Lane("test", 1, 6, most_bytes=100), Gate(), list[str]()
    lane.submit(gate)
    assert gate.running.wait(PATIENCE)
    # WHEN one owner submits as much as it may, and two others one task each
    mine = [lane.submit(partial(order.append, f"a{n}"), owner="a") for n in range(4)]
    others = [lane.submit(partial(order.append, who), owner=who) for who in ("b", "c")]
    gate.go.set()
    assert lane.wait_idle(PATIENCE)
    # THEN it has half of the places, and nobody waits behind all of them
    assert (mine, others) == ([True, True, True, False], [True, True])
    assert order == ["a0", "b", "c", "a1", "a2"]
    lane.close()


def test_what_waits_is_bounded_in_memory() -> None:
    lane, gate = Lane("test", 1, 10, most_bytes=100), Gate()
    lane.submit(gate)
    assert gate.running.wait(PATIENCE)
    # GIVEN one that is too large, but the only one
    assert lane.submit(gate, owner="a", size=1000)
    # THEN nothing else that keeps memory may wait, but what a process waits for
    assert not lane.submit(gate, owner="b", size=1)
    assert lane.submit(gate, owner="b", size=1, first=True)
    gate.go.set()
    assert lane.wait_idle(PATIENCE)
    # AND an owner has half of it
    again = Gate()
    lane.submit(again)
    assert again.running.wait(PATIENCE)
    sizes = [lane.submit(again, owner="a", size=30) for _ in range(2)]
    assert (sizes, lane.submit(again, owner="b", size=30)) == ([True, False], True)
    again.go.set()
    assert lane.wait_idle(PATIENCE)
    lane.close()


def test_it_knows_whose_tasks_wait_and_how_long_one_takes() -> None:
    # GIVEN a lane whose two workers are busy
    lane = Lane("test", 2, 10)
    usual = lane.each_s
    gates = [Gate(), Gate()]
    for gate in gates:
        lane.submit(gate, owner="one")
        assert gate.running.wait(PATIENCE)
    # WHEN tasks wait THEN each is its owner's
    for owner in ("one", "one", "other"):
        lane.submit(lambda: None, owner=owner)
    assert [lane.waiting_of(owner) for owner in ("one", "other", "nobody")] == [2, 1, 0]
    # AND tasks that take no time are expected to go on so
    for gate in gates:
        gate.go.set()
    assert lane.wait_idle(PATIENCE)
    for _ in range(100):
        lane.submit(lambda: None)
        assert lane.wait_idle(PATIENCE)
    assert lane.each_s < usual
    lane.close()


def test_what_is_in_a_lane_now_is_told_from_what_comes_later() -> None:
    # GIVEN a lane of two workers with two tasks at work, and one that waits
    lane = Lane("test", 2, 10)
    first, second, third, later = Gate(), Gate(), Gate(), Gate()
    for gate in (first, second, third):
        assert lane.submit(gate)
    assert first.running.wait(PATIENCE) and second.running.wait(PATIENCE)
    are_done = lane.all_so_far()
    # WHEN one of them goes on THEN it is not done, however many others are
    second.go.set()
    third.go.set()
    assert lane.submit(later)
    assert later.running.wait(PATIENCE)
    later.go.set()
    assert not are_done()
    # AND WHEN it has ended THEN all are, though another one is at work
    last = Gate()
    assert lane.submit(last)
    assert last.running.wait(PATIENCE)
    first.go.set()
    _wait_until(are_done)
    last.go.set()
    assert lane.wait_idle(PATIENCE)
    lane.close()


def _wait_until(is_so: Callable[[], bool]) -> None:
    moment = threading.Event()
    for _ in range(int(PATIENCE * 1000)):
        if is_so():
            return
        moment.wait(0.001)
    raise AssertionError("it does not come to that")
